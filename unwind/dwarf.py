"""Numbers and pointers as DWARF writes them (DWARF 5, 7.6; LSB Core 5.0, 10.5.1 "DWARF Exception Header Encoding")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recording.errors import BadImageError

_MAX_LEB128 = 10
"""Bytes of the longest number of 64 bits."""
_FORMATS: dict[int, tuple[int, bool]] = {
    0x02: (2, False),
    0x03: (4, False),
    0x04: (8, False),
    0x0A: (2, True),
    0x0B: (4, True),
    0x0C: (8, True),
}
"""DW_EH_PE_udata2 ... sdata8: bytes, signed."""
_ABSPTR, _ULEB128, _SIGNED, _SLEB128 = 0x00, 0x01, 0x08, 0x09
_PCREL, _DATAREL, _ALIGNED, _INDIRECT = 0x10, 0x30, 0x50, 0x80
OMIT = 0xFF
"""DW_EH_PE_omit: there is no value."""


class Reader:
    """Reads numbers one after the other out of bytes that lie at a link-time address.

    Raises BadImageError where they end too soon or hold what cannot be.
    """

    __slots__ = ("address", "byteorder", "data", "end", "pointer_size", "position")

    def __init__(self, data: bytes, address: int, pointer_size: int, byteorder: Literal["little", "big"]) -> None:
        self.data = data
        self.address = address
        self.pointer_size = pointer_size
        self.byteorder: Literal["little", "big"] = byteorder
        self.position = 0
        self.end = len(data)

    def block(self, size: int) -> bytes:
        """The next bytes."""
        stop = self.position + size
        if not 0 <= size <= self.end - self.position:
            raise BadImageError(f"the unwind table at {self.address:#x} ends in the middle of an entry")
        block = self.data[self.position : stop]
        self.position = stop
        return block

    def number(self, size: int, *, signed: bool = False) -> int:
        """A number of fixed size."""
        return int.from_bytes(self.block(size), self.byteorder, signed=signed)

    def byte(self) -> int:
        """An unsigned byte."""
        if self.position >= self.end:
            raise BadImageError(f"the unwind table at {self.address:#x} ends in the middle of an entry")
        self.position += 1
        return self.data[self.position - 1]

    def uleb(self) -> int:
        """An unsigned LEB128 number."""
        return self._leb()[0]

    def sleb(self) -> int:
        """A signed LEB128 number."""
        value, bits = self._leb()
        return value - (1 << bits) if value >> bits - 1 else value

    def _leb(self) -> tuple[int, int]:
        value = bits = 0
        for _ in range(_MAX_LEB128):
            byte = self.byte()
            value |= (byte & 0x7F) << bits
            bits += 7
            if byte < 0x80:
                return value, bits
        raise BadImageError(f"a number in the unwind table at {self.address:#x} does not end")

    def string(self) -> bytes:
        """A string up to its NUL, which is skipped."""
        stop = self.data.find(b"\0", self.position, self.end)
        if stop < 0:
            raise BadImageError(f"a string in the unwind table at {self.address:#x} does not end")
        return self.block(stop + 1 - self.position)[:-1]

    def pointer(self, encoding: int, data_base: int | None = None) -> int:
        """A pointer in a DW_EH_PE encoding. data_base: what DW_EH_PE_datarel counts from, where that is known."""
        place = self.address + self.position
        value = self.value(encoding)
        base = encoding & 0x70
        if encoding & _INDIRECT:
            raise BadImageError(f"the unwind table at {self.address:#x} has an indirect pointer where none can be")
        if base == _PCREL:
            value += place
        elif base == _DATAREL and data_base is not None:
            value += data_base
        elif base != 0:
            raise BadImageError(f"the unwind table at {self.address:#x} has pointers in the unknown encoding {encoding:#x}")
        return value & (1 << 8 * self.pointer_size) - 1

    def value(self, encoding: int) -> int:
        """The number that an encoded pointer is stored as."""
        form = encoding & 0x0F
        if encoding == _ALIGNED:
            self.block(-(self.address + self.position) % self.pointer_size)
        if form == _ABSPTR:
            return self.number(self.pointer_size)
        if form == _SIGNED:
            return self.number(self.pointer_size, signed=True)
        if form == _ULEB128:
            return self.uleb()
        if form == _SLEB128:
            return self.sleb()
        known = _FORMATS.get(form)
        if known is None:
            raise BadImageError(f"the unwind table at {self.address:#x} has pointers in the unknown encoding {encoding:#x}")
        return self.number(known[0], signed=known[1])


@dataclass(frozen=True, slots=True)
class Encoding:
    """A pointer encoding of fixed size: a pointer is the number stored plus ``base``, plus its own place if ``is_relative``."""

    size: int
    signed: bool
    base: int
    is_relative: bool
    byteorder: Literal["little", "big"]


def fixed_encoding(encoding: int, pointer_size: int, byteorder: Literal["little", "big"], data_base: int) -> Encoding | None:
    """What a DW_EH_PE encoding means where its size is fixed and its base known, else None."""
    form, base = encoding & 0x0F, encoding & 0xF0
    size, signed = _FORMATS.get(form, (pointer_size, form == _SIGNED))
    if (form not in _FORMATS and form not in (_ABSPTR, _SIGNED)) or base not in (0, _PCREL, _DATAREL):
        return None
    return Encoding(size, signed, data_base if base == _DATAREL else 0, base == _PCREL, byteorder)
