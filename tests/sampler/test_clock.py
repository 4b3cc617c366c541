"""The guest's clocks in a halt: out of memory that may be read at once, or through the stub; few run queues at a time."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guest.found_types import FoundTypes
from guest.kernel import Kernel
from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.timekeeper import Timekeeper, find_timekeeper
from guest.words import Words
from recording.model import ClockReading
from recording.symbols import SymbolTable
from sampler.clock import ClockPlanner
from sampler.halt import HaltedState, Read
from tests.builders.file_memory import BytesMemory
from tests.guest.test_timekeeper import CORE, SIZE, Data
from unwind.arch import PageTables
from unwind.arch.arm64 import ARM64
from unwind.arch.x86_64 import X86_64

QUEUES = 0x5_0000
CPU_SIZE = 0x1000


def kernel_with(cpus: int) -> tuple[Kernel, Timekeeper, BytesMemory]:
    """A kernel whose run queues show 1, 2, ... seconds."""
    data = Data(X86_64, 8)
    data.timekeeper(CORE, 8)
    for cpu in range(cpus):
        struct.pack_into("<Q", data.bytes, QUEUES + cpu * CPU_SIZE + 0x10, (cpu + 1) * 10**9)
    memory = BytesMemory({0: bytes(data.bytes)})
    tables = PageTables(12, (10, 10), (2,), 1, (0x80, 0x80), 0xFFFF_F000, 4, "little", linear=((data.low, data.low + SIZE, 0),))
    space = AddressSpace(memory, tables, 0)
    keeper = run_steps(find_timekeeper(space, SymbolTable.from_symbols([]), (data.low, data.low + SIZE), None, X86_64))
    facts = SimpleNamespace(
        space=space,
        symbols=SymbolTable.from_symbols([(0x8000, "A", "runqueues")]),
        structs=Structs(FoundTypes({"rq": {"clock": (0x10, 8)}}), Words.of(X86_64)),
        cpu_offsets=tuple(data.low + QUEUES - 0x8000 + cpu * CPU_SIZE for cpu in range(cpus)),
    )
    assert keeper is not None
    return cast("Kernel", facts), keeper, memory


def state_of(reads: dict[Read, bytes | None]) -> HaltedState:
    return HaltedState((0,), cast("Any", ({},)), reads, 0, 0, 1)


def test_out_of_memory() -> None:
    kernel, keeper, memory = kernel_with(2)
    planner = ClockPlanner(X86_64, memory, can_peek=True)
    assert planner.begin() == ()
    planner.peek()
    assert planner.reading(state_of({}), 0, 0) is None
    planner.set_kernel(kernel)
    planner.set_timekeeper(keeper)
    assert planner.begin() == ()
    planner.peek()
    assert planner.reading(state_of({}), 7, 1) == ClockReading(7, 1, 7_250_000_000, 2_000_000_000)
    planner.set_kernel(None)
    planner.begin()
    planner.peek()
    assert planner.reading(state_of({}), 8, 1) is None


def test_of_many_cpus_some_in_each_halt() -> None:
    kernel, keeper, memory = kernel_with(10)
    planner = ClockPlanner(X86_64, memory, can_peek=True)
    planner.set_kernel(kernel)
    planner.set_timekeeper(keeper)
    found = []
    for halt in range(5):
        planner.begin()
        planner.peek()
        reading = planner.reading(state_of({}), halt, 0)
        assert reading is not None
        found.append((reading.printk_ns or 0) // 10**9)
    assert found == [4, 8, 10, 6, 10]


@pytest.mark.parametrize(("architecture", "physical"), [(X86_64, X86_64.hides_kernel), (ARM64, ARM64.hides_kernel)])
def test_through_the_stub(architecture: Any, physical: bool) -> None:
    kernel, keeper, memory = kernel_with(1)
    planner = ClockPlanner(architecture, memory, can_peek=False)
    planner.set_kernel(kernel)
    planner.set_timekeeper(keeper)
    reads = planner.begin()
    assert [read.size for read in reads] == [64, 8]
    assert all((read.physical is not None) is physical for read in reads)
    planner.peek()
    low = kernel.space.tables.linear[0][0]
    answers: dict[Read, bytes | None] = {read: memory.read(read.address - low, read.size) for read in reads}
    assert all(map(planner.has_asked, reads))
    assert planner.reading(state_of(answers), 0, 0) == ClockReading(0, 0, 7_250_000_000, 1_000_000_000)
    # Kernel memory cannot be read by a vCPU in user mode, or the timekeeper is being changed.
    assert planner.reading(state_of(dict.fromkeys(reads)), 0, 0) is None
    changed: dict[Read, bytes | None] = {**answers, reads[0]: b"\x09" + (answers[reads[0]] or b"")[1:]}
    assert planner.reading(state_of(changed), 0, 0) == ClockReading(0, 0, None, 1_000_000_000)


def test_a_kernel_that_has_no_clock_yet() -> None:
    kernel, keeper, memory = kernel_with(1)
    planner = ClockPlanner(X86_64, memory, can_peek=False)
    planner.set_kernel(kernel)
    assert planner.begin() == []
    assert planner.reading(state_of({}), 0, 0) is None
    # Of the kernel before.
    planner.set_timekeeper(keeper)
    assert len(planner.begin()) == 2
    planner.set_kernel(None)
    planner.set_kernel(kernel)
    assert planner.begin() == []


def test_a_run_queue_that_no_scheduler_runs() -> None:
    kernel, keeper, memory = kernel_with(0)
    planner = ClockPlanner(X86_64, memory, can_peek=True)
    planner.set_kernel(kernel)
    planner.set_timekeeper(keeper)
    planner.begin()
    planner.peek()
    assert planner.reading(state_of({}), 0, 0) == ClockReading(0, 0, 7_250_000_000, None)
