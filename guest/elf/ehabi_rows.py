"""``.ARM.exidx`` and ``.ARM.extab`` of a file become rows by address ("Exception Handling ABI for the Arm Architecture", 6 to 10).

The index is found by its program header, so that it is known of a file that is only mapped. Little of it is read for an address, as
only pieces of it may be known. The linker has put an entry without instructions in front of all code that has no table (that is
C code, but for a part of the C library), so that it says nothing about where stacks begin.
"""

from __future__ import annotations

from guest.elf.file import ElfFile
from unwind.ehabi import EhabiIndex
from unwind.rules import Row
from unwind.user_abi import UserAbi

_MAX_SIZE = 1 << 24


class _UnreadError(Exception):
    """Words that are needed are not known now."""


class EhabiRows:
    """Rows by link-time address; all of them are for calls alone."""

    def __init__(self, file: ElfFile, abi: UserAbi) -> None:
        self._file = file
        segment = file.header.segment(abi.index_segment) if abi.index_segment else None
        self._index: EhabiIndex | None = None
        if segment is not None and 8 <= segment.file_size <= _MAX_SIZE and segment.address % 4 == 0:
            self._index = EhabiIndex(segment.address, segment.file_size // 8, self._word)

    def find_row(self, address: int) -> Row | None:
        """The row for an address; None where the table says nothing about it, or is not known there now."""
        if self._index is None:
            return None
        try:
            return self._index.find_call_row(address)
        except _UnreadError:
            return None

    def _word(self, address: int) -> int:
        data = self._file.read(address, 4)
        if data is None:
            raise _UnreadError
        return int.from_bytes(data, self._file.header.format.byteorder)
