"""What gdb says of the functions of frames → images with symbols and source lines, as a recording keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from recording.model import Callchain, Frame, FrameKind, Image, SourceLine
from recording.symbols import SymbolTable
from sampler.gdb.frames import HANDLER, Activation, GdbStack
from sampler.gdb.process import Answer

_SYMBOL = re.compile(r"(?:.*?)(?: \+ (?P<offset>[0-9]+))? in section (?:\S+?)(?: of (?P<file>.+))?", re.DOTALL)
_BATCH = 200


@dataclass(slots=True)
class GdbImage:
    """A file that gdb has symbols of. functions: name and start of the function at an address (``lookup_pc``)."""

    name: str
    index: int
    functions: dict[int, tuple[str, int]] = field(default_factory=dict)
    lines: dict[int, tuple[SourceLine, ...]] = field(default_factory=dict)
    is_changed: bool = False

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
    """The images of a recording by gdb's stacks. main: the name of the file that frames are of unless gdb names another."""

    def __init__(self, gdb: AnswersCommands, main: str) -> None:
        self._gdb = gdb
        self._main = main
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
            image: GdbImage | None = None
            if each.lines:
                answer = told[each]
                first = "" if answer.is_error else answer.console().partition("\n")[0]
                image = self._note(each, _SYMBOL.fullmatch(first))
            self._frames[each] = Frame(each.pc, each.lookup_pc, guess=each.guess, image=None if image is None else image.index)

    def _note(self, each: Activation, symbol: re.Match[str] | None) -> GdbImage:
        file = symbol["file"] if symbol is not None and symbol["file"] else self._main
        name = file.rpartition("/")[2]
        image = self._images.get(name)
        if image is None:
            image = self._images[name] = GdbImage(name, len(self._images))
        own = each.lines[-1]
        offset = int(symbol["offset"] or 0) if symbol is not None and own.name != HANDLER else 0
        image.functions[each.lookup_pc] = (own.name or "", max(0, each.lookup_pc - offset))
        if own.path is not None or len(each.lines) > 1:
            image.lines[each.lookup_pc] = each.lines
        image.is_changed = True
        return image

    def callchain(self, stack: GdbStack) -> Callchain:
        """The frames of a stack that was learnt."""
        return Callchain(tuple(self._frames[each] for each in stack.activations), stack.end)

    def as_images(self, boot: int = 0) -> list[Image]:
        """As a recording keeps them."""
        return [Image(each.name, FrameKind.MODULE, boot, None, (), each.symbols()) for each in self.images]
