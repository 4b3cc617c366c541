"""What is peculiar to ppc64el kernels' memory: page tables of two shapes, CPUs with a struct each, stacks of two sizes."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from guest.cpus import CpuFacts, read_cpus, stack_size_of
from guest.paging import AddressSpace, FreshSpace
from guest.tasks import TaskReader
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from tests.builders.kernel_structs import HEAP, MAPLE, TASK, Heap, Layout
from unwind.arch.ppc64el import PPC64EL

LINEAR, VMALLOC = 0xC000_0000_0000_0000, 0xC008_0000_0000_0000
MSR = 0x8000_0000_0000_1033
PAGING = PPC64EL.paging
ROOT = 0x276_0000
TABLE, PAGE = 1 << 63, 3 << 62
SIZES_4K, SIZES_64K = (9, 9, 9, 13), (5, 9, 9, 13)
NAMES = ("__pte_index_size", "__pmd_index_size", "__pud_index_size", "__pgd_index_size")


def tables_by(sizes: tuple[int, ...]) -> object:
    return PAGING.kernel_tables(PAGING.tables({}), dict(zip(NAMES, sizes, strict=True)).get)


@pytest.mark.parametrize(("sizes", "shift"), [(SIZES_4K, 12), (SIZES_64K, 16)])
def test_pages_and_large_pages(sizes: tuple[int, ...], shift: int) -> None:
    tables = PAGING.kernel_tables(PAGING.tables({}), dict(zip(NAMES, sizes, strict=True)).get)
    assert (tables.page_shift, tables.index_bits) == (shift, sizes)
    memory = {table: bytearray(8 << 13) for table in range(ROOT, ROOT + 4 * 0x10_0000, 0x10_0000)}

    def put(table: int, index: int, entry: int) -> None:
        struct.pack_into(">Q", memory[ROOT + table * 0x10_0000], 8 * index, entry)

    put(0, 1 << 12, TABLE | ROOT + 0x10_0000 | 9)  # the vmalloc area: bit 51 of an address
    put(1, 0, TABLE | ROOT + 0x20_0000 | 9)
    put(2, 0, TABLE | ROOT + 0x30_0000 | sizes[0])
    put(2, 1, PAGE | 0x4000_0000 | 0x18E)  # 2 MiB
    put(3, 1, PAGE | 0x0765_0000 | 0x18E | 1 << 60)  # with a protection key
    put(3, 2, 1 << 62 | 0x0765_0000)  # swapped out
    backing = BytesMemory({address: bytes(data) for address, data in memory.items()})
    for space in (AddressSpace(backing, tables, ROOT), FreshSpace(backing, tables, ROOT)):
        assert space.translate(VMALLOC + (1 << shift) + 0xABC) == 0x0765_0ABC
        assert space.translate(VMALLOC + (2 << shift)) is None
        assert space.translate(VMALLOC) is None
        assert space.translate(VMALLOC + 0x20_0000 + 0x1_2345) == 0x4001_2345
        assert space.translate(LINEAR + 0x1234_5678) == 0x1234_5678


@pytest.mark.parametrize("sizes", [(0, 0, 0, 0), (9, 9, 0, 13), (9, 9, 9, 10), (9, 10, 9, 13)])
def test_sizes_that_are_not_there_yet_or_cannot_be(sizes: tuple[int, ...]) -> None:
    assert tables_by(sizes) == PAGING.tables({})


def test_before_the_kernels_own_table_is_known_the_linear_mapping_is() -> None:
    registers = {"msr": MSR}
    assert PAGING.enabled(registers)
    assert not PAGING.enabled({"msr": MSR & ~0x30})
    assert PAGING.user_root(registers) is None
    (root,) = PAGING.roots(registers)
    space = AddressSpace(BytesMemory({0: bytes(0x1000)}), PAGING.tables(registers), root)
    assert space.translate(LINEAR + 0x1000) == 0x1000
    assert space.translate(VMALLOC) is None


def test_a_32_bit_kernel_is_one_with_paging_on() -> None:
    assert PPC64EL.is_32bit_kernel({"msr": 0x1032})
    assert not PPC64EL.is_32bit_kernel({"msr": 0x1000})  # firmware's calls back, in real mode
    assert not PPC64EL.is_32bit_kernel({"msr": 0xF032})  # a 32-bit program
    assert not PPC64EL.is_32bit_kernel({"msr": MSR})


PACAS = (LINEAR + 0x287_F000, LINEAR + 0x1FFF_EB00)
HARD, SOFT = (LINEAR + 0x1F8_8000, LINEAR + 0x1F7_8000), (LINEAR + 0x1F9_0000, 0)
OFFSETS = (0x1E00_0000, 0x1E10_0000)
SYMBOLS = {"paca_ptrs": 0x1000, "nr_cpu_ids": 0x1010, "hardirq_ctx": 0x1020, "softirq_ctx": 0x1040, "__per_cpu_offset": 0x1050}


def cpus(pointer: int = LINEAR + 0x1100, **symbols: int) -> CpuFacts:
    data = struct.pack("<QQI12x2Q16x4Q", pointer, 0, 2, *HARD, *SOFT, *OFFSETS).ljust(0x100, b"\0") + struct.pack("<2Q", *PACAS)
    memory = BytesMemory({0x1000: data, 0x1F0_0000: bytes(0x20_0000)})
    space = AddressSpace(memory, PAGING.tables({}), PAGING.roots({})[0])
    table = SymbolTable.from_symbols([(LINEAR + address, "D", name) for name, address in {**SYMBOLS, **symbols}.items()])
    return read_cpus(space, table, PPC64EL)


def test_cpus_have_structs_and_stacks_by_number() -> None:
    facts = cpus(__start_init_stack=0x8000, __end_init_stack=0x1_0000)
    assert (facts.offsets, facts.areas) == (OFFSETS, PACAS)
    assert facts.irq_stacks == tuple((low, low + 0x8000) for low in HARD)
    assert facts.exception_stacks == (((SOFT[0], SOFT[0] + 0x8000),), ())


def test_before_the_structs_are_made_there_are_none() -> None:
    assert cpus(pointer=0).areas == ()


@pytest.mark.parametrize(
    ("symbols", "size"),
    [
        ({"__start_init_stack": 0x8000, "__end_init_stack": 0x1_0000}, 0x8000),
        ({"__start_init_task": 0x8000, "__end_init_task": 0xC000}, 0x4000),
        ({"__start_init_task": 0x8000, "__end_init_task": 0xC008}, 0x4000),
        ({"__start_init_task": 0x8000}, 0x4000),
        ({}, 0x4000),
    ],
)
def test_stack_sizes(symbols: dict[str, int], size: int) -> None:
    table = SymbolTable.from_symbols([(LINEAR + address, "B", name) for name, address in symbols.items()])
    assert stack_size_of(table, PPC64EL) == size


def test_the_running_task_is_in_the_cpus_struct() -> None:
    layouts: Mapping[str, tuple[int, Layout]] = {**MAPLE, **TASK, "paca_struct": (512, {"__current": (0x128, 8)})}
    heap = Heap(layouts, [])
    task, paca = heap.take(512), heap.take(512)
    heap.put("task_struct", task, stack=HEAP + 0x4000, pid=40, tgid=40, group_leader=task, comm=b"bash".ljust(16, b"\0"))
    heap.write(paca + 0x128, struct.pack("<Q", task))
    reader = TaskReader(heap.space, heap.symbols, heap.structs, PPC64EL, {0x1E00_0000: paca})
    words = reader.find_running(lambda address, size: heap.space.read_many([(address, size)])[0], {}, 0x1E00_0000, None)
    assert words is not None
    assert words.comm == "bash"
