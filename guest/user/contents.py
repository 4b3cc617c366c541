"""Where the bytes of a mapped file come from: the page cache, the pages of a process, or bytes that were read before.

All of them may know a file only in part, and may know more of it later: None means "not all of it is known now".
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Protocol

from guest.user.mappings import FileIdentity, Mapping

PAGE_SIZE = 4096
"""The smallest that a kernel has: what files are looked at in pieces of."""
MAX_READ = 1 << 26
"""More than any table of a file that is read at once; a longer read means that a length in the file is wrong."""
_MISSING_LIMIT = 1 << 16
_BATCH = 64


class FileContents(Protocol):
    """The bytes of one file, as far as they are known. ``size``: of the whole file."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        ...

    def read(self, offset: int, size: int) -> bytes | None:
        """Exactly ``size`` bytes at a file offset. None: not all of it is known now, or it lies beyond the file's end."""
        ...


class PageReader(Protocol):
    """The guest's page cache (``guest/user/page_cache.py``)."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        ...

    def read_pages(self, inode: int, indexes: Sequence[int]) -> list[bytes | None]:
        """Pages of a file by the address of its inode, None for those that are not resident."""
        ...


class VirtualMemory(Protocol):
    """An address space (``guest/paging.py``)."""

    def read_many(self, requests: list[tuple[int, int]]) -> list[bytes | None]:
        """One answer to each (virtual address, size), None where not all of it can be read."""
        ...


@dataclass(frozen=True, slots=True)
class BytesContents:
    """A file that is known whole."""

    data: bytes | mmap

    @property
    def size(self) -> int:
        """See ``FileContents``."""
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes | None:
        """See ``FileContents``."""
        return self.data[offset : offset + size] if offset >= 0 and 0 <= size <= len(self.data) - offset else None


@dataclass(frozen=True, slots=True)
class RangeContents:
    """A file of which some ranges are known: (offset, bytes) ascending, not overlapping, not touching (``merge_ranges``)."""

    size: int
    ranges: tuple[tuple[int, bytes], ...]

    def read(self, offset: int, size: int) -> bytes | None:
        """See ``FileContents``."""
        index = bisect_right(self.ranges, offset, key=lambda known: known[0]) - 1
        if index < 0 or size < 0:
            return None
        start, data = self.ranges[index]
        return data[offset - start : offset - start + size] if offset - start + size <= len(data) else None


def merge_ranges(ranges: list[tuple[int, bytes]]) -> tuple[tuple[int, bytes], ...]:
    """(offset, bytes) of one file in any order, overlapping or not, as ``RangeContents`` wants them."""
    merged: list[tuple[int, bytearray]] = []
    for offset, data in sorted(ranges, key=lambda known: known[0]):
        if merged and offset <= merged[-1][0] + len(merged[-1][1]):
            start, known = merged[-1]
            known += data[max(start + len(known) - offset, 0) :]
        elif data:
            merged.append((offset, bytearray(data)))
    return tuple((offset, bytes(known)) for offset, known in merged)


class PagePool:
    """Pages of files that were read, the longest unused dropped above a limit; one for all files.

    Which pages were not resident is remembered only until ``forget_missing``: the guest may have read them since.
    """

    def __init__(self, limit: int = 4096) -> None:
        """``limit``: pages that are kept."""
        self._limit = limit
        self._pages: OrderedDict[tuple[FileIdentity, int], bytes] = OrderedDict()
        self._missing: set[tuple[FileIdentity, int]] = set()

    def __len__(self) -> int:
        return len(self._pages)

    def read_pages(self, page_cache: PageReader, identity: FileIdentity, first: int, end: int) -> list[bytes] | None:
        """Pages [first, end) of a file, from here or from the page cache; None if one of them is missing.

        Raises GuestMemoryError where the page cache's tables cannot be read.
        """
        keys = [(identity, index) for index in range(first, end)]
        if not self._missing.isdisjoint(keys):
            return None
        found: dict[tuple[FileIdentity, int], bytes] = {}
        for key in keys:
            page = self._pages.get(key)
            if page is not None:
                found[key] = page
                self._pages.move_to_end(key)
        wanted = [key for key in keys if key not in found]
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            for key, page in zip(batch, page_cache.read_pages(identity.inode, [index for _, index in batch]), strict=True):
                if page is None:
                    self._miss(key)
                else:
                    found[key] = page
                    self._keep(key, page)
            if len(found) < len(keys) - len(wanted) + start + len(batch):
                return None
        return [found[key] for key in keys]

    def _keep(self, key: tuple[FileIdentity, int], page: bytes) -> None:
        self._pages[key] = page
        if len(self._pages) > self._limit:
            self._pages.popitem(last=False)

    def _miss(self, key: tuple[FileIdentity, int]) -> None:
        if len(self._missing) >= _MISSING_LIMIT:
            self._missing.clear()
        self._missing.add(key)

    def forget_missing(self, identity: FileIdentity | None = None) -> None:
        """Ask the page cache again for what it did not have, of one file or of all."""
        self._missing = set() if identity is None else {key for key in self._missing if key[0] != identity}


class PageCacheContents:
    """A file as the guest's page cache has it."""

    def __init__(self, page_cache: PageReader, identity: FileIdentity, pool: PagePool | None = None) -> None:
        """``pool``: pages that were read, shared by the files of a guest."""
        self._page_cache = page_cache
        self._identity = identity
        self._pool = PagePool() if pool is None else pool

    @property
    def size(self) -> int:
        """See ``FileContents``."""
        return self._identity.size

    def read(self, offset: int, size: int) -> bytes | None:
        """See ``FileContents``. Raises GuestMemoryError where the page cache's own tables cannot be read."""
        if not (offset >= 0 and 0 <= size <= MAX_READ and offset + size <= self.size):
            return None
        if not size:
            return b""
        page_size = self._page_cache.page_size
        first = offset // page_size
        pages = self._pool.read_pages(self._page_cache, self._identity, first, (offset + size - 1) // page_size + 1)
        if pages is None:
            return None
        start = offset - first * page_size
        return b"".join(pages)[start : start + size]

    def forget_missing(self) -> None:
        """Ask again for pages that were not resident."""
        self._pool.forget_missing(self._identity)


class ProcessContents:
    """A file as one process maps it, or an image that is in memory only (the vDSO).

    Only for mappings that the process does not write to: a private page that was written is no longer the file's.
    """

    def __init__(self, space: VirtualMemory, *mappings: Mapping) -> None:
        """``space``: of the process; ``mappings``: of one file."""
        self._space = space
        self._mappings = mappings

    @property
    def size(self) -> int:
        """See ``FileContents``; of an image without a file what is mapped of it."""
        known = [mapping.file.size for mapping in self._mappings if mapping.file is not None]
        return known[0] if known else max((mapping.offset + mapping.end - mapping.start for mapping in self._mappings), default=0)

    def read(self, offset: int, size: int) -> bytes | None:
        """See ``FileContents``. A read must lie in one mapping; pages that the process has not touched are not known."""
        if not 0 <= size <= MAX_READ or offset + size > self.size:
            return None
        for mapping in self._mappings:
            if mapping.offset <= offset and offset + size <= mapping.offset + mapping.end - mapping.start:
                return self._space.read_many([(mapping.start + offset - mapping.offset, size)])[0]
        return None
