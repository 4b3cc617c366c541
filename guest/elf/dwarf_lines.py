"""A unit's line program → which source line each address is of (DWARF 5, 6.2; versions 2 to 5)."""

from __future__ import annotations

import posixpath
from array import array
from dataclasses import dataclass

from guest.elf.dwarf_units import AT_COMP_DIR, AT_NAME, AT_STMT_LIST, Unit, sleb, uleb
from recording.errors import BadImageError

_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE, _SET_COLUMN, _NEGATE, _BASIC_BLOCK, _CONST_ADD_PC, _FIXED_ADVANCE_PC = range(1, 10)
_END_SEQUENCE, _SET_ADDRESS = 1, 2
_PATH, _DIRECTORY_INDEX = 1, 2
_STRING, _BLOCK_FORM, _UDATA, _DATA1, _DATA2, _DATA4, _DATA8, _DATA16 = 0x08, 0x09, 0x0F, 0x0B, 0x05, 0x06, 0x07, 0x1E
_STRP, _LINE_STRP = 0x0E, 0x1F
_FORM_SIZES = {_DATA1: 1, _DATA2: 2, _DATA4: 4, _DATA8: 8, _DATA16: 16}
_MAX_FILES = 1 << 16
NO_FILE = 0xFFFF_FFFF
"""File of a row that ends a sequence: no code of the unit follows."""


@dataclass(frozen=True, slots=True)
class LineTable:
    """Rows in address order; each holds up to the next. files: paths by their index in the program."""

    files: list[str | None]
    addresses: array[int]
    file_indexes: array[int]
    lines: array[int]

    def path(self, index: int) -> str | None:
        """The path of a file by its index in the program."""
        return self.files[index] if 0 <= index < len(self.files) else None


def read_line_table(unit: Unit) -> LineTable | None:
    """That of a unit, None where it has none. Raises BadImageError where it is damaged."""
    offset = unit.top.get(AT_STMT_LIST)
    if not isinstance(offset, int):
        return None
    try:
        return _Program(unit, offset).table()
    except IndexError as error:
        raise BadImageError(f"a line table of {unit.dwarf.file.path} is cut short; copy the file again") from error


class _Program:
    """A line program's head."""

    def __init__(self, unit: Unit, offset: int) -> None:
        self._unit = unit
        section, self._order = unit.dwarf.file.section(".debug_line"), unit.dwarf.file.order
        length = int.from_bytes(section.read(offset, 4), self._order)
        self._offset_size = 4
        start = offset + 4
        if length == 0xFFFF_FFFF:
            length, self._offset_size, start = int.from_bytes(section.read(offset + 4, 8), self._order), 8, offset + 12
        self._data = data = section.read(start, length)
        self._version = int.from_bytes(data[:2], self._order)
        if not 2 <= self._version <= 5:
            raise BadImageError(f"{unit.dwarf.file.path} has a line table of version {self._version}, which is not known")
        at = 2
        if self._version >= 5:
            at += 2
        header_length = int.from_bytes(data[at : at + self._offset_size], self._order)
        at += self._offset_size
        self._begin = at + header_length
        self._instruction_size = data[at]
        at += 2 if self._version >= 4 else 1
        self._default_is_statement = bool(data[at])
        self._line_base = data[at + 1] - (256 if data[at + 1] & 0x80 else 0)
        self._line_range = data[at + 2] or 1
        self._opcode_base = data[at + 3]
        self._operands = data[at + 4 : at + 3 + self._opcode_base]
        at += 3 + self._opcode_base
        self.files = self._tables_5(at) if self._version >= 5 else self._tables_2(at)

    def _absolute(self, directory: str, name: str) -> str:
        """As addr2line prints it."""
        own = self._unit.top.get(AT_COMP_DIR)
        return posixpath.join(own if isinstance(own, str) else "", directory, name)

    def _tables_2(self, at: int) -> list[str | None]:
        data = self._data
        directories = [""]
        while data[at]:
            end = data.index(b"\0", at)
            directories.append(data[at:end].decode("utf-8", "surrogateescape"))
            at = end + 1
        at += 1
        own = self._unit.top.get(AT_NAME)
        files: list[str | None] = [self._absolute("", own) if isinstance(own, str) else None]
        while data[at] and len(files) < _MAX_FILES:
            end = data.index(b"\0", at)
            name = data[at:end].decode("utf-8", "surrogateescape")
            directory, at = uleb(data, end + 1)
            _, at = uleb(data, at)
            _, at = uleb(data, at)
            files.append(self._absolute(directories[directory] if directory < len(directories) else "", name))
        return files

    def _tables_5(self, at: int) -> list[str | None]:
        directories, at = self._entries(at)
        names, at = self._entries(at)
        roots = [name for name, _ in directories]
        return [self._absolute(roots[directory] if directory < len(roots) else "", name) for name, directory in names]

    def _entries(self, at: int) -> tuple[list[tuple[str, int]], int]:
        data = self._data
        formats = []
        count = data[at]
        at += 1
        for _ in range(count):
            kind, at = uleb(data, at)
            form, at = uleb(data, at)
            formats.append((kind, form))
        number, at = uleb(data, at)
        if number > _MAX_FILES:
            raise BadImageError(f"a line table of {self._unit.dwarf.file.path} names {number} files; the file is damaged")
        rows = []
        for _ in range(number):
            name, directory = "", 0
            for kind, form in formats:
                value, at = self._value(form, at)
                if kind == _PATH:
                    name = str(value)
                elif kind == _DIRECTORY_INDEX and isinstance(value, int):
                    directory = value
            rows.append((name, directory))
        return rows, at

    def _value(self, form: int, at: int) -> tuple[str | int, int]:
        data, dwarf = self._data, self._unit.dwarf
        if form in {_STRP, _LINE_STRP}:
            offset = int.from_bytes(data[at : at + self._offset_size], self._order)
            return dwarf.text(".debug_str" if form == _STRP else ".debug_line_str", offset), at + self._offset_size
        if form == _STRING:
            end = data.index(b"\0", at)
            return data[at:end].decode("utf-8", "surrogateescape"), end + 1
        if form == _UDATA:
            return uleb(data, at)
        if form in _FORM_SIZES:
            size = _FORM_SIZES[form]
            return int.from_bytes(data[at : at + size], self._order), at + size
        if form == _BLOCK_FORM:
            size, at = uleb(data, at)
            return 0, at + size
        raise BadImageError(f"a line table of {dwarf.file.path} has the form {form:#x}, which is not known")

    def table(self) -> LineTable:
        """Run the program. Rows of all sequences in one list of numbers: a tuple for each takes twice as long."""
        flat, sequences = self._run()
        rows: list[int] = []
        for _, begin, end in sorted(sequences):
            rows += flat[begin:end]
        lines = array("q", rows[2::3])
        return LineTable(self.files, array("Q", rows[0::3]), array("Q", rows[1::3]), lines)

    def _run(self) -> tuple[list[int], list[tuple[int, int, int]]]:  # noqa: C901  (one loop of a machine's instructions)
        """Address, file and line of each row, and for each sequence its first address and where its rows begin and end.

        Of several rows at one address the last that begins a statement counts, or if none does the last, and rows of line 0 do not,
        as in gdb: what is told of an address is what gdb tells.
        """
        data, at, end = self._data, self._begin, len(self._data)
        base, line_base, line_range, step = self._opcode_base, self._line_base, self._line_range, self._instruction_size
        special = [((op - base) // line_range * step, line_base + (op - base) % line_range) for op in range(256)]
        moves = {_CONST_ADD_PC: (255 - base) // line_range * step}
        sequences: list[tuple[int, int, int]] = []
        rows: list[int] = []
        begin = address = 0
        file = line = 1
        is_statement, marked, last = self._default_is_statement, False, -1
        while at < end:
            opcode = data[at]
            at += 1
            if opcode >= base:
                move, lines = special[opcode]
                address += move
                line += lines
            elif opcode == _ADVANCE_LINE:
                number, at = sleb(data, at)
                line += number
                continue
            elif opcode == _SET_COLUMN:
                _, at = uleb(data, at)
                continue
            elif opcode == _NEGATE:
                is_statement = not is_statement
                continue
            elif opcode == _SET_FILE:
                file, at = uleb(data, at)
                continue
            elif opcode == 0:
                size, at = uleb(data, at)
                if data[at] == _SET_ADDRESS:
                    address = int.from_bytes(data[at + 1 : at + size], self._order)
                elif data[at] == _END_SEQUENCE:
                    rows += (address, NO_FILE, 0)
                    # What the linker has thrown away has sequences at 0, or empty ones.
                    if 0 < rows[begin] < address:
                        sequences.append((rows[begin], begin, len(rows)))
                    begin = len(rows)
                    address, file, line = 0, 1, 1
                    is_statement, last = self._default_is_statement, -1
                at += size
                continue
            elif opcode != _COPY:
                move, at = self._move(opcode, at, moves)
                address += move
                continue
            if line <= 0:
                continue
            if address != last:
                rows += (address, file, line)
                last, marked = address, is_statement
            elif is_statement or not marked:
                rows[-2:] = file, line
                marked = marked or is_statement
        return rows, sequences

    def _move(self, opcode: int, at: int, moves: dict[int, int]) -> tuple[int, int]:
        """By how much one of the rarer instructions moves the address, and where its operands end. moves: of those without any."""
        data = self._data
        if opcode == _ADVANCE_PC:
            number, at = uleb(data, at)
            return number * self._instruction_size, at
        if opcode == _FIXED_ADVANCE_PC:
            return int.from_bytes(data[at : at + 2], self._order), at + 2
        for _ in range(self._operands[opcode - 1]):
            _, at = uleb(data, at)
        return moves.get(opcode, 0), at
