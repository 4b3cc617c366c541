"""Block devices: something with a size that can be read at an offset → cached, cut into partitions, seen as a binary stream.

Contents are hostile: a read is bounded whatever length a damaged file system asks for.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from recording.errors import StorageError

BLOCK_SIZE = 1 << 16
CACHE_SIZE = 1 << 26
MAX_READ = 1 << 26
"""More than any file system driver needs at once; a longer read means that a length on the disk is wrong."""
_MAX_REQUEST = 1 << 20


class BlockDevice(Protocol):
    """A disk, an image of one, or a part of one. Sizes and offsets are bytes."""

    @property
    def size(self) -> int:
        """How long it is."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError where they cannot be read."""
        ...


class FileDevice:
    """A raw image file, or a block device of the host."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError that names the file and the remedy."""
        self.path = path
        try:
            # Not blocking: a path that leads to a FIFO must not hold us up.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError as error:
            raise StorageError(f"no permission to read {path}; run guestprof as a user who may read it, or as root") from error
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error

    @property
    def size(self) -> int:
        """How long it is now: an image grows as the guest writes."""
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise StorageError(f"{self.path} is neither a file nor a block device") from error

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError."""
        pieces = []
        while size:
            try:
                piece = os.pread(self._descriptor, min(size, _MAX_REQUEST), offset)
            except (OSError, OverflowError) as error:
                raise StorageError(f"{self.path} cannot be read at {offset:#x}: {error}") from error
            if not piece:
                raise StorageError(f"{self.path} ends before {offset:#x}")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class BlockCache:
    """The least recently used blocks of several devices, within one limit."""

    def __init__(self, limit: int = CACHE_SIZE) -> None:
        self._room = max(limit // BLOCK_SIZE, 1)
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def find(self, device: int, block: int) -> bytes | None:
        """A block's bytes, if they are here."""
        data = self._blocks.get((device, block))
        if data is not None:
            self._blocks.move_to_end((device, block))
        return data

    def put(self, device: int, block: int, data: bytes) -> None:
        """Keep a block; the one that was longest out of use goes."""
        self._blocks[device, block] = data
        while len(self._blocks) > self._room:
            self._blocks.popitem(last=False)

    def drop(self, device: int) -> None:
        """Forget a device: the guest has written to it."""
        for key in [key for key in self._blocks if key[0] == device]:
            del self._blocks[key]


class CachedDevice:
    """A device whose blocks are kept: drivers read a few bytes here and there, and the same ones again."""

    def __init__(self, device: BlockDevice, cache: BlockCache) -> None:
        self._device = device
        self._cache = cache
        self.size = device.size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError."""
        _check(offset, size, self.size)
        if not size:
            return b""
        first, last = offset // BLOCK_SIZE, (offset + size - 1) // BLOCK_SIZE
        pieces: list[bytes] = []
        block = first
        while block <= last:
            data = self._cache.find(id(self), block)
            if data is None:
                pieces += self._fetch(block, last)
                block = first + len(pieces)
            else:
                pieces.append(data)
                block += 1
        return b"".join(pieces)[offset - first * BLOCK_SIZE :][:size]

    def _fetch(self, first: int, last: int) -> list[bytes]:
        """Blocks from ``first`` to the next one that is known, in one request."""
        count = 1
        most = min(last - first + 1, _MAX_REQUEST // BLOCK_SIZE)
        while count < most and self._cache.find(id(self), first + count) is None:
            count += 1
        begin = first * BLOCK_SIZE
        data = self._device.read(begin, min(count * BLOCK_SIZE, self.size - begin))
        blocks = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
        for number, piece in enumerate(blocks, first):
            self._cache.put(id(self), number, piece)
        return blocks

    def refresh(self) -> None:
        """Forget what was read: the guest may have written since."""
        self._cache.drop(id(self))


class SliceDevice:
    """A part of a device: a partition."""

    def __init__(self, device: BlockDevice, offset: int, size: int) -> None:
        """What lies behind the device's end is cut off."""
        self._device = device
        self._offset = max(offset, 0)
        self.size = max(min(size, device.size - self._offset), 0)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError."""
        _check(offset, size, self.size)
        return self._device.read(self._offset + offset, size)


class StreamDevice:
    """A device made of what a library calls a file."""

    def __init__(self, stream: io.RawIOBase, size: int) -> None:
        self._stream = stream
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError, whatever the library raises."""
        _check(offset, size, self.size)
        try:
            self._stream.seek(offset)
            data = self._stream.read(size) or b""
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"cannot be read at {offset:#x} ({type(error).__name__}: {error})") from error
        if len(data) != size:
            raise StorageError(f"holds {len(data)} bytes at {offset:#x} where {size} should be")
        return data


class DeviceStream(io.RawIOBase):
    """A device as the file that a library reads. Reads behind the end are short, as a file's are."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__()
        self._device = device
        self._position = 0

    @property
    def size(self) -> int:
        """The libraries ask for it."""
        return self._device.size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """The new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._device.size}[whence]
        if base + offset < 0:
            raise StorageError(f"a read before the beginning of a disk ({base + offset})")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes, all that are left for -1. Raises StorageError."""
        left = max(self._device.size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MAX_READ:
            raise StorageError(f"refused to read {wanted} bytes at {self._position:#x}: no file system needs that much at once")
        data = self._device.read(self._position, wanted)
        self._position += wanted
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _check(offset: int, size: int, end: int) -> None:
    if offset < 0 or not 0 <= size <= MAX_READ or offset + size > end:
        raise StorageError(f"refused to read {size} bytes at {offset:#x} of a disk of {end} bytes")
