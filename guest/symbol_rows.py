"""Decoded symbols become the order that lookups want: mapping symbols dropped, the best of several names at an address first.

Rows also go to and from plain bytes for the cache on the host: no compression, because a second attach is to be quick.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from bisect import bisect_left
from dataclasses import dataclass

from guest.memory import Steps
from recording.errors import BadImageError
from recording.symbols import SymbolTable

MAX_SYMBOLS = 1 << 21
_DROPPED = re.compile(r"__pfx_|__cfi_|\$[adtx](?:$|\.)|\.L")
"""Names of padding before a function (6.2, kCFI) and of assembler mapping symbols: nothing runs there that they would name."""
_BOUNDARY = re.compile(
    r"__start_|__stop_|__\w*_(?:start|end|begin)$|_[a-z]*(?:text|data|end)$|__(?:init|bss)_(?:begin|start|end|stop)$"
)
"""Symbols of the linker script: they mark where a section begins or ends, and often share an address with a function."""
_ROWS_PER_STEP = 1 << 13
_HEADER = struct.Struct("<II")
_ADDRESS_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SymbolRows:
    """Symbols in address order: addresses (array type ``Q``), nm's letter as a byte and name of each."""

    addresses: array[int]
    kinds: bytes
    names: list[str]

    def table(self) -> SymbolTable:
        """The rows as a table for lookups."""
        return SymbolTable(self.addresses, self.kinds, self.names)

    def moved(self, offset: int, start: int, end: int) -> SymbolRows:
        """The rows with those in [start, end) moved by ``offset``: the image moves with KASLR, per-CPU and absolute symbols stay.

        The moved ones must stay in order with the others.
        """
        low = bisect_left(self.addresses, start)
        high = bisect_left(self.addresses, end)
        addresses = array("Q", self.addresses)
        addresses[low:high] = _shifted(self.addresses[low:high], offset)
        return SymbolRows(addresses, self.kinds, self.names)

    def find(self, name: str) -> int | None:
        """The address of the first symbol of that name."""
        try:
            return self.addresses[self.names.index(name)]
        except ValueError:
            return None

    def to_bytes(self) -> bytes:
        """Plain bytes that ``from_bytes`` reads back."""
        names = "\0".join(self.names).encode("ascii", "replace")
        return _HEADER.pack(len(self.names), len(names)) + _little(self.addresses).tobytes() + self.kinds + names

    @classmethod
    def from_bytes(cls, data: bytes) -> SymbolRows:
        """Read what ``to_bytes`` wrote. Raises BadImageError where it is damaged."""
        try:
            count, names_size = _HEADER.unpack_from(data)
            if not 0 < count <= MAX_SYMBOLS or len(data) != _HEADER.size + 9 * count + names_size:
                raise ValueError
            addresses = array("Q", data[_HEADER.size : _HEADER.size + 8 * count])
            kinds = data[_HEADER.size + 8 * count : _HEADER.size + 9 * count]
            names = data[_HEADER.size + 9 * count :].decode("ascii").split("\0")
            if len(names) != count:
                raise ValueError
        except (struct.error, ValueError) as error:
            raise BadImageError("a cached symbol table is damaged") from error
        return cls(_little(addresses), kinds, names)


def _shifted(values: array[int], offset: int) -> array[int]:
    """Ascending values plus an offset, by one addition of one very long number: ten times as fast as one by one."""
    if not values or not (values[0] + offset >= 0 and values[-1] + offset <= _ADDRESS_MASK):
        return array("Q", [value + offset & _ADDRESS_MASK for value in values])
    size = 8 * len(values)
    offsets = int.from_bytes(struct.pack("<Q", abs(offset)) * len(values), "little")
    total = int.from_bytes(_little(values).tobytes(), "little") + (offsets if offset >= 0 else -offsets)
    return _little(array("Q", total.to_bytes(size, "little")))


def _little(values: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return values
    swapped = array("Q", values)
    swapped.byteswap()
    return swapped


def is_boundary(name: str) -> bool:
    """Whether a name is the linker script's for the start or end of a section."""
    return _BOUNDARY.match(name) is not None


def _rank(kind: int, name: str) -> tuple[bool, bool, int]:
    """Lower is better: functions before boundaries, own names before those of early copies, global before weak before local."""
    letter = chr(kind)
    return is_boundary(name), name.startswith("__pi_"), 1 if letter in "wWvV" else 0 if letter.isupper() else 2


def arrange(rows: SymbolRows) -> Steps[SymbolRows]:
    """Drop what names nothing, sort by address, and put the best name of each address first."""
    addresses, kinds, names = rows.addresses, rows.kinds, rows.names
    order: list[int] = []
    addresses_out = array("Q")
    kinds_out = bytearray()
    names_out: list[str] = []
    last = -1
    in_order = True
    for start in range(0, len(names), _ROWS_PER_STEP):
        for index in range(start, min(start + _ROWS_PER_STEP, len(names))):
            if not _DROPPED.match(names[index]):
                order.append(index)
                address = addresses[index]
                in_order &= address >= last
                last = address
        yield
    if not in_order:
        order.sort(key=addresses.__getitem__)
        yield
    position = 0
    while position < len(order):
        start = position
        stop = min(position + _ROWS_PER_STEP, len(order))
        while position < stop:
            address = addresses[order[position]]
            after = position + 1
            while after < len(order) and addresses[order[after]] == address:
                after += 1
            if after - position > 1:
                order[position:after] = sorted(order[position:after], key=lambda index: _rank(kinds[index], names[index]))
            position = after
        addresses_out.extend([addresses[index] for index in order[start:position]])
        kinds_out += bytes([kinds[index] for index in order[start:position]])
        names_out += [names[index] for index in order[start:position]]
        yield
    return SymbolRows(addresses_out, bytes(kinds_out), names_out)
