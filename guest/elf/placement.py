"""A file of this machine and the symbols that a guest showed of the same code → which address of one is which of the other.

A kernel is moved as a whole (KASLR), a module's sections each to a place of its own. Names that both have tell where to, and
so many of them that a file of another build does not pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from guest.elf.debug_file import DebugFile
from recording.symbols import SymbolTable

_SAMPLED = 400
_AGREEING = 0.9
_LEAST = 3
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Placement:
    """parts: [start, end) of the file's addresses, and what to add to these for the guest's (modulo 2**64)."""

    parts: tuple[tuple[int, int, int], ...]

    def to_file(self, address: int) -> int | None:
        """The file's address of one of the guest's, None where it has none."""
        for start, end, bias in self.parts:
            found = (address - bias) & _MASK
            if start <= found < end:
                return found
        return None


Anchor = tuple[str, int, int]
"""A name that only one symbol of a file has, its section (0 where that does not matter) and its address."""


def find_anchors(file: DebugFile) -> list[Anchor]:
    """Symbols enough to tell where a file's code is: all of a module, some of a kernel."""
    unique: dict[str, tuple[int, int] | None] = {}
    for symbol in file.symbols():
        unique[symbol.name] = None if symbol.name in unique else (symbol.section, symbol.address)
    known = [(name, *place) for name, place in unique.items() if place is not None]
    if file.is_relocatable:
        return known
    return [(name, 0, address) for name, _, address in known[:: max(1, len(known) // _SAMPLED)]]


def find_placement(symbols: SymbolTable, file: DebugFile, anchors: Sequence[Anchor]) -> Placement | None:
    """Where a file's code is, by the symbols that the guest showed of it; None where they do not fit each other."""
    moved = find_moves(symbols, anchors)
    if moved is None:
        return None
    if file.is_relocatable:
        code = file.code
        parts = [(code[key].start, code[key].start + code[key].size, bias) for key, bias in moved.items()]
    else:
        parts = [(part.start, part.start + part.size, moved[0]) for part in file.code.values()]
    return Placement(tuple(sorted(parts)))


def find_moves(symbols: SymbolTable, anchors: Sequence[Anchor]) -> dict[int, int] | None:
    """By how much each section was moved (modulo 2**64); None where the symbols do not fit each other."""
    votes: dict[int, Counter[int]] = {}
    for name, section, address in anchors:
        found = symbols.find(name)
        if found is not None:
            votes.setdefault(section, Counter())[(found.address - address) & _MASK] += 1
    total = sum(counter.total() for counter in votes.values())
    best = {key: counter.most_common(1)[0] for key, counter in votes.items()}
    agreeing = sum(count for _, count in best.values())
    if not total or agreeing < _AGREEING * total or agreeing < min(_LEAST, len(anchors)):
        return None
    return {key: bias for key, (bias, _) in best.items()}


def own_placement(file: DebugFile) -> Placement:
    """Of a file whose link-time addresses are used as they are."""
    return Placement(tuple(sorted((part.start, part.start + part.size, 0) for part in file.code.values())))
