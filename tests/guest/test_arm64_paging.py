"""arm64's page tables: every granule and size of address space, from registers as a vCPU has them."""

from __future__ import annotations

import struct

import pytest

from guest.paging import AddressSpace, FreshSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch import PageTables
from unwind.arch.arm64 import ARM64

TABLE, PAGE, BLOCK = 0b11, 0b11, 0b01
ATTRIBUTES = 0x0060_0000_0000_0700
ROOT = 0x4000_0000
GRANULES = {12: 0b10, 14: 0b01, 16: 0b11}
"""TCR_EL1.TG1 by page shift."""


def registers(page_shift: int, address_bits: int, more: int = 0) -> dict[str, int]:
    control = GRANULES[page_shift] << 30 | 64 - address_bits << 16 | more
    return {"TCR_EL1": control, "TTBR1_EL1": 0x0012_0000_0000_0001 | ROOT, "TTBR0_EL1": 0x0034_0000_5000_0001, "SCTLR": 1}


def shape(page_shift: int, address_bits: int) -> PageTables:
    return ARM64.paging.tables(registers(page_shift, address_bits))


class Tables:
    """Tables one after the other from ROOT on, each as long as a page."""

    def __init__(self, tables: PageTables) -> None:
        self.shape = tables
        self.size = 1 << tables.page_shift
        self.memory = bytearray(8 * self.size)
        self.used = 1

    def set(self, virtual: int, level: int, entry: int) -> None:
        at = 0
        bits = self.shape.index_bits
        for above in range(len(bits), 0, -1):
            shift = self.shape.page_shift + sum(bits[: above - 1])
            place = at + 8 * (virtual >> shift & (1 << bits[above - 1]) - 1)
            if above == level:
                struct.pack_into("<Q", self.memory, place, entry | ATTRIBUTES)
                return
            (known,) = struct.unpack_from("<Q", self.memory, place)
            if not known:
                known = ROOT + self.used * self.size | TABLE
                self.used += 1
                struct.pack_into("<Q", self.memory, place, known)
            at = (known & 0x0000_FFFF_FFFF_F000) - ROOT

    def spaces(self) -> tuple[AddressSpace, FreshSpace]:
        memory = BytesMemory({ROOT: bytes(self.memory)})
        return AddressSpace(memory, self.shape, ROOT), FreshSpace(memory, self.shape, ROOT)


@pytest.mark.parametrize(
    ("page_shift", "address_bits", "index_bits"),
    [
        (12, 48, (9, 9, 9, 9)),
        (12, 39, (9, 9, 9)),
        (12, 52, (9, 9, 9, 9, 4)),
        (14, 48, (11, 11, 11, 1)),
        (14, 47, (11, 11, 11)),
        (14, 36, (11, 11)),
        (16, 48, (13, 13, 6)),
        (16, 52, (13, 13, 10)),
        (16, 42, (13, 13)),
    ],
)
def test_pages_and_blocks_of_every_granule(page_shift: int, address_bits: int, index_bits: tuple[int, ...]) -> None:
    tables = Tables(shape(page_shift, address_bits))
    assert tables.shape.index_bits == index_bits
    high = (1 << 64) - (1 << address_bits - 1)
    block = 1 << page_shift + index_bits[0]
    tables.set(high, 1, 0x1_2340_0000 | PAGE)
    tables.set(high + block, 2, 2 * block | BLOCK)
    for space in tables.spaces():
        assert space.translate(high + 0xABC) == 0x1_2340_0ABC
        assert space.translate(high + block + 0x2_3456) == 2 * block + 0x2_3456
        assert space.translate(high + (1 << page_shift)) is None
        assert space.translate(high + 3 * block) is None


def test_a_block_where_the_granule_has_none_maps_nothing() -> None:
    tables = Tables(shape(14, 48))
    tables.set(0xFFFF_8000_0000_0000, 3, 0x10_0000_0000 | BLOCK)
    for space in tables.spaces():
        assert space.translate(0xFFFF_8000_0000_0000) is None


def test_large_blocks_with_pages_of_4_kib() -> None:
    tables = Tables(shape(12, 48))
    tables.set(0xFFFF_0000_4000_0000, 3, 0x8000_0000 | BLOCK)
    for space in tables.spaces():
        assert space.translate(0xFFFF_0000_5234_5678) == 0x9234_5678


def test_roots_by_the_kernels_memory_layout() -> None:
    """While user code or the trampoline runs with KPTI, the kernel's table lies two pages behind."""
    assert ARM64.paging.roots(registers(12, 48)) == (ROOT, ROOT + 0x2000)
    assert ARM64.paging.roots(registers(16, 48)) == (ROOT, ROOT + 0x2_0000)
    assert ARM64.paging.user_root(registers(12, 48)) == 0x5000_0000
    assert ARM64.paging.enabled(registers(12, 48))
    assert not ARM64.paging.enabled({"SCTLR": 0x30D0_0180})


def test_impossible_registers_make_tables_of_a_possible_size() -> None:
    for control in (0, (1 << 64) - 1, 0x3F << 16):
        assert 1 <= len(ARM64.paging.tables({"TCR_EL1": control}).index_bits) <= 5
    assert ARM64.paging.tables(registers(12, 52, 1 << 59)).address_mask == 0x0003_FFFF_FFFF_F000
    assert ARM64.paging.roots({}) == (0, 0x2000)
