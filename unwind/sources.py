"""What an unwinder asks of what is known of a kernel: its code, its names, its unwind rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from recording.symbols import Symbol
from unwind.rules import Row


class TextSource(Protocol):
    """The kernel's code, and its modules', as far as it is known."""

    def contains(self, address: int) -> bool:
        """Whether the code at an address is known."""

    def read(self, address: int, size: int) -> bytes | None:
        """Code bytes, or None where they are not known whole."""


class SymbolSource(Protocol):
    """The names of the kernel's code."""

    def find(self, name: str) -> Symbol | None:
        """The first symbol of that name in the kernel's image, or None."""

    def find_at(self, address: int) -> Symbol | None:
        """The symbol that covers an address, or None."""


class RowSource(Protocol):
    """An unwind table."""

    def find_row(self, lookup_pc: int) -> Row | None:
        """The row for an address, None where the table does not cover it."""


class DebugSource(RowSource, Protocol):
    """An unwind table for debuggers."""

    def is_bare(self, lookup_pc: int) -> bool:
        """Whether the function at an address has no other row than the one at its start."""


def find_range(symbols: SymbolSource, names: tuple[str, str]) -> tuple[int, int]:
    """Addresses [low, high) from one symbol to another; (0, 0) where they are not both there."""
    low, high = (symbols.find(name) for name in names)
    return (low.address, high.address) if low is not None and high is not None else (0, 0)


def find_ranges(symbols: SymbolSource, names: Iterable[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    """As ``find_range`` for many; what is not there is left out."""
    return tuple(found for pair in names if any(found := find_range(symbols, pair)))
