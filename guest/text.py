"""A snapshot of the kernel's code: the bytes that unwinding looks at while the guest runs on."""

from __future__ import annotations

from collections.abc import Sequence

from guest.memory import Steps
from guest.paging import AddressSpace
from recording.errors import GuestMemoryError


class TextImage:
    """Pieces of code by virtual address. The kernel patches its code at run time, so a snapshot may be taken anew."""

    __slots__ = ("_pieces", "ranges")

    def __init__(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Each piece is (address, bytes); pieces do not overlap."""
        self._pieces = tuple(pieces)
        self.ranges = tuple((address, address + len(data)) for address, data in self._pieces)

    @property
    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        """What it was made of."""
        return self._pieces

    def contains(self, address: int) -> bool:
        """Whether an address is in the snapshot."""
        return any(start <= address < end for start, end in self.ranges)

    def read(self, address: int, size: int) -> bytes | None:
        """Code bytes, or None where the snapshot does not hold all of them."""
        for start, data in self._pieces:
            offset = address - start
            if offset >= 0 and offset + size <= len(data):
                return data[offset : offset + size]
        return None


def read_text(space: AddressSpace, ranges: Sequence[tuple[int, int]]) -> Steps[TextImage]:
    """Read address ranges [start, end); one that cannot be read (it was freed) is left out."""
    pieces: list[tuple[int, bytes]] = []
    for start, end in ranges:
        try:
            data = yield from space.read_chunks(start, end - start)
        except GuestMemoryError:
            continue
        if data:
            pieces.append((start, data))
    return TextImage(pieces)
