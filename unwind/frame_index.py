"""Where in an unwind table the entry of a function is, by the function's address (LSB Core 5.0, 10.6.2)."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise

from unwind.dwarf import Encoding

_END = 1 << 64


class SearchTable:
    """The sorted table of ``.eh_frame_hdr``: address of a function -> address of its entry."""

    __slots__ = ("_count", "_encoding", "_mask", "_read", "_start")

    def __init__(self, start: int, count: int, encoding: Encoding, mask: int, read: Callable[[int, int], bytes]) -> None:
        """``encoding``: of both pointers of an entry. read: raises where the bytes are not known."""
        self._start = start
        self._count = count
        self._encoding = encoding
        self._mask = mask
        self._read = read

    def find(self, address: int) -> int | None:
        """Address of the entry of the last function that begins at or below an address."""
        found = bisect_right(range(0, 2 * self._count, 2), address, key=self._pointer) - 1
        return self._pointer(2 * found + 1) if found >= 0 else None

    def _pointer(self, index: int) -> int:
        encoding = self._encoding
        place = self._start + index * encoding.size
        value = int.from_bytes(self._read(place, encoding.size), encoding.byteorder, signed=encoding.signed)
        return value + encoding.base + (place if encoding.is_relative else 0) & self._mask


class FunctionIndex:
    """The same made of the entries themselves.

    Linkers that drop a function leave its entry in ``.debug_frame``, with an address that is another function's or nobody's. So
    where functions overlap, the one that reaches into the next says nothing.
    """

    def __init__(self) -> None:
        self._functions: list[tuple[int, int, int]] = []
        self._starts = array("Q")
        self._entries = array("Q")

    def add(self, start: int, end: int, entry: int) -> None:
        """One more function [start, end)."""
        if start < end and max(start, entry) < _END:
            self._functions.append((start, end, entry))

    def finish(self) -> None:
        """All functions were added."""
        functions = sorted(self._functions)
        self._functions = []
        last = (-1, -1)
        for (start, end, entry), behind in pairwise([*functions, (_END, _END, 0)]):
            is_alone = start != last[0] and end <= behind[0]
            if is_alone or (start, end) in (last, behind[:2]):
                self._starts.append(start)
                self._entries.append(entry)
            last = start, end

    def find(self, address: int) -> int | None:
        """As ``SearchTable.find``."""
        found = bisect_right(self._starts, address) - 1
        return self._entries[found] if found >= 0 else None
