"""Directories of the host that hold the guest's files: shares (9p, virtiofs), ``--sysroot``, ``--symbol-dir``.

A guest may write into a share what it likes, symbolic links to the host's files among it: none is followed there. In a sysroot
links are followed as the guest would follow them: an absolute one begins at the sysroot, and none leads out of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.storage.files import FileContents, FoundFile, WantedFile, path_suffixes
from recording.errors import StorageError

_MAX_LINKS = 40
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Share:
    """A directory that QEMU, or a virtiofsd for it, gives to the guest. file_system: "9p" or "virtiofs". tag: its mount tag."""

    file_system: str
    directory: str
    tag: str = ""


class HostFile:
    """A file of the host, opened."""

    def __init__(self, descriptor: int, about: os.stat_result) -> None:
        self._descriptor = descriptor
        self.size = about.st_size
        self.mtime_ns = about.st_mtime_ns
        self.number = about.st_ino

    def read(self, offset: int, size: int) -> bytes | None:
        """The bytes, or None where they cannot be read."""
        if not 0 <= offset <= offset + size <= self.size:
            return None
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            return None
        return data if len(data) == size else None

    def __del__(self) -> None:
        os.close(self._descriptor)


def open_beneath(directory: str, parts: Sequence[str], *, follow: bool) -> HostFile | None:
    """The regular file at a path below a directory, or None. follow: symbolic links count, but only within the directory."""
    opened: list[int] = []
    try:
        opened.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return _walk(opened, list(parts), follow=follow)
    except OSError:
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _walk(opened: list[int], waiting: list[str], *, follow: bool) -> HostFile | None:
    """Component by component, each opened without following it. opened: the directories from the root to where we are."""
    links = 0
    while waiting:
        name = waiting.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            if len(opened) > 1:
                os.close(opened.pop())
            continue
        here = opened[-1]
        mode = os.lstat(name, dir_fd=here).st_mode
        if stat.S_ISLNK(mode):
            links += 1
            if not follow or links > _MAX_LINKS:
                return None
            target = os.readlink(name, dir_fd=here)
            if target.startswith("/"):
                while len(opened) > 1:
                    os.close(opened.pop())
            waiting[:0] = target.split("/")
        elif stat.S_ISDIR(mode):
            opened.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here))
        elif stat.S_ISREG(mode) and not waiting:
            return _open_file(name, here)
        else:
            return None
    return None


def _open_file(name: str, directory: int) -> HostFile | None:
    # What was a file a moment ago may be a FIFO now.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        return None
    return HostFile(descriptor, about)


def find_in_share(share: Share, wanted: WantedFile) -> FoundFile | None:
    """The file that a guest has mapped from a share: by the end of its path, its size, and its inode number or time of change."""
    for parts in path_suffixes(wanted.path):
        file = open_beneath(share.directory, parts, follow=False)
        if file is None or file.size != wanted.size:
            continue
        if wanted.number in _numbers(file.number) or file.mtime_ns == wanted.mtime_ns:
            return FoundFile(file, f"{share.file_system} share {share.directory}")
    return None


def _numbers(number: int) -> set[int]:
    """What the guest calls a host's inode: itself (virtiofs), or what fs/9p makes of a QID (``v9fs_qid2ino``, ``QID2INO``)."""
    return {number, (number + 2) & _MASK64, ((number + 2) ^ (number >> 32)) & _MASK64}


def find_in_sysroot(directory: str, wanted: WantedFile) -> FoundFile | None:
    """The file at the same path below a directory, if it has the same size."""
    parts = next(path_suffixes(wanted.path))
    file = open_beneath(directory, parts, follow=True)
    if file is None or file.size != wanted.size:
        return None
    return FoundFile(file, f"--sysroot {directory}")


def find_symbol_files(directory: str, build_id: bytes, path: str) -> Iterator[FoundFile]:
    """Files that may belong to a build ID: of a build-id tree, at the same path, of the same name. The caller checks the ID.

    These are the user's own: links may lead anywhere.
    """
    text = build_id.hex()
    root = Path(directory)
    names: list[Path] = []
    if len(text) > 2:
        below = f"{text[:2]}/{text[2:]}"
        names += [root / top / (below + end) for top in (".build-id", ".") for end in (".debug", "")]
    try:
        parts = next(path_suffixes(path))
    except StorageError:
        parts = []
    if parts:
        for last in (parts[-1], parts[-1] + ".debug"):
            names += [root.joinpath(*parts[:-1], last), root / last]
    for name in dict.fromkeys(names):
        contents = _open_any(name)
        if contents is not None:
            yield FoundFile(contents, f"--symbol-dir {name}")


def _open_any(path: Path) -> FileContents | None:
    try:
        if not path.is_file():
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return HostFile(descriptor, os.fstat(descriptor))
    except (OSError, StorageError):
        return None
