"""ELF files that the user says the guest runs become code with names and unwind rows, where the guest has them in memory."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from guest.elf.debug_file import DebugFile
from guest.elf.file import ElfFile, open_elf
from guest.elf.frame_sections import abi_of, read_frame_section
from guest.elf.header import ET_DYN, ET_EXEC, MAX_NOTES, PT_NOTE, find_build_id
from guest.elf.rows import UserRows
from guest.elf.symbols import read_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents
from recording.errors import BadImageError
from recording.model import FrameKind, Image, Space
from recording.symbols import SymbolTable
from unwind.arch import Architecture, Registers
from unwind.checked_rows import CheckedCodeRows
from unwind.code_rows import CodeRows
from unwind.frame_table import FrameTable
from unwind.images import ImageCode
from unwind.instructions import Instruction
from unwind.rules import Row
from unwind.user import Region
from unwind.user_abi import UserAbi

_ADDRESS_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MAX_ENTRY = 4096
"""Bytes of the code with which an image begins, at most."""
SPACES = {FrameKind.KERNEL: Space.KERNEL, FrameKind.USER: Space.USER, FrameKind.FIRMWARE: Space.FIRMWARE}
"""Of the frames of an image."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What the user says of a file.

    bias: run-time minus link-time addresses. root: physical address of the page table with which alone it is mapped, None for all.
    kind: KERNEL, USER or FIRMWARE: what its frames are.
    """

    path: Path
    bias: int = 0
    root: int | None = None
    kind: FrameKind = FrameKind.KERNEL

    def placed(self, address: int) -> int:
        """Where the guest has a link-time address."""
        return address + self.bias & _ADDRESS_MASK


class _CodeRows:
    """Rows out of a file's code (``unwind.user.UserCodeRows``)."""

    def __init__(self, elf: ElfFile, abi: UserAbi, symbols: SymbolTable) -> None:
        self._rows = CodeRows(elf.read, abi, lambda address: _start(symbols, address))

    def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
        """See ``unwind.user.UserCodeRows``."""
        return self._rows.find_rows(address, interrupted=interrupted)

    def find_call(self, address: int) -> Instruction | None:
        """See ``unwind.user.UserCodeRows``."""
        return self._rows.find_call(address)


def _start(symbols: SymbolTable, address: int) -> Sequence[int]:
    symbol = symbols.find_at(address)
    return () if symbol is None else (symbol.address,)


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A file as the guest has it in memory. segments: run-time addresses [start, end) of all that is mapped of it.

    code_rows, checked_rows: rows out of its code, for processors whose programs may have no others (``unwind.user.Region``).
    """

    request: ImageRequest
    elf: ElfFile
    rows: UserRows
    symbols: SymbolTable
    abi: UserAbi
    entry_end: int
    segments: tuple[tuple[int, int], ...]
    code: tuple[tuple[int, int], ...]
    code_rows: _CodeRows | None
    checked_rows: CheckedCodeRows | None

    def build_notes(self) -> tuple[int, int] | None:
        """Run-time address and size of the notes that have the build ID; None where the guest has none in memory."""
        contents, header = self.elf.contents, self.elf.header
        for segment in header.segments:
            if segment.type != PT_NOTE or not 0 < segment.file_size <= MAX_NOTES or self.elf.find_offset(segment.address) is None:
                continue
            if find_build_id(contents.read(segment.offset, segment.file_size) or b"", header.format) is not None:
                return self.request.placed(segment.address), segment.file_size
        return None

    def has_build(self, notes: bytes) -> bool:
        """Whether such notes in the guest's memory have a build ID."""
        return find_build_id(notes, self.elf.header.format) is not None

    def other_build(self, notes: bytes) -> str | None:
        """The build ID that such notes in the guest's memory have, where it is not the file's."""
        found = find_build_id(notes, self.elf.header.format)
        return None if found == self.elf.build_id else found

    def to_image(self) -> Image:
        """What a recording keeps of it; its frames name it."""
        return Image(self.request.path.name, self.request.kind, 0, self.elf.build_id, (), self.symbols)


def load_images(requests: Sequence[ImageRequest], architecture: Architecture, *, any_build: bool = False) -> GuestImages | None:
    """Read all files, None where there are none. Raises BadImageError as ``load_image`` and ``GuestImages`` do."""
    if not requests:
        return None
    return GuestImages(architecture, [load_image(request, architecture) for request in requests], any_build=any_build)


def load_image(request: ImageRequest, architecture: Architecture) -> GuestImage:
    """Read a file. Raises BadImageError, in a sentence that names the file, where it cannot be what a guest runs."""
    path = request.path
    try:
        with path.open("rb") as stream:
            elf = open_elf(BytesContents(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)), is_final=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise BadImageError(f"{path} cannot be read ({reason}); give the ELF file that the guest runs (--elf)") from error
    except BadImageError as error:
        raise BadImageError(f"{path} is no file for --elf: {error}") from error
    if elf is None:
        raise BadImageError(f"{path} is cut short; give the whole ELF file that the guest runs (--elf)")
    abi = abi_of(architecture, elf.pointer_size)
    facts, byteorder = architecture.images, elf.header.format.byteorder
    is_ours = elf.machine in facts.machines and (facts.has_both_orders or byteorder == architecture.byteorder)
    if abi is None or not is_ours:
        raise BadImageError(
            f"{path} is for another processor (ELF machine {elf.machine}, {8 * elf.pointer_size} bits,"
            f" {byteorder} endian) than the guest's {architecture.name}; give the file that the guest runs"
        )
    if elf.header.type not in (ET_EXEC, ET_DYN):
        raise BadImageError(f"{path} is no linked program (ELF type {elf.header.type}); give what the linker made of it (--elf)")

    placed = request.placed
    loads = [load for load in elf.segments if load.memory_size]
    code = tuple(sorted((placed(load.address), placed(load.address) + load.memory_size) for load in loads if load.is_executable))
    if not code:
        raise BadImageError(f"{path} has no code: no segment of it is executable; give the file that the guest runs (--elf)")
    symbols = run_steps(read_symbols(elf)).table
    rows = UserRows(elf, architecture.user_abis, _debug_frame(path, abi))
    run_steps(rows.prepare())
    segments = tuple((placed(load.address), placed(load.address) + load.memory_size) for load in loads)
    is_checked = abi.follows_call is not None
    checked_rows = CheckedCodeRows(elf.read, abi) if is_checked else None
    code_rows = _CodeRows(elf, abi, symbols) if abi.decode is not None and not is_checked else None
    return GuestImage(request, elf, rows, symbols, abi, _entry_end(elf, symbols), segments, code, code_rows, checked_rows)


def _debug_frame(path: Path, abi: UserAbi) -> FrameTable | None:
    """Programs without ``.eh_frame`` have this if they were built with debug information; None where there is none to be read."""
    try:
        with DebugFile(path) as file:
            section = read_frame_section(file, loaded=False)
    except BadImageError:
        return None
    return None if section is None else section.table(abi)


def _entry_end(elf: ElfFile, symbols: SymbolTable) -> int:
    """Where the function ends with which an image begins: only what is written to begin there has no caller."""
    entry = elf.entry
    symbol = None if entry is None else symbols.find_at(entry)
    if entry is None or symbol is None or symbol.address != entry:
        return 0
    return entry + min(symbol.size, _MAX_ENTRY)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Code that does not overlap, by address."""

    starts: tuple[int, ...]
    regions: tuple[Region, ...]
    images: tuple[GuestImage, ...]

    def at(self, address: int) -> int | None:
        """The index of the piece that has an address."""
        index = bisect_right(self.starts, address) - 1
        return index if index >= 0 and address < self.regions[index].end else None


def _pieces(images: Sequence[GuestImage], root: int | None) -> _Pieces:
    """Those of one page table, or of all. Raises BadImageError where two have code at the same place."""
    rows: list[tuple[Region, GuestImage]] = []
    for index, image in enumerate(images):
        bias = image.request.bias & _ADDRESS_MASK
        for start, end in image.code if image.request.root == root else ():
            more = image.code_rows, image.checked_rows, image.entry_end
            region = Region(start, end, bias, index, image.rows, image.elf.entry, *more)
            rows.append((region, image))
    rows.sort(key=lambda row: row[0].start)
    for (region, image), (following, other) in pairwise(rows):
        if following.start < region.end:
            raise BadImageError(
                f"{image.request.path} and {other.request.path} both have code at {following.start:#x}; say where the guest has"
                " them (--elf FILE@BIAS), or with which page table (--elf FILE,root=ADDRESS)"
            )
    regions, owners = zip(*rows, strict=True) if rows else ((), ())
    return _Pieces(tuple(region.start for region in regions), regions, owners)


class GuestImages:
    """All files that the user named, by address space. What is mapped with one page table alone goes before the others."""

    def __init__(self, architecture: Architecture, images: Sequence[GuestImage], *, any_build: bool = False) -> None:
        """They are the first images of a recording. Raises BadImageError where two have code at the same place.

        any_build: they may be of another build than what the guest runs.
        """
        self.all = tuple(images)
        self.any_build = any_build
        self._pc = architecture.pc
        self._find_roots = architecture.images.roots
        self._kinds = {index: SPACES[image.request.kind] for index, image in enumerate(images)}
        self._common = _pieces(images, None)
        roots = {image.request.root for image in images if image.request.root is not None}
        if roots and self._find_roots is None:
            raise BadImageError(
                f"no register of {architecture.name} tells guestprof which page table is in use, so root= cannot be used here;"
                " leave it away, and name the files of one program at a time"
            )
        self._by_root = {root: _pieces(images, root) for root in roots}

    def segment_end(self, address: int) -> int | None:
        """Where the segment ends that has an address, None where no file's has."""
        ends = (end for image in self.all for start, end in image.segments if start <= address < end)
        return min(ends, default=None)

    def code_of(self, registers: Registers) -> ImageCode | None:
        """The code of the address space that a vCPU is in, None where its pc is in no file's."""
        tables = [self._common]
        if self._by_root and self._find_roots is not None:
            tables[:0] = [self._by_root[root] for root in self._find_roots(registers) if root in self._by_root]
        pc = registers[self._pc]
        found = next(((table, index) for table in tables if (index := table.at(pc)) is not None), None)
        if found is None:
            return None
        image = found[0].images[found[1]]
        return ImageCode(_finder(tables), self._kinds, image.abi, image.elf.header.format.byteorder, _reader(tables))


def _finder(tables: Sequence[_Pieces]) -> Callable[[int], Region | None]:
    def find(address: int) -> Region | None:
        for table in tables:
            index = table.at(address)
            if index is not None:
                return table.regions[index]
        return None

    return find


def _reader(tables: Sequence[_Pieces]) -> Callable[[int, int], bytes | None]:
    def read(address: int, size: int) -> bytes | None:
        for table in tables:
            index = table.at(address)
            if index is not None:
                return table.images[index].elf.read(address - table.regions[index].bias & _ADDRESS_MASK, size)
        return None

    return read
