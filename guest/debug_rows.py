"""Unwind tables in debug files of this machine become rows at the guest's addresses: of the kernel, and of its modules.

A table of another build would be wrong amid functions without a sign of it, so nothing but an equal build ID will do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from guest.elf.frame_sections import FrameSection, abi_of, read_frame_section
from guest.host_files import HostFinder
from guest.memory import Steps
from recording.errors import BadImageError, MissingDependencyError
from recording.model import FrameData, Image
from unwind.arch import Architecture
from unwind.frame_table import FrameTable, Unread
from unwind.rules import Row
from unwind.user_abi import UserAbi

_MASK = (1 << 64) - 1


class PlacedTable:
    """One file's table, and where its code is in the guest."""

    def __init__(self, data: FrameData, abi: UserAbi) -> None:
        """abi: of the code."""
        self.data = data
        self.table: FrameTable = FrameSection(data.content, data.address, data.is_debug, data.order).table(abi)


class DebugRows:
    """What is known of a kernel's code by debug information. An object never changes."""

    def __init__(self, tables: Sequence[PlacedTable]) -> None:
        self.tables = tuple(tables)
        parts = [
            (start + bias & _MASK, end - start, bias, placed.table) for placed in tables for start, end, bias in placed.data.parts
        ]
        self._parts = sorted(parts, key=lambda part: part[0])
        self._starts = [part[0] for part in self._parts]

    def find_row(self, lookup_pc: int) -> Row | None:
        """See ``unwind.sources.RowSource``."""
        table, address = self._find(lookup_pc)
        row = None if table is None else table.find_row(address)
        return None if row is Unread.UNREAD else row

    def is_bare(self, lookup_pc: int) -> bool:
        """See ``unwind.sources.DebugSource``."""
        table, address = self._find(lookup_pc)
        return table is not None and table.is_bare(address)

    def _find(self, lookup_pc: int) -> tuple[FrameTable | None, int]:
        """The table of a piece of code, and the file's address there."""
        index = bisect_right(self._starts, lookup_pc) - 1
        if index < 0:
            return None, 0
        start, size, bias, table = self._parts[index]
        return (table if lookup_pc < start + size else None), lookup_pc - bias & _MASK


class DebugFiles:
    """Finds the tables of one kernel and of its modules, each once."""

    def __init__(self, finder: HostFinder, architecture: Architecture) -> None:
        self._finder = finder
        self._architecture = architecture
        self._tables: dict[object, PlacedTable | None] = {}
        self._rows: DebugRows | None = None

    def read(self, images: Sequence[tuple[object, Image]]) -> Steps[DebugRows | None]:
        """The rows of pieces of code, None where there is no file of any. Each is given with what tells it from all others."""
        tables = []
        for key, image in images:
            if key not in self._tables:
                self._tables[key] = self._find(image)
                yield
            placed = self._tables[key]
            if placed is not None:
                yield from placed.table.prepare()
                tables.append(placed)
        if self._rows is None or self._rows.tables != tuple(tables):
            self._rows = DebugRows(tables)
        return self._rows if tables else None

    def _find(self, image: Image) -> PlacedTable | None:
        if image.build_id is None:
            return None
        try:
            match = self._finder.find(image, lambda _line: None)
            if match is None:
                return None
            with match.file as file:
                section = read_frame_section(file) if file.build_id == image.build_id else None
                abi = abi_of(self._architecture, file.pointer_size)
        except (BadImageError, MissingDependencyError):
            # Whoever wants lines of the file is told then.
            return None
        if section is None or abi is None:
            return None
        data = FrameData(section.data, section.address, section.is_debug, section.order, match.placement.parts)
        return PlacedTable(data, abi)
