"""The unwind tables of a file, wherever they are.

``.eh_frame`` is found by PT_GNU_EH_FRAME, or by the section headers where there is no such segment. Where it says nothing,
``.debug_frame`` does in files of this machine (no process has it in memory), or a Go program's own table: it has ``.eh_frame`` for
C code alone, or none at all. Files for Arm have another one. Two functions of every library never have any.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.elf.ehabi_rows import EhabiRows
from guest.elf.file import ElfFile
from guest.elf.go_rows import GoRows
from guest.elf.init_rows import InitRows
from guest.memory import Steps
from recording.errors import BadImageError
from unwind.frame_table import FrameTable, Unread
from unwind.rules import Row
from unwind.user_abi import UserAbi


class UserRows:
    """Rows by link-time address, out of what is known of a file."""

    def __init__(self, file: ElfFile, abis: Sequence[UserAbi], debug: FrameTable | None = None) -> None:
        """``abis``: kinds of programs that may be in the file; its class tells which. debug: its ``.debug_frame``."""
        self._file = file
        self._abi = next((abi for abi in abis if abi.pointer_size == file.pointer_size), None)
        self._table: FrameTable | None = None
        self._debug = debug
        self._go = None if self._abi is None else GoRows(file, self._abi)
        self._calls = None if self._abi is None else EhabiRows(file, self._abi)
        self._init = None if self._abi is None else InitRows(file, self._abi)

    def find_row(self, address: int) -> Row | Unread | None:
        """The row for a link-time address; None where the file says nothing about it."""
        if self._table is None:
            found = self._open()
            if found is Unread.UNREAD:
                return found
            self._table = found
        row = None if self._table is None else self._table.find_row(address)
        if row is None and self._debug is not None:
            row = self._debug.find_row(address)
        if row is None and self._go is not None and self._file.sections:
            row = self._go.find_row(address)
        if row is None and self._calls is not None:
            row = self._calls.find_row(address)
        if row is None and self._init is not None:
            row = self._init.find_row(address)
        return None if row is Unread.UNREAD and self._file.is_final else row

    def find_start(self, address: int) -> int | None:
        """Where the function begins whose row ``find_row`` has just given; None where DWARF did not give it."""
        tables = (table for table in (self._table, self._debug) if table is not None)
        return next((start for table in tables if (start := table.find_start(address)) is not None), None)

    def prepare(self) -> Steps[None]:
        """Do in steps what the first ``find_row`` would otherwise do at once."""
        if self._table is None:
            found = self._open()
            self._table = found if isinstance(found, FrameTable) else None
        if self._table is not None:
            yield from self._table.prepare()
        if self._debug is not None:
            yield from self._debug.prepare()
        if self._go is not None and self._file.sections:
            self._go.open()
            yield

    def _open(self) -> FrameTable | Unread | None:
        file = self._file
        if self._abi is None:
            return None
        header, frames = file.eh_frame_header, file.eh_frame_section()
        if header is None and frames is None:
            return Unread.UNREAD if file.sections is None and not file.is_final else None
        byteorder = file.header.format.byteorder
        return FrameTable(self._read, self._abi, byteorder, header=header, frames=frames)

    def _read(self, address: int, size: int) -> bytes | None:
        """Raises BadImageError where the file has nothing at an address: the table is damaged there, and waiting would not help."""
        file = self._file
        if file.find_offset(address) is None or file.find_offset(address + size - 1) is None:
            raise BadImageError(f"an unwind table refers to {address:#x}, which is not in its file")
        return file.read(address, size)
