"""Guests with a clock of ticks, halted at odd moments: what is told of the clock holds what it truly was."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording.guest_clock import ClockName, GuestClock, GuestClocks
from recording.model import ClockReading, Halt
from tests.builders.recordings import MS

TICK_NS, PHASE_NS, AHEAD_NS = 4 * MS, 1_300_000, 40 * MS + 500_000


@dataclass
class Guest:
    """Its clock ticks each 4 ms while it is busy, and runs on in halts for ``ran_on`` of each.

    Ticks come 1.3 ms behind the timekeeper's intervals, and where it wakes up. truth: what printk's clock was in each halt; the
    monotonic one is 40 ms ahead.
    """

    ran_on: float = 0.1
    speed: float = 1.0
    clock_ns: int = 0
    running_ns: int = 0
    halts: list[Halt] = field(default_factory=list)
    readings: list[ClockReading] = field(default_factory=list)
    truth: list[int] = field(default_factory=list)
    tick_ns: int = 0
    slept: bool = False
    has_printk: bool = True

    def run(self, run_ns: int, halted_ns: int = MS, *, busy: bool = True, boot: int = 0, is_read: bool = True) -> None:
        """Run, then halt."""
        self.running_ns += run_ns
        if self.slept and busy:
            self.tick_ns = self.clock_ns
        self.slept = not busy
        self.clock_ns += round(run_ns * self.speed)
        if busy:
            self.tick_ns = max(self.tick_ns, (self.clock_ns - PHASE_NS) // TICK_NS * TICK_NS + PHASE_NS)
        if is_read:
            kept_ns = (self.tick_ns + AHEAD_NS) // TICK_NS * TICK_NS
            self.readings.append(ClockReading(len(self.halts), boot, kept_ns, self.tick_ns if self.has_printk else None))
        self.halts.append(Halt(self.running_ns + sum(halt.halted_ns for halt in self.halts), self.running_ns, halted_ns, 0))
        self.truth.append(self.clock_ns)
        self.clock_ns += round(self.ran_on * halted_ns)

    def clock(self, name: ClockName = ClockName.PRINTK, boot: int = 0) -> GuestClock:
        found = GuestClocks.of_readings(self.halts, self.readings).find(name, boot)
        assert found is not None
        return found


@given(
    st.lists(st.tuples(st.integers(MS, 30 * MS), st.integers(0, 20 * MS), st.booleans()), min_size=20, max_size=80),
    st.floats(0, 1),
    st.floats(0.996, 1.004),
)
def test_the_truth_lies_within_the_margin(steps: list[tuple[int, int, bool]], ran_on: float, speed: float) -> None:
    guest = Guest(ran_on=ran_on, speed=speed)
    guest.run(20 * MS)
    guest.run(20 * MS)
    for run_ns, halted_ns, busy in steps:
        guest.run(run_ns, halted_ns, busy=busy)
    for name, ahead_ns in ((ClockName.PRINTK, 0), (ClockName.MONOTONIC, AHEAD_NS)):
        clock = guest.clock(name)
        for truth_ns, shown_ns, margin_ns in zip(guest.truth, clock.shown_ns, clock.margins_ns, strict=True):
            # Rounding, and that what is told never goes back.
            assert abs(truth_ns + ahead_ns - shown_ns) <= margin_ns + 10_000


def test_a_busy_guest_is_known_to_a_fraction_of_a_tick() -> None:
    guest = Guest()
    for index in range(400):
        guest.run(4_300_000 + 37_000 * (index % 11))
    clock = guest.clock()
    assert clock.margin_ns < MS
    assert clock.halted_share == pytest.approx(0.1, abs=0.01)
    # A tenth of a millisecond in each halt, of which there is one in 4.485 ms.
    assert clock.gain == pytest.approx(0.1 / 4.485, rel=0.1)
    assert clock.readings > 350
    between_ns = guest.halts[200].running_time_ns + MS
    assert abs((clock.at(between_ns) or 0) - guest.truth[200] - guest.ran_on * MS - MS) <= clock.margins_ns[200] + 200_000


def test_before_the_first_reading_it_ran_as_behind_it() -> None:
    guest = Guest(ran_on=0.5)
    guest.running_ns, guest.clock_ns = 30 * MS, 0
    for index in range(300):
        guest.run(5 * MS + index * 1000, 2 * MS, is_read=index >= 100)
    clock = guest.clock()
    assert clock.first_read_ns == guest.halts[100].running_time_ns
    for index in range(100):
        assert abs((clock.at(guest.halts[index].running_time_ns) or 0) - guest.truth[index]) < 3 * MS
    assert clock.at(0) is None


def test_a_guest_that_sleeps_long() -> None:
    guest = Guest()
    for _ in range(40):
        guest.run(5 * MS)
    for _ in range(200):
        guest.run(5 * MS, busy=False)
    for _ in range(40):
        guest.run(5 * MS)
    clock = guest.clock()
    assert abs(clock.shown_ns[140] - guest.truth[140]) <= clock.margins_ns[140] + 10_000
    # It knows no better than what the halts may have added.
    assert clock.margins_ns[140] > clock.margins_ns[20]


def test_each_boot_has_its_own_clock() -> None:
    guest = Guest()
    for _ in range(50):
        guest.run(5 * MS)
    guest.clock_ns = guest.tick_ns = 0
    for index in range(60):
        guest.run(5 * MS, boot=1, is_read=index >= 10)
    clocks = GuestClocks.of_readings(guest.halts, guest.readings)
    assert [(clock.name, clock.boot) for clock in clocks.clocks] == [(name, boot) for boot in (0, 1) for name in ClockName]
    for index in (20, 49, 65, 109):
        assert abs((clocks.at(guest.halts[index].running_time_ns) or 0) - guest.truth[index]) < 3 * MS


def test_the_timekeeper_alone_is_known_to_an_interval() -> None:
    guest = Guest(has_printk=False)
    for index in range(400):
        guest.run(4_300_000 + 37_000 * (index % 11))
    clock = guest.clock(ClockName.MONOTONIC)
    assert 2 * MS < clock.margin_ns < 4 * MS
    assert abs(clock.shown_ns[200] - guest.truth[200] - AHEAD_NS) <= clock.margins_ns[200]
    assert GuestClocks.of_readings(guest.halts, guest.readings).ahead == {}


def test_printks_clock_comes_first_and_the_other_is_told_from_it() -> None:
    guest = Guest()
    for index in range(300):
        guest.run(4_300_000 + 37_000 * (index % 11), busy=index % 3 > 0)
    clocks = GuestClocks.of_readings(guest.halts, guest.readings)
    assert [clock.name for clock in clocks.clocks] == [ClockName.PRINTK, ClockName.MONOTONIC]
    assert clocks.at(guest.halts[150].running_time_ns) == clocks.clocks[0].shown_ns[150]
    assert AHEAD_NS - 2 * MS < clocks.ahead[0] <= AHEAD_NS


def test_nothing_is_told_of_a_clock_that_was_never_seen_to_run() -> None:
    halts = [Halt(5 * MS * index, 5 * MS * index, 0, 0) for index in range(3)]
    clocks = GuestClocks.of_readings(halts, [ClockReading(index, 0, 7, None) for index in range(3)])
    assert clocks.clocks == ()
    assert clocks.at(MS) is None
    assert clocks.ahead == {}
    assert GuestClocks.of_readings(halts, []).at(MS) is None


def test_readings_that_nobody_wrote() -> None:
    halts = [Halt(5 * MS * index, 5 * MS * index, 0, 0) for index in range(20)]
    good = [ClockReading(index, 1, 5 * MS * index, None) for index in range(20)]
    strange = [
        ClockReading(7, 0, 1, 1),
        ClockReading(-4, 1, 1, 1),
        ClockReading(99, 1, 1, 1),
        ClockReading(12, 2, 1 << 62, -(1 << 62)),
    ]
    clocks = GuestClocks.of_readings(halts, [*good, *strange])
    assert [(clock.name, clock.boot) for clock in clocks.clocks] == [(ClockName.MONOTONIC, 1)]
