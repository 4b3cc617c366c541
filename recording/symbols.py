"""Symbol tables: sorted addresses with names, looked up by bisection and stored as one compact blob."""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from recording.errors import BadRecordingError

_MAGIC = b"GPSYMS1\0"
_HEADER = struct.Struct("<8sII")
_MAX_SYMBOLS = 1 << 24


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named address. ``kind`` is nm's letter (``t``/``T`` text, ``d``/``D`` data ...), ``size`` reaches to the next symbol."""

    address: int
    size: int
    kind: str
    name: str


class SymbolTable:
    """Symbols in address order. Addresses are link-time or run-time ones: an image's bias says which.

    Of several symbols at one address, lookups by address answer with the first one given (the caller orders aliases). A row without
    a name only ends the symbol before it: what is there has no known name.
    """

    __slots__ = ("_addresses", "_by_name", "_kinds", "_names")

    def __init__(self, addresses: array[int], kinds: bytes, names: list[str]) -> None:
        """Addresses ascending (array type ``Q``), one byte of ``kinds`` and one name each.

        Raises ValueError where they differ in length.
        """
        if not len(addresses) == len(kinds) == len(names):
            raise ValueError("addresses, kinds and names of a symbol table differ in length")
        self._addresses = addresses
        self._kinds = kinds
        self._names = names
        self._by_name: dict[str, int] | None = None

    @classmethod
    def from_symbols(cls, symbols: Iterable[tuple[int, str, str]]) -> Self:
        """Build from (address, kind, name) in any order."""
        rows = sorted(symbols, key=lambda row: row[0])
        return cls(
            array("Q", [row[0] for row in rows]),
            "".join(row[1] for row in rows).encode("latin-1"),
            [row[2] for row in rows],
        )

    def __len__(self) -> int:
        return len(self._addresses)

    def __iter__(self) -> Iterator[Symbol]:
        return (self._symbol(index) for index in range(len(self)))

    def _symbol(self, index: int) -> Symbol:
        address = self._addresses[index]
        after = bisect_right(self._addresses, address, index)
        size = self._addresses[after] - address if after < len(self._addresses) else 0
        return Symbol(address, size, chr(self._kinds[index]), self._names[index])

    def find(self, name: str) -> Symbol | None:
        """The first symbol of that name, or None."""
        if self._by_name is None:
            # From the last to the first, so that the first of a name stays; a loop would take twice as long.
            self._by_name = dict(zip(reversed(self._names), range(len(self._names) - 1, -1, -1), strict=True))
        found = self._by_name.get(name)
        return None if found is None else self._symbol(found)

    def find_at(self, address: int) -> Symbol | None:
        """The symbol that covers an address: the last one at or below it, or None below the first and where that has no name."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        start = self._addresses[index]
        while index > 0 and self._addresses[index - 1] == start:
            index -= 1
        return self._symbol(index) if self._names[index] else None

    def text_only(self, *, and_prefix: str | None = None) -> SymbolTable:
        """The same table with code symbols alone, and with all symbols whose names begin so."""
        keep = [
            i
            for i, kind in enumerate(self._kinds)
            if kind in b"tTwW" or (and_prefix is not None and self._names[i].startswith(and_prefix))
        ]
        return SymbolTable(
            array("Q", [self._addresses[i] for i in keep]), bytes(self._kinds[i] for i in keep), [self._names[i] for i in keep]
        )

    def moved(self, offset: int) -> SymbolTable:
        """The same table with ``offset`` added to every address (modulo 2**64)."""
        return SymbolTable(array("Q", [(a + offset) & 0xFFFF_FFFF_FFFF_FFFF for a in self._addresses]), self._kinds, self._names)

    def to_blob(self) -> bytes:
        """One byte string that ``from_blob`` reads back, on any machine."""
        addresses = self._addresses
        if sys.byteorder == "big":
            addresses = array("Q", addresses)
            addresses.byteswap()
        names = "\0".join(self._names).encode("utf-8", "surrogateescape")
        body = zlib.compress(addresses.tobytes() + self._kinds + names, 1)
        return _HEADER.pack(_MAGIC, len(self), zlib.crc32(body)) + body

    @classmethod
    def from_blob(cls, blob: bytes) -> SymbolTable:
        """Read what ``to_blob`` wrote. Raises BadRecordingError when it is damaged."""
        try:
            magic, count, checksum = _HEADER.unpack_from(blob)
            if magic != _MAGIC or count > _MAX_SYMBOLS or zlib.crc32(blob[_HEADER.size :]) != checksum:
                raise ValueError("header")
            body = zlib.decompress(blob[_HEADER.size :])
            addresses = array("Q", body[: 8 * count])
            if sys.byteorder == "big":
                addresses.byteswap()
            kinds = body[8 * count : 9 * count]
            names = body[9 * count :].decode("utf-8", "surrogateescape").split("\0") if count else []
            return cls(addresses, kinds, names)
        except (ValueError, struct.error, zlib.error) as error:
            raise BadRecordingError("a symbol table is damaged; record again") from error
