"""Chosen members of a kernel struct become one slice to read, and a slice becomes their values."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from guest.paging import AddressSpace
from guest.structs import Structs
from recording.errors import BadImageError

ADDRESS_MASK = (1 << 64) - 1
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_MAX_SLICE = 2048
"""Bytes between the first and the last member of a record. The largest that is read, struct mm_struct, has about 1,400."""

_PAGE_SHIFT = 12

Values = tuple[Any, ...]
"""A record's members in the order in which they were asked for: unsigned integers, or bytes for those of another size."""


class Record:
    """Where the chosen members of a struct lie.

    A member is a path for ``Structs.field``, or several with ``|`` between them, of which the first that exists is taken (kernels
    name things differently); with ``?`` behind it, it may be absent and is 0 then.
    """

    def __init__(self, structs: Structs, name: str, members: Sequence[str]) -> None:
        """Raises BadImageError naming what is missing."""
        fields = []
        for member in members:
            paths = member.rstrip("?").split("|")
            found = next((field for path in paths if (field := structs.field(name, path))), None)
            fields.append(found if found or member.endswith("?") else structs.require(name, paths[0]))
        there = sorted({(field.offset, field.size) for field in fields if field})
        if not there:
            raise BadImageError(
                f"the kernel's type information has none of {', '.join(members)} in struct {name}; report this kernel"
            )
        self.low = there[0][0]
        end = self.low
        parts = [structs.words.order]
        for offset, size in there:
            if offset < end:
                raise BadImageError(f"members of struct {name} overlap at {offset}; report this kernel")
            parts.append(f"{offset - end}x{_FORMATS.get(size, f'{size}s')}")
            end = offset + size
        self.size = end - self.low
        if self.size > _MAX_SLICE:
            raise BadImageError(f"struct {name} has its members {self.size} bytes apart; report this kernel")
        self._struct = struct.Struct("".join(parts))
        places = [there.index((field.offset, field.size)) if field else len(there) for field in fields]
        self._order = itemgetter(*places, 0) if len(places) == 1 else itemgetter(*places)
        self._is_single = len(places) == 1
        self.has = tuple(field is not None for field in fields)
        """Whether each member exists."""

    def request(self, address: int) -> tuple[int, int]:
        """(address, size) of the slice to read of a struct at an address."""
        return address + self.low & ADDRESS_MASK, self.size

    def values(self, data: bytes) -> Values:
        """The members from their slice."""
        found: Values = self._order((*self._struct.unpack(data), 0))
        return found[:1] if self._is_single else found


def read_records(space: AddressSpace, wanted: Iterable[tuple[Record, int]]) -> list[Values | None]:
    """The values of records at addresses, in one batch; None for those that cannot be read."""
    pairs = list(wanted)
    answers = read_slices(space, [record.request(address) for record, address in pairs])
    return [None if data is None else record.values(data) for (record, _address), data in zip(pairs, answers, strict=True)]


def read_slices(space: AddressSpace, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
    """As ``space.read_many``, for slices of structs: what lies in one page, where the kernel keeps structs of a kind, is one read.

    A slice may lie in two pages, but not in more: None then.
    """
    spans: dict[int, tuple[int, int]] = {}
    for address, size in requests:
        page = address >> _PAGE_SHIFT
        end = address + size
        boundary = page + 1 << _PAGE_SHIFT
        if end > boundary:
            low, high = spans.get(page + 1, (boundary, boundary))
            spans[page + 1] = boundary, max(high, end)
            end = boundary
        known = spans.get(page)
        if known is None:
            spans[page] = address, end
        elif address < known[0] or end > known[1]:
            low, high = known
            spans[page] = min(low, address), max(high, end)
    places = {page: (physical, high - low) for page, (low, high) in spans.items() if (physical := space.translate(low)) is not None}
    pages = dict(zip(places, space.memory.read_many(list(places.values())), strict=True))
    results: list[bytes | None] = []
    for address, size in requests:
        page = address >> _PAGE_SHIFT
        data = pages.get(page)
        start = address - spans[page][0]
        if data is not None and address + size > page + 1 << _PAGE_SHIFT:
            rest = pages.get(page + 1)
            data = None if rest is None else data + rest
        results.append(data[start : start + size] if data is not None and len(data) >= start + size else None)
    return results
