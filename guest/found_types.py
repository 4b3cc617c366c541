"""Layouts of structs of which some members were found by what they hold, for kernels without type information."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from guest.paging import AddressSpace
from guest.structs import Composite, Member, Scalar, Type

Members: TypeAlias = "Mapping[str, tuple[int, int | Members]]"
"""By name (offset, size), or (offset, its own members)."""


class FoundTypes:
    """Structs of which some members were found; see ``guest.structs.TypeSource``."""

    def __init__(
        self,
        structs: Mapping[str, Members],
        enums: Mapping[str, Mapping[str, int]] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """enums: of each the constants. sizes: bytes of structs, where they are known; else up to the end of the last member."""
        self._structs = {name: _composite(members, (sizes or {}).get(name, 0)) for name, members in structs.items()}
        self._enums = enums or {}

    def find(self, name: str) -> Type | None:
        """A struct by its name."""
        return self._structs.get(name)

    def enumerators(self, name: str) -> Iterator[tuple[str, int]]:
        """Names and values of an enum's constants."""
        yield from self._enums.get(name, {}).items()

    def variables(self, _section: str) -> Iterator[tuple[str, int]]:
        """Nothing is known of variables."""
        return iter(())


def _composite(members: Members, size: int = 0) -> Composite:
    types = {name: (offset, _type(what)) for name, (offset, what) in members.items()}

    def listed() -> Iterator[Member]:
        for name, (offset, found) in types.items():
            yield Member(name, 8 * offset, 0, lambda found=found: found)  # type: ignore[misc]

    size = max(size, *(offset + found.size for offset, found in types.values()))
    return Composite(size, size, listed)


def _type(what: int | Members) -> Type:
    return Scalar(what, what) if isinstance(what, int) else _composite(what)


def read_mapped(space: AddressSpace, address: int, size: int) -> bytes:
    """As much as is mapped of some bytes: a struct may be the last thing in its page."""
    extent = next(filter(None, space.mapped(address, address + size)), None)
    if extent is None or extent.address != address:
        return b""
    return space.read_many([(address, extent.size)])[0] or b""


def only(indexes: Iterable[int], fits: Callable[[int], bool]) -> int | None:
    """The one that fits, None where none or several do."""
    found = [index for index in indexes if fits(index)]
    return found[0] if len(found) == 1 else None


def most(fits: Iterable[bool]) -> bool:
    """As ``are_most`` of what fits and what does not; False of nothing."""
    answers = list(fits)
    return bool(answers) and are_most(sum(answers), len(answers))


def are_most(count: int, total: int) -> bool:
    """Whether only as many are missing as may end while they are read."""
    return 8 * count >= 7 * total
