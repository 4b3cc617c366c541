"""A recording and files of this machine → the recording with source lines, inlined functions and the names it lacked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from guest.elf.debug_file import DebugFile, supplementary_of
from guest.elf.dwarf_units import Dwarf
from guest.elf.file import open_elf
from guest.elf.inlined import SourceFrame, SourceFunction, SourceIndex
from guest.elf.source_cache import SourceCache
from guest.elf.symbols import read_symbols
from guest.host_files import HostFinder, Match
from guest.memory import run_steps
from guest.storage.files import BytesContents
from recording.errors import BadImageError
from recording.model import Frame, FrameKind, Image, SourceLine
from recording.names import Namer
from recording.reader import Recording
from recording.sources import ImageSources, save_sources, used_addresses
from recording.symbols import SymbolTable

_KINDS = frozenset({FrameKind.KERNEL, FrameKind.MODULE, FrameKind.USER, FrameKind.FIRMWARE})


@dataclass(frozen=True, slots=True)
class Symbolized:
    """What came of it for one image. addresses: that samples have in it; with_lines: of which a line is known now."""

    image: str
    file: Path
    addresses: int
    with_lines: int
    inlined: int


def symbolize(
    path: Path, finder_of: Callable[[Recording], HostFinder], cache: SourceCache, tell: Callable[[str], None]
) -> list[Symbolized]:
    """Put what host files say into a recording, by image. ``tell`` is given a sentence for each file that cannot be used.

    Raises BadRecordingError, and BadImageError where ``--vmlinux`` is of no kernel that the guest ran.
    """
    done: list[Symbolized] = []
    sources: dict[int, ImageSources] = {}
    refused: list[BadImageError] = []
    has_kernel = False
    with Recording.open(path) as recording:
        images = recording.images()
        finder = finder_of(recording)
        used = used_addresses(recording)
    for number, addresses in sorted(used.items()):
        image = images[number]
        if image.kind not in _KINDS:
            continue
        try:
            match = finder.find(image, tell)
        except BadImageError as error:
            refused.append(error)
            continue
        if match is None:
            continue
        has_kernel = has_kernel or image.kind is FrameKind.KERNEL
        with match.file:
            lines = _lines(match, addresses, cache, tell)
            symbols = _symbols(match.file, image)
        sources[number] = ImageSources(lines, symbols, match.file.build_id if image.build_id is None else None)
        known = sum(any(line.line is not None for line in each) for each in lines.values())
        done.append(Symbolized(image.name, match.file.path, len(addresses), known, sum(len(each) - 1 for each in lines.values())))
    if refused and not has_kernel:
        raise refused[0]
    # The guest has run several kernels.
    for refusal in refused:
        tell(str(refusal))
    if sources:
        save_sources(path, sources)
    return done


def frame_lines(
    images: Sequence[Image], frames: Iterable[Frame], finder: HostFinder, cache: SourceCache, tell: Callable[[str], None]
) -> dict[tuple[int, int], Sequence[SourceLine]]:
    """Source lines of frames of the first boot, as ``recording.names.Namer`` takes them.

    Raises BadImageError where ``--vmlinux`` is not of the guest's kernel.
    """
    namer = Namer(images)
    numbers = {id(image): number for number, image in enumerate(images)}
    used: dict[int, set[int]] = {}
    for frame in frames:
        image = namer.image(frame, 0)
        if image is not None:
            used.setdefault(numbers[id(image)], set()).add(frame.lookup_pc)
    found: dict[tuple[int, int], Sequence[SourceLine]] = {}
    for number, addresses in used.items():
        match = finder.find(images[number], tell) if images[number].kind in _KINDS else None
        if match is not None:
            with match.file:
                lines = _lines(match, addresses, cache, tell)
            found |= {(number, address): of_it for address, of_it in lines.items()}
    return found


def _lines(match: Match, addresses: Iterable[int], cache: SourceCache, tell: Callable[[str], None]) -> dict[int, list[SourceLine]]:
    """By the image's addresses."""
    if not match.file.has_lines:
        return {}
    placed = {address: place for address in addresses if (place := match.placement.to_file(address)) is not None}
    try:
        found = source_frames(match.file, placed.values(), cache)
    except BadImageError as error:
        tell(str(error))
        return {}
    return {
        address: [SourceLine(frame.name, frame.path, frame.line) for frame in found[place]]
        for address, place in placed.items()
        if place in found
    }


def source_frames(file: DebugFile, addresses: Iterable[int], cache: SourceCache) -> dict[int, tuple[SourceFrame, ...]]:
    """The functions at each of a file's addresses, innermost first, as far as its debug information knows any.

    Raises BadImageError where that is damaged.
    """
    wanted = set(addresses)
    key = file.build_id or ""
    found = dict(cache.load_frames(key))
    missing = sorted(wanted - found.keys())
    if missing:
        known = _Functions(cache.load_functions(key))
        unread = [address for address in missing if known.find(address) is None]
        with ExitStack() as stack:
            shared = supplementary_of(file)
            other = None if shared is None else Dwarf(stack.enter_context(shared))
            known = _Functions([*known.all, *SourceIndex(Dwarf(file, other)).functions(unread)])
        for address in missing:
            function = known.find(address)
            # That an address is of no function is worth keeping, too.
            found[address] = () if function is None else function.frames(address)
        cache.save_lines(key, found, known.all)
    return {address: found[address] for address in wanted if found[address]}


class _Functions:
    """Functions by address."""

    def __init__(self, functions: Sequence[SourceFunction]) -> None:
        self.all = functions
        self._pieces = sorted((start, end, index) for index, each in enumerate(functions) for start, end in each.ranges)
        self._starts = [start for start, _, _ in self._pieces]

    def find(self, address: int) -> SourceFunction | None:
        """The one that an address is in."""
        index = bisect_right(self._starts, address) - 1
        return self.all[self._pieces[index][2]] if index >= 0 and address < self._pieces[index][1] else None


def _symbols(file: DebugFile, image: Image) -> SymbolTable | None:
    """Names for an image of user code that has none or only those that it exports; the guest's own count more for kernel code."""
    if image.kind is not FrameKind.USER or not file.has_symbols:
        return None
    elf = open_elf(BytesContents(file.read_all()), is_final=True)
    if elf is None:
        return None
    table = run_steps(read_symbols(elf)).table
    return table if image.symbols is None or len(table) > len(image.symbols) else None
