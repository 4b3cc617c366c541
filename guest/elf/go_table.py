"""``.gopclntab`` of a Go program becomes the places of its functions' names, records and stack depths.

(Go's src/internal/abi/symtab.go, src/runtime/symtab.go, src/debug/gosym/pclntab.go: formats of Go 1.2, 1.16, 1.18 and 1.20. The
runtime needs the table to grow and to trace stacks, so that no linker option removes it.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from guest.elf.file import ElfFile
from guest.elf.header import MAX_TABLE, SHT_RELA, Section
from guest.elf.symbol_rows import MAX_SYMBOLS
from unwind.frame_table import Unread

_NAMES = (".gopclntab", ".data.rel.ro.gopclntab")
_MERGED, _MARK = ".data.rel.ro", ".go.buildinfo"
"""A foreign linker puts the table of a position-independent program among other data; the second section marks Go programs."""
_ALIGNMENT = 32
_GO_1_2, _GO_1_16, _GO_1_18, _GO_1_20 = 0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
_MAX_RELOCATIONS = 1 << 25


class GoFunction(NamedTuple):
    """A function: link-time addresses [start, end), and the places of its name and its table of stack depths in the file.

    depths: None for functions that are not Go's.
    flags: see ``go_rows.py``; 0 before Go 1.17.
    """

    start: int
    end: int
    name: int
    depths: int | None
    flags: int


@dataclass(frozen=True, slots=True)
class GoTable:
    """Where in the file the parts of the table are.

    quantum: bytes of the shortest instruction. text: what addresses count from. names: [start, end).
    functions: of (address, place of its record in ``records``) of each function and an end address, in the format of ``entry``.
    flags_at: of a record, None where it has none. depths: where the tables of stack depths begin, or their offsets count from.
    """

    offset: int
    size: int
    quantum: int
    count: int
    text: int
    names: tuple[int, int]
    functions: int
    records: int
    entry: struct.Struct
    order: str
    flags_at: int | None
    depths: int

    @property
    def end(self) -> int:
        """Of the table, in the file."""
        return self.offset + self.size

    def function(self, pair: bytes, record: bytes) -> GoFunction | None:
        """``pair``: entry and next address of the function list, ``record``: what it names. None where they differ."""
        half = self.entry.size // 2
        address, _ = self.entry.unpack_from(pair)
        following = self._address.unpack_from(pair, self.entry.size)[0]
        if self._address.unpack_from(record)[0] != address or address >= following:
            return None
        name, _args, _frame, depths = struct.unpack_from(self.order + "4I", record, half)
        flags = 0 if self.flags_at is None else record[self.flags_at]
        # Functions without one are not of Go: "external function", says gentraceback in src/runtime/traceback.go.
        place = self.depths + depths if depths else None
        return GoFunction(self.text + address, self.text + following, self.names[0] + name, place, flags)

    @property
    def record_size(self) -> int:
        """Bytes of a record that ``function`` looks at."""
        return self.entry.size // 2 + (16 if self.flags_at is None else 40)

    @property
    def _address(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.entry.size == 16 else "I"))


def find_go_place(file: ElfFile) -> tuple[Section, int] | Unread | None:
    """The section that the table is in, and where in the section it begins; None where there is none."""
    section = next((found for name in _NAMES if (found := file.section(name)) is not None), None)
    if section is not None:
        return (section, 0) if section.size <= MAX_TABLE else None
    section = file.section(_MERGED)
    if section is None or file.section(_MARK) is None or section.size > MAX_TABLE:
        return None
    data = file.contents.read(section.offset, section.size)
    if data is None:
        return Unread.UNREAD
    order, word = file.header.format.order, file.pointer_size
    for magic in (_GO_1_20, _GO_1_18):
        at = -1
        wanted = struct.pack(order + "IH", magic, 0)
        while (at := data.find(wanted, at + 1)) >= 0:
            if (
                not (section.address + at) % _ALIGNMENT
                and at + 8 <= len(data)
                and data[at + 6] in {1, 2, 4}
                and data[at + 7] == word
            ):
                return section, at
    return None


class _Layout(NamedTuple):
    """Of one format, places counted from the table's beginning. is_relative: addresses count from ``runtime.text``."""

    entry: struct.Struct
    names: tuple[int, int]
    depths: int
    functions: int
    records: int
    flags_at: int | None
    is_relative: bool = False


def _layout(magic: int, words: tuple[int, ...], order: str, word: int, size: int) -> _Layout | None:
    wide = struct.Struct(order + ("2Q" if word == 8 else "2I"))
    if magic == _GO_1_2:
        return _Layout(wide, (0, size), 0, 8 + word, 0, None)
    if magic == _GO_1_16:
        return _Layout(wide, (words[2], words[3]), words[5], words[6], words[6], word + 33)
    if magic in {_GO_1_18, _GO_1_20}:
        flags_at = 37 if magic == _GO_1_18 else 41
        return _Layout(struct.Struct(order + "2I"), (words[3], words[4]), words[6], words[7], words[7], flags_at, is_relative=True)
    return None


def find_go_table(file: ElfFile) -> GoTable | Unread | None:
    """The table of a Go program; None for other files, and for unknown formats."""
    place = find_go_place(file)
    if place is None or isinstance(place, Unread):
        return place
    section, start = place
    size, offset = section.size - start, section.offset + start
    word, order = file.pointer_size, file.header.format.order
    header_size = 8 + 8 * word
    if size < header_size:
        return None
    header = file.contents.read(offset, header_size)
    if header is None:
        return Unread.UNREAD
    magic, pad, quantum, pointer_size = struct.unpack_from(order + "IHBB", header)
    words = struct.unpack_from(f"{order}8{'Q' if word == 8 else 'I'}", header, 8)
    layout = _layout(magic, words, order, word, size)
    if layout is None or pad or pointer_size != word or quantum not in {1, 2, 4} or not _fits(layout, words[0], size):
        return None
    text: int | Unread = 0
    if layout.is_relative:
        text = words[2] or _relocated_text(file, section.address + start + 8 + 2 * word)
        if text == 0:
            text = _own_text(file, offset + layout.functions + words[0] * layout.entry.size, order)
        if text == 0:
            return None
    if isinstance(text, Unread):
        return text
    return GoTable(
        offset=offset,
        size=size,
        quantum=quantum,
        count=words[0],
        text=text,
        names=(offset + layout.names[0], offset + layout.names[1]),
        functions=offset + layout.functions,
        records=offset + layout.records,
        entry=layout.entry,
        order=order,
        flags_at=layout.flags_at,
        depths=offset + layout.depths,
    )


def _fits(layout: _Layout, count: int, size: int) -> bool:
    """Whether the parts are within the table."""
    end = layout.functions + count * layout.entry.size + layout.entry.size // 2
    is_inside = layout.names[0] < layout.names[1] <= size and max(layout.depths, layout.records, end) <= size
    return is_inside and 0 < count <= MAX_SYMBOLS


def _relocated_text(file: ElfFile, place: int) -> int | Unread:
    """``runtime.text``, from which addresses count, where the loader writes it into a position-independent program; else 0.

    The file has it in the relocation of that word only.
    """
    layout = file.header.format.rela
    wanted = struct.pack(file.header.format.order + ("Q" if file.pointer_size == 8 else "I"), place)
    for section in file.sections or ():
        if section.type != SHT_RELA or not section.has_bytes or not layout.size <= section.size <= _MAX_RELOCATIONS:
            continue
        data = file.contents.read(section.offset, section.size // layout.size * layout.size)
        if data is None:
            return Unread.UNREAD
        at = data.find(wanted)
        while at >= 0 and at % layout.size:
            at = data.find(wanted, at + 1)
        if at >= 0:
            addend: int = layout.unpack_from(data, at)[2]
            return max(addend, 0)
    return 0


def _own_text(file: ElfFile, place: int, order: str) -> int | Unread:
    """The same where nothing names it: if all code is Go's, its section is as long as the list of functions says. Else 0.

    place: of the end address in that list, which counts from the text.
    """
    last = file.contents.read(place, 4)
    section = file.section(".text")
    if last is None:
        return Unread.UNREAD
    size = int(struct.unpack(order + "I", last)[0])
    return section.address if section is not None and size <= section.size < size + _ALIGNMENT else 0
