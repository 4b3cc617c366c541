from __future__ import annotations

import struct

from guest.paging import AddressSpace
from guest.system_calls import SystemCalls
from recording.model import SystemCall
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from tests.builders.page_tables import FOUR_LEVELS, PageTables
from tests.builders.words import LITTLE_64

TABLE = 0xFFFF_FFFF_8200_0000
TEXT = 0xFFFF_FFFF_8100_0000
FUNCTIONS = ("__x64_sys_read", "__x64_sys_write", "__x64_sys_ni_syscall", "__ia32_compat_sys_ioctl", "something_else")


def _calls() -> SystemCalls:
    tables = PageTables(0x10_0000)
    tables.map(TABLE, 0x1000)
    addresses = [TEXT + 0x100 * index for index in range(len(FUNCTIONS))]
    memory = BytesMemory(
        {0x10_0000: bytes(tables.memory), 0x1000: struct.pack(f"<{len(addresses)}Q", *addresses).ljust(0x1000, b"\0")}
    )
    rows = [(address, "T", name) for address, name in zip(addresses, FUNCTIONS, strict=True)]
    rows += [(TABLE, "D", "sys_call_table"), (TABLE + 8 * len(FUNCTIONS), "D", "behind")]
    symbols = SymbolTable.from_symbols(rows)
    return SystemCalls(AddressSpace(memory, FOUR_LEVELS, tables.root), symbols, {"64": "sys_call_table", "32": "absent"}, LITTLE_64)


def test_names_are_those_of_the_kernels_table_without_prefixes() -> None:
    calls = _calls()
    assert calls.find("64", 0) == SystemCall("64", 0, "read")
    assert calls.find("64", 1) == SystemCall("64", 1, "write")
    assert calls.find("64", 3) == SystemCall("64", 3, "ioctl")


def test_what_the_table_does_not_name_keeps_its_number() -> None:
    calls = _calls()
    assert calls.find("64", 2) == SystemCall("64", 2, None)
    assert calls.find("64", 4) == SystemCall("64", 4, None)
    assert calls.find("64", 5) == SystemCall("64", 5, None)
    assert calls.find("32", 3) == SystemCall("32", 3, None)


def test_a_number_that_no_kernel_has_is_none() -> None:
    assert _calls().find("64", 0xFFFF_FFFF) is None
