"""Made-up guest memory in which firmware lies: pieces of bytes by address."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

MACHINE_X86_64 = 0x8664
NO_CODE = b"\x90" * 64


class Memory:
    """Physical memory; what is not given is none."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self.pieces = dict(pieces)

    def ram(self) -> Sequence[tuple[int, int]]:
        return sorted((address, address + len(data)) for address, data in self.pieces.items())

    def read_bytes(self, address: int, size: int) -> bytes | None:
        for start, data in self.pieces.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return None

    def read(self, address: int, size: int) -> bytes:
        data = self.read_bytes(address, size)
        assert data is not None
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return [self.read_bytes(*request) for request in requests]


def code(seed: int, size: int) -> bytes:
    """Bytes that look like code: no piece of them occurs twice."""
    return b"".join(struct.pack("<I", (seed << 20 | index) * 2654435761 & 0xFFFFFFFF) for index in range(size // 4))


def portable(text: bytes, *, debug: bytes = b"", entry: int = 0x400, sections: bytes = b".text", at: int = 0x80) -> bytes:
    """A PE32+ image whose code is at 0x400, with a CodeView record behind it."""
    size = 0x400 + len(text) + 0x200
    record = 0x400 + len(text)
    directories = [(0, 0)] * 16
    if debug:
        directories[6] = (record, 28)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, len(text), 0, 0, entry, 0x400)
    optional += bytes(56 - len(optional)) + struct.pack("<I", size) + bytes(108 - 60) + struct.pack("<I", 16)
    optional += b"".join(struct.pack("<II", *each) for each in directories)
    header = b"MZ".ljust(60, b"\0") + struct.pack("<I", at)
    header = header.ljust(at, b"\0") + b"PE\0\0" + struct.pack("<HHIIIHH", MACHINE_X86_64, 1, 0, 0, 0, len(optional), 0x22)
    header += optional + sections.ljust(40, b"\0")
    entry_of_debug = struct.pack("<IIHHIIII", 0, 0, 0, 0, 2, len(debug), record + 28, 0) if debug else b""
    return (header.ljust(0x400, b"\0") + text + entry_of_debug + debug).ljust(size, b"\0")


def volume(files: Sequence[tuple[str, bytes]]) -> bytes:
    """A firmware volume with a driver for each (name, image)."""
    body = b""
    for name, image in files:
        pe = (4 + len(image)).to_bytes(3, "little") + b"\x10" + image
        text = name.encode("utf-16-le") + b"\0\0"
        sections = pe + bytes(-len(pe) % 4) + (4 + len(text)).to_bytes(3, "little") + b"\x15" + text
        file = bytes(range(16)) + b"\0\0\x07\0" + (24 + len(sections)).to_bytes(3, "little") + b"\xf8" + sections
        body += file + b"\xff" * (-len(file) % 8)
    header = bytes(32) + struct.pack("<QIIHHHBB", 72 + len(body) + 64, 0x4856465F, 0, 72, 0, 0, 0, 2)
    return header.ljust(72, b"\0") + body + b"\xff" * 64
