"""The unwind table of a file of this machine: ``.debug_frame``, which only debuggers need, or else ``.eh_frame``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guest.elf.debug_file import DebugFile
from unwind.arch import Architecture
from unwind.frame_table import FrameTable
from unwind.user_abi import UserAbi

_DEBUG, _LOADED = ".debug_frame", ".eh_frame"


@dataclass(frozen=True, slots=True)
class FrameSection:
    """address: of its first byte at link time, 0 for ``.debug_frame`` (``is_debug``), which has none."""

    data: bytes
    address: int
    is_debug: bool
    order: Literal["little", "big"]

    def table(self, abi: UserAbi) -> FrameTable:
        """Rows by link-time address. abi: of its code."""
        frames = self.address, len(self.data)
        return FrameTable(self._read, abi, self.order, frames=frames, is_debug=self.is_debug)

    def _read(self, address: int, size: int) -> bytes | None:
        offset = address - self.address
        return self.data[offset : offset + size] if offset >= 0 else None


def read_frame_section(file: DebugFile, *, loaded: bool = True) -> FrameSection | None:
    """A file's unwind table, None where it has none. loaded: ``.eh_frame`` will do.

    Raises BadImageError where the section cannot be read.
    """
    for name in (_DEBUG, _LOADED)[: 1 + loaded]:
        window = file.section(name)
        if window.size:
            is_debug = name == _DEBUG
            address = 0 if is_debug else file.address_of(name)
            return FrameSection(window.read(0, window.size), address, is_debug, file.order)
    return None


def abi_of(architecture: Architecture, pointer_size: int) -> UserAbi | None:
    """How code of an architecture uses its registers, by the size of its pointers."""
    return next((abi for abi in architecture.user_abis[::-1] if abi.pointer_size == pointer_size), None)
