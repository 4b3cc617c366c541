"""s390x' page tables: tables of two sizes, entries that tell the type of their table and that say "invalid"."""

from __future__ import annotations

import struct

import pytest

from guest.paging import AddressSpace, FreshSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch.s390x import S390X

ROOT = 0x4000_0000
TABLE = 0x4000
SEGMENT, REGION_THIRD, REGION_SECOND = 0x00, 0x04, 0x08
LENGTH = 3
PRESENT, OLD, LARGE = 0x1D, 0x400, 0x400
REGISTERS = {"pswm": 0x0404_C001_8000_0000, "cr1": 0x77_0007, "cr7": 0x2CD_41C7, "cr13": ROOT | 0x07}


class Tables:
    """A top-level table at ROOT; the others follow, 16 KiB from each other."""

    def __init__(self, kind: int = REGION_THIRD) -> None:
        self.kind = kind
        self.memory = bytearray(8 * TABLE)

    def set(self, table: int, index: int, entry: int) -> None:
        struct.pack_into(">Q", self.memory, table * TABLE + 8 * index, entry)

    def at(self, table: int) -> int:
        return ROOT + table * TABLE

    def spaces(self) -> tuple[AddressSpace, FreshSpace]:
        memory = BytesMemory({ROOT: bytes(self.memory)})
        tables = S390X.paging.tables({"cr13": ROOT | self.kind | LENGTH})
        return AddressSpace(memory, tables, ROOT), FreshSpace(memory, tables, ROOT)

    def translate(self, address: int) -> int | None:
        kept, fresh = (space.translate(address) for space in self.spaces())
        assert kept == fresh
        return kept


def three_levels() -> Tables:
    """0x80000000 + 0x300000 leads to a page table in the upper half of a frame."""
    tables = Tables()
    tables.set(0, 1, tables.at(1) | REGION_THIRD | LENGTH)
    tables.set(1, 3, tables.at(2) + 0x800 | SEGMENT)
    tables.set(2, 0x100 + 5, 0x1234_5000 | PRESENT)
    return tables


def test_a_page() -> None:
    assert three_levels().translate(0x8030_5678) == 0x1234_5678
    assert three_levels().translate(0x8030_6678) is None
    assert three_levels().translate(0x8040_5678) is None
    assert three_levels().translate(0x0030_5678) is None


def test_pages_that_nobody_has_touched_lately_are_there() -> None:
    tables = three_levels()
    tables.set(2, 0x105, 0x1234_5000 | PRESENT | OLD)
    assert tables.translate(0x8030_5678) == 0x1234_5678
    tables.set(2, 0x105, 0x1234_5000 | OLD)
    assert tables.translate(0x8030_5678) is None


@pytest.mark.parametrize(("table", "index"), [(0, 1), (1, 3)])
def test_invalid_tables(table: int, index: int) -> None:
    tables = three_levels()
    (entry,) = struct.unpack_from(">Q", tables.memory, table * TABLE + 8 * index)
    tables.set(table, index, entry | 0x20)
    assert tables.translate(0x8030_5678) is None


def test_large_pages() -> None:
    tables = three_levels()
    tables.set(1, 4, 0x5670_0000 | LARGE | SEGMENT)
    tables.set(0, 2, 0x1_8000_0000 | LARGE | REGION_THIRD | LENGTH)
    assert tables.translate(0x8041_2345) == 0x5671_2345
    assert tables.translate(0x1_0041_2345) == 0x1_8041_2345


def test_four_levels() -> None:
    below = three_levels()
    tables = Tables(REGION_SECOND)
    tables.memory[TABLE:] = below.memory[:-TABLE]
    tables.set(0, 0x3FF, tables.at(1) | REGION_SECOND | LENGTH)
    tables.set(1, 1, tables.at(2) | REGION_THIRD | LENGTH)
    tables.set(2, 3, tables.at(3) + 0x800 | SEGMENT)
    assert tables.translate(0x3FF << 42 | 0x8030_5678) == 0x1234_5678


def test_tables_of_another_shape_than_the_registers_say_map_nothing() -> None:
    tables = three_levels()
    tables.kind = REGION_SECOND
    assert tables.translate(0x8030_5678) is None
    assert tables.translate(1 << 42 | 0x8030_5678) is None
    tables.kind = SEGMENT
    assert tables.translate(0x10_0000) is None


def test_registers() -> None:
    """The kernel is in the home space; cr7 has the space of the process in either mode."""
    assert S390X.paging.roots(REGISTERS) == (ROOT,)
    assert S390X.paging.user_root(REGISTERS) == 0x2CD_4000
    assert S390X.paging.tables(REGISTERS).index_bits == (8, 11, 11)
    assert S390X.paging.user_tables is not None
    assert S390X.paging.user_tables({**REGISTERS, "cr7": 0x2CD_41CB}).index_bits == (8, 11, 11, 11)
    assert S390X.paging.tables({"cr13": 0x3}).index_bits == (8, 11)
    assert S390X.paging.tables({"cr13": 0xF}).index_bits == (8, 11, 11, 11, 11)
    assert S390X.paging.enabled(REGISTERS)
    assert not S390X.paging.enabled({"pswm": 0x0000_0001_8000_0000})
