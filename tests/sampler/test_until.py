"""Where a recording ends: functions of files of the user's, by a breakpoint or by what samples show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from guest.elf.images import GuestImages, ImageRequest, load_image
from recording.errors import UnsupportedTargetError
from recording.model import Callchain, Frame, FrameKind, Space, StackEnd
from recording.symbols import SymbolTable
from sampler.until import Until
from tests.builders.tiny_elf import elf
from unwind.arch.x86_64 import X86_64

SYMBOLS = SymbolTable.from_symbols([(0x1000, "T", "_start"), (0x1040, "T", "work"), (0x1080, "T", "rest")])


class Breakpoints:
    def __init__(self) -> None:
        self.addresses: list[int] = []

    def set_breakpoint(self, address: int) -> None:
        self.addresses.append(address)


def images(directory: Path, *requests: tuple[int, int | None], kind: FrameKind = FrameKind.KERNEL) -> GuestImages:
    path = directory / "guest.elf"
    path.write_bytes(elf())
    loaded = [load_image(ImageRequest(path, bias, root, kind), X86_64) for bias, root in requests]
    return GuestImages(X86_64, [replace(image, symbols=SYMBOLS) for image in loaded])


def chain(pc: int, image: int | None) -> Callchain:
    return Callchain((Frame(pc, pc, Space.KERNEL, image=image),), StackEnd.TASK_ROOT)


def test_a_function_of_one_file_gets_a_breakpoint_where_the_guest_has_it(tmp_path: Path) -> None:
    target = Breakpoints()
    until = Until("work", target)
    until.look_in_files(images(tmp_path, (0x20_0000, None)))
    assert until.is_known
    assert target.addresses == [0x20_1040]
    assert until.is_reached(chain(0x1041, 0))
    assert not until.is_reached(chain(0x1001, 0))
    assert not until.is_reached(chain(0x1041, 1))
    assert not until.is_reached(chain(0x1041, None))
    assert until.missed() is None


@pytest.mark.parametrize("requests", [((0, None), (0x20_0000, None)), ((0, 0x2000),)])
def test_else_what_samples_show(tmp_path: Path, requests: tuple[tuple[int, int | None], ...]) -> None:
    target = Breakpoints()
    until = Until("work", target)
    until.look_in_files(images(tmp_path, *requests))
    assert until.is_known
    assert target.addresses == []
    assert until.is_reached(chain(0x1041, len(requests) - 1))


def test_a_function_that_no_file_has(tmp_path: Path) -> None:
    until = Until("play", Breakpoints())
    with pytest.raises(UnsupportedTargetError, match="no file of --elf has a function play; check the name"):
        until.look_in_files(images(tmp_path, (0, None)))


def test_firmware_may_lead_to_a_kernel_that_has_it(tmp_path: Path) -> None:
    until = Until("play", Breakpoints())
    until.look_in_files(images(tmp_path, (0, None), kind=FrameKind.FIRMWARE))
    assert not until.is_known
    assert "no file of --elf has a function play, and no Linux kernel was found" in str(until.missed())


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    until = Until(None, Breakpoints())
    until.look_in_files(images(tmp_path, (0, None)))
    assert not until.is_known
    assert until.missed() is None
    assert not until.is_reached(chain(0x1041, 0))
