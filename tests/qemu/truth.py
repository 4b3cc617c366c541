"""The console of a guest that runs task-truth, and a recording of it, become figures that can be compared.

tests/guests/task_truth.c says what is printed, user_truth.c and its neighbours which call paths have which share.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from recording.model import FrameKind, UserEnd
from recording.profile import Count
from tests.qemu.rootfs import PROGRAMS_DIRECTORY

TICK_S = 0.01
"""USER_HZ is 100 on x86 (include/uapi/asm-generic/param.h)."""
REPORT_END = "truth: {} end"
_LINE = re.compile(r"truth: (\d+) (\d+) (\d+) ([0-9a-f]*) (\d+) (\d+) (\d+) (\d+) (\d+)\s*")

CallPath = tuple[str, ...]

C_PATHS: Mapping[CallPath, int] = {
    ("main", "run", "alpha", "beta", "gamma_", "spin"): 25,
    ("main", "run", "alpha", "delta", "spin"): 15,
    ("main", "run", *("recurse",) * 10, "spin"): 12,
    ("main", "run", "sort", "compare", "spin"): 10,
    ("main", "run", "signals", "on_signal", "spin"): 8,
    ("thread_main", "thread_work", "spin"): 10,
    ("main", "run", "wide", "wider", "spin"): 12,
    ("main", "run", "pointer", "left", "spin"): 3,
    ("main", "run", "pointer", "right", "spin"): 5,
}
CXX_PATHS: Mapping[CallPath, int] = {
    ("main", "run", "catcher", "truth::middle", "truth::Thrower<int>::work", "spin"): 30,
    ("main", "run", "catcher", "truth::middle", "truth::Guard::~Guard", "spin"): 25,
    ("main", "run", "catcher", "spin"): 25,
    ("main", "run", "virtually", "truth::Square::area", "spin"): 20,
}
PATHS_32: Mapping[CallPath, int] = {
    ("_start", "enter", "run", "alpha", "beta", "spin"): 50,
    ("_start", "enter", "run", *("recurse",) * 10, "spin"): 30,
    ("_start", "enter", "run", "delta", "spin"): 20,
}
SHARES: Mapping[str, Mapping[CallPath, int]] = {
    **dict.fromkeys(("ut-pie", "ut-no-pie", "ut-static", "ut-static-pie", "ut-fp"), C_PATHS),
    "ut-cxx": CXX_PATHS,
    "ut-32": PATHS_32,
}
"""For each program, the percentage of its time in the leaf by call path from main. ut-stripped has no names to tell paths by."""


@dataclass(frozen=True, slots=True)
class Times:
    """A line of a report, of a thread, or of a whole process (tid 0).

    Times in clock ticks; ended_ticks: of the process' children that have ended. run_ns: a thread's (a process' first one's) time.
    """

    pid: int
    tid: int
    comm: bytes
    user_ticks: int
    system_ticks: int
    ended_ticks: int
    run_ns: int

    @property
    def ticks(self) -> int:
        """User and system time."""
        return self.user_ticks + self.system_ticks


def parse_report(console: str, number: int) -> list[Times]:
    """A report's lines."""
    rows: list[Times] = []
    for match in _LINE.finditer(console):
        report, pid, tid, comm, *times = match.groups()
        if int(report) == number:
            user, system, child_user, child_system, run_ns = map(int, times)
            rows.append(Times(int(pid), int(tid), bytes.fromhex(comm), user, system, child_user + child_system, run_ns))
    return rows


def tolerance(share: float, samples: float, rest: float) -> float:
    """Four standard deviations of a binomial share, and what is known to remain beside the sampling."""
    return 4 * math.sqrt(max(share * (1 - share), 1e-6) / max(samples, 1)) + rest


def evenness(weights: Iterable[int]) -> float:
    """The part of their number that samples of equal weight would need to say as much (Kish's effective sample size)."""
    values = list(weights)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / squares / len(values) if squares else 0.0


def own_path(count: Count, program: str) -> CallPath:
    """The program's own functions in a stack, root first: from main, or the thread's first function, to the interrupted one."""
    module = f"/{PROGRAMS_DIRECTORY}/{program}"
    functions = [function for function in count.stack.functions if function.kind is FrameKind.USER and function.module == module]
    # Compilers put landing pads into a part of their own, "middle(int) [clone .cold]".
    names = [function.name.partition(" [clone")[0] for function in functions]
    known = {name for path in SHARES.get(program, {}) for name in path}
    return tuple(name for name in names if name in known)


def leaf_samples(counts: Iterable[Count], program: str) -> Counter[CallPath]:
    """Samples of a program that were in its leaf function, in user mode, by call path."""
    leaves = {path[-1] for path in SHARES[program]}
    paths: Counter[CallPath] = Counter()
    for count in counts:
        function = count.stack.functions[-1]
        if count.origin.process.name == program and function.kind is FrameKind.USER and function.name in leaves:
            paths[own_path(count, program)] += count.samples
    return paths


def whole_share(counts: Iterable[Count], program: str) -> tuple[float, int]:
    """The share of a program's user stacks, in user mode and behind the kernel, that reach the thread's start; and their number."""
    ends: Counter[UserEnd] = Counter()
    for count in counts:
        if count.origin.process.name == program and count.stack.user_end is not None and count.stack.user_end.is_stack:
            ends[count.stack.user_end] += count.samples
    total = sum(ends.values())
    return (sum(samples for end, samples in ends.items() if end.is_proper) / total if total else 0.0), total
