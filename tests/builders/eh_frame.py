"""Small ``.eh_frame`` and ``.eh_frame_hdr`` sections, written by hand (LSB Core 5.0, 10.6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

HEADER = 0x10_0000
FRAMES = 0x20_0000
CODE = 0x10000
USUAL = bytes([0x0C, 7, 8, 0x90, 1])
"""CFA = rsp + 8, return address at CFA - 8."""


def uleb(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value >> 7 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def sleb(value: int) -> bytes:
    """A signed LEB128 number."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        is_last = value == -(byte >> 6)
        out.append(byte | (0 if is_last else 0x80))
        if is_last:
            return bytes(out)


def entry(body: bytes) -> bytes:
    """An entry with its length, padded as assemblers do."""
    body += bytes(-len(body) % 4)
    return len(body).to_bytes(4, "little") + body


@dataclass
class Sections:
    """Sections at fixed addresses that grow by functions. ``hidden``: addresses of pages that cannot be read."""

    augmentation: bytes = b"zR"
    version: int = 1
    initial: bytes = USUAL
    encoding: int = 0x1B
    common_data: bytes | None = None
    column: int = 16
    pointer_size: int = 8
    data_alignment: int = -8
    frames: bytearray = field(default_factory=bytearray)
    starts: list[tuple[int, int]] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        data = bytes([self.encoding]) if self.common_data is None else self.common_data
        body = bytes(4) + bytes([self.version]) + self.augmentation + b"\0"
        if self.version == 4:
            body += bytes([self.pointer_size, 0])
        if self.augmentation == b"eh":
            body += bytes(self.pointer_size)
        body += uleb(1) + sleb(self.data_alignment) + uleb(self.column)
        if self.augmentation.startswith(b"z"):
            body += uleb(len(data)) + data
        self.frames += entry(body + self.initial)

    def pointer(self, value: int, encoding: int, place: int) -> bytes:
        """A pointer in an encoding."""
        value -= {0x00: 0, 0x10: place, 0x30: HEADER}[encoding & 0x70]
        size = {0: self.pointer_size, 2: 2, 3: 4, 4: 8, 10: 2, 11: 4, 12: 8}.get(encoding & 15)
        if size is None:
            return uleb(value) if encoding & 15 == 1 else sleb(value)
        return value.to_bytes(size, "little", signed=value < 0)

    def function(self, start: int, size: int, instructions: bytes = b"") -> None:
        """One more function."""
        place = FRAMES + len(self.frames)
        self.starts.append((start, place))
        first = self.pointer(start, self.encoding, place + 8)
        body = (place + 4 - FRAMES).to_bytes(4, "little") + first + self.pointer(size, self.encoding & 15, 0)
        if self.augmentation.startswith(b"z"):
            body += uleb(0)
        self.frames += entry(body + instructions)

    def header(self, encoding: int = 0x3B) -> bytes:
        """The sorted header."""
        out = (
            bytearray([1, 0x1B, 0x03, encoding])
            + (FRAMES - HEADER - 4).to_bytes(4, "little")
            + len(self.starts).to_bytes(4, "little")
        )
        for start, place in sorted(self.starts):
            out += self.pointer(start, encoding, HEADER + len(out))
            out += self.pointer(place, encoding, HEADER + len(out))
        return bytes(out)

    def reader(self, header: bytes) -> Reading:
        """What an ``FrameTable`` reads by."""
        return Reading(((HEADER, header), (FRAMES, bytes(self.frames))), self.hidden, self.reads)


@dataclass
class Reading:
    """Bytes at addresses."""

    pieces: Iterable[tuple[int, bytes]]
    hidden: set[int]
    reads: list[tuple[int, int]]

    def __call__(self, address: int, size: int) -> bytes | None:
        self.reads.append((address, size))
        if any(start < address + size and address < start + 4096 for start in self.hidden):
            return None
        for start, data in self.pieces:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return None
