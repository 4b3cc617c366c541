"""Addresses of a file → source lines, and which functions the compiler has inlined there into which.

``.debug_aranges`` says which unit an address is of (where it is missing, the units' own ranges do), the entries at the top
level of that unit which function, and that function's entry which inlined calls. Only these are read.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from guest.elf.debug_file import DebugFile
from guest.elf.dwarf_lines import LineTable, read_line_table
from guest.elf.dwarf_units import (
    AT_ABSTRACT_ORIGIN,
    AT_CALL_FILE,
    AT_CALL_LINE,
    AT_HIGH_PC,
    AT_LINKAGE_NAME,
    AT_LOW_PC,
    AT_MIPS_LINKAGE_NAME,
    AT_NAME,
    AT_RANGES,
    AT_RNGLISTS,
    AT_SPECIFICATION,
    TAG_INLINED,
    TAG_LEXICAL_BLOCK,
    TAG_SUBPROGRAM,
    Dwarf,
    Entry,
    Reference,
    Unit,
    Value,
    uleb,
)
from recording.errors import BadImageError

Ranges = tuple[tuple[int, int], ...]
"""[start, end) of each piece."""
_MAX_RANGES = 1 << 12
_MAX_DEPTH = 256
_MAX_ORIGINS = 8
_SUBPROGRAM = frozenset({TAG_SUBPROGRAM})


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One function at an address. name: None where DWARF has none. line: None where no line is known (compiler-made code)."""

    name: str | None
    path: str | None
    line: int | None


@dataclass(frozen=True, slots=True)
class Inlined:
    """A call that the compiler has replaced by the callee's code. depth: 0 in the function itself, 1 in what is inlined there."""

    name: str | None
    ranges: Ranges
    call_path: str | None
    call_line: int | None
    depth: int


@dataclass(frozen=True, slots=True)
class SourceFunction:
    """A function: where it is, what is inlined in it (callers before callees), and its rows of the line table.

    rows: (address, path, line), each of which holds up to the next; the path is None where there is no code of the unit.
    """

    name: str | None
    ranges: Ranges
    inlined: tuple[Inlined, ...]
    rows: tuple[tuple[int, str | None, int], ...]

    def frames(self, address: int) -> tuple[SourceFrame, ...]:
        """The functions at an address of this one, innermost first; the last one is the function itself."""
        index = bisect_right(self.rows, address, key=lambda row: row[0]) - 1
        path, line = self.rows[index][1:] if index >= 0 else (None, 0)
        frames = []
        chain = [each for each in self.inlined if _holds(each.ranges, address)]
        wanted = max((each.depth for each in chain), default=-1)
        for each in reversed(chain):
            # Of two at one depth (damaged, or code shared by both) the later counts, as its caller does.
            if each.depth == wanted:
                frames.append(SourceFrame(each.name, path, line or None))
                path, line = each.call_path, each.call_line or 0
                wanted -= 1
        return (*frames, SourceFrame(self.name, path, line or None))


def _holds(ranges: Ranges, address: int) -> bool:
    return any(start <= address < end for start, end in ranges)


class SourceIndex:
    """What a file's debug information says of addresses."""

    def __init__(self, dwarf: Dwarf) -> None:
        """Raises BadImageError where the file has none."""
        if not dwarf.file.has_lines:
            raise BadImageError(f"{dwarf.file.path} has no debug information (DWARF); name a file of a -dbg package")
        self._dwarf = dwarf
        self._file = dwarf.file
        self._aranges: tuple[list[int], list[tuple[int, int]]] | None = None
        self._names: dict[tuple[bool, int], str | None] = {}

    def functions(self, addresses: Iterable[int]) -> Iterator[SourceFunction]:
        """Each function that one of the addresses is in. Raises BadImageError where the file is damaged."""
        try:
            yield from self._functions(addresses)
        except (IndexError, ValueError, OverflowError, RecursionError, struct.error) as error:
            raise BadImageError(f"the debug information of {self._file.path} is damaged ({error}); copy it again") from error

    def _functions(self, addresses: Iterable[int]) -> Iterator[SourceFunction]:
        by_unit: dict[int, list[int]] = {}
        for address in sorted(set(addresses)):
            unit = self._unit_of(address)
            if unit is not None:
                by_unit.setdefault(unit, []).append(address)
        for offset in sorted(by_unit):
            yield from self._of_unit(self._dwarf.unit_at(offset), by_unit[offset])

    def units_of(self, addresses: Iterable[int]) -> list[int]:
        """The offset of the unit of each address that is of one."""
        return [unit for address in addresses if (unit := self._unit_of(address)) is not None]

    def _of_unit(self, unit: Unit, addresses: list[int]) -> Iterator[SourceFunction]:
        table = read_line_table(unit)
        functions = sorted(
            (start, end, index, offset, ranges)
            for index, (offset, ranges) in enumerate(_subprograms(unit))
            for start, end in ranges
            if start < end
        )
        starts = [row[0] for row in functions]
        done: set[int] = set()
        covered = 0
        for address in addresses:
            index = bisect_right(starts, address) - 1
            if index >= 0 and address < functions[index][1]:
                _, _, number, offset, ranges = functions[index]
                if number not in done:
                    done.add(number)
                    yield self._function(unit, offset, ranges, table)
            elif address >= covered:
                # A function that was folded into an equal one has code and lines, and no entry.
                start, covered = self._extent_of(address)
                start = max(start, functions[index][1] if index >= 0 else 0)
                covered = min([covered, *starts[index + 1 : index + 2]])
                yield SourceFunction(None, ((start, covered),), (), tuple(_rows(table, start, covered)))

    def _function(self, unit: Unit, offset: int, ranges: Ranges, table: LineTable | None) -> SourceFunction:
        abbreviation, at = unit.abbreviation(offset)
        if abbreviation is None:
            raise ValueError(f"no entry at {offset:#x}")
        entry, at = unit.entry(abbreviation, at)
        inlined = tuple(self._inlined(unit, at, table)) if abbreviation.has_children else ()
        rows: list[tuple[int, str | None, int]] = []
        for start, end in sorted(ranges) if table is not None else ():
            rows += _rows(table, start, end)
        return SourceFunction(self._name(unit, entry), ranges, inlined, tuple(rows))

    def _inlined(self, unit: Unit, at: int, table: LineTable | None) -> Iterator[Inlined]:
        """Of the entries that begin at an offset: which are inlined calls, up to the end of these children."""
        depths = [0]
        while depths:
            abbreviation, at = unit.abbreviation(at)
            if abbreviation is None:
                depths.pop()
                continue
            if abbreviation.tag not in {TAG_INLINED, TAG_LEXICAL_BLOCK}:
                at = unit.next_entry(abbreviation, at)
                continue
            depth = depths[-1]
            entry, at = unit.entry(abbreviation, at)
            if abbreviation.tag == TAG_INLINED:
                path, line = entry.get(AT_CALL_FILE), entry.get(AT_CALL_LINE)
                call_path = table.path(path) if table is not None and isinstance(path, int) else None
                call_line = line if isinstance(line, int) else None
                yield Inlined(self._name(unit, entry), _ranges(unit, entry), call_path, call_line, depth)
                depth += 1
            if abbreviation.has_children:
                if len(depths) > _MAX_DEPTH:
                    raise ValueError("blocks within blocks without end")
                depths.append(depth)

    def _name(self, unit: Unit, entry: Entry) -> str | None:
        """Of a function, by its own entry or by those that it refers to: the linker's name where there is one (C++, Rust)."""
        name: Value = None
        for _ in range(_MAX_ORIGINS):
            for attribute in (AT_LINKAGE_NAME, AT_MIPS_LINKAGE_NAME):
                linked = entry.get(attribute)
                if isinstance(linked, str):
                    return linked
            name = name or entry.get(AT_NAME)
            origin = entry.get(AT_ABSTRACT_ORIGIN) or entry.get(AT_SPECIFICATION)
            if not isinstance(origin, Reference):
                break
            key = (origin.is_supplementary or unit.dwarf is not self._dwarf, origin.offset)
            if name is None and key in self._names:
                return self._names[key]
            found = self._referred(unit, origin)
            if found is None:
                break
            if name is None:
                self._names[key] = known = self._name(*found)
                return known
            unit, entry = found
        return name if isinstance(name, str) else None

    def _referred(self, unit: Unit, origin: Reference) -> tuple[Unit, Entry] | None:
        dwarf = unit.dwarf.supplementary if origin.is_supplementary else unit.dwarf
        if dwarf is None:
            return None
        if dwarf is not unit.dwarf or not unit.start <= origin.offset < unit.start + len(unit.data):
            unit = dwarf.unit_at(origin.offset)
        abbreviation, at = unit.abbreviation(origin.offset - unit.start)
        return None if abbreviation is None else (unit, unit.entry(abbreviation, at)[0])

    def _unit_of(self, address: int) -> int | None:
        """The offset of the unit that an address is of."""
        extent = self._find_extent(address)
        return None if extent is None else extent[2]

    def _extent_of(self, address: int) -> tuple[int, int]:
        extent = self._find_extent(address)
        return (address, address + 1) if extent is None else extent[:2]

    def _find_extent(self, address: int) -> tuple[int, int, int] | None:
        """[start, end) of the unit's range that an address is in, and the unit's offset."""
        if self._aranges is None:
            rows = sorted(_read_aranges(self._file) or self._unit_ranges())
            self._aranges = [start for start, _, _ in rows], [(end, unit) for _, end, unit in rows]
        starts, ends = self._aranges
        index = bisect_right(starts, address) - 1
        if index < 0 or address >= ends[index][0]:
            return None
        return starts[index], *ends[index]

    def _unit_ranges(self) -> Iterator[tuple[int, int, int]]:
        """[start, end) of each unit and its offset, by the units' own entries."""
        for offset in self._dwarf.starts:
            unit = self._dwarf.unit_at(offset)
            for start, end in _ranges(unit, unit.top):
                yield start, end, offset


def _rows(table: LineTable | None, start: int, end: int) -> Iterator[tuple[int, str | None, int]]:
    """The rows of a line table from the one that holds the first address on."""
    if table is None:
        return
    index = bisect_right(table.addresses, start) - 1
    yield start, None, 0
    last = start
    for at in range(max(index, 0), len(table.addresses)):
        address = max(table.addresses[at], start)
        if address >= end:
            break
        if address < last:
            continue
        last = address
        path = table.path(table.file_indexes[at])
        yield address, path, table.lines[at] if path is not None else 0
    yield end, None, 0


def _subprograms(unit: Unit) -> Iterator[tuple[int, Ranges]]:
    """Offset and ranges of each function with code, at the top level of a unit or in a namespace."""
    for offset, abbreviation, at in unit.top_entries(_SUBPROGRAM):
        names = {name for name, _, _ in abbreviation.attributes}
        if names & {AT_LOW_PC, AT_RANGES}:
            ranges = _ranges(unit, unit.entry(abbreviation, at)[0])
            if ranges:
                yield offset, ranges


def _ranges(unit: Unit, entry: Entry) -> Ranges:
    """The code of an entry (DWARF 5, 2.17)."""
    ranges, low, high = entry.get(AT_RANGES), entry.get(AT_LOW_PC), entry.get(AT_HIGH_PC)
    if ranges is not None:
        return tuple(_range_list(unit, ranges))
    if not isinstance(low, int) or not isinstance(high, int):
        return ()
    # From version 4 on the end is mostly an offset; an address is never less than the start.
    return ((low, high if high > low and _is_address(unit, entry) else low + high),)


def _is_address(unit: Unit, entry: Entry) -> bool:
    high = entry.get(AT_HIGH_PC)
    return unit.version < 4 and isinstance(high, int)


def _range_list(unit: Unit, value: Value) -> Iterator[tuple[int, int]]:
    if unit.version < 5:
        if isinstance(value, int):
            yield from _range_list_4(unit, value)
        return
    section = unit.dwarf.file.section(".debug_rnglists")
    if isinstance(value, Reference):
        base = unit.top.get(AT_RNGLISTS)
        start = base if isinstance(base, int) else 0
        raw = section.read(start + value.offset * unit.offset_size, unit.offset_size)
        value = start + int.from_bytes(raw, unit.dwarf.file.order)
    if not isinstance(value, int):
        return
    size = 1 << 10
    while True:
        data = section.read(value, size)
        try:
            found = list(_range_entries(unit, data))
        except IndexError:
            if len(data) < size:
                raise
            size *= 8
            continue
        yield from found
        return


def _range_entries(unit: Unit, data: bytes) -> Iterator[tuple[int, int]]:
    """DWARF 5, 7.25."""
    at, base, width, order = 0, unit.low_pc, unit.address_size, unit.dwarf.file.order

    def address() -> int:
        nonlocal at
        if at + width > len(data):
            raise IndexError("a range list has no end")
        at += width
        return int.from_bytes(data[at - width : at], order)

    def number() -> int:
        nonlocal at
        value, at = uleb(data, at)
        return value

    for _ in range(_MAX_RANGES):
        kind = data[at]
        at += 1
        if kind == 0:
            return
        if kind == 1:
            base = unit.indexed_address(number())
        elif kind in {2, 3}:
            start = unit.indexed_address(number())
            yield start, unit.indexed_address(number()) if kind == 2 else start + number()
        elif kind == 4:
            yield base + number(), base + number()
        elif kind == 5:
            base = address()
        elif kind in {6, 7}:
            start = address()
            yield start, address() if kind == 6 else start + number()
        else:
            raise ValueError(f"a range list has an entry of the kind {kind}")


def _range_list_4(unit: Unit, offset: int) -> Iterator[tuple[int, int]]:
    """DWARF 4, 2.17.3."""
    section, width, order = unit.dwarf.file.section(".debug_ranges"), unit.address_size, unit.dwarf.file.order
    base, highest = unit.low_pc, (1 << 8 * width) - 1
    for index in range(_MAX_RANGES):
        raw = section.read(offset + 2 * width * index, 2 * width)
        start, end = int.from_bytes(raw[:width], order), int.from_bytes(raw[width:], order)
        if len(raw) < 2 * width or (not start and not end):
            return
        if start == highest:
            base = end
        elif start < end:
            yield base + start, base + end


def _read_aranges(file: DebugFile) -> list[tuple[int, int, int]]:
    """[start, end) and the unit's offset of each range of ``.debug_aranges`` (DWARF 5, 6.1.2); none where the section is
    missing.
    """
    section, order = file.section(".debug_aranges"), file.order
    data = section.read(0, section.size)
    rows: list[tuple[int, int, int]] = []
    at = 0
    while at + 12 <= len(data):
        length, head, offset_size = int.from_bytes(data[at : at + 4], order), at + 4, 4
        if length == 0xFFFF_FFFF:
            length, head, offset_size = int.from_bytes(data[at + 4 : at + 12], order), at + 12, 8
        end = head + length
        unit = int.from_bytes(data[head + 2 : head + 2 + offset_size], order)
        width = data[head + 2 + offset_size] if head + 2 + offset_size < len(data) else 0
        if width not in (4, 8) or end > len(data):
            return []
        layout = struct.Struct(file.prefix + ("QQ" if width == 8 else "II"))
        first = head + 4 + offset_size
        first += -(first - at) % (2 * width)
        count = max(0, end - first) // layout.size
        for start, size in layout.iter_unpack(data[first : first + count * layout.size]):
            if size:
                rows.append((start, start + size, unit))
        at = end
    return rows
