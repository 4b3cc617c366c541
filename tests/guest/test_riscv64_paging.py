"""riscv64's page tables: Sv39, Sv48 and Sv57, whose entries have the page's number two bits further down than its address."""

from __future__ import annotations

import struct

import pytest

from guest.paging import AddressSpace, FreshSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch.riscv64 import RISCV64

ROOT = 0x8100_0000
TABLE, READ_ONLY, EXECUTABLE = 0x01, 0xC3, 0xEB
HIGH = 0xFFFF_FFFF_8000_0000


def entry(physical: int, bits: int) -> int:
    return physical >> 12 << 10 | bits


@pytest.mark.parametrize(("mode", "levels"), [(8, 3), (9, 4), (10, 5)])
def test_pages_and_large_pages(mode: int, levels: int) -> None:
    registers = {"satp": mode << 60 | 0x1234 << 44 | ROOT >> 12}
    paging = RISCV64.paging
    assert paging.enabled(registers)
    assert paging.roots(registers) == (ROOT,)
    memory = bytearray(0x1000 * levels)
    for above in range(levels - 1, 2, -1):
        place = 0x1000 * (levels - 1 - above) + 8 * (HIGH >> 12 + 9 * above & 511)
        struct.pack_into("<Q", memory, place, entry(ROOT + 0x1000 * (levels - above), TABLE))
    top = 0x1000 * (levels - 3)
    struct.pack_into("<Q", memory, top + 8 * 510, entry(ROOT + top + 0x1000, TABLE))
    struct.pack_into("<Q", memory, top + 8 * 511, entry(0x1_4000_0000, EXECUTABLE))
    struct.pack_into("<QQQ", memory, top + 0x1000, entry(0x8020_0000, EXECUTABLE), entry(ROOT + top + 0x2000, TABLE), 0)
    struct.pack_into("<QQ", memory, top + 0x2000, 0, entry(0x12_3456_7000, READ_ONLY) | 1 << 62)
    backing = BytesMemory({ROOT: bytes(memory)})
    for space in (
        AddressSpace(backing, paging.tables(registers), ROOT),
        FreshSpace(backing, paging.tables(registers), ROOT),
    ):
        assert space.translate(HIGH + 0x1F_FFF8) == 0x803F_FFF8
        assert space.translate(HIGH + 0x20_1ABC) == 0x12_3456_7ABC
        assert space.translate(HIGH + 0x20_0ABC) is None
        assert space.translate(HIGH + 0x40_0000) is None
        assert space.translate(HIGH + 0x4234_5678) == 0x1_4234_5678


def test_without_paging() -> None:
    assert not RISCV64.paging.enabled({"satp": 0})
    assert not RISCV64.paging.enabled({"satp": 11 << 60 | ROOT >> 12})
    assert not RISCV64.paging.enabled({})
