"""Unwind tables of files on this machine, as guestprof reads them and as ``readelf`` prints them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

from unwind.arch.x86_64 import X86_64
from unwind.frame_table import FrameTable, Unread
from unwind.rules import Memory, Row, RowKind, Saved
from unwind.user_abi import UserAbi

_FUNCTION = re.compile(r"^[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE cie=([0-9a-f]+) pc=([0-9a-f]+)\.\.([0-9a-f]+)$")
_COMMON = re.compile(r"^([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ CIE ")
_I386 = dict(zip("eax ecx edx ebx esp ebp esi edi".split(), "rax rcx rdx rbx rsp rbp rsi rdi".split(), strict=True))
_IN_REGISTER = re.compile(r"\br\d+ \((\w+)\)")
_NOT_SAID = {"u", "s", "n"}


class TableOfFile:
    """A file's loaded bytes by link-time address, and its unwind table."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        elf = ELFFile(BytesIO(data))
        self.segments = [
            (segment["p_vaddr"], segment["p_offset"], segment["p_filesz"])
            for segment in elf.iter_segments()
            if segment["p_type"] == "PT_LOAD"
        ]
        headers = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_GNU_EH_FRAME"]
        section = elf.get_section_by_name(".eh_frame")
        self.header = (headers[0]["p_vaddr"], headers[0]["p_filesz"]) if headers else None
        self.frames = (section["sh_addr"], section["sh_size"]) if section else None
        self.abi: UserAbi = next(abi for abi in X86_64.user_abis if 8 * abi.pointer_size == elf.elfclass)

        self.shared_table = self.table()
        """A table that keeps what it has read."""

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes of a segment."""
        for start, offset, length in self.segments:
            if start <= address and address + size <= start + length:
                return self._data[offset + address - start : offset + address - start + size]
        return None

    def table(self, *, sorted_header: bool = True) -> FrameTable | None:
        """The unwind table, by its header or by its sections alone; None where it has none."""
        if sorted_header and self.header is not None:
            return FrameTable(self.read, self.abi, "little", header=self.header)
        return None if self.frames is None else FrameTable(self.read, self.abi, "little", frames=self.frames)


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """A row as readelf prints it, valid for [start, end): cells by column, registers by their 64-bit names.

    function: where the function begins that it is of.
    """

    function: int
    start: int
    end: int
    cells: dict[str, str]


def read_printed_rows(path: Path) -> Iterator[PrintedRow]:
    """What ``readelf --debug-dump=frames-interp`` says of every function, rows of no length left out."""
    command = ["readelf", "-W", "--debug-dump=frames-interp", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # It minds missing debug files.
    commons: dict[str, dict[str, str]] = {}
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if not lines:
            continue
        head = lines[0]
        table = [_cells(lines[1], line) for line in lines[2:]] if len(lines) > 1 else []
        if common := _COMMON.match(head):
            commons[common[1].lstrip("0")] = table[0][1] if table else {}
        elif function := _FUNCTION.match(head):
            start, end = int(function[2], 16), int(function[3], 16)
            # A function without instructions of its own has the row of what it builds upon.
            rows = dict(table) if table else {start: commons[function[1].lstrip("0")]}
            starts = sorted(address for address in rows if address < end)
            for address, following in zip(starts, [*starts[1:], end], strict=True):
                yield PrintedRow(start, address, following, rows[address])


def _cells(titles: str, line: str) -> tuple[int, dict[str, str]]:
    location, *cells = _IN_REGISTER.sub(r"\1", line).split()
    names = titles.split()[1:]
    return int(location, 16), {_I386.get(name, name): cell for name, cell in zip(names, cells, strict=True)}


def differs(row: Row | Unread | None, printed: PrintedRow, abi: UserAbi) -> str | None:
    """What a row says otherwise than readelf, in words; None where they agree (on expressions: that there is one)."""
    if not isinstance(row, Row):
        return f"no row: {row}"
    if printed.cells["ra"] == "u":
        return None if row.kind is RowKind.END else "no end"
    if row.kind is not RowKind.CALL:
        return row.kind.name
    cfa = "exp" if row.expression or row.memory is not Memory.NONE else f"{row.register}{row.offset:+}"
    for short, name in _I386.items():
        if abi.pointer_size == 4 and printed.cells["CFA"].startswith(short):
            cfa = cfa.replace(name, short)
    if cfa != printed.cells["CFA"]:
        return f"CFA {cfa}"
    saved = {one.register: _saved_cell(one) for one in row.saved}
    saved["ra"] = _saved_cell(row.return_address or Saved("", None, -abi.pointer_size))
    for name, cell in printed.cells.items():
        if name in _NOT_LOWERED or name not in {*abi.registers, "ra"}:
            continue
        mine = saved.pop(name, None)
        if mine is None and cell in _NOT_SAID:
            is_kept = cell == "s" or (cell == "n" and name in abi.callee_saved)
            # readelf prints "u" too where a row before said nothing of the register.
            if cell != "u" and is_kept != (name in row.kept):
                return f"{name} kept"
        elif mine is None or cell not in mine:
            return f"{name} {mine}"
    return f"also {saved}" if saved else None


_NOT_LOWERED = {"CFA"}


def _saved_cell(saved: Saved) -> set[str]:
    """How readelf may print a saved register: a register alone is written as one, or as an expression."""
    if saved.base is None:
        return {f"{'v' if saved.is_value else 'c'}{saved.offset:+}"}
    if not saved.is_value:
        return {"exp"}
    return {"vexp", str(saved.base), *(short for short, name in _I386.items() if name == saved.base)}
