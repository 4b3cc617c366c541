"""Samples and milestones become the phases of a boot: each reaches from a milestone that begins one to the next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from recording.milestones import Milestone
from recording.model import Context
from recording.names import Function
from recording.profile import Profile, Sighting, Stack
from recording.waits import Parked, Wait, WaitFinder

GAP = "gap"
"""The kind of events that tell of a long time without a sample, and why."""
_TOP = 10
_MILESTONE_BEFORE = "start"


@dataclass(frozen=True, slots=True)
class Phase:
    """What was sampled from one milestone to the next.

    name, title: of the milestone that begins it; ``start`` where none does. start_ns, end_ns: guest running time.
    samples, weight_ns: of all vCPUs that are started. idle_ns, user_ns, firmware_ns: parts of it; the rest is the kernel's work.
    top: the functions that took most by themselves, idle left out, with what they took.
    """

    name: str
    title: str
    start_ns: int
    end_ns: int
    samples: int
    weight_ns: int
    idle_ns: int
    user_ns: int
    firmware_ns: int
    top: tuple[tuple[Function, int], ...]

    @property
    def duration_ns(self) -> int:
        """Guest running time from its begin to its end."""
        return self.end_ns - self.start_ns

    @property
    def kernel_ns(self) -> int:
        """What is neither idle, nor user code, nor firmware."""
        return self.weight_ns - self.idle_ns - self.user_ns - self.firmware_ns


@dataclass(frozen=True, slots=True)
class VcpuIdle:
    """How long one vCPU was idle, in how many spans."""

    vcpu: int
    idle_ns: int
    longest_ns: int
    spans: int
    weight_ns: int


@dataclass(frozen=True, slots=True)
class Course:
    """What one look at all samples in time order tells.

    start_ns, end_ns: of the first sample's time and the last halt. intervals_ns: between two halts, ascending.
    """

    start_ns: int
    end_ns: int
    phases: tuple[Phase, ...]
    waits: tuple[Wait, ...]
    vcpus: tuple[VcpuIdle, ...]
    interval_p50_ns: int
    interval_max_ns: int


@dataclass(slots=True)
class _Sums:
    """Of a phase while it is read."""

    samples: int = 0
    weight_ns: int = 0
    idle_ns: int = 0
    user_ns: int = 0
    firmware_ns: int = 0
    stacks: dict[Stack, int] = field(default_factory=dict)

    def add(self, sample: Sighting) -> None:
        stack, context, weight_ns = sample.walk.stack, sample.origin.context, sample.weight_ns
        self.samples += 1
        self.weight_ns += weight_ns
        if stack.idle:
            self.idle_ns += weight_ns
            return
        if context is Context.USER:
            self.user_ns += weight_ns
        elif context is Context.FIRMWARE:
            self.firmware_ns += weight_ns
        self.stacks[stack] = self.stacks.get(stack, 0) + weight_ns

    def phase(self, name: str, title: str, start_ns: int, end_ns: int) -> Phase:
        own: dict[Function, int] = {}
        for stack, weight_ns in self.stacks.items():
            leaf = stack.functions[-1]
            own[leaf] = own.get(leaf, 0) + weight_ns
        top = sorted(own.items(), key=lambda item: (-item[1], item[0].name, item[0].module))[:_TOP]
        sums = self.samples, self.weight_ns, self.idle_ns, self.user_ns, self.firmware_ns
        return Phase(name, title, start_ns, end_ns, *sums, tuple(top))


@dataclass(slots=True)
class _Idle:
    """Spans of one vCPU."""

    idle_ns: int = 0
    longest_ns: int = 0
    spans: int = 0
    weight_ns: int = 0
    now_ns: int = 0

    def add(self, weight_ns: int, *, idle: bool) -> None:
        self.weight_ns += weight_ns
        if not idle:
            self.now_ns = 0
            return
        self.spans += not self.now_ns
        self.now_ns += weight_ns
        self.idle_ns += weight_ns
        self.longest_ns = max(self.longest_ns, self.now_ns)


def course_of(profile: Profile, milestones: Sequence[Milestone]) -> Course:
    """Phases and waits of the selected samples. ``milestones``: in time order, of the whole recording."""
    begins = [milestone for milestone in milestones if milestone.begins_phase]
    times = [milestone.time_ns for milestone in begins]
    sums: dict[int, _Sums] = {}
    idle: dict[int, _Idle] = {}
    waits, parked = WaitFinder(), Parked()
    halts: list[int] = []
    first_ns: int | None = None
    for halt in _by_halt(profile.sightings()):
        now_ns = halt[0].time_ns
        if first_ns is None:
            first_ns = now_ns - max(sample.weight_ns for sample in halt)
        halts.append(now_ns)
        of_phase = sums.setdefault(bisect_right(times, now_ns) - 1, _Sums())
        started = [sample for sample in halt if not parked.is_parked(sample)]
        for sample in started:
            of_phase.add(sample)
            idle.setdefault(sample.vcpu, _Idle()).add(sample.weight_ns, idle=sample.walk.stack.idle)
        if started:
            waits.see(started)
    start_ns, end_ns = first_ns or 0, halts[-1] if halts else 0
    intervals = sorted(after - before for before, after in pairwise(halts))
    return Course(
        start_ns,
        end_ns,
        tuple(_phases(begins, sums, start_ns, end_ns, first=bisect_left(times, halts[0]) if halts else 0)),
        tuple(waits.finish()),
        tuple(VcpuIdle(vcpu, sum_.idle_ns, sum_.longest_ns, sum_.spans, sum_.weight_ns) for vcpu, sum_ in sorted(idle.items())),
        intervals[len(intervals) // 2] if intervals else 0,
        intervals[-1] if intervals else 0,
    )


def _phases(begins: Sequence[Milestone], sums: dict[int, _Sums], start_ns: int, end_ns: int, *, first: int) -> Iterator[Phase]:
    """From the first that has samples, or begins at the first halt (``first``), to the last; some may have no samples."""
    if not sums:
        return
    first = min(first, *sums)
    for index in range(first, max(sums) + 1):
        begin = begins[index] if index >= 0 else None
        low = start_ns if begin is None or index == first else begin.time_ns
        high = begins[index + 1].time_ns if index < max(sums) else end_ns
        name, title = (_MILESTONE_BEFORE, "") if begin is None else (begin.name, begin.title)
        yield sums.get(index, _Sums()).phase(name, title, low, high)


def _by_halt(sightings: Iterable[Sighting]) -> Iterator[list[Sighting]]:
    """Samples of one halt together: in a halt a vCPU is sampled once."""
    halt: list[Sighting] = []
    for sample in sightings:
        if halt and (sample.time_ns != halt[-1].time_ns or sample.vcpu <= halt[-1].vcpu):
            yield halt
            halt = []
        halt.append(sample)
    if halt:
        yield halt
