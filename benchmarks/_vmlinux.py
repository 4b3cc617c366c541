"""A ``vmlinux`` with DWARF → what the benchmark must know of it itself: build ID, symbols, where call frame information is."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, SymbolTableSection

from recording.errors import BadImageError
from recording.symbols import SymbolTable

_CIE = 0xFFFF_FFFF
_BUILD_ID = "NT_GNU_BUILD_ID"


@dataclass(frozen=True, slots=True)
class Vmlinux:
    """Addresses are the file's own. ranges: [start, end) of code with call frame information, ascending."""

    path: Path
    build_id: str
    symbols: SymbolTable
    range_starts: tuple[int, ...]
    range_ends: tuple[int, ...]

    def has_frame_information(self, address: int) -> bool:
        """Whether DWARF says how to unwind from an address; assembler code has none, and gdb then guesses."""
        index = bisect_right(self.range_starts, address) - 1
        return index >= 0 and address < self.range_ends[index]


def read_vmlinux(path: Path) -> Vmlinux:
    """Raises BadImageError where the file has no build ID, symbols or ``.debug_frame``."""
    with path.open("rb") as file:
        image = ELFFile(file)
        notes, symbols, frames = (image.get_section_by_name(name) for name in (".notes", ".symtab", ".debug_frame"))
        if not isinstance(notes, NoteSection) or not isinstance(symbols, SymbolTableSection) or frames is None:
            raise BadImageError(f"{path} lacks .notes, .symtab or .debug_frame; give the vmlinux of a -dbg package")
        # Xen's notes have types of the same numbers.
        build_ids = [note["n_desc"] for note in notes.iter_notes() if (note["n_name"], note["n_type"]) == ("GNU", _BUILD_ID)]
        if len(build_ids) != 1:
            raise BadImageError(f"{path} has {len(build_ids)} build IDs; give the vmlinux of a -dbg package")
        code = {index for index, section in enumerate(image.iter_sections()) if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR}
        rows = [
            (symbol["st_value"], "T", symbol.name)
            for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE")
            and symbol.name.strip()
            and symbol.name[0] != "$"
            and symbol["st_shndx"] in code
        ]
        ranges = sorted(frame_ranges(frames.data(), "<" if image.little_endian else ">"))
    starts, ends = zip(*ranges, strict=True)
    return Vmlinux(path, build_ids[0], SymbolTable.from_symbols(rows), starts, ends)


def _is_named(name: str) -> bool:
    """Whether a symbol's name is a function's, and none that marks code apart from data (ELF for the Arm Architecture, 5.5.5)."""
    return bool(name) and not name.startswith("$")


def frame_ranges(data: bytes, order: str) -> list[tuple[int, int]]:
    """[start, end) of each FDE of a ``.debug_frame`` in 32-bit DWARF with 8-byte addresses (DWARF 5, section 6.4.1)."""
    ranges = []
    position = 0
    while position + 24 <= len(data):
        length, cie = struct.unpack_from(f"{order}II", data, position)
        if cie != _CIE:
            start, size = struct.unpack_from(f"{order}QQ", data, position + 8)
            ranges.append((start, start + size))
        position += 4 + length
    return ranges
