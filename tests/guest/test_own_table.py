"""The kernel's own page table among the pages of its image: two levels of 4-byte entries and four of 8-byte ones, by hand."""

from __future__ import annotations

import struct

import pytest

from guest.memory import run_steps
from guest.own_table import find_own_table
from guest.paging import AddressSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch.i386 import I386
from unwind.arch.ppc64el import PPC64EL

TABLES = I386.paging.tables({"cr4": 0x690})
HALF = 0xC000_0000
IMAGE = 0xC100_0000
SIZE = 0x40_0000
OWN, BOOT, USER, OTHER = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000
PROCESS = 0x180_0000
VALID = 1 << 63
RADIX_SIZES = ("__pte_index_size", "__pmd_index_size", "__pud_index_size", "__pgd_index_size")


def table(*entries: tuple[int, int]) -> bytes:
    page = bytearray(0x1000)
    for address, entry in entries:
        struct.pack_into("<I", page, 4 * (address >> 22), entry)
    return bytes(page)


RAM = ((HALF, 0x83), (HALF + SIZE, 0x40_0083), (HALF + 2 * SIZE, 0x80_0083), (IMAGE - SIZE, 0xC0_0083), (IMAGE, 0x100_0083))
LARGE = RAM[-1]


def search(pages: dict[int, bytes]) -> int | None:
    image = bytearray(SIZE)
    for at, page in pages.items():
        image[at : at + len(page)] = page
    memory = BytesMemory({0x100_0000: bytes(image), PROCESS: table(*RAM, (0x40_0000, 0x200_0083))})
    current = AddressSpace(memory, TABLES, PROCESS)
    return run_steps(find_own_table(current, TABLES, (IMAGE, IMAGE + SIZE), (IMAGE, IMAGE + 0x1234), HALF))


def test_the_page_that_maps_the_image_and_nothing_of_programs() -> None:
    found = search(
        {
            OWN: table(*RAM),
            BOOT: table(*RAM, (0, 0x83)),  # maps RAM where programs are, too
            OTHER: table((IMAGE, 0x200_0083)),  # maps something else there
        }
    )
    assert found == 0x100_0000 + OWN


@pytest.mark.parametrize("pages", [{}, {OWN: table(*RAM), USER: table(*RAM)}, {BOOT: table(*RAM, (0x800_0000, 0x83))}])
def test_none_or_several(pages: dict[int, bytes]) -> None:
    assert search(pages) is None


def radix(*entries: int) -> bytes:
    return struct.pack(f">{len(entries)}Q", *entries).ljust(0x1_0000, b"\0")


def test_the_table_of_a_kernel_whose_image_needs_none() -> None:
    linear, below, own = 0xC000_0000_0000_0000, 0x2_0000, 0x3_0000
    memory = BytesMemory(
        {
            0: bytes(0x1_0000)
            + radix(linear)  # a leaf of a level that has none: pointers into RAM look like one
            + radix(VALID | 0x18_0000)  # leads to nothing
            + radix(VALID | 0x15_0000),
            0x15_0000: radix(VALID | 0x16_0000),
            0x16_0000: radix(VALID | 1 << 62),
            0x18_0000: radix(),
        }
    )
    tables = PPC64EL.paging.kernel_tables(PPC64EL.paging.tables({}), dict(zip(RADIX_SIZES, (5, 9, 9, 13), strict=True)).get)
    current = AddressSpace(memory, PPC64EL.paging.tables({}), 1 << 62)
    wanted = linear + 0x100, linear + below
    assert run_steps(find_own_table(current, tables, (linear + 0x1_0000, linear + 0x4_0000), wanted, linear)) == own
