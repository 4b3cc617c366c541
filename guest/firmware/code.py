"""A piece of code from before the kernel, told by what guest memory holds, and the ways to tell it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

Read: TypeAlias = Callable[[int, int], bytes | None]
"""(address, size) -> the bytes there, as the vCPU that runs the code sees them; None where not all of it is memory."""

_PAGE = 4096
CODE_SIZE = 32
"""Bytes of code from the program counter on that are compared."""


class Role(StrEnum):
    """What such code is there for."""

    FIRMWARE = "firmware"
    OPTION_ROM = "option-rom"
    BOOT_LOADER = "boot-loader"
    EFI_STUB = "efi-stub"
    DECOMPRESSOR = "decompressor"


@dataclass(frozen=True, slots=True)
class BootCode:
    """Code at [start, end) whose own addresses begin with 0 at ``base``.

    name: of the program (``SeaBIOS``, ``DxeCore``). evidence: what memory holds that says so, in words.
    proof: (address, bytes) that must still be there for it to hold.
    """

    name: str
    role: Role
    start: int
    end: int
    base: int
    evidence: str
    proof: tuple[int, bytes]

    def holds_at(self, address: int, read: Read) -> bool:
        """Whether an address is in it, and it has not been overwritten."""
        at, expected = self.proof
        return self.start <= address < self.end and read(at, len(expected)) == expected


def read_before(address: int, reach: int, read: Read) -> tuple[int, bytes]:
    """(start, bytes) of memory that ends at an address: ``reach`` bytes, or fewer where memory begins later."""
    while address > 0 and reach:
        low = max(0, address - reach)
        data = read(low, address - low)
        if data is not None:
            return low, data
        reach //= 2
        start = -(-max(0, address - reach) // _PAGE) * _PAGE
        data = read(start, address - start) if start < address else None
        if data is not None:
            return start, data
    return address, b""
