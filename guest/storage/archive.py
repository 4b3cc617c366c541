"""An initrd → the programs and libraries in it: concatenated cpio archives (newc), each compressed or not.

Documentation/driver-api/early-userspace/buffer-format.rst is the format; the compressions are those of lib/decompress.c.
Only what can be mapped as code is kept: ELF files that are no kernel modules.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guest.storage.files import BytesContents
from guest.unpack import LZ4, LZOP, make_zstd, unpack_lz4_block, unpack_lzop
from recording.errors import MissingDependencyError, StorageError

_CHUNK = 1 << 18
_MAX_NAME = 4096
_MAX_MEMBER = 1 << 28
_MAX_UNPACKED = 1 << 31
_MAX_KEPT = 1 << 28
_MAX_MEMBERS = 1 << 20
_HEADER = 110
_NEWC = (b"070701", b"070702")
_MODULES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def read_archive(path: Path) -> dict[str, BytesContents]:
    """The ELF files of an initrd by their path (no slash before it); of two with one path the later counts, as in the kernel.

    Raises StorageError where the file cannot be read or is no initrd, MissingDependencyError where a decompressor is missing.
    """
    try:
        with path.open("rb") as file:
            archive = _Archive(_Source(iter(lambda: file.read(_CHUNK), b"")))
            archive.read()
            return archive.files
    except OSError as error:
        raise StorageError(f"cannot read the initrd {path}: {error.strerror}") from error
    except StorageError as error:
        raise StorageError(f"the initrd {path} is damaged, or of an unknown format: {error}") from error


class _Source:
    """Bytes in pieces → bytes of any length, with a look ahead."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""
        self._start = 0
        self.position = 0

    def peek(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        length = len(self._buffer) - self._start
        if length < size:
            parts = [self._buffer[self._start :]]
            while length < size and (piece := next(self._pieces, b"")):
                parts.append(piece)
                length += len(piece)
            self._buffer, self._start = b"".join(parts), 0
        return self._buffer[self._start : self._start + size]

    def take(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        data = self.peek(size)
        self._start += len(data)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Leave bytes out."""
        while size > 0 and (data := self.take(min(size, _CHUNK))):
            size -= len(data)

    def rest(self) -> bytes:
        """What is at hand without reading more, at least something unless it is the end; it is taken."""
        self.peek(1)
        return self.take(len(self._buffer) - self._start)

    def put_back(self, data: bytes) -> None:
        """The opposite of ``take``."""
        self._buffer, self._start = data + self._buffer[self._start :], 0
        self.position -= len(data)


class _Archive:
    """What was found so far, within the limits."""

    def __init__(self, source: _Source) -> None:
        self.files: dict[str, BytesContents] = {}
        self._source = source
        self._unpacked = self._kept = self._members = 0
        self._links: dict[bytes, list[str]] = {}

    def read(self) -> None:
        """The whole file: archives, padding, compressed archives."""
        self._parts(self._source, nested=False)

    def _parts(self, source: _Source, *, nested: bool) -> None:
        found = False
        while head := source.peek(len(LZOP)):
            if head[:1] == b"\0":
                source.skip(1 if head.strip(b"\0") else len(head))
            elif head.startswith(_NEWC):
                self._links.clear()
                found = True
                while self._member(source):
                    pass
            elif not nested and (unpack := _find_unpacker(head)) is not None:
                found = True
                self._parts(_Source(self._bounded(unpack(source))), nested=True)
            elif found:
                # What a boot loader or a builder left behind the archive.
                return
            else:
                raise StorageError(f"it begins with {head.hex()}")

    def _bounded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._unpacked += len(piece)
            if self._unpacked > _MAX_UNPACKED:
                raise StorageError(f"it unpacks to more than {_MAX_UNPACKED} bytes")
            yield piece

    def _member(self, source: _Source) -> bool:
        """Read one member; False after an archive's last."""
        start = source.position
        header = source.take(_HEADER)
        if len(header) < _HEADER or header[:6] not in _NEWC:
            raise StorageError(f"no header of a file at {start:#x}")
        try:
            number, mode, links, size, name_size = (int(header[at : at + 8], 16) for at in (6, 14, 38, 54, 94))
        except ValueError as error:
            raise StorageError(f"a damaged header of a file at {start:#x}") from error
        self._members += 1
        if not 0 < name_size <= _MAX_NAME or not 0 <= size <= _MAX_MEMBER or self._members > _MAX_MEMBERS:
            raise StorageError(f"a file of {size} bytes with a name of {name_size} at {start:#x}")
        name = source.take(name_size).rstrip(b"\0").decode("utf-8", "surrogateescape")
        source.skip(-(source.position - start) % 4)
        if name == "TRAILER!!!":
            return False
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
        names = [name]
        if links > 1:
            # Only the last name of a file with several carries its bytes.
            names = self._links.setdefault(b"%x" % number + header[62:78], [])
            names.append(name)
        is_code = mode & 0xF000 == 0x8000 and size > 4 and source.peek(4) == b"\x7fELF" and not name.endswith(_MODULES)
        if is_code:
            self._keep(names, source.take(size), size)
        else:
            source.skip(size)
        source.skip(-size % 4)
        return True

    def _keep(self, names: list[str], data: bytes, size: int) -> None:
        self._kept += len(data)
        if len(data) != size:
            raise StorageError("it ends in the middle of a file")
        if self._kept > _MAX_KEPT:
            raise StorageError(f"it holds more than {_MAX_KEPT} bytes of programs")
        for name in names:
            self.files[name] = BytesContents(data)


def _stream(make: Callable[[], Any]) -> Callable[[_Source], Iterator[bytes]]:
    """A decompressor of the standard library's kind (``eof``, ``unused_data``) as a function of a source."""

    def unpack(source: _Source) -> Iterator[bytes]:
        machine = make()
        try:
            while not machine.eof and (data := source.rest()):
                # Nothing may come of a piece; to a source that would be the end.
                if unpacked := machine.decompress(data):
                    yield unpacked
        except Exception as error:
            # Each library has an error of its own: zlib.error, LZMAError, OSError, ZstdError.
            raise StorageError(f"its compressed part is damaged ({error})") from error
        source.put_back(machine.unused_data)

    return unpack


def _unpack_lz4(source: _Source) -> Iterator[bytes]:
    """The legacy frame that ``lz4 -l`` and the kernel use: a magic word, then blocks with their length before them."""
    source.take(4)
    while len(head := source.take(4)) == 4:
        size = int.from_bytes(head, "little")
        if size == int.from_bytes(LZ4, "little"):
            continue
        if not 0 < size <= 1 << 23:
            # Zeros or another archive behind it.
            source.put_back(head)
            return
        try:
            yield unpack_lz4_block(source.take(size))
        except MissingDependencyError:
            raise
        except Exception as error:
            raise StorageError(f"its lz4 part is damaged ({error})") from error


def _unpack_lzo(source: _Source) -> Iterator[bytes]:
    try:
        yield from unpack_lzop(source.take)
    except ValueError as error:
        raise StorageError(f"its lzo part is damaged ({error})") from error


_UNPACKERS: tuple[tuple[bytes, Callable[[_Source], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", _stream(lambda: zlib.decompressobj(31))),
    (b"BZh", _stream(bz2.BZ2Decompressor)),
    (b"\xfd7zXZ\0", _stream(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 29))),
    (b"\x5d\0\0", _stream(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=1 << 29))),
    (b"\x28\xb5\x2f\xfd", _stream(make_zstd)),
    (LZ4, _unpack_lz4),
    (LZOP, _unpack_lzo),
)


def _find_unpacker(head: bytes) -> Callable[[_Source], Iterator[bytes]] | None:
    return next((unpack for magic, unpack in _UNPACKERS if head.startswith(magic)), None)
