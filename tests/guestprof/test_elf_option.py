"""What --elf takes: a file, where it is, which page table and what kind of code."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from guest.elf.images import ImageRequest
from guestprof.elf_option import ImageType
from recording.model import FrameKind


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("kernel.elf", ImageRequest(Path("kernel.elf"))),
        ("kernel.elf@0x200000", ImageRequest(Path("kernel.elf"), 0x20_0000)),
        ("kernel.elf@4096", ImageRequest(Path("kernel.elf"), 4096)),
        ("kernel.elf@-0xffffffff80000000", ImageRequest(Path("kernel.elf"), -0xFFFF_FFFF_8000_0000)),
        ("dir@home/kernel,v2.elf", ImageRequest(Path("dir@home/kernel,v2.elf"))),
        ("app@0x1000,root=0x5000", ImageRequest(Path("app"), 0x1000, 0x5000, FrameKind.USER)),
        ("app,root=0x5000,kind=kernel", ImageRequest(Path("app"), 0, 0x5000, FrameKind.KERNEL)),
        ("fw_jump.elf,kind=firmware", ImageRequest(Path("fw_jump.elf"), 0, None, FrameKind.FIRMWARE)),
    ],
)
def test_places(text: str, request_: ImageRequest) -> None:
    assert ImageType().convert(text, None, None) == request_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a file is missing"),
        ("app,root=here", "no address where one belongs"),
        ("app,kind=module", "'module' is no kind of code; write kernel, user, firmware"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        ImageType().convert(text, None, None)
