"""Lines of the console with printk's stamps (``[    1.234567] …``) become a clock of their own, to be held against the guest's.

A line comes when the serial port has sent it, and is noticed at the next look at the console: never before its stamp, but often
later, by seconds where it was printed before the console was there. So the stamps' clock is the line that no line of the console
is before, and that lies closest to all of them (the lower hull above their middle).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from recording.guest_clock import GuestClocks
from recording.model import Event

_STAMP = re.compile(r"(?:<\d+>)?\[ *(\d{1,9})\.(\d{6})(?:\] |\]$|\]\[)")
"""``[    T1]`` follows where the kernel names callers (CONFIG_PRINTK_CALLER)."""
_LEAST_LINES = 8
_BACK_NS = 100_000_000
"""A stamp that is so much before the one above it is of another boot: the clock began anew."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """A line of the console that came at ``time_ns`` of guest running time with a stamp."""

    time_ns: int
    stamp_ns: int


@dataclass(frozen=True, slots=True)
class StampClock:
    """What the stamps of one boot's console tell.

    lines: how many have one. rate: seconds of the guest's clock in one of running time. zero_ns: running time when it was 0.
    residual_ns: how much later than that the lines came, the median.
    """

    lines: int
    rate: float
    zero_ns: int
    residual_ns: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How stamped lines agree with the clock that was read from the guest's memory.

    late_ns: how long after their stamps the lines came by that clock, the median.
    early_ns: by how much a line came before its stamp at most, which is by how much the clock is wrong; 0 where none did.
    """

    lines: int
    late_ns: int
    early_ns: int


def stamp_of(text: str) -> int | None:
    """Printk's stamp of a line in nanoseconds, None where it has none."""
    match = _STAMP.match(text)
    return None if match is None else int(match[1]) * 1_000_000_000 + int(match[2]) * 1000


def stamped_lines(console: Iterable[Event]) -> list[list[Stamped]]:
    """The stamped lines of each boot, in the order in which they came."""
    boots: list[list[Stamped]] = []
    for line in console:
        stamp_ns = stamp_of(line.text)
        if stamp_ns is None:
            continue
        if not boots or stamp_ns < boots[-1][-1].stamp_ns - _BACK_NS:
            boots.append([])
        boots[-1].append(Stamped(line.running_time_ns, stamp_ns))
    return boots


def fit_stamps(lines: Sequence[Stamped]) -> StampClock | None:
    """The clock of one boot's lines, None where there are too few to tell."""
    if len(lines) < _LEAST_LINES:
        return None
    hull: list[Stamped] = []
    for line in sorted(lines, key=lambda line: (line.stamp_ns, line.time_ns)):
        if hull and hull[-1].stamp_ns == line.stamp_ns:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], line):
            hull.pop()
        hull.append(line)
    if len(hull) < 2:
        return None
    # Of all lines below the points, the one through the hull's edge at their middle has the least distance to them together.
    middle_ns = sum(line.stamp_ns for line in lines) / len(lines)
    after = next((index for index, point in enumerate(hull) if point.stamp_ns >= middle_ns), len(hull) - 1)
    left, right = hull[max(after, 1) - 1], hull[max(after, 1)]
    slope = (right.time_ns - left.time_ns) / (right.stamp_ns - left.stamp_ns)
    if slope <= 0:
        return None
    zero = left.time_ns - slope * left.stamp_ns
    late = median(line.time_ns - zero - slope * line.stamp_ns for line in lines)
    return StampClock(len(lines), 1 / slope, round(zero), round(late))


def _is_above(left: Stamped, middle: Stamped, right: Stamped) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    across = (middle.stamp_ns - left.stamp_ns) * (right.time_ns - left.time_ns)
    return across <= (middle.time_ns - left.time_ns) * (right.stamp_ns - left.stamp_ns)


def agreement(lines: Iterable[Stamped], clocks: GuestClocks) -> Agreement | None:
    """How lines agree with what was read; None where none of them came while the clock could be read."""
    late, early = [], [0]
    for line in lines:
        clock = clocks.clock_at(line.time_ns)
        if clock is None or line.time_ns < clock.first_read_ns:
            continue
        late.append((clock.at(line.time_ns) or 0) - line.stamp_ns)
        early.append(line.stamp_ns - clock.latest_ns(line.time_ns))
    return Agreement(len(late), round(median(late)), max(early)) if late else None
