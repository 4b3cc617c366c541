"""Compressed bytes → their contents, for what kernels and their files come in: one way of reading each compression of lib/decompress.c.

Each unpacker is one of the standard library's kind (``decompress``, ``eof``, ``unused_data``); zstd and lz4 are packages of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from recording.errors import BadImageError, MissingDependencyError

_PIECE = 1 << 20


def make_zstd() -> Any:  # noqa: ANN401  (two modules of one interface)
    """A decompressor of one zstd frame. Raises MissingDependencyError."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name).ZstdDecompressor()
        except ImportError:
            continue
    raise MissingDependencyError("reading zstd needs the package backports.zstd; install it with: pip install 'guestprof[storage]'")


def unpack_zstd(packed: memoryview) -> Iterator[bytes]:
    """The contents of all zstd frames, in pieces. Raises BadImageError where they are damaged."""
    machine = make_zstd()
    for start in range(0, len(packed), _PIECE):
        data = bytes(packed[start : start + _PIECE])
        try:
            while data:
                yield machine.decompress(data)
                data = machine.unused_data if machine.eof else b""
                if data:
                    machine = make_zstd()
        except MissingDependencyError:
            raise
        except Exception as error:  # each library has an error of its own
            raise BadImageError(f"zstd data cannot be unpacked ({error}); copy the file again") from error
