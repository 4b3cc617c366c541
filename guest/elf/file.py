"""A file of user code: what its headers say, its unwind rows, and how its link-time addresses become those of a process.

It works on contents that are known only in part (the page cache of a running guest) or only where needed (``sections.py``).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right

from guest.elf.header import (
    ET_EXEC,
    MAX_NOTES,
    MAX_TABLE,
    PT_GNU_EH_FRAME,
    PT_INTERP,
    PT_NOTE,
    Header,
    Section,
    Segment,
    read_build_id,
    read_header,
    read_sections_table,
)
from guest.elf.symbol_rows import Code
from guest.user.contents import PAGE_SIZE, FileContents


class ElfFile:
    """One file. What its contents do not know yet is asked for again at each use, and remembered once it is known."""

    def __init__(self, contents: FileContents, header: Header, *, is_final: bool = False) -> None:
        """See ``open_elf``."""
        self.contents = contents
        self.header = header
        self.is_final = is_final
        self._sections: tuple[Section, ...] | None = None
        self._build_id: str | None = None
        self._loads = sorted(header.loads, key=lambda load: load.address)
        self._starts = [load.address for load in self._loads]

    @property
    def pointer_size(self) -> int:
        """Bytes of an address: 8 or 4."""
        return self.header.format.pointer_size

    @property
    def machine(self) -> int:
        """e_machine, as the file says it."""
        return self.header.machine

    @property
    def entry(self) -> int | None:
        """Link-time address at which the program begins; None where the file names none that is code (most libraries)."""
        address = self.header.place(self.header.entry)
        return address if address and any(load.is_executable and load.holds(address) for load in self._loads) else None

    @property
    def is_program(self) -> bool:
        """Whether it can be told to be a program rather than a library: some linkers give those an entry point too."""
        return self.header.type == ET_EXEC or self.header.segment(PT_INTERP) is not None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments that are mapped, in the file's order."""
        return self.header.loads

    @property
    def eh_frame_header(self) -> tuple[int, int] | None:
        """Link-time address and size of .eh_frame_hdr."""
        segment = self.header.segment(PT_GNU_EH_FRAME)
        return None if segment is None else (segment.address, segment.memory_size)

    @property
    def build_id(self) -> str | None:
        """The GNU build ID in hexadecimal digits; None where there is none or it is not known now."""
        if self._build_id is None:
            self._build_id = read_build_id(self.contents, self.header)
        return self._build_id

    @property
    def sections(self) -> tuple[Section, ...] | None:
        """The section headers, none where the file has none; None where they are not known now."""
        if self._sections is None:
            self._sections = read_sections_table(self.contents, self.header)
        return self._sections

    def section(self, name: str) -> Section | None:
        """The first section of a name that has bytes in the file, as far as is known."""
        return next((section for section in self.sections or () if section.name == name and section.has_bytes), None)

    def symbol_sections(self, kind: int) -> tuple[Section, Section] | None:
        """A symbol table (SHT_SYMTAB, SHT_DYNSYM) and its names, where section headers tell of them and they are not too long."""
        sections = self.sections or ()
        for section in sections:
            if section.type == kind and section.link < len(sections):
                names = sections[section.link]
                if names.has_bytes and max(section.size, names.size) <= MAX_TABLE:
                    return section, names
        return None

    def digest(self, *more: object) -> str:
        """What tells this file from others by its first page: build ID (where there is one), then a digest of headers and size.

        A file and its stripped copy share their build ID and differ in their headers. ``more``: what tells files without a build ID
        apart, such as the time of the last change; two builds may agree in all the rest.
        """
        size = repr(self.contents.size).encode()
        if self.build_id is not None:
            return self.build_id[:40] + hashlib.sha256(self.header.raw + size).hexdigest()[:16]
        parts = (part for part in self.header.segments if part.type == PT_NOTE and part.file_size <= MAX_NOTES)
        known = b"".join(self.contents.read(part.offset, part.file_size) or b"" for part in parts)
        return hashlib.sha256(self.header.raw + size + known + repr(more).encode()).hexdigest()

    def code(self) -> Code:
        """Where its code is."""
        sections = self.sections
        known = [section for section in sections or () if section.is_executable and section.size and section.address]
        if known:
            return Code(((section.address, section.address + section.size) for section in known), is_exact=True)
        loads = (load for load in self._loads if load.is_executable)
        return Code(((load.address, load.address + load.memory_size) for load in loads), is_exact=False)

    def find_offset(self, address: int) -> int | None:
        """The file offset of a link-time address; None where the file holds nothing for it."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._starts[index] + self._loads[index].file_size:
            return None
        return self._loads[index].offset + address - self._starts[index]

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes at a link-time address; None where not all of them are known now or in the file."""
        offset = self.find_offset(address)
        if offset is None or (size > 1 and self.find_offset(address + size - 1) != offset + size - 1):
            return None
        return self.contents.read(offset, size)

    def link_address(self, file_offset: int, *, is_executable: bool | None = None) -> int | None:
        """The link-time address of a file offset, None where no segment maps it, or several do.

        Segments are mapped in whole pages, so that a page can be part of two of them: the one that begins in it is meant, or the
        one that is (not) executable where the caller knows that.
        """
        page = file_offset // PAGE_SIZE * PAGE_SIZE
        best: tuple[bool, bool] = (False, False)
        found: set[int] = set()
        for load in self.header.loads:
            start = load.offset // PAGE_SIZE * PAGE_SIZE
            if not load.file_size or not start <= file_offset < -(-(load.offset + load.file_size) // PAGE_SIZE) * PAGE_SIZE:
                continue
            rank = (is_executable in {None, load.is_executable}, start == page)
            if not found or rank > best:
                best, found = rank, set()
            if rank == best:
                found.add(load.address + file_offset - load.offset)
        return found.pop() if len(found) == 1 else None

    def bias(self, mapping_start: int, mapping_offset: int, *, is_executable: bool | None = None) -> int | None:
        """Run-time minus link-time addresses in a mapping of this file; None where no segment is mapped there."""
        address = self.link_address(mapping_offset, is_executable=is_executable)
        if address is None or (mapping_start - address) % PAGE_SIZE:
            return None
        return mapping_start - address

    def eh_frame_section(self) -> tuple[int, int] | None:
        """Link-time address and size of .eh_frame, where section headers are known and the file holds it."""
        section = self.section(".eh_frame")
        return None if section is None or not section.address else (section.address, section.size)


def open_elf(contents: FileContents, *, is_final: bool = False) -> ElfFile | None:
    """A file by its contents, None where its headers are not known now.

    is_final: what is not known now never will be. Raises BadImageError where it is no ELF file, or one that no system would run.
    """
    header = read_header(contents)
    return None if header is None else ElfFile(contents, header, is_final=is_final)
