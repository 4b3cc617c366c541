"""What MIPS kernels keep in their own way: page tables full of pointers, tasks at the bottom of stacks, data that code names."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence

import pytest

from guest.data_symbols import add_data_symbols
from guest.finder import find_kernel
from guest.found_types import FoundTypes
from guest.memory import run_steps
from guest.own_table import find_pointer_table
from guest.paging import AddressSpace, FreshSpace
from guest.structs import Structs
from guest.symbol_rows import SymbolRows
from guest.tasks import TaskReader
from guest.words import Words
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from unwind.arch import Architecture
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mipsel import MIPSEL

KSEG0, CKSEG0, XKPHYS = 0x8000_0000, 0xFFFF_FFFF_8000_0000, 0x9800_0000_0000_0000
ROOT, NONE, TABLE, LAST = 0x10_0000, 0x10_2000, 0x10_3000, 0x10_4000
USER, HUGE = 0x40_3123, 0x80_1234


def memory_of(architecture: Architecture) -> BytesMemory:
    """A process with a page at 0x403000, on the 64-bit processor with a large one of 2 MiB at 0x800000, too."""
    if architecture is MIPSEL:
        root = [KSEG0 + NONE] * 1024
        root[1] = KSEG0 + LAST
        last = [0] * 1024
        last[3] = 0x0765_4000 | 0x1
        pages = {ROOT: root, NONE: [0] * 1024, LAST: last}
        return BytesMemory({at: struct.pack("<1024I", *page) for at, page in pages.items()})
    root, middle, last = [CKSEG0 + NONE] * 1024, [CKSEG0 + TABLE + 0x2000] * 512, [0] * 512
    root[0], middle[2], last[3] = XKPHYS + TABLE, XKPHYS + LAST, 0x0765_4000 << 2 | 0x1
    middle[4] = 0x0760_0000 << 2 | 0x11
    pages = {TABLE: middle, LAST: last, TABLE + 0x2000: [0] * 512, NONE: [CKSEG0 + TABLE + 0x2000] * 512}
    return BytesMemory({ROOT: struct.pack("<1024Q", *root), **{at: struct.pack("<512Q", *page) for at, page in pages.items()}})


def translators(architecture: Architecture) -> tuple[Callable[[int], int | None], ...]:
    memory, tables = memory_of(architecture), architecture.paging.tables({})
    return AddressSpace(memory, tables, ROOT).translate, FreshSpace(memory, tables, ROOT).translate


@pytest.mark.parametrize("architecture", [MIPSEL, MIPS64EL], ids=lambda architecture: str(architecture.name))
def test_entries_that_are_pointers_to_tables(architecture: Architecture) -> None:
    for translate in translators(architecture):
        assert translate(USER) == 0x765_4123
        assert translate(USER + 0x1000) is None  # not present
        assert translate(0x4000_0000) is None  # the table that maps nothing


def test_a_large_page_among_pointers() -> None:
    for translate in translators(MIPS64EL):
        assert translate(HUGE) == 0x760_1234


def test_no_register_tells_a_table() -> None:
    """What the processor maps without one is all there is."""
    for architecture, segment in ((MIPSEL, KSEG0), (MIPS64EL, CKSEG0), (MIPS64EL, XKPHYS)):
        (root,) = architecture.paging.roots({})
        space = AddressSpace(memory_of(architecture), architecture.paging.tables({}), root)
        assert space.translate(segment + 0x123_4567) == 0x123_4567
        assert space.translate(USER) is None
        assert not space.is_linear(USER)


def search(pages: dict[int, bytes], alignment: int = 0x1_0000) -> int | None:
    image = bytearray(0x10_0000)
    for at, page in pages.items():
        image[at : at + len(page)] = page
    memory = BytesMemory({0x100_0000: bytes(image)})
    space = AddressSpace(memory, MIPSEL.paging.tables({}), MIPSEL.paging.roots({})[0])
    return run_steps(find_pointer_table(space, (KSEG0 + 0x100_1000, KSEG0 + 0x110_0000), alignment))


FULL = struct.pack("<1024I", *[KSEG0 + NONE] * 1023, KSEG0 + LAST)
OTHER = struct.pack("<1024I", *[KSEG0 + NONE] * 1023, KSEG0 + LAST + 4)


def test_the_first_page_that_is_full_of_pointers() -> None:
    assert search({0x2_0000: OTHER, 0x3_1000: FULL, 0x4_0000: FULL, 0x8_0000: FULL}) == 0x104_0000
    assert search({0x2_0000: OTHER, 0x3_1000: FULL}) is None
    assert search({0x4_0000: FULL}, 0) is None


TASK, THREAD_INFO, STACKS = 0x20_0000, 0x21_0000, 0x22_0000
MEMBERS = {"flags": (12, 4), "stack": (4, 4), "mm": (20, 4), "pid": (32, 4), "tgid": (36, 4), "comm": (48, 16)}
KERNEL, USER_MODE, TAKEN = 0x1000_0001, 0x11, 0x13


def test_the_running_task_by_a_register_or_by_the_stack_of_its_cpu() -> None:
    def task(pid: int, stack: int) -> bytes:
        return struct.pack("<IIIII12xII8x16s", 0, stack, 0, 0, 0, pid, pid, b"task%d" % pid)

    memory = BytesMemory(
        {
            TASK: task(7, KSEG0 + THREAD_INFO).ljust(0x100, b"\0") + task(8, KSEG0 + THREAD_INFO + 0x2000),
            THREAD_INFO: struct.pack("<I", KSEG0 + TASK).ljust(0x2000, b"\0") + struct.pack("<I", KSEG0 + TASK + 0x100),
            STACKS: struct.pack("<II", KSEG0 + THREAD_INFO + 0x1FE0, KSEG0 + THREAD_INFO + 0x3FE0),
        }
    )
    space = AddressSpace(memory, MIPSEL.paging.tables({}), 1 << 40)
    structs = Structs(FoundTypes({"task_struct": MEMBERS}), Words("little", 4))

    def pid(reader: TaskReader, status: int, cpu: int | None, gp: int = 0) -> int | None:
        offset = None if cpu is None else reader.stacks_offset(cpu)
        words = reader.find_running(lambda at, size: space.read_many([(at, size)])[0], {"status": status, "gp": gp}, offset, None)
        return None if words is None else words.pid

    reader = TaskReader(space, SymbolTable.from_symbols([(KSEG0 + STACKS, "D", "kernelsp")]), structs, MIPSEL)
    assert pid(reader, KERNEL, 0, KSEG0 + THREAD_INFO + 0x2000) == 8  # the register comes first
    assert (pid(reader, USER_MODE, 0), pid(reader, USER_MODE, 1)) == (7, 8)
    assert pid(reader, TAKEN, 1, KSEG0 + THREAD_INFO) == 8
    nameless = TaskReader(space, SymbolTable.from_symbols([(KSEG0, "D", "other")]), structs, MIPSEL)
    assert pid(nameless, USER_MODE, 0) is None
    assert pid(nameless, KERNEL, 0, KSEG0 + THREAD_INFO) == 7


def test_data_that_only_code_names() -> None:
    code = bytes(16) + bytes.fromhex("16821b3c c2d51a00 21d87a03 64237d8f")
    memory = BytesMemory({0x100_0000: code + bytes(1 << 20)})
    space = AddressSpace(memory, MIPSEL.paging.tables({}), 1 << 40)

    def found(function: str) -> dict[str, int]:
        rows = SymbolRows(array("Q", [KSEG0 + 0x100_0008]), b"T", [function])
        named = run_steps(add_data_symbols(space, KSEG0 + 0x100_0000, rows, MIPSEL))
        return dict(zip(named.names, named.addresses, strict=True))

    assert found("handle_int")["kernelsp"] == 0x8216_2364
    assert "kernelsp" not in found("handle_sys")


def test_a_vcpu_that_does_not_show_the_image_is_not_asked() -> None:
    """The copy that KASLR left behind would be found first."""
    asked: list[int] = []

    class Memory(BytesMemory):
        def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
            asked.extend(at for at, _size in requests)
            return super().read_many(requests)

    memory = Memory({0x10_0000: bytes(0x1000)})
    for pc, status in ((0x40_0000, USER_MODE), (KSEG0 + 0x58_2200, 0x1000_0003), (KSEG0 + 0x110_0000, 0x1000_0000)):
        assert run_steps(find_kernel(memory, MIPSEL, [{"pc": pc, "status": status}])) is None
    assert not asked
