"""Which kernel an image is: its banner and its build ID, as it carries them itself."""

from __future__ import annotations

import re
import struct

from guest.paging import AddressSpace
from guest.words import Words
from recording.errors import BadImageError, GuestMemoryError
from recording.symbols import SymbolTable

_BANNER = re.compile(rb"Linux version [!-~]{1,64} [ -~]{0,440}")
_BANNER_SIZES = (512, 128)
_MAX_NOTES = 1 << 16
_GNU_BUILD_ID = 3


def read_banner(space: AddressSpace, symbols: SymbolTable) -> str:
    """The kernel's banner without its newline (init/version.c); "" where there is no such symbol (no CONFIG_KALLSYMS_ALL).

    Raises BadImageError where something else lies there: the symbols are not those of this image.
    """
    symbol = symbols.find("linux_banner")
    if symbol is None:
        return ""
    for size in _BANNER_SIZES:
        data = space.read_many([(symbol.address, size)])[0]
        match = _BANNER.match(data) if data else None
        if match:
            return match.group().decode("ascii")
    raise BadImageError(
        f"there is no kernel banner at {symbol.address:#x}: the symbols found in guest memory do not belong to the running kernel"
    )


def read_build_id(space: AddressSpace, symbols: SymbolTable, words: Words) -> str | None:
    """The GNU build ID in the image's notes (``__start_notes`` to ``__stop_notes``), lower-case hex, or None."""
    start, stop = symbols.find("__start_notes"), symbols.find("__stop_notes")
    if start is None or stop is None or not 0 < stop.address - start.address <= _MAX_NOTES:
        return None
    try:
        return parse_build_id(space.read(start.address, stop.address - start.address), words)
    except GuestMemoryError:
        return None


def parse_build_id(notes: bytes, words: Words) -> str | None:
    """The build ID in a section of ELF notes (ELF gABI, "Note Section"), or None."""
    note = struct.Struct(f"{words.order}III")
    position = 0
    while position + note.size <= len(notes):
        name_size, size, kind = note.unpack_from(notes, position)
        name_at = position + note.size
        data_at = name_at + (name_size + 3 & -4)
        data = notes[data_at : data_at + size]
        if kind == _GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0" and 8 <= len(data) == size <= 32:
            return data.hex()
        position = data_at + (size + 3 & -4)
    return None
