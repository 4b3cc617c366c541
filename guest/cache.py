"""What is read once of a kernel, or of a file of the guest's userspace, is kept on the host, so that attaching again is quick.

A file is a header, a check sum and named sections of bytes. Nothing here may fail a recording: a damaged or foreign entry counts as
absent, and a full disk, a read-only home or no home at all only mean that nothing is kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import platformdirs

_HEADER = struct.Struct("<8sII")
_SECTION = struct.Struct("<16sQ")
_MAX_SECTIONS = 16
_MAX_ENTRY = 1 << 27
DEFAULT_LIMIT = 1 << 29
_KEY = re.compile(r"[0-9a-f]{16,64}")


class HostCache:
    """Entries of one kind in a directory of this user. ``limit``: bytes of all entries; above it the longest unused are deleted."""

    MAGIC: ClassVar[bytes]
    """Eight bytes that change with the meaning of the sections: an entry of another format is not read."""
    SUFFIX: ClassVar[str]
    """Of the entries' files."""
    DIRECTORY: ClassVar[str]
    """In the user's cache directory."""

    def __init__(self, directory: Path | None, limit: int = DEFAULT_LIMIT) -> None:
        """``directory`` None: keep nothing."""
        self._directory = directory
        self._limit = limit

    @classmethod
    def of_user(cls) -> Self:
        """The cache where this system keeps such things (XDG_CACHE_HOME on Linux)."""
        try:
            return cls(platformdirs.user_cache_path("guestprof") / cls.DIRECTORY)
        except (OSError, RuntimeError):
            return cls(None)

    def load(self, key: str) -> dict[str, bytes] | None:
        """The sections of an entry, or None."""
        path = self._path(key)
        if path is None:
            return None
        try:
            if path.stat().st_size > _MAX_ENTRY:
                return None
            sections = _decode(path.read_bytes(), self.MAGIC)
        except OSError:
            return None
        if sections is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
        return sections

    def save(self, key: str, sections: Mapping[str, bytes]) -> None:
        """Write an entry whole or not at all, then delete the longest unused ones above the limit."""
        path = self._path(key)
        if path is None:
            return
        data = _encode(sections, self.MAGIC)
        if len(data) > min(_MAX_ENTRY, self._limit):
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, data)
            self._trim(path)

    def _path(self, key: str) -> Path | None:
        """Only hexadecimal digits make a file's name, whatever a caller passes on from a guest."""
        if self._directory is None or not _KEY.fullmatch(key):
            return None
        return self._directory / (key + self.SUFFIX)

    def _trim(self, newest: Path) -> None:
        entries = []
        for path in newest.parent.glob("*" + self.SUFFIX):
            with contextlib.suppress(OSError):
                status = path.stat()
                entries.append((path != newest, -status.st_mtime_ns, path, status.st_size))
        total = 0
        for _order, _age, path, size in sorted(entries):
            total += size
            if total > self._limit:
                path.unlink(missing_ok=True)


class KernelCache(HostCache):
    """Kernels by their identity (``guest/identity.py``)."""

    MAGIC = b"GPKERN1\0"
    SUFFIX = ".kernel"
    DIRECTORY = "kernels"


def _write(path: Path, data: bytes) -> None:
    """Through a temporary file in the same directory, which never outlives a failure."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(sections: Mapping[str, bytes], magic: bytes) -> bytes:
    body = b"".join(_SECTION.pack(name.encode("ascii"), len(data)) + data for name, data in sections.items())
    return _HEADER.pack(magic, len(sections), zlib.crc32(body)) + body


def _decode(data: bytes, wanted_magic: bytes) -> dict[str, bytes] | None:
    """The sections, or None where the bytes are damaged or of another format."""
    if len(data) < _HEADER.size:
        return None
    magic, count, checksum = _HEADER.unpack_from(data)
    if magic != wanted_magic or count > _MAX_SECTIONS or zlib.crc32(memoryview(data)[_HEADER.size :]) != checksum:
        return None
    sections: dict[str, bytes] = {}
    position = _HEADER.size
    for _ in range(count):
        if len(data) - position < _SECTION.size:
            return None
        name, size = _SECTION.unpack_from(data, position)
        position += _SECTION.size
        if size > len(data) - position:
            return None
        sections[name.rstrip(b"\0").decode("ascii", "replace")] = data[position : position + size]
        position += size
    return sections
