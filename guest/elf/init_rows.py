"""Rows of a library's ``.init`` and ``.fini``, the two functions that have no unwind data.

They are put together by the linker from the C runtime's two halves (glibc's sysdeps/x86_64/crti.S and crtn.S) with calls in
between: the stack pointer moves once at the start and back at the end, as their own bytes show.
"""

from __future__ import annotations

from guest.elf.file import ElfFile
from unwind.rules import Row, RowKind
from unwind.user_abi import UserAbi

INIT_SECTIONS = (".init", ".fini")
_MAX_SIZE = 4096
_MAX_START = 16


class InitRows:
    """Rows by link-time address."""

    def __init__(self, file: ElfFile, abi: UserAbi) -> None:
        self._file = file
        self._abi = abi

    def find_row(self, address: int) -> Row | None:
        """The row for an address, None where it is in neither section or their code is of another kind."""
        for name in INIT_SECTIONS:
            section = self._file.section(name)
            if section is not None and section.address <= address < section.address + section.size <= section.address + _MAX_SIZE:
                moved = self._moved(section.address, section.size, address)
                row = Row(RowKind.CALL, self._abi.sp, self._abi.pointer_size + (moved or 0), kept=self._abi.callee_saved)
                return None if moved is None else row
        return None

    def _moved(self, start: int, size: int, address: int) -> int | None:
        """By how many bytes the stack pointer was moved before the instruction at an address."""
        moves = self._abi.init_code  # where calls push their return address, which the row's offset counts
        code = self._file.read(start, size)
        if code is None or moves is None:
            return None
        down, up, distance = moves
        first = code.find(down, 0, _MAX_START)
        if first < 0 or not code.endswith(up):
            return None
        is_down = first + len(down) <= address - start <= size - len(up)
        return distance if is_down else 0
