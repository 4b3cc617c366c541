"""Compressed bytes → their contents, for what kernels and their files come in: the compressions of lib/decompress.c.

zstd, lz4 and lzo are packages of their own.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from recording.errors import BadImageError, MissingDependencyError

_PIECE = 1 << 20
_MAX_UNPACKED = 1 << 31
_LZ4_BLOCK = 1 << 23
_LZO_BLOCK = 1 << 18
_LZOP_VERSION = 0x940
_LZOP_FILTER = 0x800
_LZOP_ADLER_UNPACKED, _LZOP_ADLER_PACKED, _LZOP_CRC_UNPACKED, _LZOP_CRC_PACKED = 1, 2, 0x100, 0x200


def make_zstd() -> Any:  # noqa: ANN401  (two modules of one interface)
    """A decompressor of one zstd frame. Raises MissingDependencyError."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name).ZstdDecompressor()
        except ImportError:
            continue
    raise MissingDependencyError("reading zstd needs the package backports.zstd; install it with: pip install 'guestprof[storage]'")


def unpack_zstd(packed: memoryview) -> Iterator[bytes]:
    """The contents of zstd frames up to their end, in pieces. Raises BadImageError where they are damaged."""
    return _unpack_stream(packed, make_zstd)


def unpack_lz4_block(block: bytes) -> bytes:
    """One block of the legacy lz4 frame. Raises MissingDependencyError, and what the library raises for damaged ones."""
    try:
        module = import_module("lz4.block")
    except ImportError as error:
        raise MissingDependencyError("reading lz4 needs the package lz4; install it with: pip install lz4") from error
    data: bytes = module.decompress(block, uncompressed_size=_LZ4_BLOCK)
    return data


def _unpack_stream(packed: memoryview, make: Callable[[], Any]) -> Iterator[bytes]:
    """A decompressor of the standard library's kind (``eof``). What follows the first stream is left: a kernel has other
    things there.
    """
    machine = make()
    total = 0
    try:
        for start in range(0, len(packed), _PIECE):
            piece = machine.decompress(bytes(packed[start : start + _PIECE]))
            total += len(piece)
            if total > _MAX_UNPACKED:
                raise BadImageError(f"compressed data has more than {_MAX_UNPACKED} bytes; this is no kernel")
            yield piece
            if machine.eof:
                return
    except (BadImageError, MissingDependencyError):
        raise
    except Exception as error:  # each library has an error of its own: zlib.error, LZMAError, OSError, ZstdError
        raise BadImageError(f"compressed data is damaged ({error}); copy the file again") from error
    raise BadImageError("compressed data is cut short; copy the file again")


def _unpack_lz4(packed: memoryview) -> Iterator[bytes]:
    """The legacy frame that ``lz4 -l`` and the kernel's build use: a magic word, then blocks with their length before them."""
    at = 4
    while at + 4 <= len(packed):
        size = int.from_bytes(packed[at : at + 4], "little")
        at += 4
        if not 0 < size <= _LZ4_BLOCK or at + size > len(packed):
            # The kernel's build appends the length of what is unpacked.
            return
        try:
            yield unpack_lz4_block(bytes(packed[at : at + size]))
        except MissingDependencyError:
            raise
        except Exception as error:
            raise BadImageError(f"lz4 data is damaged ({error}); copy the file again") from error
        at += size


def unpack_lzop(take: Callable[[int], bytes]) -> Iterator[bytes]:
    """A file of lzop's, which packs kernels and initrds with lzo (scripts/Makefile.lib): a header with a name, then blocks of at
    most 256 KiB with both lengths and their checksums before them (lib/decompress_unlzo.c).

    take: the next bytes, fewer at the end. Raises MissingDependencyError, and ValueError where they are damaged.
    """
    try:
        module = import_module("lzallright")
    except ImportError as error:
        raise MissingDependencyError("reading lzo needs the package lzallright; install it with: pip install lzallright") from error

    def words(form: str) -> tuple[int, ...]:
        data = take(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise ValueError("it is cut short")
        return struct.unpack(form, data)

    _, version, _, _, _, _, flags = words(">9sHHHBBI")
    if version < _LZOP_VERSION:
        raise ValueError(f"version {version:#x} of lzop")
    *_, name_size = words(">IIIIB" if flags & _LZOP_FILTER else ">IIIB")
    words(f">{name_size}sI")
    while size := words(">I")[0]:
        (packed_size,) = words(">I")
        if not 0 < packed_size <= size <= _LZO_BLOCK:
            raise ValueError(f"a block of {packed_size} bytes for {size}")
        sums = [words(">I")[0] for flag in (_LZOP_ADLER_UNPACKED, _LZOP_CRC_UNPACKED) if flags & flag]
        if packed_size < size:
            _ = [words(">I") for flag in (_LZOP_ADLER_PACKED, _LZOP_CRC_PACKED) if flags & flag]
        data = take(packed_size)
        if packed_size < size:
            try:
                data = module.LZOCompressor.decompress(data, size)
            except module.LZOError as error:
                raise ValueError(str(error)) from error
        if len(data) != size or (sums and sums[0] != (zlib.adler32 if flags & _LZOP_ADLER_UNPACKED else zlib.crc32)(data)):
            raise ValueError("a block's checksum or length is another")
        yield data


def _unpack_lzo(packed: memoryview) -> Iterator[bytes]:
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(packed[at - size : at])

    try:
        yield from unpack_lzop(take)
    except ValueError as error:
        raise BadImageError(f"lzo data is damaged ({error}); copy the file again") from error


LZ4 = b"\x02\x21\x4c\x18"
LZOP = b"\x89LZO\0\r\n\x1a\n"
UNPACKERS: tuple[tuple[bytes, Callable[[memoryview], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b\x08", lambda data: _unpack_stream(data, lambda: zlib.decompressobj(31))),
    (b"BZh", lambda data: _unpack_stream(data, bz2.BZ2Decompressor)),
    (b"\xfd7zXZ\0", lambda data: _unpack_stream(data, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 29))),
    (b"\x5d\0\0", lambda data: _unpack_stream(data, lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=1 << 29))),
    (b"\x28\xb5\x2f\xfd", unpack_zstd),
    (LZ4, _unpack_lz4),
    (LZOP, _unpack_lzo),
)
"""What compressed data begins with, and what unpacks it."""
