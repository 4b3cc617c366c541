"""A recording and a selection become named, counted stacks, and each vCPU's time line.

Samples are counted by callchain inside SQLite first and named afterwards, so that a million samples take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from recording.errors import BadRecordingError
from recording.idle import is_idle
from recording.model import Callchain, Frame, FrameKind, Space, StackEnd
from recording.names import Function, Namer
from recording.quality import Quality, measure_quality
from recording.reader import Recording, Selection


@dataclass(frozen=True, slots=True)
class Stack:
    """A distinct stack with names, root first, and why it ends.

    indexes: the place of each function in ``Profile.functions``, for those who count many.
    """

    functions: tuple[Function, ...]
    indexes: tuple[int, ...]
    end: StackEnd
    idle: bool


@dataclass(frozen=True, slots=True)
class Count:
    """How often a stack was seen on a vCPU, and the guest running time it stands for."""

    stack: Stack
    vcpu: int
    samples: int
    weight_ns: int


@dataclass(frozen=True, slots=True)
class Moment:
    """One sample on a vCPU's time line. ``stack`` is None where the vCPU was not sampled or the sample is not selected.

    start_ns: guest running time since the first moment of all vCPUs.
    """

    stack: Stack | None
    start_ns: int
    duration_ns: int


class Profile:
    """The selected samples of a recording, named. The recording must stay open while ``timelines`` is read."""

    def __init__(self, recording: Recording, selection: Selection | None = None) -> None:
        """Raises BadRecordingError where the recording is damaged."""
        self.selection = Selection() if selection is None else selection
        self.meta: dict[str, Any] = recording.meta
        self._recording = recording
        self._callchains = recording.callchains()
        self._namer = Namer(recording.images())
        self._frame_indexes: dict[tuple[int, int, int, Space], int] = {}
        self._function_indexes: dict[Function, int] = {}
        self._stacks: dict[tuple[int, int], Stack] = {}
        self._interned: dict[tuple[str, tuple[int, ...]], Stack] = {}
        self.functions: list[Function] = []
        """Every function that was named so far."""
        counts = (
            Count(self._stack(row.callchain, row.boot), row.vcpu, row.samples, row.weight_ns)
            for row in recording.stack_totals(self.selection)
        )
        self.counts = [count for count in counts if self._is_selected(count.stack)]
        """By vCPU, boot and callchain: one stack may have several counts."""
        self.samples = sum(count.samples for count in self.counts)
        self.weight_ns = sum(count.weight_ns for count in self.counts)
        self.vcpus = sorted({count.vcpu for count in self.counts})

    def quality(self) -> Quality:
        """How far the recording can be trusted, of the selected samples."""
        ends: dict[StackEnd, int] = {}
        for count in self.counts:
            ends[count.stack.end] = ends.get(count.stack.end, 0) + count.samples
        return measure_quality(self._recording.halts(self.selection), ends, self.meta.get("requested_hz"))

    def timelines(self) -> Iterator[tuple[int, Iterator[Moment]]]:
        """Each vCPU with its moments in time order, which follow each other without holes. Read one before the next."""
        rows = list(self._recording.timeline(self.selection))
        origin_ns = min((time_ns - weight_ns for _, time_ns, weight_ns, *_ in rows), default=0)
        for vcpu, of_vcpu in groupby(rows, key=lambda row: row[0]):
            yield vcpu, self._moments(of_vcpu, origin_ns)

    def _moments(self, rows: Iterable[tuple[int, ...]], origin_ns: int) -> Iterator[Moment]:
        """A sample stands for the time up to its halt; what no sample stands for is a moment without a stack."""
        now_ns = origin_ns
        for _, time_ns, weight_ns, callchain, boot, *_ in rows:
            if (gap_ns := time_ns - weight_ns - now_ns) > 0:
                yield Moment(None, now_ns - origin_ns, gap_ns)
                now_ns += gap_ns
            stack = self._stack(callchain, boot)
            yield Moment(stack if self._is_selected(stack) else None, now_ns - origin_ns, weight_ns)
            now_ns += weight_ns

    def _is_selected(self, stack: Stack) -> bool:
        return self.selection.idle or not stack.idle

    def _stack(self, callchain: int, boot: int) -> Stack:
        """Callchains that read the same once they are named are one stack."""
        key = (callchain, boot)
        known = self._stacks.get(key)
        if known is None:
            found = self._callchains.get(callchain)
            if found is None:
                raise BadRecordingError(f"{self._recording.path} is damaged (no callchain {callchain}); record again")
            known = self._stacks[key] = self._named(found, boot)
        return known

    def _named(self, callchain: Callchain, boot: int) -> Stack:
        indexes = tuple([self._frame_index(frame, boot) for frame in reversed(callchain.frames)])
        if not indexes:
            # A walk that kept no frame still was a sample: it is shown by the reason of its end.
            indexes = (self._function_index(Function(f"[{callchain.end.value}]", "[unknown]", FrameKind.UNKNOWN)),)
        key = (callchain.end.value, indexes)
        known = self._interned.get(key)
        if known is None:
            functions = tuple([self.functions[index] for index in indexes])
            known = self._interned[key] = Stack(functions, indexes, callchain.end, is_idle(functions))
        return known

    def _frame_index(self, frame: Frame, boot: int) -> int:
        key = (frame.pc, frame.lookup_pc, boot, frame.space)
        known = self._frame_indexes.get(key)
        if known is None:
            known = self._frame_indexes[key] = self._function_index(self._namer.name(frame, boot).function)
        return known

    def _function_index(self, function: Function) -> int:
        known = self._function_indexes.setdefault(function, len(self.functions))
        if known == len(self.functions):
            self.functions.append(function)
        return known
