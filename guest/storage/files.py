"""What is looked for, what was found, what was not: the values that all sources of files share."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from recording.errors import StorageError

MAX_FILE_SIZE = 1 << 32
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file as the guest's kernel knows it: what of its identity (``guest.user.mappings.FileIdentity``) finds it on a disk.

    number: the inode's. source: ``super_block.s_id`` ("vda1"). uuid: None if the file system has none. mtime_ns: 0 if unknown.
    """

    number: int
    size: int
    file_system: str
    source: str
    uuid: bytes | None
    mtime_ns: int
    path: str


class FileContents(Protocol):
    """The bytes of one file."""

    @property
    def size(self) -> int:
        """How long it is."""
        ...

    def read(self, offset: int, size: int) -> bytes | None:
        """The bytes, or None where they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file's contents, and where they were found: "ext4 on virtio0 partition 1"."""

    contents: FileContents
    origin: str


@dataclass(frozen=True, slots=True)
class StorageMiss:
    """Why a file's contents are not known: a part of a sentence for the report, with what would help."""

    reason: str


class BytesContents:
    """A file that is wholly in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes | None:
        """The bytes, or None behind the end."""
        return self._data[offset : offset + size] if 0 <= offset <= offset + size <= self.size else None


class StreamContents:
    """A file that a library reads for us; whatever it raises, the bytes are not known."""

    def __init__(self, stream: io.RawIOBase, size: int) -> None:
        self._stream = stream
        self.size = size

    def read(self, offset: int, size: int) -> bytes | None:
        """The bytes, or None where they cannot be read."""
        if not 0 <= offset <= offset + size <= self.size:
            return None
        try:
            self._stream.seek(offset)
            data = self._stream.read(size) or b""
        except Exception:  # noqa: BLE001  (a library that meets a damaged file system raises anything)
            return None
        return bytes(data) if len(data) == size else None


def path_suffixes(path: str) -> Iterator[list[str]]:
    """``/boot/efi/a`` → boot/efi/a, efi/a, a: where a file lies below a mount point that nobody told us.

    Raises StorageError for a path that the kernel would not name a file.
    """
    parts = [part for part in path.split("/") if part]
    if not parts or len(parts) > _MAX_DEPTH or any(part in (".", "..") or "\0" in part for part in parts):
        raise StorageError(f"{path!r} is no path of a file")
    for start in range(len(parts)):
        yield parts[start:]
