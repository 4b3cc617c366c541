"""Captures of real kernels, kept with what their walks touch and no more: symbols, unwind rows and code bytes.

A file of ``tests/captures`` is JSON, compressed with xz:

    kernel, version           release, and version of its ORC table
    settled, init_text, text  as in ``recording.model.UnwindData``; of the text only its ranges [start, end)
    names                     symbols that were asked for by name: name -> address, or null where there is none
    symbols                   [address, size, kind, name]: symbols that were asked for by an address in them
    rows                      [start, end, entry]: ORC entries (hex) that were asked for, and the addresses they hold for
    code                      [address, bytes]
    captures                  registers by name, memory as [address, bytes]

Whatever else an unwinder asks for raises NotKeptError: a fixture never gives a wrong answer silently.
"""

from __future__ import annotations

import json
import lzma
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recording.model import Callchain
from recording.symbols import Symbol, SymbolTable
from unwind.arch.x86_64 import X86_64
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.orc import OrcTable, OrcVersion, lower
from unwind.rules import Row
from unwind.sources import RowSource, TextSource

Range = tuple[int, int]


class NotKeptError(LookupError):
    """The unwinder asks for something that no walk asked for when the fixture was made."""

    def __init__(self, what: str, address: int) -> None:
        super().__init__(f"the fixture does not hold {what} {address:#x}: make it anew with tests/captures/make.py")


class KeptSymbols(SymbolTable):
    """The symbols of a fixture."""

    __slots__ = ("_wanted",)

    _wanted: dict[str, int | None]

    @classmethod
    def load(cls, symbols: Sequence[Sequence[Any]], names: dict[str, int | None]) -> KeptSymbols:
        """From a fixture's lists."""
        # A symbol whose neighbour was not kept must not reach to the next one that was: what lies between is named "?".
        holes = {address + size for address, size, _kind, _name in symbols} - {address for address, *_rest in symbols}
        kept = [(address, kind, name) for address, _size, kind, name in symbols]
        table = cls.from_symbols([*kept, *((hole, "?", "") for hole in holes)])
        table._wanted = names
        return table

    def find(self, name: str) -> Symbol | None:
        if name not in self._wanted:
            raise NotKeptError(f"the symbol {name} at", 0)
        address = self._wanted[name]
        return None if address is None else Symbol(address, 0, "t", name)

    def find_at(self, address: int) -> Symbol | None:
        symbol = super().find_at(address)
        if symbol is None or symbol.kind == "?":
            raise NotKeptError("the symbol at", address)
        return symbol


class KeptText:
    """The code of a fixture."""

    def __init__(self, ranges: Sequence[Range], code: Sequence[tuple[int, bytes]]) -> None:
        self._ranges = ranges
        self._code = sorted(code)
        self._starts = [address for address, _data in self._code]

    def contains(self, address: int) -> bool:
        return any(start <= address < end for start, end in self._ranges)

    def read(self, address: int, size: int) -> bytes | None:
        if not any(start <= address and address + size <= end for start, end in self._ranges):
            return None
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            start, data = self._code[index]
            if address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise NotKeptError("the code at", address)


class KeptRows:
    """The unwind rows of a fixture."""

    def __init__(self, rows: Iterable[tuple[int, int, bytes]], version: OrcVersion) -> None:
        self._rows = sorted(rows)
        self._starts = [start for start, _end, _entry in self._rows]
        self._version = version

    def find_row(self, lookup_pc: int) -> Row | None:
        index = bisect_right(self._starts, lookup_pc) - 1
        if index < 0 or lookup_pc >= self._rows[index][1]:
            raise NotKeptError("the unwind row for", lookup_pc)
        return lower(self._rows[index][2], self._version)


class TouchedSymbols(SymbolTable):
    """Symbols that remember which of them were asked for."""

    __slots__ = ("names", "touched")

    def __init__(self, addresses: array[int], kinds: bytes, names: list[str]) -> None:
        super().__init__(addresses, kinds, names)
        self.names: dict[str, int | None] = {}
        self.touched: set[Symbol] = set()

    def find(self, name: str) -> Symbol | None:
        symbol = super().find(name)
        self.names[name] = None if symbol is None else symbol.address
        return symbol

    def find_at(self, address: int) -> Symbol | None:
        symbol = super().find_at(address)
        if symbol is not None:
            self.touched.add(symbol)
        return symbol


@dataclass
class TouchedText:
    """Code that remembers which of its bytes were asked for."""

    text: TextSource
    touched: dict[int, bytes] = field(default_factory=dict)

    def contains(self, address: int) -> bool:
        return self.text.contains(address)

    def read(self, address: int, size: int) -> bytes | None:
        data = self.text.read(address, size)
        if data is not None and len(data) > len(self.touched.get(address, b"")):
            self.touched[address] = data
        return data

    def code(self) -> list[tuple[int, bytes]]:
        """The bytes, pieces that meet joined."""
        runs: list[tuple[int, bytes]] = []
        for address, data in sorted(self.touched.items()):
            if runs and address <= runs[-1][0] + len(runs[-1][1]):
                start, before = runs[-1]
                runs[-1] = (start, before + data[max(0, start + len(before) - address) :])
            else:
                runs.append((address, data))
        return runs


@dataclass
class TouchedRows:
    """An ORC table that remembers which of its entries were asked for."""

    table: OrcTable
    touched: set[tuple[int, int, bytes]] = field(default_factory=set)

    def find_row(self, lookup_pc: int) -> Row | None:
        table = self.table
        index = bisect_right(range(len(table)), lookup_pc, key=table._ip) - 1
        end = table._ip(index + 1) if index + 1 < len(table) else lookup_pc + 1
        self.touched.add((table._ip(index), end, table._entries[6 * index : 6 * index + 6]))
        return table.find_row(lookup_pc)


@dataclass(frozen=True, slots=True)
class CaptureSet:
    """A fixture: captures of one run of one kernel, and what their walks need."""

    kernel: str
    version: OrcVersion
    is_settled: bool
    init_text: Range
    ranges: tuple[Range, ...]
    symbols: SymbolTable
    text: TextSource
    rows: RowSource
    captures: tuple[Capture, ...]

    def unwinder(self) -> KernelUnwinder:
        """The unwinder under test on this kernel."""
        return KernelUnwinder(X86_64, self.symbols, self.text, self.rows, self.init_text, is_settled=self.is_settled)

    def describe(self, chain: Callchain) -> str:
        """A callchain as a line: its end, and its frames as function + offset, leaf first; ``~`` before a guess."""
        return f"{chain.end.value}: " + " < ".join(self._frame(frame.pc, frame.lookup_pc, frame.guess) for frame in chain.frames)

    def _frame(self, pc: int, lookup_pc: int, guess: bool) -> str:
        mark = "~" if guess else ""
        low, high = self.init_text
        if self.text.contains(lookup_pc) or low <= lookup_pc < high:
            symbol = self.symbols.find_at(lookup_pc)
            if symbol is not None:
                return f"{mark}{symbol.name}+{pc - symbol.address:#x}"
        return f"{mark}{pc:#x}"


def save_captures(path: Path, source: CaptureSet) -> list[str]:
    """Walk all captures and write what they touched. Gives a line for each of their callchains."""
    symbols = TouchedSymbols.from_symbols((symbol.address, symbol.kind, symbol.name) for symbol in source.symbols)
    text = TouchedText(source.text)
    assert isinstance(source.rows, OrcTable)
    rows = TouchedRows(source.rows)
    watched = replace(source, symbols=symbols, text=text, rows=rows)
    unwinder = watched.unwinder()
    lines = [watched.describe(unwinder.unwind(capture).callchain) for capture in source.captures]
    names = [name for name, _size in X86_64.fixed_registers]
    value = {
        "kernel": source.kernel,
        "version": int(source.version),
        "settled": source.is_settled,
        "init_text": source.init_text,
        "text": source.ranges,
        "names": symbols.names,
        "symbols": sorted((symbol.address, symbol.size, symbol.kind, symbol.name) for symbol in symbols.touched),
        "rows": [(start, end, entry.hex()) for start, end, entry in sorted(rows.touched)],
        "code": [(address, data.hex()) for address, data in text.code()],
        "captures": [
            {
                "vcpu": capture.vcpu,
                "registers": {name: capture.registers[name] for name in names if name in capture.registers},
                "memory": [(address, data.hex()) for address, data in capture.memory],
            }
            for capture in source.captures
        ],
    }
    path.write_bytes(lzma.compress(json.dumps(value, separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME))
    return lines


def load_captures(path: Path) -> CaptureSet:
    """What ``save_captures`` wrote."""
    value = json.loads(lzma.decompress(path.read_bytes()))
    ranges = tuple((start, end) for start, end in value["text"])
    version = OrcVersion(value["version"])
    low, high = value["init_text"]
    return CaptureSet(
        value["kernel"],
        version,
        value["settled"],
        (low, high),
        ranges,
        KeptSymbols.load(value["symbols"], value["names"]),
        KeptText(ranges, [(address, bytes.fromhex(data)) for address, data in value["code"]]),
        KeptRows([(start, end, bytes.fromhex(entry)) for start, end, entry in value["rows"]], version),
        tuple(
            Capture(each["vcpu"], each["registers"], tuple((address, bytes.fromhex(data)) for address, data in each["memory"]))
            for each in value["captures"]
        ),
    )
