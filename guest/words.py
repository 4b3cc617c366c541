"""How a kernel writes numbers and pointers into its memory: byte order and size of a pointer."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from unwind.arch import Architecture, ByteOrder

_FORMATS = {4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class Words:
    """size: bytes of a pointer, which is also an ``unsigned long``."""

    byteorder: ByteOrder
    size: int

    @classmethod
    def of(cls, architecture: Architecture) -> Words:
        """Those of an architecture's kernels."""
        return cls(architecture.byteorder, architecture.pointer_size)

    @property
    def order(self) -> str:
        """The byte order as ``struct`` and ``memoryview`` write it."""
        return "<" if self.byteorder == "little" else ">"

    @property
    def format(self) -> str:
        """A pointer as ``struct`` writes it, without its order."""
        return _FORMATS[self.size]

    @property
    def mask(self) -> int:
        """The largest pointer: an address beyond it begins anew at 0."""
        return (1 << 8 * self.size) - 1

    def number(self, data: bytes) -> int:
        """An unsigned number of any size."""
        return int.from_bytes(data, self.byteorder)

    def pointers(self, data: bytes) -> tuple[int, ...]:
        """As many pointers as bytes hold."""
        count = len(data) // self.size
        return struct.unpack_from(f"{self.order}{count}{self.format}", data)
