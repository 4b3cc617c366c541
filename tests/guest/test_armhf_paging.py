"""armhf's page tables: short descriptors, sections of 1 MiB and pages of 4 KiB, whose second-level tables have 1 KiB."""

from __future__ import annotations

import struct

from guest.paging import AddressSpace, FreshSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch.armhf import ARMHF

ROOT, SECOND = 0x4020_4000, 0x424B_4800
REGISTERS = {"SCTLR": 0x10C5_387D, "TTBCR": 0, "TTBR0_EL1": 0x4A39_006A, "TTBR1_EL1": ROOT | 0x6A}


def test_sections_and_pages() -> None:
    paging = ARMHF.paging
    assert paging.enabled(REGISTERS)
    assert paging.roots(REGISTERS) == (ROOT,)
    assert paging.user_root(REGISTERS) == 0x4A39_0000
    first, second = bytearray(0x4000), bytearray(0x400)
    struct.pack_into("<I", first, 4 * 0xC03, 0x4031_940E)
    struct.pack_into("<I", first, 4 * 0xFFF, SECOND | 0x11)
    struct.pack_into("<II", second, 4 * 0xF0, 0x5EFF_905E, 0x5EFF_A05F)
    backing = BytesMemory({ROOT: bytes(first), SECOND: bytes(second)})
    for space in (
        AddressSpace(backing, paging.tables(REGISTERS), ROOT),
        FreshSpace(backing, paging.tables(REGISTERS), ROOT),
    ):
        assert space.translate(0xC030_01E0) == 0x4030_01E0
        assert space.translate(0xC03F_FFFC) == 0x403F_FFFC
        assert space.translate(0xFFFF_0018) == 0x5EFF_9018
        assert space.translate(0xFFFF_1008) == 0x5EFF_A008
        assert space.translate(0xFFFF_2000) is None
        assert space.translate(0xC040_0000) is None


def test_pages_that_are_marked_as_not_used_lately() -> None:
    """After fork() all of the child's are: the processor's entries are empty, Linux' own are two KiB in front of them."""
    first, second, own = bytearray(0x4000), bytearray(0x400), bytearray(0x400)
    struct.pack_into("<I", first, 4 * 0xBEA, SECOND | 0x11)
    struct.pack_into("<I", second, 4 * 0xCA, 0x5EFF_905E)
    struct.pack_into("<III", own, 4 * 0xCA, 0x5EFF_901F, 0x5EFF_A75D, 0x0000_1204)  # used, not used, swapped out
    backing = BytesMemory({ROOT: bytes(first), SECOND: bytes(second), SECOND - 0x800: bytes(own)})
    tables = ARMHF.paging.tables(REGISTERS)
    for space in (AddressSpace(backing, tables, ROOT), FreshSpace(backing, tables, ROOT)):
        assert space.translate(0xBEAC_A988) == 0x5EFF_9988
        assert space.translate(0xBEAC_B010) == 0x5EFF_A010
        assert space.translate(0xBEAC_C000) is None
    alone = BytesMemory({ROOT: bytes(first), SECOND: bytes(second)})
    for space in (AddressSpace(alone, tables, ROOT), FreshSpace(alone, tables, ROOT)):
        assert space.translate(0xBEAC_B010) is None


def test_long_descriptors_and_no_paging() -> None:
    assert not ARMHF.paging.enabled({**REGISTERS, "TTBCR": 0x8000_0000})
    assert not ARMHF.paging.enabled({**REGISTERS, "SCTLR": 0x10C5_387C})
