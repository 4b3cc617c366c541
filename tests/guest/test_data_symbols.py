"""Names of data out of an image whose kallsyms has none."""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.data_symbols import add_data_symbols
from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.symbol_rows import SymbolRows
from tests.builders.btf import Btf
from tests.builders.file_memory import BytesMemory
from tests.builders.page_tables import FOUR_LEVELS, PageTables
from unwind.arch import ByteOrder
from unwind.arch.arm64 import ARM64
from unwind.arch.i386 import I386

IMAGE, PHYSICAL = 0xFFFF_8000_8000_0000, 0x20_0000
SIZE = 0x4_0000
ENTRIES, STRINGS, BTF, BANNER, CALLS = 0x1_0000, 0x1_8000, 0x2_0000, 0x3_8000, 0x3_9000
EXPORTED = {"__per_cpu_offset": 0x3_0010, "cpu_number": 0x3_1008, "init_task": 0x3_2000, "jiffies": 0x3_3000, "vfs_read": 0x800}
CODE = {"vfs_read": 0x800, "__arm64_sys_io_setup": 0x900, "__arm64_sys_io_destroy": 0xA00, "__arm64_sys_io_submit": 0xB00}


def make_image() -> bytearray:
    image = bytearray(SIZE)
    # A linker lets "iffies" end "jiffies"; init_task stands alone.
    strings = b"\0" + b"\0".join(name.encode() for name in EXPORTED) + b"\0"
    image[STRINGS : STRINGS + len(strings)] = strings
    for index, (name, value) in enumerate(EXPORTED.items()):
        at = ENTRIES + 12 * index
        where = STRINGS + strings.index(b"\0" + name.encode() + b"\0") + 1
        struct.pack_into("<3i", image, at, value - at, where - (at + 4), 0)
    btf = Btf()
    number = btf.number(4)
    types = [btf.add(14, name, value=number, rest=bytes(4)) for name in ("cpu_number", "__entry_task", "x" * 1000)]
    btf.add(15, ".data..percpu", 2, 0x1000, struct.pack("<6I", types[0], 8, 4, types[1], 0x2C8, 8))
    section = btf.to_bytes()
    image[BTF : BTF + len(section)] = section
    banner = b"Linux version 6.1.0-test (a@b) #1 SMP\n\0"
    image[BANNER : BANNER + len(banner)] = banner
    for index, name in enumerate(("__arm64_sys_io_setup", "__arm64_sys_io_destroy", "__arm64_sys_io_submit")):
        struct.pack_into("<Q", image, CALLS + 8 * index, IMAGE + CODE[name])
    return image


def add(image: bytes | bytearray) -> dict[str, int]:
    tables = PageTables(0x10_0000)
    tables.map(IMAGE, PHYSICAL, SIZE)
    memory = BytesMemory({tables.root: bytes(tables.memory), PHYSICAL: bytes(image)})
    rows = SymbolRows(array("Q", [IMAGE + value for value in CODE.values()]), b"T" * len(CODE), list(CODE))
    found = run_steps(add_data_symbols(AddressSpace(memory, FOUR_LEVELS, tables.root), IMAGE, rows, ARM64))
    return dict(zip(found.names, found.addresses, strict=True))


def test_exports_per_cpu_variables_and_tables() -> None:
    found = add(make_image())
    for name, value in {**CODE, **EXPORTED}.items():
        assert found[name] == IMAGE + value
    assert found["__entry_task"] == IMAGE + 0x3_1000 + 0x2C8
    assert found["linux_banner"] == IMAGE + BANNER
    assert found["sys_call_table"] == IMAGE + CALLS
    assert found["__start_BTF"] == IMAGE + BTF
    assert found["__stop_BTF"] > found["__start_BTF"]


@pytest.mark.parametrize(("words", "byteorder"), [(3, "<"), (2, "<"), (3, ">")])
def test_exports_by_pointers(words: int, byteorder: str) -> None:
    """As on 32-bit Arm and MIPS; ``struct kernel_symbol`` has a namespace since 5.4."""
    image = bytearray(SIZE)
    low = 0xC000_8000
    names = b"\0" + b"\0".join(name.encode() for name in EXPORTED) + b"\0"
    image[STRINGS : STRINGS + len(names)] = names
    for index, (name, value) in enumerate(EXPORTED.items()):
        entry = (low + value, low + STRINGS + names.index(b"\0" + name.encode() + b"\0") + 1, 0)[:words]
        struct.pack_into(f"{byteorder}{words}I", image, ENTRIES + 4 * words * index, *entry)
    order: ByteOrder = "little" if byteorder == "<" else "big"
    tables = replace(FOUR_LEVELS, linear=((low, low + (1 << 27), PHYSICAL),))
    memory = BytesMemory({PHYSICAL: bytes(image) + bytes(1 << 24)})
    rows = SymbolRows(array("Q", [low + 0x800]), b"T", ["vfs_read"])
    architecture = replace(I386, byteorder=order)
    found = run_steps(add_data_symbols(AddressSpace(memory, tables, 0), low, rows, architecture))
    assert dict(zip(found.names, found.addresses, strict=True)) == {name: low + value for name, value in EXPORTED.items()}


def test_an_image_without_any_of_it_keeps_its_names() -> None:
    assert add(bytes(SIZE)) == {name: IMAGE + value for name, value in CODE.items()}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=16)), max_size=40))
def test_damaged_images_only_lack_names(changes: list[tuple[int, bytes]]) -> None:
    image = make_image()
    for at, data in changes:
        image[at : at + len(data)] = data
    found = add(image[:SIZE])
    assert found["vfs_read"] == IMAGE + CODE["vfs_read"]
