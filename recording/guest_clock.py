"""Readings of the guest's clocks become its time at any moment of guest running time, and how exactly that is known.

A reading is of the guest's last tick: the clock is later by up to a tick, or by as long as all CPUs were idle. It was not yet at
the next reading that is another one. Between two halts it runs as long as the guest does. These bounds together leave some hundred
microseconds of a busy guest. The timekeeper moves on in whole intervals, so that its reading is up to one of these older still.

Guest running time is the host's without halts, which count from when they were asked for; the guest runs on until they take effect,
the longer the busier the host. Its own clock gains that on running time, and under KVM, where it may run on in halts, all of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import inf
from statistics import median

from recording.interpolation import interpolated
from recording.model import ClockReading, Halt
from recording.reader import Recording

_TOLERANCE = 0.005
"""By how much a guest's clock may run fast or slow: a kernel that calibrates it while the host is busy is wrong."""
_MAX_INTERVAL_NS = 10_000_000
"""Of the timekeeper: a tick, which is no longer than that (100 Hz)."""
_NEW_SHARE = 0.95
_NEVER = 1 << 63
_LEAST_ERROR_NS = 50_000
"""Of a clock's outline; its readings tell no more."""


class ClockName(StrEnum):
    """Which of the guest's clocks."""

    PRINTK = "printk"
    MONOTONIC = "monotonic"


_VALUES: dict[ClockName, Callable[[ClockReading], int | None]] = {
    ClockName.PRINTK: lambda reading: reading.printk_ns,
    ClockName.MONOTONIC: lambda reading: reading.monotonic_ns,
}


@dataclass(frozen=True, slots=True)
class GuestClock:
    """One of the guest's clocks in one boot.

    times_ns: guest running time of the boot's halts, ascending. shown_ns: what the clock showed in each, below 0 before it ran.
    margins_ns: give or take so much, of the halts from the first reading on. readings: how many showed another time than before.
    halted_share: in how much of the halts' time it ran on, from 0 to 1.
    """

    name: ClockName
    boot: int
    times_ns: Sequence[int]
    shown_ns: Sequence[int]
    margins_ns: Sequence[int]
    readings: int
    halted_share: float

    @property
    def first_read_ns(self) -> int:
        """Guest running time of the first reading."""
        return self.times_ns[len(self.times_ns) - len(self.margins_ns)]

    @property
    def gain(self) -> float:
        """How much faster than running time it ran since it was read first: 0.01 for 10 ms more in a second."""
        first = len(self.times_ns) - len(self.margins_ns)
        took_ns = self.times_ns[-1] - self.times_ns[first]
        return (self.shown_ns[-1] - self.shown_ns[first]) / took_ns - 1 if took_ns else 0.0

    @property
    def margin_ns(self) -> int:
        """How exactly it is known: half of the halts' times more exactly."""
        return int(median(self.margins_ns))

    def at(self, time_ns: int) -> int | None:
        """What it showed at a moment of guest running time; None before it ran. Between two halts it is taken to run evenly."""
        shown = interpolated(time_ns, self.times_ns, self.shown_ns)
        return shown if shown >= 0 else None

    def latest_ns(self, time_ns: int) -> int:
        """What it showed at most at a moment: what it showed in the halt after that, before which the guest may have run on."""
        index = min(bisect_right(self.times_ns, time_ns), len(self.shown_ns) - 1)
        return self.shown_ns[index] + self._margin(index)

    def margin_at(self, time_ns: int) -> int:
        """How exactly it is known in the halt at a moment, or the one before that."""
        return self._margin(max(0, bisect_right(self.times_ns, time_ns) - 1))

    def outline(self, most: int) -> list[tuple[int, int]]:
        """At most so many moments, each with what it showed then: between them it ran evenly, as exactly as that many can tell."""
        error_ns = _LEAST_ERROR_NS
        while len(points := _outline(self.times_ns, self.shown_ns, error_ns)) > most:
            error_ns *= 2
        return points

    def _margin(self, index: int) -> int:
        return self.margins_ns[max(0, index - len(self.shown_ns) + len(self.margins_ns))]


@dataclass(frozen=True, slots=True)
class GuestClocks:
    """The clocks of all boots of a recording; none where it has no readings.

    ahead: by how much the monotonic clock is ahead of printk's, by boot, where both are known.
    """

    clocks: tuple[GuestClock, ...] = ()
    ahead: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, recording: Recording) -> GuestClocks:
        """All that a recording tells. Raises BadRecordingError."""
        return cls.of_readings(list(recording.halts()), recording.clocks())

    @classmethod
    def of_readings(cls, halts: Sequence[Halt], readings: Iterable[ClockReading]) -> GuestClocks:
        """halts: all of a recording. readings: in the order of their halts."""
        boots: dict[int, list[ClockReading]] = {}
        last = -1
        for reading in readings:
            # Boots follow each other, whatever a damaged recording says.
            if last <= reading.boot and 0 <= reading.halt < len(halts):
                boots.setdefault(reading.boot, []).append(reading)
                last = reading.boot
        found = []
        begin = 0
        for (boot, rows), (_next, following) in pairwise([*boots.items(), (-1, [])]):
            # What lies between the last reading of a boot and the first of the next is the next one's: firmware, for the most part.
            own = halts[begin : rows[-1].halt + 1 if following else None]
            found += [_fitted(name, boot, own, begin, rows) for name in ClockName]
            begin += len(own)
        ahead = {boot: ahead_ns for boot, rows in boots.items() if (ahead_ns := _ahead(rows)) is not None}
        return cls(tuple(clock for clock in found if clock is not None), ahead)

    def find(self, name: ClockName, boot: int) -> GuestClock | None:
        """A clock of a boot."""
        return next((clock for clock in self.clocks if (clock.name, clock.boot) == (name, boot)), None)

    @property
    def by_boot(self) -> list[GuestClock]:
        """Of each boot that has one, the clock to tell moments by: printk's, else the monotonic one."""
        boots = {clock.boot: clock for name in reversed(ClockName) for clock in self.clocks if clock.name is name}
        return [boots[boot] for boot in sorted(boots)]

    def clock_at(self, time_ns: int) -> GuestClock | None:
        """The clock to tell a moment by, of the boot that it lies in. None: there is none."""
        clocks = self.by_boot
        return next((clock for clock in clocks if time_ns <= clock.times_ns[-1]), clocks[-1] if clocks else None)

    def at(self, time_ns: int) -> int | None:
        """The guest's time at a moment of guest running time, None where it is not known."""
        clock = self.clock_at(time_ns)
        return None if clock is None else clock.at(time_ns)


def _ahead(readings: Sequence[ClockReading]) -> int | None:
    """How far the monotonic clock is ahead of printk's.

    A tick brings the timekeeper up to date, but for a part of an interval, and then the run queue. Ticks after a sleep come at any
    moment of an interval, so that the newest of many readings are new; a few are of halts between the one and the other.
    """
    both = [
        (each.monotonic_ns, each.printk_ns) for each in readings if each.monotonic_ns is not None and each.printk_ns is not None
    ]
    ahead = sorted(new[0] - new[1] for old, new in pairwise(both) if new[0] > old[0] and new[1] > old[1])
    return ahead[int(_NEW_SHARE * len(ahead))] if ahead else None


def _fitted(name: ClockName, boot: int, halts: Sequence[Halt], begin: int, readings: Sequence[ClockReading]) -> GuestClock | None:
    """The clock of a boot in its halts, the first of which has the index ``begin``. None where it never changed."""
    value = _VALUES[name]
    read: dict[int, int] = {}
    for reading in readings:
        shown_ns = value(reading)
        if shown_ns is not None:
            read[reading.halt - begin] = shown_ns
    changes = sum(after > before for before, after in pairwise(read.values()))
    if not changes:
        return None
    first = min(read)
    interval_ns = _MAX_INTERVAL_NS if name is ClockName.MONOTONIC else 0
    for old, new in pairwise(read.values()):
        interval_ns = min(interval_ns, new - old) if new > old else interval_ns
    low, high = _bounds(halts[first:], [read.get(index) for index in range(first, len(halts))], interval_ns)
    shown = [(lowest + highest) // 2 for lowest, highest in zip(low, high, strict=True)]
    for index in range(1, len(shown)):
        shown[index] = max(shown[index], shown[index - 1])
    ran_ns = halts[-1].running_time_ns - halts[first].running_time_ns
    halted_ns = sum(halt.halted_ns for halt in halts[first + 1 :])
    share = min(max((shown[-1] - shown[0] - ran_ns) / halted_ns, 0.0), 1.0) if halted_ns else 0.0
    earlier = [shown[0]]
    for before, after in pairwise(reversed(halts[: first + 1])):
        earlier.append(earlier[-1] - (before.running_time_ns - after.running_time_ns) - round(share * before.halted_ns))
    return GuestClock(
        name,
        boot,
        [halt.running_time_ns for halt in halts],
        [*reversed(earlier[1:]), *shown],
        [(highest - lowest) // 2 for lowest, highest in zip(low, high, strict=True)],
        changes,
        share,
    )


def _outline(times: Sequence[int], values: Sequence[int], error: int) -> list[tuple[int, int]]:
    """Points of a course, first and last among them, from which straight lines pass all others within ``error``."""
    points = [(times[0], values[0])]
    low, high = -inf, inf
    for index in range(1, len(times)):
        time, value = points[-1]
        ran, rose = times[index] - time, values[index] - value
        if ran > 0 and not low <= rose / ran <= high:
            time, value = times[index - 1], values[index - 1]
            points.append((time, value))
            low, high = -inf, inf
            ran, rose = times[index] - time, values[index] - value
        if ran > 0:
            low, high = max(low, (rose - error) / ran), min(high, (rose + error) / ran)
    if len(times) > 1:
        points.append((times[-1], values[-1]))
    return points


def _bounds(halts: Sequence[Halt], read: Sequence[int | None], interval_ns: int) -> tuple[list[int], list[int]]:
    """Between which times the clock was in each halt.

    read: what it was at the last tick, or up to ``interval_ns`` before that; None where it could not be read.
    """
    last: list[int] = []
    for value in read:
        last.append(max(value or 0, last[-1] if last else 0))
    ran = [0, *(after.running_time_ns - before.running_time_ns for before, after in pairwise(halts))]
    next_change, after = [_NEVER] * len(last), _NEVER
    for index in range(len(last) - 2, -1, -1):
        after = last[index + 1] + interval_ns if last[index + 1] > last[index] else after
        next_change[index] = after
    low = last[:]
    for index in range(1, len(low)):
        least = low[index - 1] + round(ran[index] * (1 - _TOLERANCE))
        low[index] = max(low[index], min(least, next_change[index]))
    high = next_change[:]
    for index in range(len(high) - 2, -1, -1):
        high[index] = min(high[index], max(high[index + 1] - round(ran[index + 1] * (1 - _TOLERANCE)), last[index]))
    for index in range(1, len(high)):
        halted_ns = halts[index - 1].halted_ns + halts[index].halted_ns
        most = high[index - 1] + round(ran[index] * (1 + _TOLERANCE)) + halted_ns
        high[index] = min(high[index], max(most, last[index]))
    high = [max(pair) for pair in zip(low, high, strict=True)]
    return low, high
