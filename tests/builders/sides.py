"""Made-up sides of comparisons: work that comes in bursts, sampled on some vCPUs, with a known share of each function."""

from __future__ import annotations

from random import Random

from recording.blocks import Cell, Side
from recording.model import Context, FrameKind, StackEnd
from recording.names import Function
from recording.profile import Origin, Stack

PERIOD_NS = 5_000_000
NOBODY = Origin(None, Context.UNKNOWN, None, False)


def burst_side(
    random: Random, costs: dict[str, float], *, seconds: float = 8.0, vcpus: int = 1, burst_s: float = 0.05, in_turn: bool = False
) -> Side:
    """A side of one recording at 200 Hz: functions run in bursts, whose lengths are exponential.

    costs: of each function, so that its share is its part of their sum. burst_s: mean length of a burst of cost 1.
    in_turn: as in a loop that does about the same work each time (lengths within a half); else any function follows on any.
    """
    halts = round(seconds * 1e9 / PERIOD_NS)
    count = min(64, max(20, round(seconds / 0.5)))
    side = Side(by_run=False, is_course=False, runs=1, duration_ns=halts * PERIOD_NS, weights=[0] * count, firsts={0})
    names = list(costs)
    cells = {name: Cell(stack_of(name), NOBODY, 0) for name in names}
    for _ in range(vcpus):
        name, left_s = random.choice(names), 0.0
        for halt in range(halts):
            while left_s <= 0:
                name = names[(names.index(name) + 1) % len(names)] if in_turn else random.choice(names)
                left_s += burst_s * costs[name] * (random.uniform(0.5, 1.5) if in_turn else random.expovariate(1))
            left_s -= PERIOD_NS / 1e9
            block = halt * count // halts
            cell = cells[name]
            cell.samples += 1
            cell.weights[block] = cell.weights.get(block, 0) + PERIOD_NS
            side.weights[block] += PERIOD_NS
            side.squares += PERIOD_NS**2
    side.cells = list(cells.values())
    side.samples = halts * vcpus
    return side


def stack_of(*names: str) -> Stack:
    """A kernel stack of these functions, root first."""
    functions = tuple(Function(name, "[kernel]", FrameKind.KERNEL) for name in names)
    return Stack(functions, tuple(range(len(names))), StackEnd.TASK_ROOT, None, idle=False)


def boot_side(random: Random, course: list[tuple[str, float]], *, burst_s: float = 0.01) -> Side:
    """A boot at 200 Hz: functions run one after the other for so many seconds, each now and then interrupted by ``irq``.

    Blocks are 40 ms long. burst_s: mean length of an interrupt's work.
    """
    seconds = sum(length_s for _, length_s in course)
    halts = round(seconds * 1e9 / PERIOD_NS)
    count = max(20, round(seconds / 0.04))
    side = Side(by_run=False, is_course=True, runs=1, duration_ns=halts * PERIOD_NS, weights=[0] * count, firsts={0})
    cells = {name: Cell(stack_of(name), NOBODY, 0) for name in ("irq", *(name for name, _ in course))}
    ends_s, now_s = [], 0.0
    for name, length_s in course:
        now_s += length_s
        ends_s.append((now_s, name))
    irq_s = 0.0
    for halt in range(halts):
        moment_s = (halt + random.random()) * PERIOD_NS / 1e9
        irq_s = random.expovariate(1 / burst_s) if irq_s <= 0 and random.random() < 0.02 else irq_s - PERIOD_NS / 1e9
        name = "irq" if irq_s > 0 else next(name for end_s, name in ends_s if moment_s < end_s or end_s == ends_s[-1][0])
        cell = cells[name]
        block = halt * count // halts
        cell.samples += 1
        cell.weights[block] = cell.weights.get(block, 0) + PERIOD_NS
        side.weights[block] += PERIOD_NS
        side.squares += PERIOD_NS**2
    side.cells = list(cells.values())
    side.samples = halts
    return side
