"""A stored file becomes the few ranges of it that unwinding and naming need, read once, in steps.

They are contents like any other (``RangeContents``), so that an ``ElfFile`` works on them as it does on the whole file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from guest.elf.debugdata import MAX_PACKED
from guest.elf.dynamic import find_dynamic_symbols
from guest.elf.file import ElfFile, open_elf
from guest.elf.go_table import GoTable, find_go_table
from guest.elf.header import MAX_NOTES, PT_NOTE, SHN_XINDEX, SHT_DYNSYM, SHT_SYMTAB
from guest.elf.init_rows import INIT_SECTIONS
from guest.elf.plt import MAX_PLT, PLT_SECTIONS, RELOCATIONS
from guest.memory import CHUNK_SIZE, Steps
from guest.user.contents import PAGE_SIZE, FileContents, RangeContents, merge_ranges

MAX_TOTAL = 96 << 20
"""Bytes that are kept of one file; tables for which there is no room are left out, symbols before unwind tables."""
_MAX_UNWIND = 1 << 26
_RANGE = struct.Struct("<QQ")


class _Tracked:
    """Contents that note what is read of them."""

    def __init__(self, contents: FileContents) -> None:
        self._contents = contents
        self.ranges: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return self._contents.size

    def read(self, offset: int, size: int) -> bytes | None:
        self.ranges.append((offset, size))
        return self._contents.read(offset, size)


def read_sections(contents: FileContents) -> Steps[RangeContents | None]:
    """What is needed of a file; None where ``contents`` does not know all of that now. Raises BadImageError if it is no ELF."""
    file = open_elf(contents)
    if file is None or file.sections is None:
        return None
    wanted = list(_wanted(file))
    tracked = _Tracked(contents)
    if not file.sections:
        place = yield from find_dynamic_symbols(tracked, file.header, file.find_offset)
        if place is not None:
            wanted += [(place.offset, place.size), (place.names_offset, place.names_size)]
    wanted += tracked.ranges
    found: list[tuple[int, bytes]] = []
    room = MAX_TOTAL
    for offset, size in wanted:
        if size > room or offset + size > contents.size:
            continue
        room -= size
        for start in range(offset, offset + size, CHUNK_SIZE):
            data = contents.read(start, min(CHUNK_SIZE, offset + size - start))
            if data is None:
                return None
            found.append((start, data))
            yield
    return RangeContents(contents.size, merge_ranges(found))


def _wanted(file: ElfFile) -> Iterator[tuple[int, int]]:
    """(offset, size) of each range, the most important first."""
    header = file.header
    yield 0, min(PAGE_SIZE, file.contents.size)
    yield header.segment_offset, header.segments_size
    sections = file.sections or ()
    if sections:
        yield header.section_offset, len(sections) * header.section_entry_size
        index = header.section_names if header.section_names != SHN_XINDEX else sections[0].link
        yield sections[index].offset, sections[index].size
    yield from ((part.offset, part.file_size) for part in header.segments if part.type == PT_NOTE and part.file_size <= MAX_NOTES)
    yield from _unwind_ranges(file)
    yield from _go_ranges(file)
    for pair in (file.symbol_sections(SHT_DYNSYM), file.symbol_sections(SHT_SYMTAB)):
        yield from ((section.offset, section.size) for section in pair or ())
    named = [(name, MAX_PLT) for name in (*RELOCATIONS, *PLT_SECTIONS, *INIT_SECTIONS)]
    if file.symbol_sections(SHT_SYMTAB) is None:
        named.append((".gnu_debugdata", MAX_PACKED))
    for name, limit in named:
        section = file.section(name)
        if section is not None and section.size <= limit:
            yield section.offset, section.size


def _unwind_ranges(file: ElfFile) -> Iterator[tuple[int, int]]:
    """The unwind table and its header; where section headers do not tell how long it is, the segment that it is in."""
    frames = file.section(".eh_frame")
    if frames is not None and frames.size <= _MAX_UNWIND:
        yield frames.offset, frames.size
    header = file.eh_frame_header
    offset = None if header is None else file.find_offset(header[0])
    if header is None or offset is None:
        return
    if frames is not None:
        yield offset, min(header[1], _MAX_UNWIND)
        return
    for load in file.segments:
        if load.offset <= offset < load.offset + load.file_size <= _MAX_UNWIND:
            yield load.offset, load.file_size


def _go_ranges(file: ElfFile) -> Iterator[tuple[int, int]]:
    """A Go program's table, and what it takes to find it again."""
    tracked = _Tracked(file.contents)
    table = find_go_table(ElfFile(tracked, file.header))
    if isinstance(table, GoTable):
        yield from tracked.ranges
        yield table.offset, table.size


def encode_ranges(ranges: RangeContents) -> dict[str, bytes]:
    """As sections of an entry of a ``HostCache``."""
    places = b"".join(_RANGE.pack(offset, len(data)) for offset, data in ranges.ranges)
    return {
        "size": _RANGE.pack(ranges.size, len(ranges.ranges)),
        "places": places,
        "data": b"".join(data for _, data in ranges.ranges),
    }


def decode_ranges(sections: Mapping[str, bytes]) -> RangeContents | None:
    """What ``encode_ranges`` made, or None where it is damaged."""
    try:
        size, count = _RANGE.unpack(sections["size"])
        places = list(_RANGE.iter_unpack(sections["places"]))
    except (KeyError, struct.error):
        return None
    data = sections.get("data", b"")
    if len(places) != count or sum(length for _, length in places) != len(data):
        return None
    found: list[tuple[int, bytes]] = []
    position, end = 0, 0
    for offset, length in places:
        if offset < end or offset + length > size:
            return None
        found.append((offset, data[position : position + length]))
        position += length
        end = offset + length + 1
    return RangeContents(size, tuple(found))
