"""The kernel's own page table among the pages of its image: two levels of 4-byte entries by hand."""

from __future__ import annotations

import struct

import pytest

from guest.memory import run_steps
from guest.own_table import find_own_table
from guest.paging import AddressSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch.i386 import I386

TABLES = I386.paging.tables({"cr4": 0x690})
HALF = 0xC000_0000
IMAGE = 0xC100_0000
SIZE = 0x40_0000
OWN, BOOT, USER, OTHER = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000
PROCESS = 0x180_0000


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
    return run_steps(find_own_table(current, (IMAGE, IMAGE + SIZE), (IMAGE, IMAGE + 0x1234), HALF))


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
