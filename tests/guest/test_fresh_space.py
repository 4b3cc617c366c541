from __future__ import annotations

from guest.paging import FreshSpace
from tests.builders.file_memory import BytesMemory
from tests.builders.page_tables import FOUR_LEVELS, PageTables

USER = 0x7FFC_0000_0000


def _space() -> tuple[FreshSpace, PageTables, BytesMemory]:
    tables = PageTables(0x10_0000)
    tables.map(USER, 0x4000)
    tables.map(USER + 0x1000, 0x2000)
    tables.map(0xFFFF_8880_0020_0000, 0x20_0000, 0x20_0000, 0x20_0000)
    memory = BytesMemory(
        {0x2000: b"B" * 0x1000, 0x4000: b"A" * 0x1000, 0x10_0000: bytes(tables.memory), 0x20_0000: b"K" * 0x20_0000}
    )
    return FreshSpace(memory, FOUR_LEVELS, tables.root), tables, memory


def test_fresh_space_reads_across_pages_and_large_pages() -> None:
    space, _tables, _memory = _space()
    assert space.read(USER + 0xFFE, 4) == b"AABB"
    assert space.read(0xFFFF_8880_0020_1234, 2) == b"KK"
    assert space.read(USER + 0x1FFF, 2) is None
    assert space.read(USER - 1, 1) is None


def test_fresh_space_sees_a_changed_mapping_after_forget() -> None:
    space, tables, memory = _space()
    assert space.read(USER, 1) == b"A"
    tables.map(USER, 0x2000)
    memory.write(0x10_0000, bytes(tables.memory))
    space.forget()
    assert space.read(USER, 1) == b"B"


def test_tables_that_point_outside_ram_are_not_mapped() -> None:
    space, tables, memory = _space()
    tables.map(USER, 0xFFFF_F000)
    memory.write(0x10_0000, bytes(tables.memory))
    assert space.read(USER, 1) is None
    lost = FreshSpace(memory, FOUR_LEVELS, 0xDEAD_0000)
    assert lost.read(USER, 1) is None
