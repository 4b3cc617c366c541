"""The headers of an ELF file become segments and sections (gABI chapters 4 and 5), out of contents that may be known only in part.

Files come from the guest: every offset, size and count is checked against the file's size and a bound. What execution needs
(file header, program headers) must be right, or the file is refused; section headers are a courtesy and count as absent where
they lie.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from guest.user.contents import FileContents
from recording.errors import BadImageError

_IDENT_SIZE = 16
_MAX_SEGMENTS = 256
_MAX_SECTIONS = 1 << 16
_MAX_OFFSET = 1 << 32
"""Loadable bytes of a file lie below 4 GiB in it; no linker makes such code, and a bound keeps sums harmless."""
_ADDRESS_END = 1 << 64
MAX_TABLE = 1 << 26
"""Bytes of a symbol table or of its names that are read."""
MAX_NOTES = 1 << 16
_NT_GNU_BUILD_ID = 3

ET_EXEC, ET_DYN = 2, 3
EM_386, EM_ARM, EM_X86_64 = 3, 40, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME = 1, 2, 3, 4, 0x6474E550
_EXECUTABLE = 1
SHN_XINDEX = 0xFFFF
SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL, SHT_DYNSYM = 0, 1, 2, 3, 4, 8, 9, 11


@dataclass(frozen=True, slots=True)
class Format:
    """Layouts of one class and byte order. Field orders of the two classes differ; see ``_segment`` and ``symbol``."""

    pointer_size: int
    order: str
    header: struct.Struct
    segment: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    dynamic: struct.Struct
    rela: struct.Struct
    rel: struct.Struct

    @property
    def byteorder(self) -> Literal["little", "big"]:
        """As ``int.from_bytes`` wants it."""
        return "little" if self.order == "<" else "big"


def _format(pointer_size: int, order: str) -> Format:
    if pointer_size == 8:
        layouts = ("HHIQQQIHHHHHH", "IIQQQQQQ", "IIQQQQIIQQ", "IBBHQQ", "qQ", "QQq", "QQ")
    else:
        layouts = ("HHIIIIIHHHHHH", "IIIIIIII", "IIIIIIIIII", "IIIBBH", "iI", "IIi", "II")
    return Format(pointer_size, order, *(struct.Struct(order + layout) for layout in layouts))


_FORMATS = {(size_code, order_code): _format(4 * size_code, "<>"[order_code - 1]) for size_code in (1, 2) for order_code in (1, 2)}


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header. ``address``: where the linker put it; ``file_size`` bytes of it are in the file at ``offset``."""

    type: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    is_executable: bool

    def holds(self, address: int) -> bool:
        """Whether the file has a byte for an address."""
        return self.address <= address < self.address + self.file_size


@dataclass(frozen=True, slots=True)
class Section:
    """A section header. ``size`` bytes at ``offset``, none where it has none in the file (``has_bytes``)."""

    name: str
    type: int
    is_executable: bool
    address: int
    offset: int
    size: int
    link: int
    entry_size: int

    @property
    def has_bytes(self) -> bool:
        """Whether the file holds the section's bytes: a debug file holds only its own."""
        return self.type not in {SHT_NULL, SHT_NOBITS}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a file say.

    entry: e_entry.
    raw: those bytes, which differ between builds, and between a file and its stripped copy (offsets of all tables).
    """

    format: Format
    type: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]
    segment_offset: int
    section_offset: int
    section_entry_size: int
    section_count: int
    section_names: int
    raw: bytes

    @property
    def loads(self) -> tuple[Segment, ...]:
        """The segments that are mapped."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD)

    def place(self, address: int) -> int:
        """Where the code at an address lies: those of Thumb functions are odd (ELF for the Arm Architecture, 5.5.3)."""
        return address & ~1 if self.machine == EM_ARM else address

    @property
    def segments_size(self) -> int:
        """Bytes of all program headers."""
        return len(self.segments) * self.format.segment.size

    def segment(self, segment_type: int) -> Segment | None:
        """The first segment of a type."""
        return next((segment for segment in self.segments if segment.type == segment_type), None)


def read_header(contents: FileContents) -> Header | None:
    """The file header and the program headers, None where they are not known now. Raises BadImageError if this is none."""
    ident = contents.read(0, _IDENT_SIZE)
    if ident is None:
        if contents.size < _IDENT_SIZE:
            raise BadImageError(f"a file of {contents.size} bytes is no ELF file")
        return None
    if ident[:4] != b"\x7fELF":
        raise BadImageError(f"a file that begins with {ident[:4].hex()} is no ELF file")
    layout = _FORMATS.get((ident[4], ident[5]))
    if layout is None or ident[6] != 1:
        raise BadImageError(f"an ELF file of class {ident[4]}, byte order {ident[5]}, version {ident[6]} is not of a known format")
    size = _IDENT_SIZE + layout.header.size
    raw = _within(contents, 0, size, "the file header")
    if raw is None:
        return None
    fields = layout.header.unpack_from(raw, _IDENT_SIZE)
    kind, machine, _, entry, segment_offset, section_offset, _, _, segment_size, segment_count, section_size, sections, names = (
        fields
    )
    if segment_count > _MAX_SEGMENTS or (segment_count and segment_size != layout.segment.size):
        raise BadImageError(f"an ELF file with {segment_count} program headers of {segment_size} bytes is damaged")
    table = _within(contents, segment_offset, segment_count * layout.segment.size, "the program headers")
    if table is None:
        return None
    segments = tuple(_segment(fields, layout.pointer_size) for fields in layout.segment.iter_unpack(table))
    for segment in segments:
        _check_load(segment)
    return Header(
        layout, kind, machine, entry, segments, segment_offset, section_offset, section_size, sections, names, raw + table
    )


def _within(contents: FileContents, offset: int, size: int, what: str) -> bytes | None:
    if offset + size > contents.size:
        raise BadImageError(f"{what} at {offset:#x} of an ELF file are beyond its {contents.size} bytes: it is cut short")
    return contents.read(offset, size)


def _segment(fields: tuple[int, ...], pointer_size: int) -> Segment:
    if pointer_size == 8:
        kind, flags, offset, address, _, file_size, memory_size, _ = fields
    else:
        kind, offset, address, _, file_size, memory_size, flags, _ = fields
    return Segment(kind, offset, address, file_size, memory_size, bool(flags & _EXECUTABLE))


def _check_load(segment: Segment) -> None:
    """Debug files keep the sizes of segments whose bytes they do not hold, so that the file's end is no bound here."""
    if segment.type == PT_LOAD and (
        segment.offset + segment.file_size > _MAX_OFFSET
        or segment.address + max(segment.memory_size, segment.file_size) > _ADDRESS_END
    ):
        raise BadImageError(f"an ELF segment of {segment.file_size:#x} bytes at {segment.offset:#x} is damaged or beyond 4 GiB")


def read_sections_table(contents: FileContents, header: Header) -> tuple[Section, ...] | None:
    """The section headers by index; none where the file has none or they lie, None where they are not known now."""
    layout = header.format
    count, entry = header.section_count, layout.section.size
    if not header.section_offset or header.section_entry_size != entry or header.section_offset + entry > contents.size:
        return ()
    if not count:
        # gABI: from 0xff00 sections on their count is in the first header's sh_size.
        first = contents.read(header.section_offset, entry)
        if first is None:
            return None
        count = layout.section.unpack(first)[5]
    if not 0 < count <= _MAX_SECTIONS or header.section_offset + count * entry > contents.size:
        return ()
    table = contents.read(header.section_offset, count * entry)
    if table is None:
        return None
    rows = list(layout.section.iter_unpack(table))
    index = header.section_names if header.section_names != SHN_XINDEX else rows[0][6]
    if index >= count:
        return ()
    offset, size = rows[index][4], rows[index][5]
    if size > 1 << 24 or offset + size > contents.size:
        return ()
    names = contents.read(offset, size)
    if names is None:
        return None
    return tuple(_section(row, names, contents.size) for row in rows)


def _section(row: tuple[int, ...], names: bytes, file_size: int) -> Section:
    """A section whose bytes would lie beyond the file's end counts as one without bytes."""
    name, kind, flags, address, offset, size, link, _, _, entry_size = row
    end = names.find(b"\0", name, name + 256)
    text = names[name:end].decode("ascii", "replace") if end >= 0 else ""
    if kind != SHT_NOBITS and offset + size > file_size:
        kind = SHT_NULL
    return Section(text, kind, bool(flags & 4), address, offset, size, link, entry_size)


def read_build_id(contents: FileContents, header: Header) -> str | None:
    """The GNU build ID in hexadecimal digits; None where the file has none or it is not known now."""
    for segment in header.segments:
        if segment.type == PT_NOTE and segment.file_size <= MAX_NOTES:
            notes = contents.read(segment.offset, segment.file_size)
            found = None if notes is None else find_build_id(notes, header.format)
            if found is not None:
                return found
    return None


def find_build_id(notes: bytes, layout: Format) -> str | None:
    """The GNU build ID among the notes of a segment, in hexadecimal digits.

    Notes are aligned to 4 bytes; .note.gnu.property, which alone is aligned to 8, has sizes where that is the same.
    """
    word = struct.Struct(layout.order + "III")
    position = 0
    while position + word.size <= len(notes):
        name_size, size, kind = word.unpack_from(notes, position)
        name = position + word.size
        start = name + (name_size + 3 & ~3)
        if start + size > len(notes):
            return None
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0" and 4 <= size <= 64:
            return notes[start : start + size].hex()
        position = start + (size + 3 & ~3)
    return None
