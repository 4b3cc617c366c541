"""``.debug_info`` → its units and, of these, single entries: decoded where they are asked for, never walked whole.

DWARF 5, chapters 2 and 7 (2 to 4 differ in the head of a unit and in forms). A general reader makes an object of every entry and
attribute, which takes hundreds of times as long as there is time for; here an abbreviation becomes a plan by which an entry is
stepped over in one addition, or decoded into the few attributes that are asked for.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from guest.elf.debug_file import DebugFile
from recording.errors import BadImageError

TAG_ENUMERATION, TAG_MEMBER, TAG_POINTER, TAG_STRUCT, TAG_TYPEDEF, TAG_UNION = 0x04, 0x0D, 0x0F, 0x13, 0x16, 0x17
TAG_ENUMERATOR, TAG_RESTRICT, TAG_ATOMIC = 0x28, 0x37, 0x47
TAG_INLINED, TAG_ARRAY, TAG_SUBRANGE, TAG_LEXICAL_BLOCK = 0x1D, 0x01, 0x21, 0x0B
TAG_CONST, TAG_VOLATILE, TAG_SUBPROGRAM, TAG_NAMESPACE, TAG_MODULE, TAG_BASE = 0x26, 0x35, 0x2E, 0x39, 0x1E, 0x24
AT_SIBLING, AT_NAME, AT_BYTE_SIZE, AT_STMT_LIST, AT_LOW_PC, AT_HIGH_PC = 0x01, 0x03, 0x0B, 0x10, 0x11, 0x12
AT_COMP_DIR, AT_INLINE, AT_UPPER_BOUND, AT_ABSTRACT_ORIGIN, AT_COUNT, AT_MEMBER_AT = 0x1B, 0x20, 0x2F, 0x31, 0x37, 0x38
AT_DECLARATION, AT_SPECIFICATION, AT_TYPE, AT_RANGES, AT_CALL_FILE, AT_CALL_LINE = 0x3C, 0x47, 0x49, 0x55, 0x58, 0x59
AT_LINKAGE_NAME, AT_DATA_BIT_OFFSET, AT_BIT_SIZE, AT_BIT_OFFSET, AT_DECL_LINE = 0x6E, 0x6B, 0x0D, 0x0C, 0x3B
AT_STR_OFFSETS, AT_ADDR_BASE, AT_RNGLISTS, AT_MIPS_LINKAGE_NAME, AT_CONST_VALUE = 0x72, 0x73, 0x74, 0x2007, 0x1C

_ADDR, _BLOCK2, _BLOCK4, _DATA2, _DATA4, _DATA8, _STRING = 0x01, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08
_BLOCK, _BLOCK1, _DATA1, _FLAG, _SDATA, _STRP, _UDATA, _REF_ADDR = 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x10
_REF1, _REF2, _REF4, _REF8, _REF_UDATA, _INDIRECT, _SEC_OFFSET = 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17
_EXPRLOC, _FLAG_PRESENT, _STRX, _ADDRX, _REF_SUP4, _STRP_SUP, _DATA16, _LINE_STRP = 0x18, 0x19, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x1F
_REF_SIG8, _IMPLICIT_CONST, _LOCLISTX, _RNGLISTX, _REF_SUP8 = 0x20, 0x21, 0x22, 0x23, 0x24
_STRX1, _STRX2, _STRX3, _STRX4, _ADDRX1, _ADDRX2, _ADDRX3, _ADDRX4 = 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x2B, 0x2C
_GNU_REF_ALT, _GNU_STRP_ALT = 0x1F20, 0x1F21

_SIZES = {
    _DATA1: 1,
    _FLAG: 1,
    _REF1: 1,
    _STRX1: 1,
    _ADDRX1: 1,
    _DATA2: 2,
    _REF2: 2,
    _STRX2: 2,
    _ADDRX2: 2,
    _STRX3: 3,
    _ADDRX3: 3,
    _DATA4: 4,
    _REF4: 4,
    _REF_SUP4: 4,
    _STRX4: 4,
    _ADDRX4: 4,
    _DATA8: 8,
    _REF8: 8,
    _REF_SUP8: 8,
    _REF_SIG8: 8,
    _DATA16: 16,
    _FLAG_PRESENT: 0,
    _IMPLICIT_CONST: 0,
}
_OFFSETS = frozenset({_STRP, _SEC_OFFSET, _LINE_STRP, _STRP_SUP, _GNU_REF_ALT, _GNU_STRP_ALT})
_ULEBS = frozenset({_UDATA, _SDATA, _STRX, _ADDRX, _REF_UDATA, _LOCLISTX, _RNGLISTX})
_BLOCKS = {_BLOCK1: 1, _BLOCK2: 2, _BLOCK4: 4}
_UNIT_REFS = frozenset({_REF1, _REF2, _REF4, _REF8, _REF_UDATA})
_STRING_INDEXES = frozenset({_STRX, _STRX1, _STRX2, _STRX3, _STRX4})
_ADDRESS_INDEXES = frozenset({_ADDRX, _ADDRX1, _ADDRX2, _ADDRX3, _ADDRX4})
_TEXTS = _STRING_INDEXES | {_STRP, _LINE_STRP, _GNU_STRP_ALT, _STRP_SUP}
_MAX_ATTRIBUTES, _MAX_ABBREVIATIONS = 1 << 8, 1 << 16
_COMPILE, _PARTIAL, _SKELETON = 1, 3, 4
_ENTERED = frozenset({TAG_NAMESPACE, TAG_MODULE})
FIXED, TO_SIBLING, STEPS = 0, 1, 2
"""How an entry is stepped over: by a number of bytes, by its sibling's offset that lies so many bytes on, or form by form."""


@dataclass(frozen=True, slots=True)
class Abbreviation:
    """What entries of one code look like.

    plan: how such an entry is stepped over: FIXED and its length (attributes alone), TO_SIBLING and where that stands, or STEPS.
    steps: for the latter, numbers of bytes that come before a form of another length, and that form (0 at the end).
    attributes: (name, form, value of an implicit constant).
    """

    tag: int
    has_children: bool
    attributes: tuple[tuple[int, int, int], ...]
    plan: tuple[int, int]
    steps: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Where another entry is: its offset in ``.debug_info``, or in that of the supplementary file (dwz)."""

    offset: int
    is_supplementary: bool = False


Value = int | str | Reference | bytes | None
Entry = Mapping[int, Value]
"""An entry's attributes by their names."""


@dataclass(slots=True)
class Unit:
    """A unit of ``.debug_info``: ``data`` is all of it, and offsets of entries count from its start."""

    start: int
    data: bytes
    version: int
    address_size: int
    offset_size: int
    first: int
    abbreviations: Mapping[int, Abbreviation]
    dwarf: Dwarf
    top: Entry = field(default_factory=dict)

    @property
    def low_pc(self) -> int:
        """What its range lists count from, unless they say otherwise."""
        value = self.top.get(AT_LOW_PC)
        return value if isinstance(value, int) else 0

    def abbreviation(self, offset: int) -> tuple[Abbreviation | None, int]:
        """That of the entry at an offset, and where its attributes begin; None for the end of children."""
        code = self.data[offset]
        if code < 0x80:
            return (self._known(code) if code else None), offset + 1
        code, offset = uleb(self.data, offset)
        return self._known(code), offset

    def _known(self, code: int) -> Abbreviation:
        try:
            return self.abbreviations[code]
        except KeyError:
            raise BadImageError(f"{self.dwarf.file.path} has an entry of no kind in its unit at {self.start:#x}") from None

    def after(self, abbreviation: Abbreviation, offset: int) -> int:
        """Where the attributes end that begin at an offset."""
        kind, size = abbreviation.plan
        if kind == FIXED:
            return offset + size
        for size, form in abbreviation.steps:
            offset += size
            if form:
                offset = self._skip(form, offset)
        return offset

    def _skip(self, form: int, offset: int) -> int:
        data = self.data
        size = self.dwarf.form_size(form, self)
        if size is not None:
            return offset + size
        if form in _ULEBS:
            while data[offset] & 0x80:
                offset += 1
            return offset + 1
        if form == _STRING:
            return data.index(b"\0", offset) + 1
        if form in {_BLOCK, _EXPRLOC}:
            size, offset = uleb(data, offset)
            return offset + size
        if form in _BLOCKS:
            width = _BLOCKS[form]
            return offset + width + int.from_bytes(data[offset : offset + width], self.dwarf.file.order)
        if form == _INDIRECT:
            form, offset = uleb(data, offset)
            return self._skip(form, offset)
        raise BadImageError(f"{self.dwarf.file.path} has an attribute of the form {form:#x}, which is not known")

    def next_entry(self, abbreviation: Abbreviation, offset: int) -> int:
        """Where the entry behind one is whose attributes begin at an offset, and behind its children."""
        kind, size = abbreviation.plan
        if kind == TO_SIBLING:
            return int.from_bytes(self.data[offset + size : offset + size + 4], self.dwarf.file.order)
        offset = self.after(abbreviation, offset)
        depth = int(abbreviation.has_children)
        while depth:
            child, offset = self.abbreviation(offset)
            if child is None:
                depth -= 1
                continue
            kind, size = child.plan
            if kind == TO_SIBLING:
                offset = int.from_bytes(self.data[offset + size : offset + size + 4], self.dwarf.file.order)
                continue
            offset = self.after(child, offset)
            depth += child.has_children
        return offset

    def top_entries(self, tags: frozenset[int]) -> Iterator[tuple[int, Abbreviation, int]]:
        """Entries of some tags at the unit's top level and in its namespaces: offset, abbreviation, where attributes begin.

        All others are stepped over, most of them by one addition. Raises BadImageError where an entry leads backwards.
        """
        data, order = self.data, self.dwarf.file.order
        plans = {
            code: each.plan
            for code, each in self.abbreviations.items()
            if each.tag not in tags
            and each.tag not in _ENTERED
            and (each.plan[0] == TO_SIBLING or (each.plan[0] == FIXED and not each.has_children))
        }
        top, at = self.abbreviation(self.first)
        depth = 0 if top is None or not top.has_children else 1
        at = at if top is None else self.after(top, at)
        while depth:
            offset = at
            code, at = (data[at], at + 1) if data[at] < 0x80 else uleb(data, at)
            plan = plans.get(code)
            if plan is not None:
                kind, size = plan
                at = at + size if kind == FIXED else int.from_bytes(data[at + size : at + size + 4], order)
            elif code == 0:
                depth -= 1
            else:
                abbreviation = self._known(code)
                if abbreviation.tag in tags:
                    yield offset, abbreviation, at
                enters = abbreviation.tag in _ENTERED and abbreviation.has_children
                at = self.after(abbreviation, at) if enters else self.next_entry(abbreviation, at)
                depth += enters
            if at <= offset:
                raise BadImageError(f"an entry at {offset:#x} of {self.dwarf.file.path} leads backwards; the file is damaged")

    def entry(self, abbreviation: Abbreviation, offset: int) -> tuple[dict[int, Value], int]:
        """The attributes that begin at an offset, and where they end."""
        values: dict[int, Value] = {}
        for name, form, constant in abbreviation.attributes:
            values[name], offset = self._value(form, offset, constant)
        return values, offset

    def _value(self, form: int, offset: int, constant: int) -> tuple[Value, int]:
        data, order = self.data, self.dwarf.file.order
        if form in {_FLAG_PRESENT, _IMPLICIT_CONST}:
            return (1 if form == _FLAG_PRESENT else constant), offset
        if form == _INDIRECT:
            form, offset = uleb(data, offset)
            return self._value(form, offset, 0)
        if form == _STRING:
            end = data.index(b"\0", offset)
            return data[offset:end].decode("utf-8", "surrogateescape"), end + 1
        if form == _SDATA:
            return sleb(data, offset)
        if form in _ULEBS:
            number, end = uleb(data, offset)
        else:
            end = self._skip(form, offset)
            raw = data[offset:end]
            if form in {_BLOCK, _EXPRLOC, *_BLOCKS, _DATA16}:
                return raw, end
            number = int.from_bytes(raw, order)
        return self._meant(form, number), end

    def _meant(self, form: int, number: int) -> Value:
        """What a number of a form stands for."""
        if form in _UNIT_REFS:
            return Reference(self.start + number)
        if form == _REF_ADDR:
            return Reference(number)
        if form in {_GNU_REF_ALT, _REF_SUP4, _REF_SUP8}:
            return Reference(number, is_supplementary=True)
        if form in _ADDRESS_INDEXES:
            return self.indexed_address(number)
        if form == _RNGLISTX:
            return Reference(number)
        return self._text(form, number) if form in _TEXTS else number

    def _text(self, form: int, number: int) -> str | None:
        if form in _STRING_INDEXES:
            return self._indexed_text(number)
        if form in {_GNU_STRP_ALT, _STRP_SUP}:
            other = self.dwarf.supplementary
            return None if other is None else other.text(".debug_str", number)
        return self.dwarf.text(".debug_str" if form == _STRP else ".debug_line_str", number)

    def _indexed_text(self, index: int) -> str | None:
        base = self.top.get(AT_STR_OFFSETS)
        start = base if isinstance(base, int) else 2 * self.offset_size
        raw = self.dwarf.file.section(".debug_str_offsets").read(start + index * self.offset_size, self.offset_size)
        return self.dwarf.text(".debug_str", int.from_bytes(raw, self.dwarf.file.order)) if len(raw) == self.offset_size else None

    def indexed_address(self, index: int) -> int:
        """An address of ``.debug_addr`` (DWARF 5, 7.27)."""
        base = self.top.get(AT_ADDR_BASE)
        start = base if isinstance(base, int) else 2 * self.offset_size
        raw = self.dwarf.file.section(".debug_addr").read(start + index * self.address_size, self.address_size)
        return int.from_bytes(raw, self.dwarf.file.order)


class Dwarf:
    """The debug information of one file."""

    def __init__(self, file: DebugFile, supplementary: Dwarf | None = None) -> None:
        """supplementary: of the file that this one shares strings and entries with (dwz, ``.gnu_debugaltlink``)."""
        self.file = file
        self.supplementary = supplementary
        self._info = file.section(".debug_info")
        self._abbreviations: dict[tuple[int, int, int, int], Mapping[int, Abbreviation]] = {}
        self._units: dict[int, Unit] = {}
        self._texts: dict[tuple[str, int], str] = {}

    def text(self, section: str, offset: int) -> str:
        """A string of a section; equal ones are one object."""
        known = self._texts.get((section, offset))
        if known is None:
            known = self._texts[section, offset] = self.file.section(section).text(offset)
        return known

    @cached_property
    def starts(self) -> list[int]:
        """Where each unit starts, by the lengths in their heads alone."""
        starts, offset, info, order = [], 0, self._info, self.file.order
        while offset + 12 <= info.size:
            starts.append(offset)
            length = int.from_bytes(info.read(offset, 4), order)
            size = 4 + length
            if length == 0xFFFF_FFFF:
                size = 12 + int.from_bytes(info.read(offset + 4, 8), order)
            offset += size
        return starts

    def unit_at(self, offset: int) -> Unit:
        """The unit that the entry at an offset of ``.debug_info`` is in. Raises BadImageError."""
        index = bisect_right(self.starts, offset) - 1
        if not 0 <= offset < self._info.size or index < 0:
            raise BadImageError(f"{self.file.path} has no unit at {offset:#x} of .debug_info; the file is damaged")
        start = self.starts[index]
        known = self._units.get(start)
        if known is None:
            if len(self._units) >= 8:
                self._units.pop(next(iter(self._units)))
            known = self._units[start] = self._read_unit(start)
        return known

    def _read_unit(self, start: int) -> Unit:
        order, prefix = self.file.order, self.file.prefix
        head = self._info.read(start, 40)
        wide = head[:4] == b"\xff\xff\xff\xff"
        size = int.from_bytes(head[4:12], order) + 12 if wide else int.from_bytes(head[:4], order) + 4
        offset_size = 8 if wide else 4
        at = 12 if wide else 4
        try:
            version = struct.unpack_from(f"{prefix}H", head, at)[0]
            at += 2
            kind = _COMPILE
            if version >= 5:
                kind, address_size = head[at], head[at + 1]
                at += 2
            table = int.from_bytes(head[at : at + offset_size], order)
            at += offset_size
            if version < 5:
                address_size = head[at]
                at += 1
            elif kind == _SKELETON:
                at += 8
        except (struct.error, IndexError) as error:
            raise BadImageError(f"{self.file.path} is cut short in .debug_info; copy it again") from error
        if not 2 <= version <= 5 or address_size not in (4, 8) or kind not in (_COMPILE, _PARTIAL, _SKELETON):
            message = f"{self.file.path} has a unit of DWARF {version} (type {kind}), which is not known; build with -gdwarf-5"
            raise BadImageError(message)
        data = self._info.read(start, size)
        unit = Unit(start, data, version, address_size, offset_size, at, {}, self)
        unit.abbreviations = self._table(table, version, address_size, offset_size)
        abbreviation, begin = unit.abbreviation(at)
        if abbreviation is not None:
            # Twice: strings and addresses by index need what the entry itself says of their tables.
            unit.top = {name: None for name, _, _ in abbreviation.attributes}
            unit.top, _ = unit.entry(abbreviation, begin)
            unit.top, _ = unit.entry(abbreviation, begin)
        return unit

    def form_size(self, form: int, unit: Unit) -> int | None:
        """Bytes of a form, None where they vary."""
        return _form_size(form, unit.version, unit.address_size, unit.offset_size)

    def _table(self, offset: int, version: int, address_size: int, offset_size: int) -> Mapping[int, Abbreviation]:
        key = (offset, version, address_size, offset_size)
        known = self._abbreviations.get(key)
        if known is None:
            if len(self._abbreviations) >= 8:
                self._abbreviations.pop(next(iter(self._abbreviations)))
            known = self._abbreviations[key] = self._read_table(offset, version, address_size, offset_size)
        return known

    def _read_table(self, offset: int, version: int, address_size: int, offset_size: int) -> dict[int, Abbreviation]:
        """DWARF 5, 7.5.3. The table ends with a code of 0; how long it is does not stand anywhere."""
        size = 1 << 14
        while True:
            data = self.file.section(".debug_abbrev").read(offset, size)
            try:
                return dict(_abbreviations(data, version, address_size, offset_size))
            except IndexError:
                if len(data) < size:
                    raise BadImageError(f"{self.file.path} is cut short in .debug_abbrev; copy it again") from None
                size *= 4


def _form_size(form: int, version: int, address_size: int, offset_size: int) -> int | None:
    if form in _SIZES:
        return _SIZES[form]
    if form == _ADDR:
        return address_size
    if form in _OFFSETS:
        return offset_size
    if form == _REF_ADDR:
        return address_size if version == 2 else offset_size
    return None


def _abbreviations(data: bytes, version: int, address_size: int, offset_size: int) -> Iterator[tuple[int, Abbreviation]]:
    offset = 0
    for _ in range(_MAX_ABBREVIATIONS):
        code, offset = uleb(data, offset)
        if not code:
            return
        tag, offset = uleb(data, offset)
        has_children = bool(data[offset])
        offset += 1
        attributes: list[tuple[int, int, int]] = []
        while len(attributes) < _MAX_ATTRIBUTES:
            name, offset = uleb(data, offset)
            form, offset = uleb(data, offset)
            constant = 0
            if form == _IMPLICIT_CONST:
                constant, offset = sleb(data, offset)
            if not name and not form:
                break
            attributes.append((name, form, constant))
        sizes = [(name, form, _form_size(form, version, address_size, offset_size)) for name, form, _ in attributes]
        yield code, Abbreviation(tag, has_children, tuple(attributes), *_plan(sizes))
    raise BadImageError("a table of abbreviations has no end; the file is damaged")


def _plan(sizes: list[tuple[int, int, int | None]]) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
    """See ``Abbreviation``; sizes: name, form and length of each attribute."""
    total = 0
    steps: list[tuple[int, int]] = []
    sibling: int | None = None
    for name, form, size in sizes:
        if name == AT_SIBLING and form == _REF4 and not steps:
            sibling = total
        if size is None:
            steps.append((total, form))
            total = 0
        else:
            total += size
    steps.append((total, 0))
    if sibling is not None:
        return (TO_SIBLING, sibling), tuple(steps)
    return ((FIXED, total) if len(steps) == 1 else (STEPS, 0)), tuple(steps)


def uleb(data: bytes, offset: int) -> tuple[int, int]:
    """An unsigned LEB128 number and what follows it (DWARF 5, 7.6). Raises IndexError at the end of the data."""
    byte = data[offset]
    offset += 1
    if byte < 0x80:
        return byte, offset
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, offset


def sleb(data: bytes, offset: int) -> tuple[int, int]:
    """A signed LEB128 number and what follows it. Raises IndexError at the end of the data."""
    value, shift, byte = 0, 0, 0x80
    while byte & 0x80:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return (value - (1 << shift) if byte & 0x40 else value), offset
