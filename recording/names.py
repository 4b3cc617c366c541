"""Addresses become names, when a recording is looked at: frame and boot in, function and module out.

Naming at viewing time means that an old recording gets better names as soon as better symbols are put into it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from recording.model import Frame, FrameKind, Image, Space


@dataclass(frozen=True, slots=True)
class Function:
    """What totals are counted by. Functions of one name in one module are one function, as in perf."""

    name: str
    module: str
    kind: FrameKind


@dataclass(frozen=True, slots=True)
class NamedFrame:
    """A frame with the names of its function and module.

    offset: of the frame's pc from the function's start, in bytes; None where the function is not known.
    """

    name: str
    offset: int | None
    module: str
    kind: FrameKind

    @property
    def function(self) -> Function:
        """The function alone, without the place in it."""
        return Function(self.name, self.module, self.kind)


USER = NamedFrame("[user]", None, "[user]", FrameKind.USER)
FIRMWARE = NamedFrame("[firmware]", None, "[firmware]", FrameKind.FIRMWARE)


class Namer:
    """Names frames by the images of a recording; every answer is remembered."""

    def __init__(self, images: Iterable[Image]) -> None:
        """Where ranges of one boot overlap, the image added last wins (a module loaded where another one had been)."""
        ranges: dict[int, list[tuple[int, int, int, Image]]] = {}
        for order, image in enumerate(images):
            for start, end in image.ranges:
                ranges.setdefault(image.boot, []).append((start, end, order, image))
        self._ranges = {boot: _disjoint(rows) for boot, rows in ranges.items()}
        self._starts = {boot: [start for start, _, _ in rows] for boot, rows in self._ranges.items()}
        self._known: dict[tuple[int, int, int], NamedFrame] = {}

    def name(self, frame: Frame, boot: int) -> NamedFrame:
        """User and firmware addresses have no names of their own and are merged; a kernel address of no image is its own name."""
        if frame.space is Space.USER:
            return USER
        if frame.space is Space.FIRMWARE:
            return FIRMWARE
        key = (frame.pc, frame.lookup_pc, boot)
        named = self._known.get(key)
        if named is None:
            named = self._known[key] = self._looked_up(frame, boot)
        return named

    def _looked_up(self, frame: Frame, boot: int) -> NamedFrame:
        image = self._image_at(frame.lookup_pc, boot)
        if image is None:
            return NamedFrame(f"{frame.pc:#x}", None, "[unknown]", FrameKind.UNKNOWN)
        module = _module(image)
        symbol = None if image.symbols is None else image.symbols.find_at(frame.lookup_pc)
        if symbol is None:
            return NamedFrame(f"{frame.pc:#x}", None, module, image.kind)
        return NamedFrame(symbol.name, frame.pc - symbol.address, module, image.kind)

    def _image_at(self, address: int, boot: int) -> Image | None:
        index = bisect_right(self._starts.get(boot, ()), address) - 1
        if index < 0:
            return None
        _, end, image = self._ranges[boot][index]
        return image if address < end else None


def _module(image: Image) -> str:
    """``[kernel]``, ``[e1000]`` as perf prints modules, and other images by their own name."""
    if image.kind is FrameKind.KERNEL:
        return "[kernel]"
    return f"[{image.name}]" if image.kind is FrameKind.MODULE else image.name


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
