"""Deadlines: absolute, jittered, lateness and missed slots counted."""

from __future__ import annotations

from random import Random

from sampler.schedule import Schedule

MS = 1_000_000


def test_deadlines_stay_within_a_quarter_period_of_their_slots() -> None:
    schedule = Schedule(100, 0, Random(1))
    for slot in range(1, 200):
        schedule.advance(schedule.deadline_ns)
        assert abs(schedule.deadline_ns - slot * 10 * MS) <= 2.5 * MS
    assert (schedule.late, schedule.missed) == (0, 0)


def test_deadlines_are_not_periodic() -> None:
    schedule = Schedule(100, 0, Random(1))
    gaps = set()
    last = schedule.deadline_ns
    for _ in range(20):
        schedule.advance(schedule.deadline_ns)
        gaps.add(schedule.deadline_ns - last)
        last = schedule.deadline_ns
    assert len(gaps) == 20


def test_late_halt_counts_and_does_not_move_the_grid() -> None:
    schedule = Schedule(100, 0, Random(1))
    assert schedule.advance(6 * MS) == 6 * MS
    assert schedule.late == 1
    assert schedule.missed == 0
    assert abs(schedule.deadline_ns - 10 * MS) <= 2.5 * MS


def test_missed_slots_are_counted_and_not_made_up_for() -> None:
    schedule = Schedule(100, 0, Random(1))
    schedule.advance(0)
    schedule.advance(45 * MS)
    assert schedule.late == 1
    assert schedule.missed == 3
    assert abs(schedule.deadline_ns - 50 * MS) <= 2.5 * MS
