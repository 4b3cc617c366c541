"""The kernel's own code, its modules' and what it makes at run time become one source of code, names and unwind rows.

Where a piece has no unwind table Linux follows frame pointers and calls the result unreliable (``orc_fp_entry`` of
arch/x86/kernel/unwind_orc.c); so do we, and mark the frames that this finds. A trampoline of ftrace is a copy of a function whose
rows fit it (``orc_ftrace_find``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from guest.generated_code import GeneratedCode
from guest.modules import Module
from guest.text import TextImage
from recording.model import FrameKind, LoadedData
from recording.symbols import Symbol, SymbolTable
from unwind.arch import UnwindMethod
from unwind.frame_pointer import FramePointerRows
from unwind.methods import choose_row
from unwind.orc import OrcTable
from unwind.rules import Row
from unwind.sources import DebugSource, RowSource, SymbolSource, TextSource

LoadedPiece: TypeAlias = Module | GeneratedCode
"""All have ``name``, ``kind``, ``address``, ``ranges``, ``symbols`` and ``build_id``."""


class LoadedCode:
    """What a kernel has loaded or made beside its own image, by address. An object never changes."""

    __slots__ = ("_pieces", "_starts", "generated", "modules")

    def __init__(self, modules: Sequence[Module] = (), generated: Sequence[GeneratedCode] = ()) -> None:
        self.modules = tuple(modules)
        self.generated = tuple(generated)
        pieces: list[tuple[int, int, LoadedPiece]] = [
            (start, end, module) for module in self.modules for start, end in module.ranges
        ]
        pieces += [(piece.start, piece.end, piece) for piece in self.generated]
        self._pieces = sorted(pieces, key=lambda piece: piece[0])
        self._starts = [start for start, _end, _piece in self._pieces]

    def at(self, address: int) -> LoadedPiece | None:
        """The module or generated code that has an address in its code."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        _start, end, piece = self._pieces[index]
        return piece if address < end else None

    def to_data(self) -> tuple[LoadedData, ...]:
        """Values that a recording keeps and ``from_data`` reads back."""
        modules = [
            LoadedData(each.name, each.kind, each.ranges, each.text.pieces, each.orc.to_data() if each.orc else None, each.symbols)
            for each in self.modules
        ]
        generated = [
            LoadedData(
                each.name,
                each.kind,
                each.ranges,
                ((each.start, each.text),) if each.text else (),
                None,
                None,
                each.has_frame_pointer,
                each.copy_of,
            )
            for each in self.generated
        ]
        return (*modules, *generated)

    @classmethod
    def from_data(cls, loaded: Sequence[LoadedData]) -> LoadedCode:
        """What ``to_data`` gave, as far as unwinding needs it. Raises BadImageError for an unwind table that is damaged."""
        modules: list[Module] = []
        generated: list[GeneratedCode] = []
        for each in loaded:
            if each.kind is FrameKind.MODULE:
                symbols = each.symbols if each.symbols is not None else SymbolTable.from_symbols([])
                orc = None if each.orc is None else OrcTable.from_data(each.orc)
                serial = len(modules)
                modules.append(Module(each.name, serial, serial, each.ranges, None, symbols, orc, TextImage(each.text)))
            elif each.ranges:
                (start, end), text = each.ranges[0], each.text[0][1] if each.text else b""
                generated.append(GeneratedCode(each.name, start, end, each.kind, text, each.has_frame_pointer, each.copy_of))
        return cls(modules, generated)


class KernelCodeMap:
    """What ``unwind.kernel.KernelUnwinder`` asks for code, names and rows, over all the code of a kernel."""

    def __init__(
        self,
        symbols: SymbolTable,
        text: TextImage,
        rows: RowSource | None,
        loaded: LoadedCode,
        frame_rows: Callable[[SymbolSource, TextSource], RowSource] = FramePointerRows,
        method: UnwindMethod = UnwindMethod.ORC,
        debug: DebugSource | None = None,
    ) -> None:
        """symbols, text, rows: of the kernel's own image; without rows (it has no unwind table) ``frame_rows`` makes them.

        method: the kernel's. debug: rows of debug information, where there is a file with such.
        """
        self._symbols = symbols
        self._text = text
        self._loaded = loaded
        self._frame_pointers = frame_rows(self, self)
        self._rows = rows if rows is not None else self._frame_pointers
        self._has_table = rows is not None
        self._method = method
        self._debug = debug

    def contains(self, address: int) -> bool:
        """Whether the code bytes at an address are known."""
        if self._text.contains(address):
            return True
        piece = self._loaded.at(address)
        if isinstance(piece, Module):
            return piece.text.contains(address)
        return piece is not None and bool(piece.text)

    def read(self, address: int, size: int) -> bytes | None:
        """Code bytes, None where not all of them are known."""
        piece = self._loaded.at(address)
        if piece is None:
            return self._text.read(address, size)
        if isinstance(piece, Module):
            return piece.text.read(address, size)
        offset = address - piece.start
        data = piece.text[offset : offset + size]
        return data if len(data) == size else None

    def find(self, name: str) -> Symbol | None:
        """A symbol of the kernel's image by its name."""
        return self._symbols.find(name)

    def find_at(self, address: int) -> Symbol | None:
        """The symbol that covers an address."""
        piece = self._loaded.at(address)
        if piece is None:
            return self._symbols.find_at(address)
        if isinstance(piece, Module):
            symbol = piece.symbols.find_at(address)
            start = next((low for low, high in piece.ranges if low <= address < high), 0)
            # The last name of one range does not reach into the next.
            return symbol if symbol is not None and symbol.address >= start else None
        return Symbol(piece.start, piece.end - piece.start, "t", piece.name)

    def find_row(self, lookup_pc: int) -> Row | None:
        """The unwind row for an address."""
        own = self._own_row(lookup_pc)
        if self._debug is None:
            return own
        return choose_row(self._method, own, self._debug, lookup_pc, has_table=self._has_table)

    def _own_row(self, lookup_pc: int) -> Row | None:
        piece = self._loaded.at(lookup_pc)
        if piece is None:
            return self._rows.find_row(lookup_pc)
        if isinstance(piece, Module):
            return piece.orc.find_row(lookup_pc) if piece.orc is not None else self._guessed_row(lookup_pc)
        if piece.copy_of is not None and self._has_table:
            return self._rows.find_row(piece.copy_of + lookup_pc - piece.start)
        return self._guessed_row(lookup_pc) if piece.has_frame_pointer or not self._has_table else None

    def _guessed_row(self, lookup_pc: int) -> Row | None:
        row = self._frame_pointers.find_row(lookup_pc)
        return replace(row, guess=True) if row is not None and self._has_table else row
