"""Bytes of an image changed at random: a file with the right size, or a sentence; never an exception, and it ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.storage.files import FoundFile, WantedFile
from guest.storage.storage import Disk, Sources, Storage
from recording.errors import StorageError
from tests.builders.disks import (
    MTIME_S,
    PROGRAM,
    btrfs_number,
    ext4_number,
    make_btrfs,
    make_ext4,
    make_lvm,
    make_mbr,
    make_squashfs,
    make_tree,
    make_vfat,
    make_xfs,
    xfs_number,
)

_LIMIT_S = 20
_PAGE = 4096


class TooLongError(BaseException):
    """Not an Exception: what contains a library's exceptions must not contain this."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Changed:
    """An image with some bytes changed, without a copy of it for each example."""

    def __init__(self, data: bytes, changes: dict[int, int]) -> None:
        self._data = data
        self._changes = changes
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        found = bytearray(self._data[offset : offset + size])
        if len(found) != size:
            raise StorageError("short")
        for at, value in self._changes.items():
            if offset <= at < offset + size:
                found[at - offset] = value
        return bytes(found)


Case = tuple[str, bytes, int]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """(kind, image, the program's inode number) by name; each made when it is first asked for."""
    root = tmp_path_factory.mktemp("images")
    tree = make_tree(root / "tree")
    made: dict[str, Case] = {}

    def squashfs_number(image: Path) -> int:
        for number in range(1, 60):
            file = WantedFile(number, len(PROGRAM), "squashfs", "vda", None, 0, "/usr/bin/program")
            if isinstance(storage(Changed(image.read_bytes(), {})).find_file(file), FoundFile):
                return number
        raise AssertionError("no inode has the program's size")

    def get(name: str) -> Case:
        path = root / name
        if name in made:
            return made[name]
        if name == "ext4":
            number = ext4_number(make_ext4(path, tree), "/usr/bin/program")
        elif name == "xfs":
            number = xfs_number(make_xfs(path, tree), "/usr/bin", "program")
        elif name == "btrfs":
            number = btrfs_number(make_btrfs(path, tree), "program")
        elif name == "squashfs":
            number = squashfs_number(make_squashfs(path, tree))
        elif name == "vfat":
            number = 1
            make_vfat(path, tree)
        else:
            get("ext4")
            number = ext4_number(root / "ext4", "/usr/bin/program")
            if name == "mbr":
                make_mbr(path, [root / "ext4"])
            else:
                make_lvm(path, root / "ext4")
        made[name] = ("ext4" if name in ("mbr", "lvm") else name, path.read_bytes(), number)
        return made[name]

    return get


def storage(device: Changed) -> Storage:
    return Storage(Sources(disks=[Disk("disk", lambda: device)]))


def used_pages(data: bytes) -> list[int]:
    """Where something stands that is not the program itself: metadata."""
    empty = bytes(_PAGE)
    start = data.find(PROGRAM[:_PAGE])
    body = range(start, start + len(PROGRAM)) if start >= 0 else range(0)
    return [at for at in range(0, len(data), _PAGE) if at not in body and data[at : at + _PAGE] != empty]


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "squashfs", "vfat", "mbr", "lvm"])
def test_changed_bytes(images: Callable[[str], Case], name: str) -> None:
    kind, data, number = images(name)
    file = WantedFile(number, len(PROGRAM), kind, "vda1", None, 0 if kind == "xfs" else MTIME_S * 10**9, "/usr/bin/program")
    assert isinstance(storage(Changed(data, {})).find_file(file), FoundFile)
    pages = used_pages(data)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(pages), st.integers(0, _PAGE - 1), st.integers(0, 255)), min_size=1, max_size=12))
    def check(changes: list[tuple[int, int, int]]) -> None:
        device = Changed(data, {min(page + at, len(data) - 1): value for page, at, value in changes})
        with time_limit():
            found = storage(device).find_file(file)
            if isinstance(found, FoundFile):
                assert found.contents.size == len(PROGRAM)
                read = found.contents.read(0, len(PROGRAM))
                assert read is None or len(read) == len(PROGRAM)
            else:
                assert found.reason

    check()


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "squashfs", "vfat"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_superblock_of_noise(images: Callable[[str], Case], name: str, data: st.DataObject) -> None:
    kind, image, number = images(name)
    start = {"ext4": 1024, "btrfs": 0x10000}.get(name, 0)
    size = data.draw(st.integers(1, 512))
    at = start + data.draw(st.integers(0, 1023))
    noise = data.draw(st.binary(min_size=size, max_size=size))
    device = Changed(image, {at + offset: value for offset, value in enumerate(noise)})
    with time_limit():
        storage(device).find_file(WantedFile(number, len(PROGRAM), kind, "vda", None, 0, "/usr/bin/program"))


def test_a_chain_of_clusters_that_bites_its_tail(images: Callable[[str], Case]) -> None:
    """Without a bound the library follows it for ever."""
    _kind, image, _number = images("vfat")
    reserved = int.from_bytes(image[14:16], "little") * int.from_bytes(image[11:13], "little")
    # FAT16: every cluster's next one is the second.
    changes = {reserved + at: value for at in range(4, 4096, 2) for at, value in ((at, 2), (at + 1, 0))}
    with time_limit():
        found = storage(Changed(image, changes)).find_file(WantedFile(1, len(PROGRAM), "vfat", "vda", None, 0, "/usr/bin/program"))
    assert not isinstance(found, FoundFile)
    assert "a chain of clusters does not end" in found.reason
