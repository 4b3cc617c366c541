"""Layouts of the running kernel's structs: a name and a path of members become an offset and a size.

Where a member lies changes with the kernel's version and configuration; the kernel says it itself (``guest/btf.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

from guest.words import Words
from recording.errors import BadImageError

_MAX_NESTING = 16
"""Anonymous members within each other; the kernel's own nest three or four deep."""
_MAX_MEMBERS = 1 << 14
"""Members that are looked at for one name, nested ones included; the largest struct has about 300."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where a member lies, in bytes from the struct's start. Of a bitfield the bytes that hold it, of an array all elements."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type without members. Sizes in bytes: of an array as a whole, and of one element (of anything else the same)."""

    size: int
    element_size: int


@dataclass(frozen=True, slots=True)
class Composite:
    """A struct or union, or an array of them."""

    size: int
    element_size: int
    members: Callable[[], Iterator[Member]]


Type: TypeAlias = Scalar | Composite


@dataclass(frozen=True, slots=True)
class Member:
    """A member as its struct names it ("" for an anonymous one). bit_offset: from the struct's start; bits: 0 for no bitfield."""

    name: str
    bit_offset: int
    bits: int
    type: Callable[[], Type | None]


class TypeSource(Protocol):
    """Types by name."""

    def find(self, name: str) -> Type | None:
        """A struct, union or typedef."""

    def enumerators(self, name: str) -> Iterator[tuple[str, int]]:
        """Names and values of an enum's constants, nothing where there is no such enum."""

    def variables(self, section: str) -> Iterator[tuple[str, int]]:
        """Names of a section's variables and where they lie in it."""


@dataclass(frozen=True, slots=True)
class _Both:
    """Two sources, of which the first is asked first."""

    first: TypeSource
    second: TypeSource

    def find(self, name: str) -> Type | None:
        return self.first.find(name) or self.second.find(name)

    def enumerators(self, name: str) -> Iterator[tuple[str, int]]:
        yield from self.first.enumerators(name)
        yield from self.second.enumerators(name)

    def variables(self, section: str) -> Iterator[tuple[str, int]]:
        yield from self.first.variables(section)
        yield from self.second.variables(section)


class Structs:
    """Answers are remembered: asking costs a dictionary lookup from the second time on.

    words: how the kernel writes the numbers that its structs consist of. page_size: bytes of the kernel's pages.
    places: addresses that were found together with the types, by the names of what lies there.
    """

    def __init__(
        self, types: TypeSource, words: Words, page_size: int = 4096, places: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._types = types
        self.words = words
        self.page_size = page_size
        self.places = places
        self._fields: dict[tuple[str, str], Field | None] = {}

    def extended(self, types: TypeSource, page_size: int, places: Mapping[str, int]) -> Structs:
        """With more types, which go before those that were known."""
        return Structs(_Both(types, self._types), self.words, page_size, places)

    def field(self, struct: str, path: str) -> Field | None:
        """A member by its path ``a.b.c``, through nested and anonymous members; ``a[2].b`` is in an element of an array.

        None where the kernel has no such struct, member or element. Pointers are not followed.
        """
        key = (struct, path)
        if key not in self._fields:
            self._fields[key] = self._find(struct, path.split("."))
        return self._fields[key]

    def require(self, struct: str, path: str) -> Field:
        """As ``field``. Raises BadImageError naming what is missing."""
        found = self.field(struct, path)
        if found is None:
            raise BadImageError(f"the kernel's type information has no {path} in struct {struct}; report this kernel")
        return found

    def size_of(self, struct: str) -> int | None:
        """Bytes of a struct, union, enum or typedef."""
        found = self._types.find(struct)
        return None if found is None else found.size

    def enumerator(self, enum: str, name: str) -> int | None:
        """The value of a constant of an enum."""
        return next((value for each, value in self._types.enumerators(enum) if each == name), None)

    def variables(self, section: str) -> Iterator[tuple[str, int]]:
        """Names of a section's variables and where they lie in it; none where the types do not say."""
        return self._types.variables(section)

    def _find(self, struct: str, path: list[str]) -> Field | None:
        kind = self._types.find(struct)
        field = None
        for step in path:
            name, bracket, index = step.partition("[")
            found = _find_member(kind, name) if isinstance(kind, Composite) else None
            kind = found[1].type() if found else None
            if found is None or kind is None:
                return None
            at, member = found
            field = Field((field.offset if field else 0) + at, kind.size)
            if member.bits:
                first, last = member.bit_offset // 8, (member.bit_offset + member.bits - 1) // 8
                field = Field(field.offset, last - first + 1)
            if bracket:
                skipped = int(index.removesuffix("]")) * kind.element_size
                if not skipped < kind.size:
                    return None
                field = Field(field.offset + skipped, kind.element_size)
        return field


def _find_member(composite: Composite, name: str) -> tuple[int, Member] | None:
    """(byte offset, member) of a name in a struct or in its anonymous members."""
    todo: list[tuple[int, int, Composite]] = [(0, 0, composite)]
    looked_at = 0
    while todo:
        offset, nesting, current = todo.pop()
        for member in current.members():
            looked_at += 1
            if looked_at > _MAX_MEMBERS:
                return None
            at = offset + member.bit_offset // 8
            if member.name == name:
                return at, member
            if not member.name and not member.bits and nesting < _MAX_NESTING:
                inner = member.type()
                if isinstance(inner, Composite):
                    todo.append((at, nesting + 1, inner))
    return None
