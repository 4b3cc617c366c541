"""Where in ``.eh_frame`` the entry of a function is, by the function's address (LSB Core 5.0, 10.6.2)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from unwind.dwarf import Encoding


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
    """The same made of the entries themselves."""

    def __init__(self) -> None:
        self._functions: list[tuple[int, int, int]] = []
        self._starts: list[int] = []

    def add(self, start: int, end: int, entry: int) -> None:
        """One more function [start, end)."""
        if start < end:
            self._functions.append((start, end, entry))

    def finish(self) -> None:
        """All functions were added."""
        self._functions.sort()
        self._starts = [start for start, _end, _entry in self._functions]

    def find(self, address: int) -> int | None:
        """As ``SearchTable.find``."""
        found = bisect_right(self._starts, address) - 1
        return self._functions[found][2] if found >= 0 else None
