"""Rows of .ARM.exidx in files that are made here: whole, in pieces, damaged."""

from __future__ import annotations

import struct

from guest.elf.ehabi_rows import EhabiRows
from guest.elf.file import ElfFile, open_elf
from guest.elf.rows import UserRows
from guest.user.contents import BytesContents, RangeContents
from unwind.arch.armhf import ARMHF
from unwind.rules import Row, RowKind, Saved

ABI = ARMHF.user_abis[0]
BASE, TEXT, INDEX = 0x10000, 0x10400, 0x13000
SIZE = 0x4000


def prel31(place: int, target: int) -> int:
    return target - place & 0x7FFF_FFFF


def image(entry: int = TEXT + 1, index_size: int = 8 * 5) -> bytes:
    """Five functions of 0x200 bytes: _start, one with its instructions inline, one of C++, one with the signal's, one without."""
    table = INDEX + 8 * 5
    data = bytearray(SIZE)
    header = struct.pack("<4sBBB9xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 3, 40, 1, entry, 52, 0, 0x500_0400, 52, 32, 2, 40, 0, 0)
    load = struct.pack("<8I", 1, 0, BASE, BASE, SIZE, SIZE, 5, 0x1000)
    index = struct.pack("<8I", 0x7000_0001, INDEX - BASE, INDEX, INDEX, index_size, index_size, 4, 4)
    data[: 52 + 64] = header + load + index
    words: list[int] = []
    for number, second in enumerate((1, 0x80A8_B0B0, table, table + 12, 1)):
        at = INDEX + 8 * number
        words += [prel31(at, TEXT + 0x200 * number), prel31(at + 4, second) if number in (2, 3) else second]
    # What leads to a routine of C++'s own: pop {r4, r7, lr} behind sp += 24; then sp += 160, pop {r0-r15}.
    words += [prel31(table, TEXT), 0x0105_8409, 0xB0B0_B0B0, 0x8101_27B1, 0x0F8F_FFB0]
    data[INDEX - BASE : INDEX - BASE + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
    return bytes(data)


def opened(contents: BytesContents | RangeContents) -> ElfFile:
    file = open_elf(contents)
    assert file is not None
    return file


def rows_of(data: bytes) -> EhabiRows:
    return EhabiRows(opened(BytesContents(data)), ABI)


INLINE = Row(
    RowKind.CALL, "sp", 8, saved=(Saved("r4", None, -8),), kept=("r5", "r6", "r7", "r8", "r9", "r10", "r11"), only_calls=True
)


def test_entries() -> None:
    rows = rows_of(image())
    assert rows.find_row(TEXT - 2) is None
    assert rows.find_row(TEXT + 0x20) is None
    assert rows.find_row(TEXT + 0x210) == INLINE
    cxx = rows.find_row(TEXT + 0x410)
    assert cxx is not None
    assert (cxx.register, cxx.offset, cxx.saved) == ("sp", 36, (Saved("r4", None, -12), Saved("r7", None, -8)))
    # A signal's registers are for those who know that it is one.
    assert rows.find_row(TEXT + 0x610) is None
    assert rows.find_row(TEXT + 0x1800) is None


def test_pieces() -> None:
    data = image()
    first, index = data[:0x1000], data[INDEX - BASE : INDEX - BASE + 40]
    rows = EhabiRows(opened(RangeContents(SIZE, ((0, first), (INDEX - BASE, index)))), ABI)
    assert rows.find_row(TEXT + 0x210) == INLINE
    assert rows.find_row(TEXT + 0x410) is None
    assert EhabiRows(opened(RangeContents(SIZE, ((0, first),))), ABI).find_row(TEXT + 0x210) is None


def test_damage() -> None:
    assert rows_of(image(index_size=4)).find_row(TEXT + 0x210) is None
    assert rows_of(image(index_size=1 << 25)).find_row(TEXT + 0x210) is None
    data = bytearray(image())
    data[INDEX - BASE : INDEX - BASE + 40] = b"\xff" * 40
    assert rows_of(bytes(data)).find_row(TEXT + 0x210) is None


def test_a_file_has_them_beside_its_other_tables() -> None:
    file = opened(BytesContents(image()))
    rows = UserRows(file, ARMHF.user_abis)
    assert rows.find_row(TEXT + 0x210) == INLINE
    assert rows.find_start(TEXT + 0x210) is None
    assert file.entry == TEXT
