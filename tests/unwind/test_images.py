"""Stacks of code that no kernel tells of, word by word: interrupts amid it on x86, frames that lead nowhere."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from recording.model import Space, StackEnd
from unwind.arch.x86_64 import X86_64
from unwind.capture import Capture
from unwind.images import ImageCode, ImageWalk, unwind_image
from unwind.rules import Row, RowKind
from unwind.user import Region

CALL = b"\x90\x90\xe8\x00\x00\x00\x00"


class Rows:
    """Functions of 0x100 bytes, whose CFA is 8 above the stack pointer; the first is what all begins in."""

    def find_row(self, address: int) -> Row | None:
        return Row(RowKind.END) if address < 0x1100 else Row(RowKind.CALL, "rsp", 8, kept=("rbp",))

    def find_start(self, address: int) -> int | None:
        return address & -0x100


REGION = Region(0x1000, 0x2000, image=0, rows=Rows())
CODE = ImageCode(
    find_region=lambda address: REGION if 0x1000 <= address < 0x2000 else None,
    spaces={0: Space.KERNEL},
    abi=X86_64.user_abis[-1],
    byteorder="little",
    # Calls stand in front of addresses that end with 8.
    read=lambda address, size: (CALL if (address + size) % 16 == 8 else b"\xcc" * 7)[:size],
)


def walked(stack: list[int], registers: Mapping[str, int] | None = None, sp: int = 0x8000) -> ImageWalk:
    words = struct.pack(f"<{len(stack)}Q", *stack)
    given = {"rip": 0x1310, "rsp": sp, "rbp": 0, "cs": 8, **(registers or {})}
    return unwind_image(X86_64, Capture(0, given, ((sp, words),)), CODE)


def test_calls_up_to_the_first_function() -> None:
    walk = walked([0x1208, 0x1018])
    assert [(frame.pc, frame.lookup_pc, frame.image, frame.space) for frame in walk.callchain.frames] == [
        (0x1310, 0x1310, 0, Space.KERNEL),
        (0x1208, 0x1207, 0, Space.KERNEL),
        (0x1018, 0x1017, 0, Space.KERNEL),
    ]
    assert walk.callchain.end is StackEnd.TASK_ROOT
    assert not walk.is_in_exception


def test_an_interrupt_leads_to_what_it_interrupted() -> None:
    """The frame ends at a multiple of 16; the stack pointer that it holds goes on elsewhere."""
    frame = [0x1404, 8, 0x202, 0x8100, 0]
    stack = [0x1208, *frame]
    filler = [0] * ((0x8100 - 0x7FF0) // 8 - len(stack))
    walk = walked([*stack, *filler, 0x1018], sp=0x7FF0 - 8 + 8)
    assert [frame.lookup_pc for frame in walk.callchain.frames] == [0x1310, 0x1207, 0x1404, 0x1017]
    assert walk.callchain.end is StackEnd.TASK_ROOT
    assert walk.is_in_exception


def test_an_error_code_lies_below_the_frame() -> None:
    walk = walked([2, 0x1404, 0x23, 0x202, 0x8040, 0x1B, 0, 0, 0x1018], sp=0x8000)
    assert [frame.lookup_pc for frame in walk.callchain.frames] == [0x1310, 0x1404, 0x1017]


@pytest.mark.parametrize(
    "frame",
    [
        [0x1404, 0, 0x202, 0x8100, 0],  # no selector
        [0x1404, 8, 0x200, 0x8100, 0],  # a flag that is always set
        [0x1404, 0x10, 0x202, 0x8100, 0],  # another segment of the same ring
        [0x1404, 8, 0x202, 0x8100, 0x1B],  # a stack of another ring
        [0x9404, 8, 0x202, 0x8100, 0],  # no code
    ],
)
def test_what_is_no_frame_ends_the_stack(frame: list[int]) -> None:
    walk = walked([0x1208, *frame], sp=0x7FF0)
    assert [frame.lookup_pc for frame in walk.callchain.frames] == [0x1310, 0x1207]
    assert walk.callchain.end is StackEnd.BAD_RETURN_ADDRESS


def test_a_word_that_follows_no_call_is_no_caller() -> None:
    walk = walked([0x1200 + 4, 0, 0, 0, 0, 0])
    assert len(walk.callchain.frames) == 1
    assert walk.callchain.end is StackEnd.BAD_RETURN_ADDRESS


def test_a_stack_that_was_not_copied() -> None:
    assert walked([0x1208]).callchain.end is StackEnd.UNREADABLE_MEMORY
