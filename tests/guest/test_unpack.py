"""lzop's files as lzop itself writes them → what was packed; damaged ones are refused."""

from __future__ import annotations

import subprocess
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.unpack import LZOP, UNPACKERS
from recording.errors import BadImageError
from tests.builders.disks import need

UNPACK = dict(UNPACKERS)[LZOP]
# Three blocks, one of which cannot be made smaller.
DATA = bytes(range(256)) * 1024 + Random(7).randbytes(1 << 18) + b"the end" * 50


def lzop(*options: str) -> bytes:
    return subprocess.run([need("lzop", "lzop"), *options], input=DATA, check=True, capture_output=True).stdout


def unpack(packed: bytes) -> bytes:
    return b"".join(UNPACK(memoryview(packed)))


@pytest.mark.parametrize("options", [("-9",), ("-1",), ("-9", "--crc32"), ("-9", "-F"), ("-9", "-CC"), ("-9", "--crc32", "-CC")])
def test_what_lzop_packed(options: tuple[str, ...]) -> None:
    assert unpack(lzop(*options) + b"what a kernel has behind it") == DATA


def test_a_header_with_a_filter_and_a_name() -> None:
    # lzop writes no name for its standard input, and none of today's versions has a filter.
    packed = lzop("-9")
    flags = int.from_bytes(packed[17:21], "big") | 0x800
    named = packed[:17] + flags.to_bytes(4, "big") + bytes(4) + packed[21:33] + b"\x07vmlinux" + packed[34:]
    assert unpack(named) == DATA


@pytest.mark.parametrize("changed", [40, 60, 5000, 1 << 18], ids=str)
def test_a_changed_byte_is_noticed(changed: int) -> None:
    packed = bytearray(lzop("-9"))
    packed[changed] ^= 0x55
    with pytest.raises(BadImageError, match="lzo data is damaged"):
        unpack(bytes(packed))


@pytest.mark.parametrize("length", [9, 30, 50, 5000, -4])
def test_a_file_that_is_cut_short(length: int) -> None:
    with pytest.raises(BadImageError, match="lzo data is damaged"):
        unpack(lzop("-9")[:length])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_unpacked_or_refused(data: bytes) -> None:
    try:
        unpack(LZOP + data)
    except BadImageError as error:
        assert "copy the file again" in str(error)  # noqa: PT017  (either end is right)
