"""The smallest ELF files: one segment of code, and notes."""

from __future__ import annotations

import struct

CODE = bytes.fromhex("55 4889e5 c3")


def elf(address: int = 0x1000, *, machine: int = 62, kind: int = 2, flags: int = 5, size: int = 0x100) -> bytes:
    """A file with one segment of code and nothing else."""
    header = struct.pack("<4sBBB9x", b"\x7fELF", 2, 1, 1)
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, address, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, flags, 0x80, address, address, len(CODE), size, 16) + bytes(8) + CODE
