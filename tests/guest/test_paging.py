"""Walking page tables that are whole, and ones that no kernel would make."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guest.memory import run_steps
from guest.paging import AddressSpace, Extent
from recording.errors import GuestMemoryError
from tests.builders.file_memory import BytesMemory
from tests.builders.page_tables import LARGE, PRESENT, PageTables
from unwind.arch.x86_64 import X86_64

TEXT = 0xFFFF_FFFF_8100_0000


def space_of(tables: PageTables, ram: dict[int, bytes] | None = None) -> AddressSpace:
    memory = BytesMemory({tables.root: bytes(tables.memory), **(ram or {})})
    return AddressSpace(memory, X86_64.paging.tables({"cr4": 1 << 12 if tables.levels == 5 else 0}), tables.root)


@pytest.mark.parametrize("levels", [4, 5])
def test_every_page_size_is_translated(levels: int) -> None:
    tables = PageTables(0x10_0000, levels=levels)
    tables.map(TEXT, 0x123_4000)
    tables.map(0xFFFF_FFFF_8120_0000, 0x40_0000, page=0x20_0000, size=0x20_0000)
    tables.map(0xFFFF_8880_4000_0000, 0x8000_0000, page=0x4000_0000, size=0x4000_0000)
    space = space_of(tables)
    assert space.translate(TEXT + 0xABC) == 0x123_4ABC
    assert space.translate(0xFFFF_FFFF_8121_2345) == 0x41_2345
    assert space.translate(0xFFFF_8880_5234_5678) == 0x9234_5678
    assert space.translate(TEXT + 0x1000) is None
    assert space.translate(0xFFFF_9000_0000_0000) is None


def test_bits_above_and_below_the_address_do_not_count() -> None:
    tables = PageTables(0x10_0000)
    tables.set(TEXT, 1, 0x8000_0000_0020_0000 | 0xFFF)
    assert space_of(tables).translate(TEXT + 1) == 0x20_0001


def test_the_reserved_large_bit_of_a_top_level_entry_maps_nothing() -> None:
    tables = PageTables(0x10_0000)
    tables.set(TEXT, 4, 0x10_0000 | PRESENT | LARGE)
    assert space_of(tables).translate(TEXT) is None


def test_tables_that_point_at_themselves_end() -> None:
    tables = PageTables(0x10_0000)
    tables.set(0xFFFF_FFFF_FFFF_F000, 4, tables.root | PRESENT)
    space = space_of(tables)
    assert space.translate(0xFFFF_FFFF_FFFF_F123) == tables.root + 0x123
    assert space.translate(0xFFFF_FFFF_FFFF_E000) is None


def test_tables_outside_ram_map_nothing() -> None:
    tables = PageTables(0x10_0000)
    tables.set(TEXT, 4, 0x000F_FFFF_FFFF_F000 | 1)
    assert space_of(tables).translate(TEXT) is None


def test_no_paging_has_six_levels() -> None:
    with pytest.raises(GuestMemoryError, match="6 levels"):
        AddressSpace(BytesMemory({}), replace(X86_64.paging.tables({"cr4": 0}), index_bits=(9,) * 6), 0)


def test_a_read_crosses_pages_that_lie_apart() -> None:
    tables = PageTables(0x10_0000)
    tables.map(TEXT, 0x30_0000)
    tables.map(TEXT + 0x1000, 0x20_0000)
    space = space_of(tables, {0x20_0000: b"b" * 0x1000, 0x30_0000: b"a" * 0x1000})
    assert space.read(TEXT + 0xFFE, 4) == b"aabb"
    assert run_steps(space.read_chunks(TEXT, 0x2000)) == b"a" * 0x1000 + b"b" * 0x1000
    assert space.read_many([(TEXT, 2), (TEXT + 0x1FFF, 2), (TEXT + 0x1FFF, 1)]) == [b"aa", None, b"b"]


def test_what_is_not_mapped_or_absurdly_long_is_refused() -> None:
    space = space_of(PageTables(0x10_0000))
    with pytest.raises(GuestMemoryError, match="0xffffffff81000000"):
        space.read(TEXT, 8)
    with pytest.raises(GuestMemoryError, match="refused"):
        run_steps(space.read_chunks(TEXT, 1 << 40))


def test_mapped_joins_what_is_contiguous() -> None:
    tables = PageTables(0x10_0000)
    tables.map(TEXT, 0x40_0000, page=0x20_0000, size=0x40_0000)
    tables.map(TEXT + 0x40_0000, 0x80_0000, size=0x2000)
    tables.map(TEXT + 0x40_3000, 0x80_3000)
    extents = [extent for extent in space_of(tables).mapped(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000) if extent]
    assert extents == [Extent(TEXT, 0x40_0000, 0x40_2000), Extent(TEXT + 0x40_3000, 0x80_3000, 0x1000)]


def test_tables_are_read_once_until_forgotten() -> None:
    tables = PageTables(0x10_0000)
    tables.map(TEXT, 0x30_0000)
    space = space_of(tables)
    memory = space.memory
    assert isinstance(memory, BytesMemory)
    space.translate(TEXT)
    space.translate(TEXT + 8)
    assert memory.batches == 4
    tables.map(TEXT, 0x31_0000)
    memory.write(tables.root, bytes(tables.memory))
    assert space.translate(TEXT) == 0x30_0000
    space.forget()
    assert space.translate(TEXT) == 0x31_0000
