"""Addresses become names, when a recording is looked at: frame and boot in, function and module out.

Naming at viewing time means that an old recording gets better names as soon as better symbols are put into it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from recording.demangle import demangled
from recording.model import Frame, FrameKind, Image, SourceLine, Space
from recording.symbols import Symbol


@dataclass(frozen=True, slots=True)
class Function:
    """What totals are counted by. Functions of one name in one module are one function, as in perf.

    is_inlined: what the compiler has inlined of it elsewhere; its own code is a function beside that.
    """

    name: str
    module: str
    kind: FrameKind
    is_inlined: bool = False

    @property
    def label(self) -> str:
        """Its name, and whether it is inlined, as perf says it."""
        return f"{self.name} (inlined)" if self.is_inlined else self.name


@dataclass(frozen=True, slots=True)
class NamedFrame:
    """A frame with the names of its function and module.

    offset: of the frame's pc from the function's start, in bytes; None where the function is not known, or inlined.
    path, line: in the source, None where that is not known.
    """

    name: str
    offset: int | None
    module: str
    kind: FrameKind
    is_inlined: bool = False
    path: str | None = None
    line: int | None = None

    @property
    def function(self) -> Function:
        """The function alone, without the place in it."""
        return Function(self.name, self.module, self.kind, self.is_inlined)


USER = NamedFrame("[user]", None, "[user]", FrameKind.USER)
FIRMWARE = NamedFrame("[firmware]", None, "[firmware]", FrameKind.FIRMWARE)


class Namer:
    """Names frames by the images of a recording; every answer is remembered."""

    def __init__(self, images: Sequence[Image], lines: Mapping[tuple[int, int], Sequence[SourceLine]] | None = None) -> None:
        """Images in the order of their indexes, and what ``Recording.source_lines`` gives.

        Where ranges of one boot overlap, the image added last wins (a module loaded where another one had been).
        """
        self._images = images
        self._lines = lines or {}
        self._numbers = {id(image): index for index, image in enumerate(images)}
        ranges: dict[int, list[tuple[int, int, int, Image]]] = {}
        for order, image in enumerate(images):
            for start, end in image.ranges:
                ranges.setdefault(image.boot, []).append((start, end, order, image))
        self._ranges = {boot: _disjoint(rows) for boot, rows in ranges.items()}
        self._starts = {boot: [start for start, _, _ in rows] for boot, rows in self._ranges.items()}
        self._known: dict[tuple[int, int, int, int | None], tuple[NamedFrame, ...]] = {}
        self._demangled: dict[str, str] = {}

    def prepare(self, frames: Iterable[Frame]) -> None:
        """Demangle the names of the functions of files among these frames, all at once; others stay mangled."""
        symbols = (self._symbol(frame) for frame in frames if frame.image is not None)
        names = {symbol.name for symbol in symbols if symbol is not None}
        for (index, _), lines in self._lines.items():
            image = self._image(index)
            if image is not None and _is_file(image):
                names.update(line.name for line in lines if line.name is not None)
        self._demangled.update(demangled(names))

    def name(self, frame: Frame, boot: int) -> NamedFrame:
        """The function whose frame it is, see ``names``; its line is that of the call where one is inlined."""
        return self.names(frame, boot)[0]

    def names(self, frame: Frame, boot: int) -> tuple[NamedFrame, ...]:
        """The function whose frame it is, then what is inlined at its address, innermost last.

        Addresses of firmware and user code of no image have no names of their own and are merged.

        A kernel address of no image is its own name.
        """
        if frame.image is None and frame.space is Space.USER:
            return (USER,)
        if frame.image is None and frame.space is Space.FIRMWARE:
            return (FIRMWARE,)
        key = (frame.pc, frame.lookup_pc, boot, frame.image)
        named = self._known.get(key)
        if named is None:
            image = self.image(frame, boot)
            lines = () if image is None else self._lines.get((self._numbers[id(image)], frame.lookup_pc), ())
            named = self._known[key] = self._with_lines(self._looked_up(frame, image), image, lines)
        return named

    def _with_lines(self, named: NamedFrame, image: Image | None, lines: Sequence[SourceLine]) -> tuple[NamedFrame, ...]:
        """lines: innermost first. A symbol's name counts more than that of debug information, which leaves out ``.isra.0``."""
        if image is None or not lines:
            return (named,)
        own = lines[-1]
        if own.name is not None and named.offset is None:
            named = replace(named, name=self._shown(own.name, image))
        inlined = [
            NamedFrame(self._shown(line.name or "[inlined]", image), None, named.module, named.kind, True, line.path, line.line)
            for line in reversed(lines[:-1])
        ]
        return (replace(named, path=own.path, line=own.line), *inlined)

    def _shown(self, name: str, image: Image) -> str:
        return self._demangled.get(name, name) if _is_file(image) else name

    def image(self, frame: Frame, boot: int) -> Image | None:
        """The image whose code a frame is in, None where that is not known."""
        if frame.image is not None:
            return self._image(frame.image)
        return None if frame.space is not Space.KERNEL else self._image_at(frame.lookup_pc, boot)

    def _looked_up(self, frame: Frame, image: Image | None) -> NamedFrame:
        if image is None:
            return NamedFrame(f"{frame.pc:#x}", None, "[unknown]", FrameKind.UNKNOWN)
        module = _module(image)
        symbol = _symbol_at(image, frame.lookup_pc)
        if symbol is None and frame.start is not None:
            return NamedFrame(_nameless(image, frame.start), frame.pc - frame.start, module, image.kind)
        if symbol is None:
            return NamedFrame(_nameless(image, frame.pc), None, module, image.kind)
        return NamedFrame(self._shown(symbol.name, image), frame.pc - symbol.address, module, image.kind)

    def _symbol(self, frame: Frame) -> Symbol | None:
        image = None if frame.image is None else self._image(frame.image)
        return None if image is None or not _is_file(image) else _symbol_at(image, frame.lookup_pc)

    def _image(self, index: int) -> Image | None:
        return self._images[index] if 0 <= index < len(self._images) else None

    def _image_at(self, address: int, boot: int) -> Image | None:
        index = bisect_right(self._starts.get(boot, ()), address) - 1
        if index < 0:
            return None
        _, end, image = self._ranges[boot][index]
        return image if address < end else None


def _is_file(image: Image) -> bool:
    """Whether an image is a file with code, at its own addresses: a program's, or one that the user named."""
    return not image.ranges and image.kind in (FrameKind.USER, FrameKind.KERNEL, FrameKind.FIRMWARE)


def _module(image: Image) -> str:
    """``[kernel]``, ``[e1000]`` as perf prints modules, ``[bpf]`` for all of BPF, and files by their paths."""
    if _is_file(image):
        return image.name
    if image.kind is FrameKind.KERNEL:
        return "[kernel]"
    if image.kind is FrameKind.BPF:
        return "[bpf]"
    return f"[{image.name}]" if image.kind is FrameKind.MODULE else image.name


def _symbol_at(image: Image, address: int) -> Symbol | None:
    """The symbol that covers an address. One without a name marks where the function before it ends."""
    symbol = None if image.symbols is None else image.symbols.find_at(address)
    return symbol if symbol is not None and symbol.name else None


def _nameless(image: Image, address: int) -> str:
    """What stands for a function that no symbol names, by the address of its start, or of the frame where that is not known.

    ``libfoo.so.1+0x1234`` with the file's link-time address; memory that is no file's (``[anon]``) and BPF programs as one.
    """
    if image.kind is FrameKind.BPF or (_is_file(image) and image.name.startswith("[")):
        return image.name
    return f"{image.name.rpartition('/')[2]}+{address:#x}" if _is_file(image) else f"{address:#x}"


def _disjoint(rows: list[tuple[int, int, int, Image]]) -> list[tuple[int, int, Image]]:
    """Ranges in address order which do not overlap, later images cut out of earlier ones."""
    edges = sorted({edge for start, end, _, _ in rows for edge in (start, end)})
    owner: dict[int, tuple[int, Image]] = {}
    for start, end, order, image in rows:
        first, last = bisect_right(edges, start) - 1, bisect_right(edges, end) - 1
        for index in range(first, last):
            if index not in owner or owner[index][0] <= order:
                owner[index] = (order, image)
    return [(edges[index], edges[index + 1], image) for index, (_, image) in sorted(owner.items())]
