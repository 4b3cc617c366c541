"""Halts and stack ends become the figures that say how far a recording can be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from recording.model import Halt, StackEnd, UserEnd

LATE_SHARE = 0.5
"""A halt is late when it was asked for later than this share of a period after its deadline."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares are of 1; what cannot be known (no samples, no requested rate) is None.

    requested_hz, achieved_hz: halts a second of host time, between the first and the last one.
    late: halts asked for later than half a period after their deadline.
    halted_share: of host time, in which the guest stood halted: by the halts, and by reads between them where each costs a halt.
    complete_share: of all samples in the kernel, with a proper end or in an entry window, where there is no stack.
    entry_share: of all samples in the kernel, in an entry window.
    user_complete_share: of all samples with a user part of the stack that was asked for, those in which it is whole.
    task_share: of all samples that are not in firmware, those whose task is known; None where none was looked for.
    no_tasks: why there can be no tasks, None where there can.
    ends: samples by the reason of their stack's end, in the order of ``StackEnd``.
    user_ends: samples with a user part by the reason of its end, in the order of ``UserEnd``.
    halts, halted_p50_ns, halted_p99_ns: number of halts and how long they were.
    """

    samples: int
    requested_hz: float | None
    achieved_hz: float | None
    late: int | None
    halted_share: float | None
    complete_share: float | None
    entry_share: float | None
    user_complete_share: float | None
    task_share: float | None
    ends: dict[StackEnd, int]
    user_ends: dict[UserEnd, int]
    halts: int
    halted_p50_ns: int | None
    halted_p99_ns: int | None
    no_tasks: str | None = None


@dataclass(slots=True)
class Tally:
    """Samples counted by how their stacks end and whether their task is known.

    has_tasks: whether tasks were looked for at all. no_tasks: why there can be none.
    """

    has_tasks: bool = False
    no_tasks: str | None = None
    ends: dict[StackEnd, int] = field(default_factory=dict)
    user_ends: dict[UserEnd, int] = field(default_factory=dict)
    with_task: int = 0

    def add(self, end: StackEnd, user_end: UserEnd | None, samples: int, *, has_task: bool) -> None:
        """Count samples."""
        self.ends[end] = self.ends.get(end, 0) + samples
        if user_end is not None:
            self.user_ends[user_end] = self.user_ends.get(user_end, 0) + samples
        if has_task:
            self.with_task += samples


def measure_quality(halts: Iterable[Halt], tally: Tally, requested_hz: object) -> Quality:
    """The quality of the samples in ``tally``, taken in ``halts`` (in time order).

    requested_hz: as the file's meta has it, so it may be anything.
    """
    rows, ends = list(halts), tally.ends
    hz = float(requested_hz) if isinstance(requested_hz, int | float) and requested_hz > 0 else None
    kernel = sum(count for end, count in ends.items() if end.is_kernel)
    proper = sum(count for end, count in ends.items() if end.is_proper)
    entry = ends.get(StackEnd.ENTRY_WINDOW, 0)
    of_user = sum(count for end, count in tally.user_ends.items() if end.is_stack)
    whole_user = sum(count for end, count in tally.user_ends.items() if end.is_proper)
    in_linux = sum(ends.values()) - ends.get(StackEnd.FIRMWARE, 0)
    lengths = sorted(halt.halted_ns for halt in rows)
    between_ns = rows[-1].host_time_ns - rows[0].host_time_ns if rows else 0
    whole_ns = between_ns + rows[-1].halted_ns if rows else 0
    running_ns = rows[-1].running_time_ns - rows[0].running_time_ns if rows else 0
    return Quality(
        samples=sum(ends.values()),
        requested_hz=hz,
        achieved_hz=(len(rows) - 1) * 1e9 / between_ns if between_ns > 0 else None,
        late=None if hz is None else sum(halt.lateness_ns > LATE_SHARE * 1e9 / hz for halt in rows),
        halted_share=(whole_ns - running_ns) / whole_ns if whole_ns > 0 else None,
        complete_share=(proper + entry) / kernel if kernel else None,
        entry_share=entry / kernel if kernel else None,
        user_complete_share=whole_user / of_user if of_user else None,
        task_share=min(1.0, tally.with_task / in_linux) if tally.has_tasks and not tally.no_tasks and in_linux else None,
        ends={end: ends[end] for end in StackEnd if ends.get(end)},
        user_ends={end: tally.user_ends[end] for end in UserEnd if tally.user_ends.get(end)},
        halts=len(rows),
        halted_p50_ns=_percentile(lengths, 50),
        halted_p99_ns=_percentile(lengths, 99),
        no_tasks=tally.no_tasks,
    )


def _percentile(ascending: list[int], percent: int) -> int | None:
    """The smallest value that at least ``percent`` of all values do not exceed (nearest rank)."""
    return ascending[-(-len(ascending) * percent // 100) - 1] if ascending else None
