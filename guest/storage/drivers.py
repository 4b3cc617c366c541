"""A volume with a file system → one file of it by inode number or path, through the dissect libraries.

Each driver is a thin layer that asks for the same few facts: size, time of last change, kind, contents. The libraries raise
anything when they meet damaged data; ``guarded`` makes StorageError of all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guest.storage.device import BlockDevice, DeviceStream
from guest.storage.files import StreamContents, WantedFile, path_suffixes
from recording.errors import MissingDependencyError, StorageError

_MAX_SUBVOLUMES = 256
_MAX_FAT_STEPS = 1 << 18
_MAX_ENTRIES = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a file system. mtime_ns: None where the driver cannot tell it exactly. open: its contents."""

    size: int
    mtime_ns: int | None
    open: Callable[[], StreamContents]


class FileSystem(Protocol):
    """An opened file system."""

    def find(self, wanted: WantedFile) -> Iterator[Entry]:
        """The regular files that it may be, best first. Raises StorageError."""
        ...


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Whatever a library raises becomes a StorageError that names the file system."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {what} needs the package {error.name}; install it with: pip install 'guestprof[storage]'"
        ) from error
    except (StorageError, MissingDependencyError):
        raise
    except Exception as error:
        raise StorageError(f"{what} is damaged, or of a kind that is not supported ({type(error).__name__}: {error})") from error


def open_file_system(kind: str, devices: Sequence[BlockDevice]) -> FileSystem:
    """A file system of a kind that ``has_driver`` knows. devices: more than one for a btrfs that spans several.

    Raises StorageError, or MissingDependencyError where its library is not installed.
    """
    with guarded(f"a file system {kind}"):
        opened: FileSystem = _DRIVERS[kind](devices)
        return opened


def has_driver(kind: str) -> bool:
    """Whether files of that kind of file system can be found."""
    return kind in _DRIVERS


class _Ext:
    """ext2, ext3 and ext4: by inode number."""

    def __init__(self, devices: Sequence[BlockDevice]) -> None:
        from dissect.extfs.extfs import ExtFS  # noqa: PLC0415  (each library takes 60 ms to load)

        self._file_system = ExtFS(DeviceStream(devices[0]))

    def find(self, wanted: WantedFile) -> Iterator[Entry]:
        with guarded("a file system ext4"):
            if not 0 < wanted.number <= self._file_system.sb.s_inodes_count:
                return
            inode = self._file_system.get_inode(wanted.number)
            if stat.S_ISREG(inode.inode.i_mode):
                yield Entry(inode.size, inode.mtime_ns, lambda: StreamContents(inode.open(), inode.size))


class _Xfs:
    """XFS: by inode number."""

    def __init__(self, devices: Sequence[BlockDevice]) -> None:
        from dissect.xfs.xfs import XFS  # noqa: PLC0415

        self._file_system = XFS(DeviceStream(devices[0]))

    def find(self, wanted: WantedFile) -> Iterator[Entry]:
        with guarded("a file system xfs"):
            inode = self._file_system.get_inode(wanted.number)
            if stat.S_ISREG(inode.inode.di_mode):
                yield Entry(inode.size, inode.mtime_ns, lambda: StreamContents(inode.open(), inode.size))


class _Btrfs:
    """btrfs: by inode number in every subvolume, those first in which it has a fitting path."""

    def __init__(self, devices: Sequence[BlockDevice]) -> None:
        from dissect.btrfs.btrfs import Btrfs  # noqa: PLC0415

        self._file_system = Btrfs([DeviceStream(device) for device in devices])
        self._subvolumes = list(itertools.islice(self._file_system.subvolumes(), _MAX_SUBVOLUMES))

    def find(self, wanted: WantedFile) -> Iterator[Entry]:
        with guarded("a file system btrfs"):
            found = []
            for subvolume in self._subvolumes:
                # A subvolume where the number is free, or that is damaged.
                with contextlib.suppress(Exception):
                    inode = subvolume.inode(wanted.number)
                    if stat.S_ISREG(inode.mode):
                        found.append((_common_end(inode.path, wanted.path), inode))
            for _names, inode in sorted(found, key=lambda each: -each[0]):
                yield Entry(inode.size, inode.mtime_ns, _opener(inode))


class _SquashFS:
    """squashfs: by inode number where it was made with an export table (as usual), else by path."""

    def __init__(self, devices: Sequence[BlockDevice]) -> None:
        from dissect.squashfs.squashfs import SquashFS  # noqa: PLC0415

        self._file_system = SquashFS(DeviceStream(devices[0]))

    def find(self, wanted: WantedFile) -> Iterator[Entry]:
        with guarded("a file system squashfs"):
            if not 0 < wanted.number <= self._file_system.sb.inodes:
                return
            if self._file_system.lookup_table:
                candidates = iter([self._file_system._lookup_inode(wanted.number)])  # noqa: SLF001  (it has no public one)
            else:
                candidates = self._by_path(wanted)
            for inode in candidates:
                if inode.is_file() and inode.inode_number == wanted.number:
                    yield Entry(inode.size, inode.header.mtime * 10**9, _opener(inode))

    def _by_path(self, wanted: WantedFile) -> Iterator[Any]:
        for parts in path_suffixes(wanted.path):
            node = _descend(self._file_system.root, parts, lambda node: node.is_dir(), lambda node: node.name)
            if node is not None:
                yield node


class _Fat:
    """FAT has no inode numbers: by path."""

    def __init__(self, devices: Sequence[BlockDevice]) -> None:
        from dissect.fat.fat import FATFS  # noqa: PLC0415

        self._file_system = FATFS(DeviceStream(devices[0]))
        self._steps = 0
        look_up = self._file_system.fat.get

        def counted(cluster: int) -> int:
            # The library follows a chain of clusters that bites its tail for ever.
            self._steps += 1
            if self._steps > _MAX_FAT_STEPS:
                raise StorageError("a file system vfat is damaged: a chain of clusters does not end")
            return int(look_up(cluster))

        self._file_system.fat.get = counted

    def find(self, wanted: WantedFile) -> Iterator[Entry]:
        with guarded("a file system vfat"):
            self._steps = 0
            for parts in path_suffixes(wanted.path):
                node = _descend(
                    self._file_system.root,
                    [part.upper() for part in parts],
                    lambda node: node.is_directory(),
                    lambda node: node.name.upper(),
                )
                if node is not None and not node.is_directory():
                    # Its time is local, and exact to two seconds.
                    yield Entry(node.size, None, _opener(node))


_DRIVERS: dict[str, Callable[[Sequence[BlockDevice]], Any]] = {
    "ext4": _Ext,
    "xfs": _Xfs,
    "btrfs": _Btrfs,
    "squashfs": _SquashFS,
    "vfat": _Fat,
}


def _opener(node: Any) -> Callable[[], StreamContents]:  # noqa: ANN401  (the library's)
    return lambda: StreamContents(node.open(), node.size)


def _descend(root: Any, parts: list[str], is_directory: Callable[[Any], bool], name_of: Callable[[Any], str]) -> Any | None:  # noqa: ANN401
    """The node at a path, without following symbolic links."""
    node = root
    for part in parts:
        if not is_directory(node):
            return None
        entries = itertools.islice(node.iterdir(), _MAX_ENTRIES)
        node = next((entry for entry in entries if name_of(entry) == part), None)
        if node is None:
            return None
    return node


def _common_end(one: str, other: str) -> int:
    """How many names two paths have in common at their ends."""
    names = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], names))
