"""Contents of files that are known in part: exact bytes or None, and bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.user.contents import BytesContents, PageCacheContents, PagePool, ProcessContents, RangeContents, merge_ranges

DATA = bytes(range(256)) * 80


def identity(inode: int, size: int = len(DATA), mtime: int = 0) -> Any:
    return cast("Any", _Identity((inode, size, mtime)))


class _Identity(tuple[int, int, int]):
    __slots__ = ()

    @property
    def inode(self) -> int:
        return self[0]

    @property
    def size(self) -> int:
        return self[1]


class Cache:
    """A page cache with some pages of any inode."""

    page_size = 4096

    def __init__(self, pages: set[int]) -> None:
        self.pages = pages
        self.asked: list[tuple[int, int]] = []

    def read_pages(self, inode: int, indexes: Sequence[int]) -> list[bytes | None]:
        self.asked += [(inode, index) for index in indexes]
        return [DATA[4096 * index : 4096 * index + 4096].ljust(4096, b"\0") if index in self.pages else None for index in indexes]


class Space:
    """A process' memory: DATA from address 0x10000 on."""

    def read_many(self, requests: list[tuple[int, int]]) -> list[bytes | None]:
        return [
            DATA[start - 0x10000 : start - 0x10000 + size] if start - 0x10000 + size <= 8192 else None for start, size in requests
        ]


def mapping(start: int, end: int, offset: int, size: int | None) -> Any:
    return SimpleNamespace(start=start, end=end, offset=offset, file=None if size is None else SimpleNamespace(size=size))


@given(st.integers(-5, len(DATA) + 5), st.integers(-5, len(DATA) + 5), st.sets(st.integers(0, 4)))
def test_the_page_cache_gives_the_files_bytes_or_nothing(offset: int, size: int, pages: set[int]) -> None:
    found = PageCacheContents(Cache(pages), identity(1)).read(offset, size)
    whole = BytesContents(DATA).read(offset, size)
    needed = set(range(offset // 4096, (offset + size - 1) // 4096 + 1)) if size > 0 else set()
    assert found == (whole if needed <= pages else None)


def test_pages_are_kept_and_missing_ones_asked_for_again() -> None:
    cache = Cache({0, 1})
    contents = PageCacheContents(cache, identity(7))
    assert contents.read(4000, 200) == DATA[4000:4200]
    assert contents.read(0, 8192) == DATA[:8192]
    assert contents.read(8192, 1) is None
    cache.pages.add(2)
    assert contents.read(8192, 1) is None
    assert cache.asked == [(7, 0), (7, 1), (7, 2)]
    contents.forget_missing()
    assert contents.read(8192, 1) == DATA[8192:8193]


def test_the_longest_unused_pages_are_dropped() -> None:
    cache, pool = Cache({0, 1, 2, 3}), PagePool(limit=2)
    first, second = PageCacheContents(cache, identity(1), pool), PageCacheContents(cache, identity(2), pool)
    for contents in (first, second):
        assert contents.read(0, 4096) == DATA[:4096]
    assert first.read(0, 1) == b"\0"
    assert second.read(4096, 4096) == DATA[4096:8192]
    assert len(pool) == 2
    cache.asked.clear()
    first.read(0, 1)
    second.read(0, 1)
    assert cache.asked == [(2, 0)]


def test_a_file_that_was_written_is_another_one() -> None:
    cache, pool = Cache({0}), PagePool()
    PageCacheContents(cache, identity(1), pool).read(0, 1)
    PageCacheContents(cache, identity(1, mtime=5), pool).read(0, 1)
    assert cache.asked == [(1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 4, DATA[:4]),
        (4096, 4096, DATA[4096:8192]),
        (8190, 4, None),
        (8192, 4, None),
        (-1, 4, None),
        (0, -1, None),
        (0, 1 << 40, None),
    ],
)
def test_a_process_maps_its_file(offset: int, size: int, expected: bytes | None) -> None:
    contents = ProcessContents(Space(), mapping(0x10000, 0x11000, 0, 1 << 20), mapping(0x11000, 0x15000, 0x1000, 1 << 20))
    assert contents.size == 1 << 20
    assert contents.read(offset, size) == expected


def test_an_image_without_a_file_is_as_long_as_its_mapping() -> None:
    contents = ProcessContents(Space(), mapping(0x10000, 0x12000, 0, None))
    assert contents.size == 0x2000
    assert contents.read(0, 0x2000) == DATA[:0x2000]
    assert contents.read(0, 0x2001) is None
    assert ProcessContents(Space()).size == 0


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), max_size=8), st.integers(-3, 260), st.integers(-3, 60))
def test_ranges_know_what_was_put_into_them(places: list[tuple[int, int]], offset: int, size: int) -> None:
    ranges = merge_ranges([(start, DATA[start : start + length]) for start, length in places])
    known = {byte for start, length in places for byte in range(start, start + length)}
    found = RangeContents(len(DATA), ranges).read(offset, size)
    if size > 0:
        assert found == (DATA[offset : offset + size] if set(range(offset, offset + size)) <= known else None)
    assert all(first + len(data) < second for (first, data), (second, _) in itertools.pairwise(ranges))
