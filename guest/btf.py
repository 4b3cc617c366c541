"""The kernel's BTF (type information for BPF) in its memory becomes struct layouts (include/uapi/linux/btf.h).

The section is a header, types and strings. A type has three words, ``name_off, info, size_or_type``, and as many more as its kind
and the count in ``info`` say; types are numbered from 1 in the order in which they lie there.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from guest.memory import Steps
from guest.paging import AddressSpace
from guest.structs import Composite, Member, Scalar, Structs, Type
from guest.words import Words
from recording.errors import BadImageError, GuestMemoryError
from recording.symbols import SymbolTable

_MAGIC = 0xEB9F
_HEADER = "HBBIIIII"
_HEADER_SIZE = struct.calcsize(f"<{_HEADER}")
_MAX_SIZE = 1 << 26
"""Ten times what stock kernels have."""
_TYPES_PER_STEP = 1 << 12
_NAMES_PER_STEP = 1 << 11
_MAX_CHAIN = 32
_MAX_NAME = 512
_MAX_BYTES = 1 << 32
_COUNT_MASK = 0xFFFF

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = range(1, 7)
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(8, 12)
_DATASEC, _FLOAT, _TYPE_TAG, _ENUM64 = 15, 16, 18, 19
_MODIFIERS = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_SIZED = frozenset({_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64})
_FIXED_WORDS = (0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0)
"""Words behind the first three, by kind (14: a variable, 17: a declaration's tag)."""
_MEMBER_WORDS = (0, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 3)
"""More words for each that the count counts, by kind (13: a function's parameters, 15: a section's variables)."""


@dataclass(frozen=True, slots=True)
class _Index:
    """Where types begin: ``places[id]`` counts words in ``words``; ``names``: ids of structs, unions, enums, typedefs, sections."""

    words: array[int]
    strings: bytes
    places: array[int]
    names: dict[str, int]


def has_types(symbols: SymbolTable) -> bool:
    """Whether a kernel carries type information."""
    return symbols.find("__start_BTF") is not None


def read_structs(space: AddressSpace, symbols: SymbolTable, words: Words) -> Steps[Structs]:
    """The layouts of the running kernel. Raises BadImageError where it has no BTF, or not in a known format."""
    start, stop = symbols.find("__start_BTF"), symbols.find("__stop_BTF")
    if start is None or stop is None:
        raise BadImageError("the kernel has no type information (BTF); guestprof needs a kernel with CONFIG_DEBUG_INFO_BTF")
    size = stop.address - start.address
    if not _HEADER_SIZE <= size <= _MAX_SIZE:
        raise BadImageError(f"the kernel's type information at {start.address:#x} has {size} bytes, which cannot be")
    try:
        data = yield from space.read_chunks(start.address, size)
    except GuestMemoryError as error:
        raise BadImageError(f"the kernel's type information cannot be read: {error}") from error
    return (yield from parse_btf(data, words, 1 << space.tables.page_shift))


def parse_btf(data: bytes, kernel: Words, page_size: int = 4096) -> Steps[Structs]:
    """Layouts of a BTF section's types, in a kernel's own byte order. Raises BadImageError for what is none."""
    words, strings = _sections(data, kernel)
    yield
    places, named = yield from _find_types(words)
    names: dict[str, int] = {}
    for first in range(0, len(named), _NAMES_PER_STEP):
        for number in named[first : first + _NAMES_PER_STEP]:
            name = _string(strings, words[places[number]])
            # A forward declaration is a kind of its own, so the first of a name is a layout; a typedef yields to a struct.
            if name and (name not in names or _kind(words, places[names[name]]) == _TYPEDEF):
                names[name] = number
        yield
    return Structs(_Types(_Index(words, strings, places, names), kernel.size), kernel, page_size)


def _sections(data: bytes, kernel: Words) -> tuple[array[int], bytes]:
    """The words of the types, the bytes of the strings."""
    if len(data) < _HEADER_SIZE:
        raise BadImageError("the kernel's type information ends in its header")
    magic, version, _flags, header_size, type_at, type_size, string_at, string_size = struct.unpack_from(
        f"{kernel.order}{_HEADER}", data
    )
    if magic != _MAGIC or version != 1:
        raise BadImageError(f"the kernel's type information begins with {data[:4].hex()}, which is no BTF that guestprof knows")
    type_at += header_size
    string_at += header_size
    if type_at % 4 or max(type_at + type_size, string_at + string_size) > len(data):
        raise BadImageError("the kernel's type information is shorter than its header says")
    words = array("I", data[type_at : type_at + (type_size & ~3)])
    if sys.byteorder != kernel.byteorder:
        words.byteswap()
    return words, data[string_at : string_at + string_size]


def _find_types(words: array[int]) -> Steps[tuple[array[int], list[int]]]:
    """The place of each type by its number (0 is void), and the numbers of those that have members, enumerators or another name."""
    places = array("I", [0])
    named: list[int] = []
    add_place, add_named = places.append, named.append
    place, end, count = 0, len(words) - 2, 0
    wanted = frozenset({_STRUCT, _UNION, _ENUM, _ENUM64, _TYPEDEF, _DATASEC})
    while place < end:
        info = words[place + 1]
        kind = info >> 24 & 31
        if kind >= len(_FIXED_WORDS):
            # A kind that is newer than this program: how long it is cannot be told, so what follows is unknown.
            break
        add_place(place)
        count += 1
        if kind in wanted:
            add_named(count)
        place += 3 + _FIXED_WORDS[kind] + (info & _COUNT_MASK) * _MEMBER_WORDS[kind]
        if not count % _TYPES_PER_STEP:
            yield
    return places, named


def _kind(words: array[int], place: int) -> int:
    return words[place + 1] >> 24 & 31


def _string(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset, offset + _MAX_NAME)
    return strings[offset:end].decode("ascii", "replace") if end > offset else ""


class _Types:
    """Answers what ``Structs`` asks (``guest.structs.TypeSource``), reading the types that are asked for."""

    def __init__(self, index: _Index, pointer_size: int) -> None:
        self._index = index
        self._pointer_size = pointer_size

    def find(self, name: str) -> Type | None:
        number = self._index.names.get(name)
        return None if number is None else self._resolve(number)

    def enumerators(self, name: str) -> Iterator[tuple[str, int]]:
        words, strings = self._index.words, self._index.strings
        place = self._place(self._index.names.get(name, 0))
        kind = 0 if place is None else _kind(words, place)
        if place is None or kind not in (_ENUM, _ENUM64):
            return
        width = _MEMBER_WORDS[kind]
        for at in range(place + 3, self._end(place), width):
            high = words[at + 2] << 32 if kind == _ENUM64 else 0
            yield _string(strings, words[at]), words[at + 1] | high

    def variables(self, section: str) -> Iterator[tuple[str, int]]:
        words, strings = self._index.words, self._index.strings
        place = self._place(self._index.names.get(section, 0))
        if place is None or _kind(words, place) != _DATASEC:
            return
        for at in range(place + 3, self._end(place), 3):
            variable = self._place(words[at])
            if variable is not None:
                yield _string(strings, words[variable]), words[at + 1]

    def _place(self, number: int) -> int | None:
        return self._index.places[number] if 0 < number < len(self._index.places) else None

    def _end(self, place: int) -> int:
        """Where the members end that begin at ``place + 3``: a count that lies leads to no place outside."""
        words = self._index.words
        width = _MEMBER_WORDS[_kind(words, place)]
        end = place + 3 + (words[place + 1] & _COUNT_MASK) * width
        return end if end <= len(words) else place + 3

    def _resolve(self, number: int) -> Type | None:
        """The type behind typedefs, qualifiers and arrays; None for what has no layout (void, functions, a chain without end)."""
        words = self._index.words
        elements = 1
        for _link in range(_MAX_CHAIN):
            place = self._place(number)
            if place is None:
                return None
            kind = _kind(words, place)
            if kind in _MODIFIERS:
                number = words[place + 2]
            elif kind == _ARRAY:
                if place + 6 > len(words):
                    return None
                number = words[place + 3]
                elements *= words[place + 5]
            else:
                return self._sized(place, kind, elements)
        return None

    def _sized(self, place: int, kind: int, elements: int) -> Type | None:
        size = self._pointer_size if kind == _PTR else self._index.words[place + 2] if kind in _SIZED else None
        if size is None or size * elements >= _MAX_BYTES:
            return None
        if kind in (_STRUCT, _UNION):
            return Composite(size * elements, size, lambda: self._members(place))
        return Scalar(size * elements, size)

    def _members(self, place: int) -> Iterator[Member]:
        words, strings = self._index.words, self._index.strings
        has_bitfields = words[place + 1] >> 31
        for at in range(place + 3, self._end(place), 3):
            offset = words[at + 2]
            number = words[at + 1]
            bits = offset >> 24 if has_bitfields else 0
            yield Member(
                _string(strings, words[at]),
                offset & 0xFF_FFFF if has_bitfields else offset,
                bits,
                lambda number=number: self._resolve(number),  # type: ignore[misc]
            )
