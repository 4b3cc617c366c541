"""Pieces of an address space that the processor maps without tables, beside 32-bit tables of either byte order."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from guest.paging import AddressSpace, Extent, FreshSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch import ByteOrder, PageTables

ROOT, SECOND, PAGE = 0x4000, 0x5000, 0x9000
ORDERS: dict[ByteOrder, str] = {"little": "<", "big": ">"}
TWO_LEVELS = PageTables(
    page_shift=12,
    index_bits=(10, 10),
    large_levels=(2,),
    present=1,
    large=(1 << 7, 1 << 7),
    address_mask=0xFFFF_F000,
    entry_size=4,
    byteorder="little",
    linear=((0x8000_0000, 0xA000_0000, 0), (0xA000_0000, 0xC000_0000, 0)),
)


def spaces(byteorder: ByteOrder) -> tuple[AddressSpace, FreshSpace]:
    order = ORDERS[byteorder]
    tables = bytearray(0x3000)
    struct.pack_into(f"{order}I", tables, 4 * (0xC000_0000 >> 22), SECOND | 1)
    struct.pack_into(f"{order}I", tables, SECOND - ROOT, PAGE | 1)
    memory = BytesMemory({0x1000: bytes(range(64)), ROOT: bytes(tables), PAGE: b"a page" + bytes(58)})
    shape = replace(TWO_LEVELS, byteorder=byteorder)
    return AddressSpace(memory, shape, ROOT), FreshSpace(memory, shape, ROOT)


@pytest.mark.parametrize("byteorder", ORDERS)
def test_linear_and_mapped(byteorder: ByteOrder) -> None:
    known, fresh = spaces(byteorder)
    for space in (known, fresh):
        assert space.translate(0x8000_1004) == space.translate(0xA000_1004) == 0x1004
        assert space.read(0x8000_1004, 3) == b"\x04\x05\x06"
        assert space.read(0xC000_0000, 6) == b"a page"
        assert space.translate(0x7FFF_F000) is None
        assert space.translate(0xC000_1000) is None


def test_what_is_linear_is_one_extent() -> None:
    known, _fresh = spaces("little")
    assert list(known.mapped(0x8000_0000, 0x8100_0000)) == [Extent(0x8000_0000, 0, 0x100_0000)]
