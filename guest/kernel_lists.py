"""The kernel's linked lists and small structs, read with bounds: ``struct list_head`` rings, members by their layout, strings."""

from __future__ import annotations

from collections.abc import Iterator

from guest.paging import AddressSpace
from guest.structs import Field, Structs
from guest.words import Words

_MAX_STRING = 512


def walk_list(space: AddressSpace, words: Words, head: int, offset: int, limit: int) -> Iterator[int]:
    """Addresses of a ring's elements from its head on; ``offset``: of the ``struct list_head`` in an element.

    Ends at the head, at a link that cannot be read, that leads nowhere or back to an element that was seen, and after ``limit``.
    """
    seen = {head}
    link = read_pointer(space, words, head)
    while link and link not in seen and len(seen) <= limit:
        seen.add(link)
        # Before the element is given: it may be freed while the caller looks at it.
        following = read_pointer(space, words, link)
        yield link - offset & words.mask
        link = following


def read_pointer(space: AddressSpace, words: Words, address: int) -> int | None:
    """A pointer, None where it cannot be read."""
    data = space.read_many([(address, words.size)])[0]
    return None if data is None else words.number(data)


def read_string(space: AddressSpace, address: int) -> str:
    """A short NUL-terminated string, "" where there is none."""
    # Not further than its page: the next one may be unmapped.
    data = space.read_many([(address, min(_MAX_STRING, 4096 - address % 4096))])[0] or b""
    return text_of(data)


def text_of(data: bytes) -> str:
    """The string that a character array holds; bytes that are no UTF-8 in hex."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


class StructReader:
    """Some members of one kind of struct, each read as an unsigned number or as bytes, all in one read."""

    def __init__(self, structs: Structs, struct: str, members: tuple[str, ...]) -> None:
        """Raises BadImageError where a member is missing."""
        self.words = structs.words
        self._fields: dict[str, Field] = {name: structs.require(struct, name) for name in members}
        self._low = min(field.offset for field in self._fields.values())
        self._size = max(field.offset + field.size for field in self._fields.values()) - self._low

    def offset(self, member: str) -> int:
        """Where a member lies."""
        return self._fields[member].offset

    def read(self, space: AddressSpace, address: int) -> StructValues | None:
        """The members of the struct at an address; None where it cannot be read."""
        data = space.read_many([(address + self._low & self.words.mask, self._size)])[0]
        return None if data is None else StructValues(self._fields, self._low, data, self.words)


class StructValues:
    """What ``StructReader`` read."""

    __slots__ = ("_data", "_fields", "_low", "_words")

    def __init__(self, fields: dict[str, Field], low: int, data: bytes, words: Words) -> None:
        self._fields = fields
        self._low = low
        self._data = data
        self._words = words

    def bytes(self, member: str) -> bytes:
        """A member as it lies in memory."""
        field = self._fields[member]
        return self._data[field.offset - self._low : field.offset - self._low + field.size]

    def number(self, member: str) -> int:
        """A member as an unsigned number."""
        return self._words.number(self.bytes(member))
