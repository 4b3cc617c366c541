"""A capture becomes a sample: what counts as a user stack and what does not."""

from __future__ import annotations

from typing import Any, cast

import pytest

from guest.kernel import Kernel
from recording.model import Callchain, Frame, Space, StackEnd, Task, UserEnd
from recording.symbols import SymbolTable
from sampler.samples import Pending, SampleMaker
from sampler.userspace import ProcessCode, UserSpaces
from unwind.arch.x86_64 import X86_64
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.outside import Unwound
from unwind.user import UserWalk

LOADER, OTHER, LOADER_32, AFTER = 0xFFFF_FFFF_8110_0000, 0xFFFF_FFFF_8110_1000, 0xFFFF_FFFF_8110_2000, 0xFFFF_FFFF_8110_3000
SYMBOLS = SymbolTable.from_symbols(
    [(LOADER, "t", "load_elf_binary"), (OTHER, "t", "elf_core_dump"), (LOADER_32, "t", "load_elf_binary"), (AFTER, "t", "after")]
)
SAVED = {"rip": 0x40_1000, "rsp": 0x7FFF_0000_0000, "orig_rax": 59, "cs": 0x33}


class FakeKernel:
    symbols = SYMBOLS
    space = structs = None
    stack_size = 0x4000


class FakeSpaces:
    """Whose walks of user stacks come to nothing."""

    def unwind(self, *_arguments: object, **_options: object) -> UserWalk:
        return UserWalk((Frame(0x40_1000, 0x40_1000, Space.USER),), UserEnd.NOT_MAPPED)


class FakeUnwinder:
    def __init__(self, pc: int) -> None:
        self._frames = (Frame(pc + 0x10, pc + 0xF),)

    def unwind(self, _capture: Capture) -> Unwound:
        return Unwound(Callchain(self._frames, StackEnd.USER_ENTRY), SAVED)


@pytest.mark.parametrize(
    ("function", "end", "user_frames"),
    [(LOADER, UserEnd.NO_MEMORY, 0), (LOADER_32, UserEnd.NO_MEMORY, 0), (OTHER, UserEnd.NOT_MAPPED, 1)],
    ids=["execve", "execve of a 32-bit program", "anything else"],
)
def test_a_process_that_execve_gives_new_memory_has_lost_no_stack(function: int, end: UserEnd, user_frames: int) -> None:
    maker = SampleMaker(X86_64, cast("UserSpaces", FakeSpaces()), lambda _address: None)
    maker.set_kernel(cast("Kernel", FakeKernel()), cast("KernelUnwinder", FakeUnwinder(function)))
    task = Task(7, 7, "ut-32", "ut-32", is_kernel_thread=False)
    capture = Capture(0, cast("Any", {}), ())
    pending = Pending(0, 0, 1, 0, 0, capture, task, cast("ProcessCode", object()))
    chain = maker.make(pending).sample.callchain
    assert chain.user_end is end
    assert sum(frame.space is Space.USER for frame in chain.frames) == user_frames
