"""The running task of a CPU, and what is told of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.tasks import TaskReader, TaskWords
from recording.errors import BadImageError
from recording.model import Task
from tests.builders.kernel_structs import COMMON, HEAP, HEAP_PHYSICAL, HEAP_SIZE, MAPLE, TASK, Heap, Layout
from unwind.arch import CpuAreas, RunningTask
from unwind.arch.arm64 import ARM64
from unwind.arch.riscv64 import RISCV64
from unwind.arch.x86_64 import X86_64

STACK_SIZE = 0x4000
CPU = 0x100
"""Offset of the CPU's variables: the symbols say where they would be without it."""
CURRENT, QUEUE = HEAP + 0x3_0000 - CPU, HEAP + 0x3_0100 - CPU
LAYOUTS: Mapping[str, tuple[int, Layout]] = {
    **MAPLE,
    **TASK,
    "rq": (64, {"curr": (32, 8)}),
}


class Cpu:
    """A shell's thread runs; the scheduler has chosen it too."""

    def __init__(self) -> None:
        self.heap = Heap(LAYOUTS, [(CURRENT, "D", "current_task"), (QUEUE - 32, "D", "runqueues")])
        self.process = self.task(b"bash", 40)
        self.thread = self.task(b"worker\0junk", 41, 40, self.process, stack=HEAP + 0x8000)
        self.run(self.thread, self.thread)

    def task(self, comm: bytes, pid: int, tgid: int = 0, leader: int = 0, flags: int = 0, stack: int = HEAP + 0x4000) -> int:
        address = self.heap.take(512)
        return self.heap.put(
            "task_struct",
            address,
            flags=flags,
            stack=stack,
            mm=HEAP + 0x2_0000,
            pid=pid,
            tgid=tgid or pid,
            group_leader=leader or address,
            comm=comm.ljust(16, b"\0"),
        )

    def run(self, current: int, scheduled: int) -> None:
        self.heap.write(CURRENT + CPU, struct.pack("<Q", current))
        self.heap.write(QUEUE + CPU, struct.pack("<Q", scheduled))

    def reader(self) -> TaskReader:
        return TaskReader(self.heap.space, self.heap.symbols, self.heap.structs, X86_64)

    def read(self, address: int, size: int) -> bytes | None:
        return self.heap.space.read_many([(address, size)])[0]

    def running(self, stack: tuple[int, int] | None = None) -> TaskWords:
        words = self.reader().find_running(self.read, {}, CPU, stack)
        assert words is not None
        return words


def test_a_thread_has_its_own_name_and_that_of_its_process() -> None:
    cpu = Cpu()
    assert cpu.reader().describe(cpu.running(), 0) == Task(41, 40, "worker", "bash", is_kernel_thread=False)


def test_kernel_threads_and_idle_tasks_have_no_user_part() -> None:
    cpu = Cpu()
    cpu.run(cpu.task(b"kworker/0:1", 7, flags=0x20_0000), 0)
    assert cpu.reader().describe(cpu.running(), 0).is_kernel_thread
    cpu.run(cpu.task(b"swapper/0", 0), 0)
    assert cpu.reader().describe(cpu.running(), 0) == Task(0, 0, "swapper/0", "swapper/0", is_kernel_thread=True)


def test_amid_a_switch_the_stack_decides_whose_moment_it_is() -> None:
    cpu = Cpu()
    other = cpu.task(b"next", 50, stack=HEAP + 0xC000)
    cpu.run(cpu.thread, other)
    assert cpu.running((HEAP + 0x8000 + 0x3F00, STACK_SIZE)).pid == 41
    assert cpu.running((HEAP + 0xC000 + 0x3F00, STACK_SIZE)).pid == 50
    # An interrupt stack is nobody's: the pointer to the running task is right there.
    assert cpu.running((HEAP + 0x3_8000, STACK_SIZE)).pid == 41
    assert cpu.running(None).pid == 41


def test_a_register_that_points_to_the_task_comes_before_the_variable() -> None:
    cpu = Cpu()
    cpu.heap = Heap(LAYOUTS, [(CURRENT, "D", "__entry_task"), (QUEUE - 32, "D", "runqueues")])
    process = cpu.task(b"bash", 40)
    other = cpu.task(b"other", 50)
    cpu.run(other, other)
    reader = TaskReader(cpu.heap.space, cpu.heap.symbols, cpu.heap.structs, ARM64)

    def pid(**registers: int) -> int:
        words = reader.find_running(cpu.read, registers, CPU, None)
        return -1 if words is None else words.pid

    assert process >= 0xFFFF_0000_0000_0000
    assert pid(cpsr=0x5, SP_EL0=process) == 40
    assert pid(cpsr=0x0, SP_EL0=process) == 50
    assert pid(cpsr=0x5, SP_EL0=0xFFFF_F000_1230) == 50
    assert pid(cpsr=0x5) == 50


def test_where_no_register_tells_the_cpu_the_task_does() -> None:
    """riscv64: ``thread_info.cpu`` chooses the CPU's variables, which tell whose the stack is amid a switch."""
    size, members = TASK["task_struct"]
    layouts = {
        **LAYOUTS,
        "task_struct": (size, {**members, "thread_info": (0, "thread_info")}),
        "thread_info": (16, {"cpu": (8, 4)}),
    }
    cpu = Cpu()
    table = HEAP + 0x3_0200
    cpu.heap = Heap(layouts, [(QUEUE - 32, "D", "runqueues"), (table, "D", "__per_cpu_offset")])
    process = cpu.task(b"bash", 40)
    cpu.heap.write(process + 8, struct.pack("<I", 3))
    cpu.heap.write(table, struct.pack("<4Q", 0x9000, 0x9000, 0x9000, CPU))
    cpu.run(0, cpu.task(b"next", 50, stack=HEAP + 0xC000))
    reader = TaskReader(cpu.heap.space, cpu.heap.symbols, cpu.heap.structs, RISCV64)

    def pid(stack: int | None, **registers: int) -> int:
        words = reader.find_running(cpu.read, registers, None, None if stack is None else (stack, STACK_SIZE))
        return -1 if words is None else words.pid

    assert pid(HEAP + 0x4000, tp=process) == 40
    assert pid(None, sscratch=process, tp=0x3F_F000_0000) == 40
    assert pid(HEAP + 0xC100, tp=process) == 50
    assert pid(HEAP + 0x3_8000, tp=process) == 40
    assert pid(None, tp=0x3F_F000_0000) == -1
    cpu.heap.write(process + 8, struct.pack("<I", 1 << 31))
    assert pid(HEAP + 0xC100, tp=process) == 40


def test_a_name_that_is_no_utf_8_is_told_with_escapes() -> None:
    cpu = Cpu()
    cpu.run(cpu.task(b"\xff\xfe;\x1b[31m", 60), 0)
    assert cpu.reader().describe(cpu.running(), 0).comm == "\\xff\\xfe;\x1b[31m"


def test_a_process_whose_leader_is_gone_keeps_its_name_for_a_while() -> None:
    cpu = Cpu()
    reader = cpu.reader()
    words = cpu.running()
    assert reader.describe(words, 0).process == "bash"
    cpu.heap.put("task_struct", cpu.process, pid=99, tgid=99, comm=b"stranger".ljust(16, b"\0"))
    assert reader.describe(words, 2_000_000_000).process == "bash"
    assert cpu.reader().describe(words, 0).process == "worker"


def test_what_a_kernels_types_lack_is_named() -> None:
    heap = Heap({**COMMON, "mm_struct": MAPLE["mm_struct"]}, [(CURRENT, "D", "current_task")])
    with pytest.raises(BadImageError, match="task_struct"):
        TaskReader(heap.space, heap.symbols, heap.structs, X86_64)
    heap = Heap(LAYOUTS)
    with pytest.raises(BadImageError, match="current_task"):
        TaskReader(heap.space, heap.symbols, heap.structs, X86_64)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, HEAP_SIZE // 8 - 1), st.one_of(st.integers(0, 2**64 - 1), st.integers(HEAP, HEAP + HEAP_SIZE)))
    ),
    st.one_of(st.none(), st.tuples(st.integers(0, 2**64 - 1), st.just(STACK_SIZE))),
)
def test_damaged_tasks_never_raise(changes: list[tuple[int, int]], stack: tuple[int, int] | None) -> None:
    cpu = Cpu()
    for place, value in changes:
        cpu.heap.memory.write(HEAP_PHYSICAL + 8 * place, struct.pack("<Q", value))
    reader = cpu.reader()
    words = reader.find_running(cpu.read, {}, CPU, stack)
    if words is not None:
        task = reader.describe(words, 0)
        assert len(task.comm) <= 64
        assert len(task.process) <= 64


@pytest.mark.parametrize("at", [0x348, None])
def test_the_task_in_an_area_of_the_cpus_own(at: int | None) -> None:
    """s390x: the lowcore has it, which an array of pointers leads to; where in it is known also without the kernel's types."""
    architecture = replace(
        X86_64,
        cpu_areas=CpuAreas("lowcore_ptr", "lowcore", members={"current_task": 0x340}),
        running_task=RunningTask(lambda _registers: None, ("lowcore.current_task", "current_task"), lambda _registers: None, ""),
    )
    cpu = Cpu()
    area = HEAP + 0x3_0400
    layouts = LAYOUTS if at is None else {**LAYOUTS, "lowcore": (0x400, {"current_task": (at, 8)})}
    cpu.heap = Heap(layouts, [(QUEUE - 32, "D", "runqueues")])
    cpu.heap.write(area + (at or 0x340), struct.pack("<Q", cpu.task(b"bash", 40)))
    cpu.run(0, cpu.task(b"next", 50, stack=HEAP + 0xC000))
    reader = TaskReader(cpu.heap.space, cpu.heap.symbols, cpu.heap.structs, architecture, {CPU: area})

    def pid(offset: int, stack: int) -> int:
        words = reader.find_running(cpu.read, {}, offset, (stack, STACK_SIZE))
        return -1 if words is None else words.pid

    assert pid(CPU, HEAP + 0x4000) == 40
    assert pid(CPU, HEAP + 0xC000) == 50
    assert pid(CPU + 0x1000, HEAP + 0x4000) == -1
