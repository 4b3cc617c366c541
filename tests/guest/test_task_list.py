"""Whose stack it was, told later: only of tasks that no other can have had it before."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.task_list import read_first_tasks
from guest.tasks import TaskReader
from tests.builders.kernel_structs import HEAP, HEAP_PHYSICAL, HEAP_SIZE, MAPLE, TASK, Heap, Layout
from unwind.arch.x86_64 import X86_64

LAYOUTS: Mapping[str, tuple[int, Layout]] = {
    **MAPLE,
    **TASK,
}
INIT_TASK = HEAP + 0x3_8000
CPUS = (0x100, 0x200)
IDLE_THREADS = HEAP + 0x3_0000


def stack_of(number: int) -> int:
    return 0xFFFF_C900_0000_0000 + 0x8000 * number


class Tasks:
    """``init_task``, the idle task of a second CPU, and processes in the order in which they are started."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        symbols = [(INIT_TASK, "D", "init_task"), (IDLE_THREADS, "D", "idle_threads"), (HEAP + 0x3_4000, "D", "current_task")]
        self.heap = Heap(LAYOUTS, symbols)
        self.first = self.task(0, 100, INIT_TASK)
        self.other_idle = self.task(0, 101, self.heap.take(512))
        self.heap.write(IDLE_THREADS + CPUS[0], struct.pack("<Q", self.first))
        self.heap.write(IDLE_THREADS + CPUS[1], struct.pack("<Q", self.other_idle))
        self.tasks = [self.task(pid, pid, self.heap.take(512)) for pid in pids]
        self.link([self.first, *self.tasks])

    def task(self, pid: int, stack: int, address: int) -> int:
        comm = f"task-{pid}".encode().ljust(16, b"\0")
        return self.heap.put("task_struct", address, pid=pid, tgid=pid, stack=stack_of(stack), comm=comm, group_leader=address)

    def link(self, ring: list[int]) -> None:
        for task, following in zip(ring, [*ring[1:], ring[0]], strict=True):
            self.heap.put("task_struct", task, tasks__next=following + 40)

    def read(self, cpus: tuple[int, ...] = CPUS) -> dict[int, int]:
        """Stacks, and the pids that they are told to belong to."""
        heap = self.heap
        tasks = TaskReader(heap.space, heap.symbols, heap.structs, X86_64)
        found = read_first_tasks(heap.space, heap.symbols, heap.structs, tasks, cpus)
        return {stack: words.pid for stack, words in found.items()}


def test_tasks_before_the_first_that_has_ended_are_told_by_their_stack() -> None:
    assert Tasks((1, 2, 3, 5, 6)).read() == {stack_of(100): 0, stack_of(101): 0, stack_of(1): 1, stack_of(2): 2, stack_of(3): 3}


def test_the_list_need_not_be_in_order() -> None:
    assert Tasks((1, 3, 2, 9)).read((CPUS[0],)) == {stack_of(100): 0, stack_of(1): 1, stack_of(2): 2, stack_of(3): 3}


def test_before_there_is_a_second_task_the_first_runs_alone() -> None:
    assert Tasks(()).read(()) == {stack_of(100): 0}


def test_pid_1_may_have_ended_and_then_nothing_can_be_told_but_idle_tasks() -> None:
    assert Tasks((2, 3)).read() == {stack_of(100): 0, stack_of(101): 0}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, HEAP_SIZE // 8 - 1), st.integers(0, 63).map(lambda word: (INIT_TASK - HEAP) // 8 + word)),
            st.one_of(st.integers(0, 2**64 - 1), st.integers(HEAP, HEAP + HEAP_SIZE)),
        )
    )
)
def test_damaged_lists_end(changes: list[tuple[int, int]]) -> None:
    guest = Tasks((1, 2, 3, 5))
    for place, value in changes:
        guest.heap.memory.write(HEAP_PHYSICAL + 8 * place, struct.pack("<Q", value))
    assert len(guest.read()) <= 4096 + len(CPUS) + 1
