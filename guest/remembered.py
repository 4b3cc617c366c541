"""Facts made of chains of kernel structs, remembered as long as the words that they were made of are the same.

A fact is described by a function that asks for the structs it needs one after the other. What is not read yet is collected from all
facts that are wanted at once and read in one batch, and the function called again: as many batches as the longest chain has links.
The second time, all that a fact was made of is read in one batch, and nothing is described anew unless some of it has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from guest.paging import AddressSpace
from guest.records import Record, Values, read_slices
from recording.errors import GuestMemoryError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_MAX_BATCHES = 600
_MAX_KNOWN = 8192
_MAX_WANTED = 2048
"""Structs and names that one fact may be made of."""
_PAGE_SIZE = 0x1000

_Key = tuple[Record | int, int]
"""A record, or how many bytes, and an address. What was read there: values, or bytes; None where it cannot be read."""


class _NotReadYetError(Exception):
    """The function is to be called again when what it asked for has been read."""


class Reads:
    """What one fact asks for."""

    def __init__(self, words: dict[_Key, Any]) -> None:
        self._words = words
        self.used: dict[_Key, None] = {}

    def want(self, record: Record, address: int) -> None:
        """Tell that a struct will be asked for, so that it is read in the same batch as what is asked for next."""
        self.used[record, address] = None

    def record(self, record: Record, address: int) -> Values:
        """The values of a struct. Raises GuestMemoryError where it cannot be read."""
        values: Values = self._words[self._ask((record, address))]
        return values

    def raw(self, address: int, size: int) -> bytes:
        """``size`` bytes. Raises GuestMemoryError where they cannot be read."""
        data: bytes = self._words[self._ask((size, address))]
        return data

    def text(self, address: int, limit: int) -> bytes:
        """A string up to its NUL, or as much as lies in one page. Raises GuestMemoryError."""
        return self.raw(address, min(limit, _PAGE_SIZE - address % _PAGE_SIZE)).split(b"\0", 1)[0]

    def _ask(self, key: _Key) -> _Key:
        self.used[key] = None
        if len(self.used) > _MAX_WANTED:
            raise GuestMemoryError(f"the structs around guest address {key[1]:#x} have no end")
        if key not in self._words:
            raise _NotReadYetError
        if self._words[key] is None:
            raise GuestMemoryError(f"nothing can be read at guest address {key[1]:#x}")
        return key


class Remembered(Generic[K, T]):
    """Facts by a key that says where they begin."""

    def __init__(self, space: AddressSpace, describe: Callable[[K, Reads], T]) -> None:
        """``describe`` makes the fact of a key, and may raise GuestMemoryError."""
        self._space = space
        self._describe = describe
        self._known: dict[K, tuple[dict[_Key, Any], T | None]] = {}

    def read(self, keys: Iterable[K]) -> dict[K, T | None]:
        """The fact of each key, None where it cannot be read."""
        words: dict[_Key, Any] = {}
        found: dict[K, T | None] = {}
        waiting = list(dict.fromkeys(keys))
        self._fetch(words, (key for each in waiting if each in self._known for key in self._known[each][0]))
        for _batch in range(_MAX_BATCHES):
            still_waiting = []
            missing: dict[_Key, None] = {}
            for key in waiting:
                known = self._known.get(key)
                if known is not None and all(words.get(each, ()) == value for each, value in known[0].items()):
                    found[key] = known[1]
                    continue
                reads = Reads(words)
                fact = None
                try:
                    fact = self._describe(key, reads)
                except _NotReadYetError:
                    missing |= reads.used
                    still_waiting.append(key)
                    continue
                except GuestMemoryError:
                    pass
                found[key] = fact
                self._keep(key, {each: words[each] for each in reads.used if each in words}, fact)
            if not still_waiting:
                break
            self._fetch(words, missing)
            waiting = still_waiting
        return {key: found.get(key) for key in (*found, *waiting)}

    def _keep(self, key: K, words: dict[_Key, Any], fact: T | None) -> None:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[key] = words, fact

    def _fetch(self, words: dict[_Key, Any], keys: Iterable[_Key]) -> None:
        """Read what is not there yet."""
        wanted = [key for key in dict.fromkeys(keys) if key not in words]
        if not wanted:
            return
        requests = [what.request(address) if isinstance(what, Record) else (address, what) for what, address in wanted]
        for (what, address), data in zip(wanted, read_slices(self._space, requests), strict=True):
            words[what, address] = data if data is None or not isinstance(what, Record) else what.values(data)
