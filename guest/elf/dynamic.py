"""PT_DYNAMIC becomes where the dynamic symbols are, for files whose section headers are not known (gABI chapter 5, DT_GNU_HASH).

Addresses are as the file has them: link-time ones. A process' own copy is relocated by its loader and is not what this reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from guest.elf.header import PT_DYNAMIC, Header
from guest.elf.partial import read_partial
from guest.elf.symbol_rows import MAX_SYMBOLS
from guest.memory import Steps
from guest.user.contents import FileContents

_MAX_DYNAMIC = 1 << 16
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_GNU_HASH = 4, 5, 6, 10, 0x6FFFFEF5
_MAX_CHAIN = 1 << 12

FindOffset = Callable[[int], "int | None"]
"""File offset of a link-time address."""


@dataclass(frozen=True, slots=True)
class DynamicSymbols:
    """Where the dynamic symbols are in the file. is_complete: that is all of them."""

    offset: int
    size: int
    names_offset: int
    names_size: int
    is_complete: bool


def find_dynamic_symbols(contents: FileContents, header: Header, find_offset: FindOffset) -> Steps[DynamicSymbols | None]:
    """Where the dynamic symbols are; None where there are none or that is not known now."""
    segment = header.segment(PT_DYNAMIC)
    if segment is None or segment.file_size > _MAX_DYNAMIC:
        return None
    table = contents.read(segment.offset, segment.file_size)
    if table is None:
        return None
    entry = header.format.dynamic
    values: dict[int, int] = {}
    for tag, value in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        if not tag:
            break
        values.setdefault(tag, value)
    symbols, names = (find_offset(values.get(tag, -1)) for tag in (_DT_SYMTAB, _DT_STRTAB))
    if symbols is None or names is None:
        return None
    count, is_complete = yield from _count(contents, header, values, find_offset)
    size = min(count, MAX_SYMBOLS, max(contents.size - symbols, 0) // header.format.symbol.size) * header.format.symbol.size
    return DynamicSymbols(symbols, size, names, min(values.get(_DT_STRSZ, 0), max(contents.size - names, 0)), is_complete)


def _count(contents: FileContents, header: Header, values: dict[int, int], find_offset: FindOffset) -> Steps[tuple[int, bool]]:
    """How many symbols there are at least, and whether that is all: nothing says it but the size of a hash table."""
    order = header.format.order
    old = find_offset(values.get(_DT_HASH, -1))
    if old is not None:
        words = contents.read(old, 8)
        if words is not None:
            return struct.unpack(order + "II", words)[1], True
    new = find_offset(values.get(_DT_GNU_HASH, -1))
    words = None if new is None else contents.read(new, 16)
    if new is None or words is None:
        return 0, False
    buckets, first, filters, _ = struct.unpack(order + "IIII", words)
    start = new + 16 + filters * header.format.pointer_size
    if buckets > MAX_SYMBOLS or start + 4 * buckets > contents.size:
        return 0, False
    table = yield from read_partial(contents, start, 4 * buckets)
    last = max(struct.unpack(f"{order}{buckets}I", table.data), default=0)
    if last < first:
        return first, not table.missing
    end, is_whole = _chain_end(contents, order, start + 4 * buckets, last - first)
    return first + end, is_whole and not table.missing


def _chain_end(contents: FileContents, order: str, chains: int, index: int) -> tuple[int, bool]:
    """The index after the end of a chain, whose last word has its lowest bit set."""
    for position in range(index, index + _MAX_CHAIN):
        word = contents.read(chains + 4 * position, 4)
        if word is None:
            return position, False
        if struct.unpack(order + "I", word)[0] & 1:
            return position + 1, True
    return index, False
