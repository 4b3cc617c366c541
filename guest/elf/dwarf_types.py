"""Structs of a kernel out of its DWARF, for guests whose kernel carries no type information of its own (BTF).

``.debug_info`` has each struct in each unit that uses it, so that a few units which use what a profiler asks for have all of
them. Of these units the names at the top level are listed; a struct is decoded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from guest.elf.dwarf_units import (
    AT_BIT_OFFSET,
    AT_BIT_SIZE,
    AT_BYTE_SIZE,
    AT_CONST_VALUE,
    AT_COUNT,
    AT_DATA_BIT_OFFSET,
    AT_DECLARATION,
    AT_MEMBER_AT,
    AT_NAME,
    AT_TYPE,
    AT_UPPER_BOUND,
    TAG_ARRAY,
    TAG_ATOMIC,
    TAG_BASE,
    TAG_CONST,
    TAG_ENUMERATION,
    TAG_ENUMERATOR,
    TAG_MEMBER,
    TAG_POINTER,
    TAG_RESTRICT,
    TAG_STRUCT,
    TAG_SUBRANGE,
    TAG_TYPEDEF,
    TAG_UNION,
    TAG_VOLATILE,
    Abbreviation,
    Dwarf,
    Entry,
    Reference,
    Unit,
    uleb,
)
from guest.elf.inlined import SourceIndex
from guest.structs import Composite, Member, Scalar, Type
from recording.errors import BadImageError

_TYPES = frozenset({TAG_STRUCT, TAG_UNION, TAG_ENUMERATION, TAG_TYPEDEF})
_OTHER_NAMES = frozenset({TAG_TYPEDEF, TAG_CONST, TAG_VOLATILE, TAG_RESTRICT, TAG_ATOMIC})
_MAX_CHAIN = 32
_MAX_SIZE = 1 << 32
_PLUS_UCONST = 0x23
_Place = tuple[int, int]
"""Where an entry is: the start of its unit, and its offset there."""


class DwarfTypes:
    """Answers what ``guest.structs.Structs`` asks (``guest.structs.TypeSource``)."""

    def __init__(self, dwarf: Dwarf, addresses: Iterable[int], variables: Callable[[str], Iterator[tuple[str, int]]]) -> None:
        """addresses: of functions whose units are looked at. variables: of a section, see ``TypeSource``.

        Raises BadImageError where the file has no debug information, or it is damaged.
        """
        self._dwarf = dwarf
        self._variables = variables
        self._names: dict[str, tuple[int, _Place]] = {}
        for start in dict.fromkeys(SourceIndex(dwarf).units_of(addresses)):
            unit = dwarf.unit_at(start)
            for name, tag, offset in _named_types(unit):
                known = self._names.get(name)
                # A typedef yields to a struct of its name.
                if known is None or (known[0] == TAG_TYPEDEF and tag != TAG_TYPEDEF):
                    self._names[name] = tag, (start, offset)

    def find(self, name: str) -> Type | None:
        """A struct, union, enum or typedef."""
        found = self._names.get(name)
        return None if found is None else self._guarded(found[1])

    def enumerators(self, name: str) -> Iterator[tuple[str, int]]:
        """Names and values of an enum's constants."""
        found = self._names.get(name)
        if found is None or found[0] != TAG_ENUMERATION:
            return
        unit = self._dwarf.unit_at(found[1][0])
        for abbreviation, entry in _children(unit, found[1][1]):
            text, value = entry.get(AT_NAME), entry.get(AT_CONST_VALUE)
            if abbreviation.tag == TAG_ENUMERATOR and isinstance(text, str) and isinstance(value, int):
                yield text, value

    def variables(self, section: str) -> Iterator[tuple[str, int]]:
        """Names of a section's variables and where they lie in it."""
        return self._variables(section)

    def _guarded(self, place: _Place) -> Type | None:
        try:
            return self._resolve(place)
        except (BadImageError, IndexError, ValueError):
            return None

    def _resolve(self, place: _Place) -> Type | None:
        """What a type is behind its other names; None for what has no size (void, functions)."""
        for _ in range(_MAX_CHAIN):
            unit = self._dwarf.unit_at(place[0])
            abbreviation, at = unit.abbreviation(place[1])
            if abbreviation is None:
                return None
            entry, _ = unit.entry(abbreviation, at)
            if abbreviation.tag not in _OTHER_NAMES:
                return self._described(unit, place, abbreviation, entry)
            following = self._referred(entry)
            if following is None:
                return None
            place = following
        return None

    def _referred(self, entry: Entry) -> _Place | None:
        reference = entry.get(AT_TYPE)
        if not isinstance(reference, Reference) or reference.is_supplementary:
            return None
        unit = self._dwarf.unit_at(reference.offset)
        return unit.start, reference.offset - unit.start

    def _described(self, unit: Unit, place: _Place, abbreviation: Abbreviation, entry: Entry) -> Type | None:
        size = entry.get(AT_BYTE_SIZE)
        if abbreviation.tag == TAG_POINTER:
            size = size if isinstance(size, int) else unit.address_size
        if abbreviation.tag == TAG_ARRAY:
            return self._array(unit, place, entry)
        if not isinstance(size, int) or not 0 <= size < _MAX_SIZE:
            # A struct that is only declared here may be whole in another unit.
            name = entry.get(AT_NAME)
            known = self._names.get(name) if isinstance(name, str) and AT_DECLARATION in entry else None
            return self._resolve(known[1]) if known is not None and known[1] != place else None
        if abbreviation.tag in {TAG_STRUCT, TAG_UNION}:
            return Composite(size, size, lambda: self._members(place))
        return Scalar(size, size) if abbreviation.tag in {TAG_BASE, TAG_ENUMERATION, TAG_POINTER} else None

    def _array(self, unit: Unit, place: _Place, entry: Entry) -> Type | None:
        inner = self._referred(entry)
        element = None if inner is None else self._resolve(inner)
        if element is None:
            return None
        count = 1
        for abbreviation, dimension in _children(unit, place[1]):
            if abbreviation.tag == TAG_SUBRANGE:
                number, last = dimension.get(AT_COUNT), dimension.get(AT_UPPER_BOUND)
                # An array of no length (``[]``) has neither; one of length 0 has -1 or its complement.
                length = number if isinstance(number, int) else last + 1 if isinstance(last, int) else 0
                count *= 0 if length < 0 or length >= _MAX_SIZE else length
        size = element.size * count
        if size >= _MAX_SIZE:
            return None
        return Composite(size, element.size, element.members) if isinstance(element, Composite) else Scalar(size, element.size)

    def _members(self, place: _Place) -> Iterator[Member]:
        unit = self._dwarf.unit_at(place[0])
        for abbreviation, entry in _children(unit, place[1]):
            if abbreviation.tag != TAG_MEMBER:
                continue
            name, inner = entry.get(AT_NAME), self._referred(entry)
            if inner is None:
                continue
            bits = entry.get(AT_BIT_SIZE)
            width = bits if isinstance(bits, int) else 0
            yield Member(name if isinstance(name, str) else "", self._bit_offset(entry, width, inner), width, self._later(inner))

    def _later(self, place: _Place) -> Callable[[], Type | None]:
        return lambda: self._guarded(place)

    def _bit_offset(self, entry: Entry, bits: int, inner: _Place) -> int:
        """From the struct's start, as BTF counts them (DWARF 5, 5.7.6; until 3 from the other end of the bytes that hold it)."""
        exact, at = entry.get(AT_DATA_BIT_OFFSET), entry.get(AT_MEMBER_AT)
        if isinstance(exact, int):
            return exact
        if isinstance(at, bytes):
            at = uleb(at, 1)[0] if at[:1] == bytes([_PLUS_UCONST]) else 0
        start = 8 * at if isinstance(at, int) else 0
        left = entry.get(AT_BIT_OFFSET)
        if not isinstance(left, int):
            return start
        size = entry.get(AT_BYTE_SIZE)
        kind = None if isinstance(size, int) else self._resolve(inner)
        held = 8 * (size if isinstance(size, int) else kind.size if kind is not None else 0)
        return start + (left if self._dwarf.file.order == "big" else held - left - bits)


def _named_types(unit: Unit) -> Iterator[tuple[str, int, int]]:
    """Name, tag and offset of the structs, unions, enums and typedefs at a unit's top level, without mere declarations."""
    for offset, abbreviation, at in unit.top_entries(_TYPES):
        names = {name for name, _, _ in abbreviation.attributes}
        if AT_NAME in names and AT_DECLARATION not in names:
            name = unit.entry(abbreviation, at)[0].get(AT_NAME)
            if isinstance(name, str):
                yield name, abbreviation.tag, offset


def _children(unit: Unit, offset: int) -> Iterator[tuple[Abbreviation, Entry]]:
    """The entries directly below one."""
    abbreviation, at = unit.abbreviation(offset)
    if abbreviation is None or not abbreviation.has_children:
        return
    at = unit.after(abbreviation, at)
    while True:
        child, begin = unit.abbreviation(at)
        if child is None:
            return
        yield child, unit.entry(child, begin)[0]
        at = unit.next_entry(child, begin)
