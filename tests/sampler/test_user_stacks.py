"""Which CPU a vCPU is, where the register that says so belongs to programs in user mode (i386)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from sampler.user_stacks import TaskPlanner
from tests.builders.file_memory import BytesMemory
from unwind.arch.i386 import I386

FIRST, SECOND = 0x18B2_4000, 0x18B4_5000
KERNEL = {"cs": 0x60, "fs_base": SECOND}
USER = {"cs": 0x73, "fs_base": 0, "cr0": 0x8005_0033}


def kernel(*offsets: int) -> Kernel:
    space = SimpleNamespace(tables=I386.paging.tables({"cr4": 0x20}), root=0)
    return cast("Kernel", SimpleNamespace(space=space, cpu_offsets=offsets))


@pytest.fixture
def planner() -> TaskPlanner:
    memory: PhysicalMemory = BytesMemory({0: bytes(0x1000)})
    made = TaskPlanner(I386, memory, can_peek=True, user_stack_size=0)
    made.set_kernel(kernel(FIRST, SECOND), None)
    return made


def test_it_stays_what_it_was_seen_to_be_in_the_kernel(planner: TaskPlanner) -> None:
    assert planner.offset_of(0, USER) is None
    assert planner.offset_of(0, KERNEL) == SECOND
    assert planner.offset_of(0, USER) == SECOND
    assert planner.offset_of(1, USER) is None
    assert planner.offset_of(0, {**KERNEL, "fs_base": FIRST}) == FIRST
    # The kernel was read anew; then its CPUs' variables are somewhere else.
    planner.set_kernel(kernel(FIRST, SECOND), None)
    assert planner.offset_of(0, USER) == FIRST
    planner.set_kernel(kernel(FIRST, 0x1000), None)
    assert planner.offset_of(0, USER) is None


def test_a_single_cpu_needs_no_telling(planner: TaskPlanner) -> None:
    planner.set_kernel(kernel(FIRST), None)
    assert planner.offset_of(0, USER) == FIRST
    planner.set_kernel(None, None)
    assert planner.offset_of(0, USER) is None
