"""The kernel's unwind tables: by symbols, and by what an index looks like among other data."""

from __future__ import annotations

import struct

import pytest

from guest.ehabi_table import read_ehabi
from guest.memory import run_steps
from guest.paging import AddressSpace
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from unwind.arch.armhf import ARMHF
from unwind.rules import Row, Saved

ROOT = 0x4000_4000
TEXT, DATA, INIT = 0xC010_0000, 0xC020_0000, 0xC030_0000
COUNT = 2000
INDEX = 0x2_1238
"""Offset from DATA; no multiple of what is stepped by."""


def prel31(place: int, target: int) -> int:
    return target - place & 0x7FFF_FFFF


def make_data() -> bytes:
    """Rising numbers, which look like functions' places but not like entries; then the index, its table, and something else."""
    data = bytearray(0x10_0000)
    for at in range(0, 0x1_0000, 8):
        struct.pack_into("<II", data, at, prel31(DATA + at, TEXT + 16 * at), 0x1234)
    table = DATA + INDEX + 8 * COUNT
    for entry in range(COUNT):
        at = INDEX + 8 * entry
        function = TEXT + 0x20 * entry if entry < COUNT - 8 else INIT + 0x20 * entry
        second = (1, 0x80A8_B0B0, prel31(DATA + at + 4, table + 8 * entry))[entry % 3]
        struct.pack_into("<II", data, at, prel31(DATA + at, function), second)
        struct.pack_into("<II", data, INDEX + 8 * COUNT + 8 * entry, 0x8101_AAB0, 0xB0B0_B0B0)
    return bytes(data)


def read(data: bytes, **symbols: int) -> tuple[int, int, list[Row | None]]:
    first = bytearray(0x4000)
    for number in range(4):
        struct.pack_into("<I", first, 4 * (0xC00 + number), 0x4010_040E + (number << 20))
    memory = BytesMemory({ROOT: bytes(first), 0x4010_0000 + DATA - 0xC000_0000: data})
    space = AddressSpace(memory, ARMHF.paging.tables({}), ROOT)
    named = SymbolTable.from_symbols([(address, "T", name) for name, address in symbols.items()])
    table = run_steps(read_ehabi(space, named))
    return len(table), table.find(TEXT)[0], [table.find(TEXT + 0x20 * entry)[1] for entry in range(1997, 2000)]


KNOWN = {"_stext": TEXT, "_etext": DATA, "_sinittext": INIT}


def test_by_what_it_looks_like() -> None:
    count, first, _rows = read(make_data(), **KNOWN)
    assert (count, first) == (COUNT, TEXT)


def test_by_symbols() -> None:
    places = {
        "__start_unwind_idx": DATA + INDEX,
        "__stop_unwind_idx": DATA + INDEX + 8 * COUNT,
        "__stop_unwind_tab": DATA + INDEX + 16 * COUNT,
    }
    assert read(make_data(), **KNOWN, **places) == read(make_data(), **KNOWN)


def test_its_last_entries_have_their_instructions() -> None:
    _count, _first, rows = read(make_data(), **KNOWN)
    (row,) = {row for row in rows if row is not None}
    assert row.saved[-1] == Saved("r6", None, -8)


@pytest.mark.parametrize(
    ("data", "symbols"),
    [
        (bytes(0x10_0000), KNOWN),
        (make_data(), {"_stext": TEXT}),
        (make_data(), {**KNOWN, "_sinittext": 0xC3F0_0000}),
        (make_data(), {**KNOWN, "_sinittext": 0xC040_0000}),  # not mapped as far
        (make_data(), {"__start_unwind_idx": DATA, "__stop_unwind_idx": DATA, "__stop_unwind_tab": DATA + 8}),
        (make_data(), {"__start_unwind_idx": DATA, "__stop_unwind_idx": DATA + 8, "__stop_unwind_tab": DATA + 0x3000_0000}),
    ],
)
def test_kernels_without(data: bytes, symbols: dict[str, int]) -> None:
    with pytest.raises(BadImageError):
        read(data, **symbols)
