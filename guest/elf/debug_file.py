"""A file of this machine with debug information → its sections as bytes, its functions, its build ID.

pyelftools reads the headers; what is long (tables of symbols, relocations, the debug sections themselves) is read through a
mapping of the file, so that only the pages that are looked at come into memory. Files without addresses (kernel modules, which are
relocatable, gABI chapter 4) get some: each section with code or data at a place of its own, by which everything in the file is
then told.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, Section

from guest.elf.relocations import apply_relocations, read_relocations
from guest.unpack import unpack_zstd
from recording.errors import BadImageError

Bytes = bytes | mmap.mmap
_ALLOC, _EXECUTABLE, _COMPRESSED = 2, 4, 0x800
_NOBITS = 8
_ALIGNMENT = 0x1000
_CODE_TYPES = frozenset({0, 2, 10})
_DATA_TYPES = frozenset({0, 1})
"""STT_NOTYPE, STT_FUNC and STT_GNU_IFUNC; STT_NOTYPE and STT_OBJECT."""
_COMPRESSED_ZLIB, _COMPRESSED_ZSTD = 1, 2
_IN_MEMORY = 1 << 24
"""Bytes of a section from which on it is unpacked into a file rather than into memory."""
_MAX_SECTION = 1 << 32


@dataclass(frozen=True, slots=True)
class Window:
    """``size`` bytes of a section, which begin at ``start`` of ``data``."""

    data: Bytes
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Bytes by their offset in the section, fewer at its end."""
        begin = self.start + offset
        return self.data[begin : min(begin + size, self.start + self.size)] if offset >= 0 else b""

    def text(self, offset: int) -> str:
        """A string up to its NUL. Raises BadImageError beyond the section's end."""
        end = self.data.find(b"\0", self.start + offset, self.start + self.size) if 0 <= offset < self.size else -1
        if end < 0:
            raise BadImageError(f"a string at {offset:#x} of a debug section has no end; the file is damaged")
        return self.data[self.start + offset : end].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class CodeSection:
    """A section with code, at the addresses that symbols and DWARF have."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class FileSymbol:
    """A function, or a label in code. ``section``: index of its section."""

    address: int
    size: int
    name: str
    section: int
    is_global: bool


class DebugFile:
    """An ELF file of this machine, opened. A context manager."""

    def __init__(self, path: Path, *, shown: Path | None = None) -> None:
        """shown: what it was unpacked from. Raises BadImageError where it cannot be read or is no ELF file."""
        self.path = path if shown is None else shown
        self._unpacked: dict[str, Window] = {}
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise BadImageError(f"cannot read {path}: {error}; name a file with symbols") from error
        try:
            self._elf = ELFFile(self._map)  # type: ignore[arg-type]  # a map is read like a file
            self._sections: list[Section] = list(self._elf.iter_sections())
        except (ELFError, ConstructError, ValueError, OverflowError) as error:
            self.close()
            raise BadImageError(f"{path} is no ELF file that can be read ({error}); name one with symbols") from error
        self._by_name = {section.name: section for section in reversed(self._sections)}
        self._bases = self._places()
        self.order: Literal["little", "big"] = "little" if self._elf.little_endian else "big"
        self.prefix = "<" if self._elf.little_endian else ">"
        self.pointer_size: int = self._elf.elfclass // 8

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Sections that were handed out are of no use from then on."""
        self._map.close()

    @property
    def is_relocatable(self) -> bool:
        """Whether the linker has not given it addresses: a kernel module."""
        return bool(self._elf["e_type"] == "ET_REL")

    def _places(self) -> dict[int, int]:
        """The address of each section by its index: its own, or in a relocatable file one behind the other."""
        if not self.is_relocatable:
            return {index: section["sh_addr"] for index, section in enumerate(self._sections)}
        places, position = {}, _ALIGNMENT
        for index, section in enumerate(self._sections):
            if section["sh_flags"] & _ALLOC:
                places[index] = position
                position += -(-max(section["sh_size"], 1) // _ALIGNMENT) * _ALIGNMENT
        return places

    @cached_property
    def build_id(self) -> str | None:
        """In lower-case hex; None where it has none."""
        try:
            for section in self._sections:
                if isinstance(section, NoteSection) and section["sh_type"] != "SHT_NOBITS":
                    for note in section.iter_notes():
                        # Xen's notes have types of the same numbers.
                        if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                            return str(note["n_desc"]).lower()
        except (ELFError, ConstructError, ValueError, OverflowError):
            return None
        return None

    @cached_property
    def code(self) -> dict[int, CodeSection]:
        """Sections with code by their index, also those whose bytes a debug file leaves out."""
        return {
            index: CodeSection(section.name, self._bases[index], section["sh_size"])
            for index, section in enumerate(self._sections)
            if section["sh_flags"] & _EXECUTABLE and section["sh_flags"] & _ALLOC and section["sh_size"]
        }

    @property
    def machine(self) -> str:
        """``e_machine`` by its name in the gABI."""
        return str(self._elf["e_machine"])

    def code_at(self, address: int, size: int) -> bytes | None:
        """Bytes of code at an address, fewer at a section's end; None where the file holds none there."""
        for index, part in self.code.items():
            section = self._sections[index]
            if part.start <= address < part.start + part.size and section["sh_type"] != "SHT_NOBITS":
                begin = section["sh_offset"] + address - part.start
                return self._map[begin : begin + min(size, part.start + part.size - address)]
        return None

    def read_all(self) -> bytes:
        """The whole file."""
        return self._map[:]

    @property
    def has_symbols(self) -> bool:
        """Whether it has a table of all of its symbols."""
        return ".symtab" in self._by_name and self._by_name[".symtab"]["sh_type"] != "SHT_NOBITS"

    @property
    def has_lines(self) -> bool:
        """Whether it has DWARF that tells of functions and lines."""
        return {".debug_info", ".debug_abbrev"} <= self._by_name.keys()

    def section(self, name: str) -> Window:
        """A section's bytes, unpacked and relocated; none where it has none. Raises BadImageError where that is not possible."""
        known = self._unpacked.get(name)
        if known is None:
            section = self._by_name.get(name)
            known = Window(b"", 0, 0) if section is None or section["sh_type"] == "SHT_NOBITS" else self._opened(section)
            self._unpacked[name] = known
        return known

    def address_of(self, name: str) -> int:
        """Where a section is that the file has, at link time."""
        return int(self._by_name[name]["sh_addr"])

    def _opened(self, section: Section) -> Window:
        offset, size = section["sh_offset"], section["sh_size"]
        if offset + size > len(self._map):
            raise BadImageError(f"{self.path} is cut short within {section.name}; copy it again")
        window = Window(self._map, offset, size)
        if section["sh_flags"] & _COMPRESSED:
            window = self._decompressed(section.name, window)
        if self.is_relocatable:
            window = self._relocated(section.name, window)
        return window

    def _decompressed(self, name: str, packed: Window) -> Window:
        """gABI, "Section Compression"."""
        wide = self.pointer_size == 8
        header = struct.Struct(self.prefix + ("IIQQ" if wide else "III"))
        fields = header.unpack(packed.read(0, header.size))
        kind, size = fields[0], fields[2] if wide else fields[1]
        body = packed.start + header.size
        if size > _MAX_SECTION:
            raise BadImageError(f"{name} of {self.path} would have {size} bytes; the file is damaged")
        view = memoryview(self._map)[body : packed.start + packed.size]
        try:
            with tempfile.TemporaryFile() as file:
                for piece in _inflated(view, kind, f"{name} of {self.path}"):
                    file.write(piece)
                    if file.tell() > size:
                        raise BadImageError(f"{name} of {self.path} is larger than it says; the file is damaged")
                written = file.tell()
                file.flush()
                data: Bytes = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if written else b""
        finally:
            view.release()
        return Window(data, 0, written)

    def _relocated(self, name: str, window: Window) -> Window:
        """A copy with its relocations applied, as the linker would have done it."""
        relocations = [self._by_name[prefix + name] for prefix in (".rela", ".rel") if prefix + name in self._by_name]
        if not relocations:
            return window
        data, machine = bytearray(window.read(0, window.size)), self.machine
        try:
            for section in relocations:
                has_addend = section["sh_type"] == "SHT_RELA"
                table = self._map[section["sh_offset"] : section["sh_offset"] + section["sh_size"]]
                found = read_relocations(table, machine, self.pointer_size, self.order, has_addend=has_addend)
                apply_relocations(data, found, self._symbol_addresses, machine, self.order)
        except BadImageError as error:
            raise BadImageError(f"{name} of {self.path}: {error}") from error
        return Window(bytes(data), 0, len(data))

    @cached_property
    def _symbol_addresses(self) -> list[int]:
        bases = self._bases
        return [value + bases.get(section, 0) for _, _, section, value, _ in self._symbol_rows()]

    def _symbol_rows(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Of .symtab: name's offset, info, section, value, size."""
        table = self._by_name.get(".symtab")
        if table is None or table["sh_type"] == "SHT_NOBITS":
            return
        data = self._map[table["sh_offset"] : table["sh_offset"] + table["sh_size"]]
        wide = self.pointer_size == 8
        layout = struct.Struct(self.prefix + ("IBBHQQ" if wide else "IIIBBH"))
        for row in layout.iter_unpack(data[: len(data) // layout.size * layout.size]):
            if wide:
                yield row[0], row[1], row[3], row[4], row[5]
            else:
                yield row[0], row[3], row[5], row[1], row[2]

    def symbols(self) -> list[FileSymbol]:
        """The functions and labels in its code, in the file's order."""
        return list(self._named(frozenset(self.code), _CODE_TYPES))

    def data_sections(self) -> list[CodeSection]:
        """Its sections of data that a program has in memory."""
        return [
            CodeSection(section.name, self._bases[index], section["sh_size"])
            for index, section in enumerate(self._sections)
            if section["sh_flags"] & _ALLOC and not section["sh_flags"] & _EXECUTABLE and section["sh_size"]
        ]

    def data_symbols(self, section: CodeSection) -> Iterator[FileSymbol]:
        """The variables and labels of a section of data."""
        wanted = frozenset(index for index, each in enumerate(self._sections) if each.name == section.name)
        return self._named(wanted, _DATA_TYPES)

    def _named(self, sections: frozenset[int], types: frozenset[int]) -> Iterator[FileSymbol]:
        table = self._by_name.get(".symtab")
        if table is None or not 0 < table["sh_link"] < len(self._sections):
            return
        names = self._sections[table["sh_link"]]
        texts = self._map[names["sh_offset"] : names["sh_offset"] + names["sh_size"]]
        bases, relocatable = self._bases, self.is_relocatable
        is_arm = self._elf["e_machine"] == "EM_ARM" and types is _CODE_TYPES
        for name, info, section, value, size in self._symbol_rows():
            if section not in sections or info & 15 not in types or not name:
                continue
            text = texts[name : texts.find(b"\0", name)]
            if text.startswith((b"$", b".L")):
                continue
            address = value & ~1 if is_arm else value
            address += bases[section] if relocatable else 0
            yield FileSymbol(address, size, text.decode("utf-8", "surrogateescape"), section, info >> 4 != 0)


def supplementary_of(file: DebugFile) -> DebugFile | None:
    """The file that one shares strings and entries with (dwz writes it), by its path and build ID; None where there is none here.

    An absolute path is also looked for below the directories in which the file itself lies: a tree may be a copy of another
    machine's.
    """
    link = file.section(".gnu_debugaltlink")
    path, _, build_id = link.read(0, link.size).partition(b"\0")
    if not path:
        return None
    text = path.decode("utf-8", "surrogateescape")
    places = [file.path.parent / text, *(parent / text.lstrip("/") for parent in file.path.absolute().parents)]
    for place in places:
        if not place.is_file():
            continue
        try:
            found = DebugFile(place)
        except BadImageError:
            continue
        if found.build_id == build_id.hex():
            return found
        found.close()
    return None


def _inflated(packed: memoryview, kind: int, what: str) -> Iterable[bytes]:
    """Pieces of a compressed section."""
    if kind == _COMPRESSED_ZSTD:
        return unpack_zstd(packed)
    if kind != _COMPRESSED_ZLIB:
        raise BadImageError(f"{what} is compressed in a way (type {kind}) that is not known")
    return _inflated_zlib(packed, what)


def _inflated_zlib(packed: memoryview, what: str) -> Iterator[bytes]:
    engine: Any = zlib.decompressobj()
    try:
        for start in range(0, len(packed), _IN_MEMORY):
            data = packed[start : start + _IN_MEMORY]
            while data:
                piece = engine.decompress(data, _IN_MEMORY)
                yield piece
                data = engine.unconsumed_tail
        yield engine.flush()
    except zlib.error as error:
        raise BadImageError(f"{what} cannot be unpacked ({error}); copy the file again") from error
