"""Where the kallsyms tables are, from the kernel image alone: for kernels before 6.0, and before VMCOREINFO is written.

The token table lists the digits one after the other (a digit that symbols use is a token itself). ``token_index`` behind it holds
the offset of each of its 256 strings, which no other data matches by chance. Before it lie the markers: offsets that begin with 0
and grow; before them the names and their number (scripts/kallsyms.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from guest.kallsyms import MAX_NAMES_SIZE, KallsymsPlace
from guest.memory import CHUNK_SIZE, Steps, read_chunks
from guest.paging import AddressSpace, Extent
from guest.symbol_rows import MAX_SYMBOLS
from guest.words import Words
from recording.errors import GuestMemoryError

MAX_IMAGE_SIZE = 1 << 27
_DIGITS = b"".join(bytes((digit, 0)) for digit in b"0123456789")
_DIGIT_TOKEN = ord("0")
_TOKENS = 256
_TABLE_BACK = 1 << 12
_TABLE_AHEAD = 1 << 14
_BEFORE_TABLE = 1 << 24
"""Names and markers of 2 million symbols; a stock kernel of 120,000 symbols needs 2 MiB."""
_MARKER_STEP = range(2 * 256, 1 << 18)
"""Bytes of 256 names: each has a length and a token at least."""
_LAST_NAMES = 1 << 18
_NAMES_PER_STEP = 1 << 13
_MAX_ZEROS = 1 << 18
_MAX_CANDIDATES = 64
"""Bounds for an image that is made to be searched for ever; a stock kernel needs a few hundred zeros and two candidates."""


def find_kallsyms(space: AddressSpace, image: int, words: Words) -> Steps[KallsymsPlace | None]:
    """Search the kernel image from its first address on; None where it holds no table."""
    for extent in space.mapped(image, image + MAX_IMAGE_SIZE):
        if extent is None:
            yield
            continue
        overlap = b""
        for offset in range(0, extent.size, CHUNK_SIZE):
            data = space.memory.read_many([(extent.physical + offset, min(CHUNK_SIZE, extent.size - offset))])[0]
            yield
            if data is None:
                overlap = b""
                continue
            window = overlap + data
            start = window.find(_DIGITS)
            while start >= 0:
                place = yield from _place_at(space, extent, offset - len(overlap) + start, words)
                if place:
                    return place
                start = window.find(_DIGITS, start + 1)
            overlap = window[-(len(_DIGITS) - 1) :]
    return None


def _place_at(space: AddressSpace, extent: Extent, digits: int, words: Words) -> Steps[KallsymsPlace | None]:
    """The tables around the digits at an offset of the extent, or None where those belong to something else."""
    start = max(0, digits - _TABLE_BACK) & -8
    data = space.memory.read_many([(extent.physical + start, min(digits + _TABLE_AHEAD, extent.size) - start)])[0]
    table = None if data is None else find_token_table(data, digits - start, words)
    if table is None:
        return None
    token_table, token_index = start + table[0], start + table[1]
    low = max(0, token_table - _BEFORE_TABLE) & -8
    # Small pieces are enough for nearly every kernel; the whole is read only where the names do not fit into them.
    for begin in sorted({max(low, token_table - (1 << shift) & -8) for shift in (22, 24)}, reverse=True):
        try:
            before = yield from read_chunks(space.memory, extent.physical + begin, token_table - begin)
        except GuestMemoryError:
            return None
        names = yield from _find_names(before, words)
        if names:
            number, offset, count = names
            base = extent.address + begin
            return KallsymsPlace(count, base + number, base + offset, extent.address + token_table, extent.address + token_index)
    return None


def find_token_table(data: bytes, digits: int, words: Words) -> tuple[int, int] | None:
    """(offset of token_table, offset of token_index) in data, where the strings "0" to "9" begin at ``digits``; None if no table.

    ``data`` begins at an address that is a multiple of 8.
    """
    end = digits
    for _ in range(_DIGIT_TOKEN):
        end = data.rfind(b"\0", 0, end)
        if end < 0:
            return None
    for start in range(end & -4, max(-1, end - 256), -4):
        if b"\0" in data[start:end]:
            return None
        strings = data[start : start + _TABLE_AHEAD].split(b"\0", _TOKENS)[:_TOKENS]
        offsets = [0]
        for string in strings[:-1]:
            offsets.append(offsets[-1] + len(string) + 1)
        after = start + offsets[-1] + len(strings[-1]) + 1
        if len(strings) == _TOKENS and offsets[-1] < 1 << 16:
            index = data.find(struct.pack(f"{words.order}{_TOKENS}H", *offsets), after, after + 8 + 2 * _TOKENS)
            if index >= 0:
                return start, index
    return None


def _find_names(data: bytes, words: Words) -> Steps[tuple[int, int, int] | None]:
    """(offset of the number of names, offset of the names, their number) in the bytes before the token table, or None."""
    zero = data.rfind(bytes(4))
    for step in range(_MAX_ZEROS):
        if zero < 0:
            break
        if zero % 4 == 0:
            for width in (4, 8):
                marks = _marks(data, zero, width, words)
                found = (yield from _names_before(data, zero, marks, words)) if len(marks) > 1 else None
                if found:
                    return found
        if step % 512 == 511:
            yield
        zero = data.rfind(bytes(4), 0, zero + 3)
    return None


def _marks(data: bytes, start: int, width: int, words: Words) -> list[int]:
    """The growing offsets from ``start`` on, as far as they look like markers."""
    marks = [0]
    for offset in range(start + width, len(data) - width + 1, width):
        value = words.number(data[offset : offset + width])
        if value - marks[-1] not in _MARKER_STEP or value > MAX_NAMES_SIZE:
            break
        marks.append(value)
    return marks


def _names_before(data: bytes, markers: int, marks: list[int], words: Words) -> Steps[tuple[int, int, int] | None]:
    """Names that end at the markers and meet them. What follows the markers may look like one or two more."""
    for count_of_marks in range(len(marks), max(1, len(marks) - 3), -1):
        candidates = _candidates(data, markers - marks[count_of_marks - 1], count_of_marks, words)
        for number, start in islice(candidates, _MAX_CANDIDATES):
            count = words.number(data[number : number + 4])
            for is_wide in (True, False):
                if (yield from _meets(data, start, count, marks, markers, is_wide)):
                    return number, start, count
        yield
    return None


def _candidates(data: bytes, limit: int, count_of_marks: int, words: Words) -> Iterator[tuple[int, int]]:
    """(offset of a number of names that needs so many markers, offset behind it and its padding to 8 bytes, if any)."""
    pair = struct.Struct(f"{words.order}II")
    for start in range(limit & -4, max(7, limit - _LAST_NAMES), -4):
        before, last = pair.unpack_from(data, start - 8)
        number, count = (start - 4, last) if last else (start - 8, before)
        if count <= MAX_SYMBOLS and count + 255 >> 8 == count_of_marks:
            yield number, start


def _meets(data: bytes, start: int, count: int, marks: list[int], markers: int, is_wide: bool) -> Steps[bool]:
    """Whether ``count`` names from ``start`` on meet every marker and end where the markers begin."""
    position = start
    for index in range(count):
        if position >= markers or (not index % 256 and position - start != marks[index // 256]):
            return False
        length = data[position]
        position += 1
        if is_wide and length & 0x80:
            length = length & 0x7F | data[position] << 7
            position += 1
        position += length
        if not index % _NAMES_PER_STEP:
            yield
    return markers - 7 <= position <= markers
