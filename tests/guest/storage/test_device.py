"""Blocks are kept, limits hold, what a library asks for is bounded."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.storage.device import BLOCK_SIZE, BlockCache, CachedDevice, DeviceStream, FileDevice, SliceDevice
from recording.errors import StorageError


class Memory:
    """A device that notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return self.data[offset : offset + size]


DATA = bytes(range(256)) * 1024 + b"tail"


def test_a_block_is_read_once_and_neighbours_in_one_request() -> None:
    below = Memory(DATA)
    device = CachedDevice(below, BlockCache())
    assert device.read(10, 4) == b"\x0a\x0b\x0c\x0d"
    assert device.read(20, 2) == b"\x14\x15"
    assert below.reads == [(0, BLOCK_SIZE)]
    assert device.read(0, len(DATA)) == DATA
    assert below.reads[1:] == [(BLOCK_SIZE, len(DATA) - BLOCK_SIZE)]
    device.refresh()
    assert device.read(len(DATA) - 4, 4) == b"tail"
    assert below.reads[2:] == [(4 * BLOCK_SIZE, 4)]


def test_the_cache_keeps_its_limit() -> None:
    cache = BlockCache(2 * BLOCK_SIZE)
    one, two = Memory(DATA), Memory(DATA)
    devices = [CachedDevice(one, cache), CachedDevice(two, cache)]
    devices[0].read(0, 1)
    devices[1].read(0, 1)
    devices[0].read(0, 1)
    devices[1].read(BLOCK_SIZE, 1)
    devices[0].read(0, 1)
    assert one.reads == [(0, BLOCK_SIZE)]
    devices[1].read(0, 1)
    assert len(two.reads) == 3


@given(st.integers(-10, len(DATA) + 10), st.integers(-10, len(DATA) + 10))
def test_any_read_is_right_or_refused(offset: int, size: int) -> None:
    device = CachedDevice(Memory(DATA), BlockCache(BLOCK_SIZE))
    if offset >= 0 and size >= 0 and offset + size <= len(DATA):
        assert device.read(offset, size) == DATA[offset : offset + size]
    else:
        with pytest.raises(StorageError, match="refused to read"):
            device.read(offset, size)


def test_a_slice_is_cut_at_the_end_of_its_device() -> None:
    part = SliceDevice(Memory(DATA), 256, 1 << 40)
    assert (part.size, part.read(0, 2)) == (len(DATA) - 256, b"\x00\x01")
    with pytest.raises(StorageError):
        part.read(part.size - 1, 2)
    assert SliceDevice(Memory(DATA), 1 << 40, 5).size == 0


def test_a_stream_reads_like_a_file() -> None:
    stream = DeviceStream(Memory(DATA))
    assert stream.seek(-4, io.SEEK_END) == len(DATA) - 4
    assert stream.read() == b"tail"
    assert stream.read(5) == b""
    assert stream.seek(1 << 50) == 1 << 50
    assert stream.read(5) == b""
    with pytest.raises(StorageError, match="before the beginning"):
        stream.seek(-1)
    stream.seek(2)
    buffer = bytearray(3)
    assert (stream.readinto(buffer), bytes(buffer), stream.tell()) == (3, b"\x02\x03\x04", 5)


def test_a_stream_refuses_what_no_file_system_needs(tmp_path: Path) -> None:
    image = tmp_path / "sparse"
    with image.open("wb") as file:
        file.truncate(1 << 40)
    device = FileDevice(image)
    stream = DeviceStream(device)
    with pytest.raises(StorageError, match="refused to read 1099511627776 bytes"):
        stream.read()
    assert stream.read(1 << 20) == bytes(1 << 20)
    device.close()
    device.close()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*/gone: No such file"):
        FileDevice(tmp_path / "gone")
    with pytest.raises(StorageError, match="cannot be read at 0x0: "):
        FileDevice(tmp_path).read(0, 1)
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(StorageError, match="ends before 0x5"):
        FileDevice(tmp_path / "short").read(0, 6)
