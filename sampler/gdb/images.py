"""What gdb says of the functions of frames → images with symbols and source lines, as a recording keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from guest.elf.images import SPACES, ImageRequest
from recording.model import Callchain, Frame, Image, SourceLine
from recording.symbols import SymbolTable
from sampler.gdb.frames import HANDLER, Activation, GdbStack
from sampler.gdb.process import Answer

_SYMBOL = re.compile(r"(?:.*?)(?: \+ (?P<offset>[0-9]+))? in section (?:\S+?)(?: of (?P<file>.+))?", re.DOTALL)
_BATCH = 200
_ADDRESS_MASK = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class GdbImage:
    """A file that gdb has symbols of, its addresses as they are in the file.

    functions: name and start of the function at an address (``lookup_pc``). lines: see ``sampler.gdb.frames.Activation``.
    """

    request: ImageRequest
    index: int
    functions: dict[int, tuple[str, int]] = field(default_factory=dict)
    lines: dict[int, tuple[SourceLine, ...]] = field(default_factory=dict)
    is_changed: bool = False

    def to_image(self, boot: int, symbols: SymbolTable | None) -> Image:
        """What a recording keeps of it; its frames name it."""
        return Image(self.request.path.name, self.request.kind, boot, None, (), symbols)

    def symbols(self) -> SymbolTable:
        """Names the addresses that were seen. A function has a row where it begins, and another behind one that lies within it."""
        rows: list[tuple[int, str, str]] = []
        before, last = None, -1
        for address, function in sorted(self.functions.items()):
            if function != before:
                name, start = function
                rows.append((start if start > last else address, "t", name))
            before, last = function, address
        return SymbolTable.from_symbols(rows)


class AnswersCommands(Protocol):
    """A gdb."""

    def run(self, commands: list[str]) -> list[Answer]:
        """See ``sampler.gdb.process.Gdb``."""


class ImageStore:
    """The images of a recording by gdb's stacks. files: the user's; frames are of the first one unless gdb names another."""

    def __init__(self, gdb: AnswersCommands, files: Sequence[ImageRequest]) -> None:
        self._gdb = gdb
        self._files = {str(file.path.absolute()): file for file in files}
        self._main = next(iter(self._files), "[unknown]")
        self._images: dict[str, GdbImage] = {}
        self._frames: dict[Activation, Frame] = {}

    @property
    def images(self) -> list[GdbImage]:
        """By their index."""
        return list(self._images.values())

    def learn(self, stacks: Iterable[GdbStack]) -> None:
        """Ask gdb about the functions that are new. The guest may run meanwhile. Raises GdbFailedError."""
        activations = (each for stack in stacks for each in stack.activations)
        new = list(dict.fromkeys(each for each in activations if each not in self._frames))
        for start in range(0, len(new), _BATCH):
            self._learn(new[start : start + _BATCH])

    def _learn(self, new: list[Activation]) -> None:
        named = [each for each in new if each.lines]
        answers = self._gdb.run([f'-interpreter-exec console "info symbol {each.lookup_pc:#x}"' for each in named])
        told = dict(zip(named, answers, strict=True))
        for each in new:
            if not each.lines:
                self._frames[each] = Frame(each.pc, each.lookup_pc, guess=each.guess)
                continue
            answer = told[each]
            first = "" if answer.is_error else answer.console().partition("\n")[0]
            self._frames[each] = self._frame(each, _SYMBOL.fullmatch(first))

    def _frame(self, each: Activation, symbol: re.Match[str] | None) -> Frame:
        """A frame of the file that gdb says, which is told of the function."""
        file = symbol["file"] if symbol is not None and symbol["file"] else self._main
        image = self._images.get(file)
        if image is None:
            request = self._files.get(file, ImageRequest(Path(file)))
            image = self._images[file] = GdbImage(request, len(self._images))
        own, bias = each.lines[-1], image.request.bias
        offset = int(symbol["offset"] or 0) if symbol is not None and own.name != HANDLER else 0
        address = each.lookup_pc - bias & _ADDRESS_MASK
        image.functions[address] = (own.name or "", max(0, address - offset))
        if own.path is not None or len(each.lines) > 1:
            image.lines[address] = each.lines
        image.is_changed = True
        return Frame(each.pc - bias & _ADDRESS_MASK, address, SPACES[image.request.kind], each.guess, image.index)

    def callchain(self, stack: GdbStack) -> Callchain:
        """The frames of a stack that was learnt."""
        return Callchain(tuple(self._frames[each] for each in stack.activations), stack.end)

    def lines(self) -> dict[tuple[int, int], tuple[SourceLine, ...]]:
        """By the index of an image and an address in it, see ``recording.reader.Recording.source_lines``."""
        return {(image.index, address): lines for image in self.images for address, lines in image.lines.items()}

    def as_images(self, boot: int = 0) -> list[Image]:
        """As a recording keeps them."""
        return [each.to_image(boot, each.symbols()) for each in self.images]
