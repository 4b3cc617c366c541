"""Entries of ELF symbol tables become rows for lookups: the functions, the best of several names first, gaps marked.

An ELF symbol has a size; code after its end (a function that the table does not name: it is static and the file was stripped) must
not get its name. The rows of a ``SymbolTable`` reach to the next row, so a row without a name ends a function that has none
after it.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import merge
from typing import NamedTuple

from guest.elf.header import Header
from guest.elf.partial import Partial
from guest.memory import Steps
from recording.symbols import SymbolTable

MAX_SYMBOLS = 1 << 22
_PER_STEP = 1 << 9
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_LOCAL, _STB_GLOBAL = 0, 1
_SHN_UNDEF, _SHN_RESERVED, _SHN_XINDEX = 0, 0xFF00, 0xFFFF
_PADDING = 16
"""Bytes after a function that may be padding up to the next one's alignment and need no row of their own."""
_LABEL_REACH = 16
"""How far a symbol without a size reaches where its section is not known: about one call."""
_NOT_CODE = re.compile(
    r"\$[adtx](?:$|\.)|\.L|__(?:start|stop)_|_*(?:etext|edata|end|executable_start|bss_start|data_start|GNU_EH_FRAME_HDR)$"
)
"""Mapping symbols, local labels, and symbols of the linker script: nothing runs there that they would name."""
_VERSION = re.compile(r"(?<=.)@@?[^@]*$")
"""Versioned names of .symtab, such as ``memcpy@@GLIBC_2.14``."""
_LABEL_RANK, _UNSIZED_RANK = 1000, 500
ENTRY_RANK = 2000
"""Of a program's entry point by its header alone: any other name of the place is better."""
GAP_KIND = "?"
"""Kind of the rows without a name."""


class ElfSymbol(NamedTuple):
    """A function, or a label in code.

    rank: lower is better among several at one address: a function before a label, one with a size before one without, global
        before weak before local, few underscores first (much as perf does).
    end: the first address after it; 0 where it has no size.
    """

    address: int
    rank: int
    name: str
    end: int
    kind: str

    @property
    def is_label(self) -> bool:
        """Whether it is not said to be a function (assembler code that does not say it, and places in functions)."""
        return self.rank >= _LABEL_RANK


class Code:
    """Link-time addresses of a file's code: its executable sections, or where they are not known its executable segments."""

    def __init__(self, ranges: Iterable[tuple[int, int]], *, is_exact: bool) -> None:
        """``ranges``: [start, end) in any order. ``is_exact``: they are sections, which a symbol does not reach across."""
        known = sorted(ranges)
        self._starts = [start for start, _ in known]
        self._ends = [end for _, end in known]
        self._is_exact = is_exact

    def end_at(self, address: int) -> int | None:
        """The end of the code that an address is in, None where it is in none."""
        index = bisect_right(self._starts, address) - 1
        return self._ends[index] if index >= 0 and address < self._ends[index] else None

    def reach(self, address: int) -> int:
        """The end of a symbol without a size, as long as no other symbol comes first."""
        end = self.end_at(address) or address
        return end if self._is_exact else min(end, address + _LABEL_REACH)


def parse_symbols(header: Header, entries: Partial, names: Partial, code: Code) -> Steps[list[ElfSymbol]]:
    """The functions of a symbol table, as far as it is known."""
    found: list[ElfSymbol] = []
    layout = header.format
    size = layout.symbol.size
    wide = layout.pointer_size == 8
    room = names.most_text
    count = min(len(entries.data) // size, MAX_SYMBOLS)
    for index, row in enumerate(layout.symbol.iter_unpack(memoryview(entries.data)[: count * size])):
        if not index % _PER_STEP:
            yield
        if wide:
            name, info, _, section, address, length = row
        else:
            name, address, length, info, _, section = row
        kind = info & 15
        address = header.place(address)
        if kind not in {_STT_FUNC, _STT_GNU_IFUNC, _STT_NOTYPE} or not name or not _is_section(section):
            continue
        limit = code.end_at(address)
        if limit is None or (entries.missing and not entries.knows(index * size, size)):
            continue
        text = names.name(name)
        room -= len(text or "")
        if room < 0:
            break
        if text and not _NOT_CODE.match(text):
            end = min(address + length, limit) if length else 0
            found.append(_symbol(address, end, kind, info >> 4, _VERSION.sub("", text)))
    return found


def _is_section(index: int) -> bool:
    return _SHN_UNDEF < index < _SHN_RESERVED or index == _SHN_XINDEX


def _symbol(address: int, end: int, kind: int, binding: int, name: str) -> ElfSymbol:
    if binding == _STB_GLOBAL:
        order, letter = 0, "T"
    elif binding == _STB_LOCAL:
        order, letter = 2, "t"
    else:
        order, letter = 1, "W"
    underscores = min(len(name) - len(name.lstrip("_")), 99)
    rank = order * 100 + underscores + (_LABEL_RANK if kind == _STT_NOTYPE else 0 if end else _UNSIZED_RANK)
    return ElfSymbol(address, rank, name, end, "i" if kind == _STT_GNU_IFUNC else letter)


class _Rows:
    """Rows of a table in the making. Of functions within functions the inner one counts, and after its end the outer one again."""

    def __init__(self) -> None:
        self.addresses = array("Q")
        self.kinds = bytearray()
        self.names: list[str] = []
        self._open: list[tuple[int, str, str]] = []

    @property
    def inside(self) -> bool:
        """Whether a function is open at the address that ``close`` was called for."""
        return bool(self._open)

    def close(self, until: int) -> None:
        """Functions that end at or before an address, which is the next symbol's, are at their end."""
        while self._open and self._open[-1][0] <= until:
            end = self._open.pop()[0]
            while self._open and self._open[-1][0] <= end:
                self._open.pop()
            if self._open and end < until:
                self._add(end, *self._open[-1][1:])
            elif not self._open and until - end >= _PADDING:
                self._add(end, GAP_KIND, "")

    def open(self, address: int, end: int, kind: str, name: str) -> None:
        """A function begins."""
        self._add(address, kind, name)
        self._open.append((end, kind, name))

    def _add(self, address: int, kind: str, name: str) -> None:
        if address < 1 << 64:
            self.addresses.append(address)
            self.kinds += kind.encode("latin-1")
            self.names.append(name)


def make_table(symbols: Sequence[ElfSymbol], code: Code) -> Steps[SymbolTable]:
    """Symbols in any order as a table for lookups, one name for an address."""
    runs: list[list[ElfSymbol]] = []
    for start in range(0, len(symbols), _PER_STEP):
        runs.append(sorted(symbols[start : start + _PER_STEP]))
        yield
    rows = _Rows()
    unsized: ElfSymbol | None = None
    last = -1
    for index, symbol in enumerate(merge(*runs)):
        if not index % _PER_STEP:
            yield
        if symbol.address == last:
            continue
        if unsized is not None:
            rows.open(unsized.address, min(symbol.address, code.reach(unsized.address)), unsized.kind, unsized.name)
            unsized = None
        rows.close(symbol.address)
        if symbol.is_label and rows.inside:
            continue
        last = symbol.address
        if symbol.end:
            rows.open(symbol.address, symbol.end, symbol.kind, symbol.name)
        else:
            unsized = symbol
    if unsized is not None:
        rows.open(unsized.address, code.reach(unsized.address), unsized.kind, unsized.name)
    rows.close(1 << 65)
    return SymbolTable(rows.addresses, bytes(rows.kinds), rows.names)
