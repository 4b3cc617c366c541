"""Halts in time order become the spans in which every vCPU waited, and what ended them.

A wait is a run of halts in which every vCPU that was started was in the idle loop; what runs in the first halt after it ended it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recording.idle import IDLE_FUNCTIONS
from recording.model import Context, FrameKind, StackEnd
from recording.names import Function
from recording.profile import Origin, Sighting, Stack

_CALLERS = frozenset(
    {
        # What calls the handler of an interrupt, a timer, a soft interrupt, a work item, a kernel thread or an initcall.
        "__handle_irq_event_percpu",
        "__run_hrtimer",
        "__hrtimer_run_queues",
        "call_timer_fn",
        "__do_softirq",
        "handle_softirqs",
        "process_one_work",
        "kthread",
        "do_one_initcall",
    }
)
_WORKER = re.compile(r"kworker/.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Waker:
    """What ran when a wait ended.

    name: of the thread; all kworkers are one. running: the handler, work or initcall that it ran, None where none is known by name.
    """

    name: str
    context: Context
    system_call: str | None
    running: str | None


@dataclass(frozen=True, slots=True)
class Wait:
    """All vCPUs were idle. start_ns, end_ns: the last halt before and the last one within; the true ends lie up to a halt later.

    least_ns: from the first halt within to the last one: so long nothing ran for certain, as far as halts can tell.
    ended_by, vcpu, stack: what ran in the first halt after it and where, None where the recording ended idle.
    """

    start_ns: int
    end_ns: int
    least_ns: int
    ended_by: Waker | None
    vcpu: int | None
    stack: Stack | None

    @property
    def duration_ns(self) -> int:
        """How long nothing ran."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class WaitTotal:
    """All waits that one kind of thing ended, and the stack that most often did."""

    ended_by: Waker
    total_ns: int
    longest_ns: int
    waits: int
    stack: Stack
    stack_waits: int


class Parked:
    """Tells which vCPUs nobody has started yet: they stand in firmware while another one runs the kernel."""

    def __init__(self) -> None:
        self._boots: set[int] = set()
        self._started: set[tuple[int, int]] = set()

    def is_parked(self, sample: Sighting) -> bool:
        """Of a sample that comes after all that were asked about before."""
        boot, key = sample.walk.boot, (sample.walk.boot, sample.vcpu)
        if sample.walk.stack.end is not StackEnd.FIRMWARE:
            self._boots.add(boot)
            self._started.add(key)
            return False
        return boot in self._boots and key not in self._started


class WaitFinder:
    """Takes halts in time order (``see``), then gives the waits (``finish``)."""

    def __init__(self) -> None:
        self._waits: list[Wait] = []
        self._start_ns: int | None = None
        self._seen_ns = self._end_ns = 0
        self._previous_ns: int | None = None

    def see(self, halt: Sequence[Sighting]) -> None:
        """The samples of one halt, of vCPUs that are started; there is at least one."""
        now_ns = halt[0].time_ns
        busy = [sample for sample in halt if not sample.walk.stack.idle]
        if busy:
            if self._start_ns is not None:
                self._end(max(busy, key=lambda sample: (sample.origin.task is not None, -sample.vcpu)))
        else:
            if self._start_ns is None:
                before_ns = now_ns - max(sample.weight_ns for sample in halt)
                self._start_ns = before_ns if self._previous_ns is None else self._previous_ns
                self._seen_ns = now_ns
            self._end_ns = now_ns
        self._previous_ns = now_ns

    def _end(self, by: Sighting | None) -> None:
        if self._start_ns is not None:
            what = (None, None, None) if by is None else (waker_of(by.walk.stack, by.origin), by.vcpu, by.walk.stack)
            self._waits.append(Wait(self._start_ns, self._end_ns, self._end_ns - self._seen_ns, *what))
        self._start_ns = None

    def finish(self) -> list[Wait]:
        """All of them; the recording may end idle."""
        self._end(None)
        return self._waits


def waker_of(stack: Stack, origin: Origin) -> Waker:
    """What runs in a sample."""
    name = origin.process.root_name if origin.task is None or origin.task.pid == 0 else origin.task.comm
    call = origin.system_call
    called = None if call is None else call.label
    return Waker(_WORKER.sub("kworker", name), origin.context, called, _running(stack.functions))


def _running(functions: Sequence[Function]) -> str | None:
    """The innermost handler, work or the like of a stack, root first."""
    for index in range(len(functions) - 2, -1, -1):
        function = functions[index]
        if function.kind is FrameKind.KERNEL and function.name in _CALLERS and functions[index + 1].name not in IDLE_FUNCTIONS:
            return functions[index + 1].name
    return None


def wait_totals(waits: Iterable[Wait]) -> list[WaitTotal]:
    """Waits by what ended them, those that took longest altogether first, without one that the recording's end cut off."""
    groups: dict[Waker, list[Wait]] = {}
    for wait in waits:
        if wait.ended_by is not None:
            groups.setdefault(wait.ended_by, []).append(wait)
    totals = []
    for waker, group in groups.items():
        stacks: dict[Stack, int] = {}
        for wait in group:
            if wait.stack is not None:
                stacks[wait.stack] = stacks.get(wait.stack, 0) + 1
        stack, count = max(stacks.items(), key=lambda item: item[1])
        durations = [wait.duration_ns for wait in group]
        totals.append(WaitTotal(waker, sum(durations), max(durations), len(group), stack, count))
    return sorted(totals, key=lambda total: (-total.total_ns, total.ended_by.name, total.ended_by.context.value))
