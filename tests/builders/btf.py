"""BTF sections written out: types one after the other, each with a number that later ones name."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from guest.words import Words
from tests.builders.words import LITTLE_64

MemberSpec = tuple[str, int, int]
"""Name ("" for an anonymous one), type's number, byte offset."""


class Btf:
    """Collects types; ``to_bytes`` gives the section."""

    def __init__(self, words: Words = LITTLE_64) -> None:
        self._order = words.order
        self._strings = bytearray(b"\0")
        self._types = bytearray()
        self._count = 0

    def name(self, text: str) -> int:
        """Offset of a string."""
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text) - 1

    def add(self, kind: int, name: str = "", count: int = 0, value: int = 0, rest: bytes = b"", *, flag: bool = False) -> int:
        """Any type; its number."""
        self._types += struct.pack(f"{self._order}III", self.name(name), flag << 31 | kind << 24 | count, value) + rest
        self._count += 1
        return self._count

    def number(self, size: int, name: str = "int") -> int:
        return self.add(1, name, value=size, rest=bytes(4))

    def pointer(self, to: int = 0) -> int:
        return self.add(2, value=to)

    def array(self, of: int, count: int) -> int:
        return self.add(3, rest=struct.pack(f"{self._order}III", of, 1, count))

    def struct(self, name: str, size: int, members: Sequence[MemberSpec], *, kind: int = 4) -> int:
        rest = b"".join(struct.pack(f"{self._order}III", self.name(each), number, 8 * offset) for each, number, offset in members)
        return self.add(kind, name, len(members), size, rest)

    def bitfields(self, name: str, size: int, members: Sequence[tuple[str, int, int, int]]) -> int:
        """Members: name, type, bit offset, bits."""
        rest = b"".join(
            struct.pack(f"{self._order}III", self.name(each), number, bits << 24 | at) for each, number, at, bits in members
        )
        return self.add(4, name, len(members), size, rest, flag=True)

    def enum(self, name: str, values: Mapping[str, int]) -> int:
        rest = b"".join(struct.pack(f"{self._order}II", self.name(each), value) for each, value in values.items())
        return self.add(6, name, len(values), 4, rest)

    def typedef(self, name: str, of: int) -> int:
        return self.add(8, name, value=of)

    def const(self, of: int) -> int:
        return self.add(10, value=of)

    def to_bytes(self) -> bytes:
        header = struct.pack(f"{self._order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings))
        return header + bytes(self._types) + bytes(self._strings)
