"""Comparisons → counts → the rows of the printed table, and what the results file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks._truth import Reach, Truth
from benchmarks._verdict import Comparison, Verdict
from recording.model import Callchain, StackEnd

FINISHED = (Reach.END, Reach.HELPED)
"""gdb got to the end."""


@dataclass(slots=True)
class Tally:
    """What was counted on one kernel. modules: [start, end) of their code.

    stacks: of vCPUs in kernel mode. found: (how far gdb came, verdict) → stacks. differences: (verdict, function) → stacks.
    """

    release: str
    modules: tuple[tuple[int, int], ...] = ()
    halts: int = 0
    states: int = 0
    stacks: int = 0
    frames: int = 0
    found: Counter[tuple[Reach, Verdict]] = field(default_factory=Counter)
    differences: Counter[tuple[Verdict, str]] = field(default_factory=Counter)
    lost_in: Counter[str] = field(default_factory=Counter)
    ends: Counter[StackEnd] = field(default_factory=Counter)
    in_modules: Counter[Verdict] = field(default_factory=Counter)
    module_frames: int = 0

    def add(self, chain: Callchain, truth: Truth, comparison: Comparison) -> None:
        """Count one stack."""
        verdict = comparison.verdict
        self.stacks += 1
        self.found[truth.reach, verdict] += 1
        self.ends[chain.end] += 1
        of_modules = sum(any(start <= frame.lookup_pc < end for start, end in self.modules) for frame in chain.frames)
        if of_modules and truth.reach in FINISHED:
            self.in_modules[verdict] += 1
            self.module_frames += of_modules if verdict is Verdict.EQUAL else 0
        if truth.reach is Reach.LOST:
            self.lost_in[truth.where] += 1
        elif verdict is Verdict.EQUAL:
            self.frames += len(truth.frames)
        elif verdict is not Verdict.NOT_COMPARED:
            self.differences[verdict, comparison.function] += 1

    def of(self, reaches: Sequence[Reach], verdict: Verdict | None = None) -> int:
        """Stacks in which gdb came so far, with one verdict or with any."""
        return sum(count for (r, v), count in self.found.items() if r in reaches and verdict in (None, v))


def table(tally: Tally) -> list[tuple[str, str]]:
    """The rows of the printed table."""
    rows = [
        ("random halts", str(tally.halts)),
        ("vCPU states, of them in kernel mode", f"{tally.states}, {tally.stacks}"),
        ("in entry code: no stack to compare", str(tally.of([Reach.ENTRY_CODE]))),
        ("gdb does not get to the end", str(tally.of([Reach.LOST]))),
        ("gdb gets to the end by itself", str(tally.of([Reach.END]))),
        ("  of them equal", _share(tally, [Reach.END])),
        ("gdb gets to the end, helped over interrupts", str(tally.of([Reach.HELPED]))),
        ("  of them equal", _share(tally, [Reach.HELPED])),
        ("equal in both", _share(tally, FINISHED)),
        ("frames in equal stacks", str(tally.frames)),
        ("through modules, of them equal", f"{tally.in_modules.total()}, {tally.in_modules[Verdict.EQUAL]}"),
        ("frames of modules in equal stacks", str(tally.module_frames)),
    ]
    differences = sorted(tally.differences.items(), key=lambda item: (-item[1], item[0]))
    return rows + [(f"  {verdict} ({function})", str(count)) for (verdict, function), count in differences]


def _share(tally: Tally, reaches: Sequence[Reach]) -> str:
    total, equal = tally.of(reaches), tally.of(reaches, Verdict.EQUAL)
    return f"{equal} ({100 * equal / total:.2f} %)" if total else "0"


def result(tally: Tally) -> dict[str, Any]:
    """What the results file holds of one kernel."""
    return {
        "kernel": tally.release,
        "halts": tally.halts,
        "vcpu_states": tally.states,
        "kernel_stacks": tally.stacks,
        "frames_in_equal_stacks": tally.frames,
        "finished_stacks_through_modules": dict(tally.in_modules.most_common()),
        "frames_of_modules_in_equal_stacks": tally.module_frames,
        "by_reach_and_verdict": {
            reach: {verdict: tally.found[reach, verdict] for verdict in Verdict if tally.found[reach, verdict]} for reach in Reach
        },
        "differences": [
            {"class": verdict, "function": function, "stacks": count}
            for (verdict, function), count in tally.differences.most_common()
        ],
        "gdb_lost_in": dict(tally.lost_in.most_common()),
        "guestprof_ends": dict(tally.ends.most_common()),
    }
