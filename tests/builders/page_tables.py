"""x86-64 page tables in a piece of physical memory."""

from __future__ import annotations

import struct

from unwind.arch.x86_64 import X86_64

FOUR_LEVELS = X86_64.paging.tables({"cr4": 0})
PRESENT = 0x67
LARGE = 0x80


class PageTables:
    """Tables from ``start`` on; the first page is the root."""

    def __init__(self, start: int, pages: int = 64, levels: int = 4) -> None:
        self.root = start
        self.levels = levels
        self.memory = bytearray(pages * 0x1000)
        self._next = start + 0x1000

    def map(self, virtual: int, physical: int, size: int = 0x1000, page: int = 0x1000) -> None:
        """Map [virtual, +size) in pages of 4 KiB, 2 MiB or 1 GiB."""
        last = {0x1000: 1, 0x20_0000: 2, 0x4000_0000: 3}[page]
        for offset in range(0, size, page):
            self.set(virtual + offset, last, physical + offset | PRESENT | (LARGE if last > 1 else 0))

    def set(self, virtual: int, level: int, entry: int) -> None:
        """Write the entry of an address at a level, making the tables above it."""
        table = self.root
        for above in range(self.levels, level, -1):
            at = self._at(table, virtual, above)
            value = struct.unpack_from("<Q", self.memory, at)[0]
            if not value & 1:
                value = self._next | PRESENT
                self._next += 0x1000
                struct.pack_into("<Q", self.memory, at, value)
            table = value & 0x000F_FFFF_FFFF_F000
        struct.pack_into("<Q", self.memory, self._at(table, virtual, level), entry)

    def _at(self, table: int, virtual: int, level: int) -> int:
        return table - self.root + 8 * (virtual >> 12 + 9 * (level - 1) & 511)
