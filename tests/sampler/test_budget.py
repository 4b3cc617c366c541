"""How long a guest may be halted for what may be left out: a tenth of the time, and a little at once."""

from __future__ import annotations

from sampler.budget import HaltBudget

SECOND = 1_000_000_000


class Time:
    """A host's clock, and how long the guest has been halted."""

    def __init__(self) -> None:
        self.now_ns = 5 * SECOND
        self.halted_ns = 7 * SECOND

    def halt(self, duration_ns: int) -> None:
        self.now_ns += duration_ns
        self.halted_ns += duration_ns


def test_a_little_at_once_then_a_tenth_of_the_time() -> None:
    time = Time()
    budget = HaltBudget(lambda: time.halted_ns, lambda: time.now_ns)
    with budget.spending():
        time.halt(SECOND // 4)
    assert budget.has_room
    with budget.spending():
        time.halt(SECOND // 4)
    assert not budget.has_room
    # 0.3 s and a tenth of 2 s are what has been used: 0.5 s.
    time.now_ns = 5 * SECOND + 2 * SECOND - 1
    assert not budget.has_room
    time.now_ns += 1
    assert budget.has_room


def test_what_others_halt_the_guest_for_does_not_count() -> None:
    time = Time()
    budget = HaltBudget(lambda: time.halted_ns, lambda: time.now_ns)
    time.halt(100 * SECOND)
    with budget.spending():
        pass
    assert budget.has_room


def test_reads_that_fail_count_too() -> None:
    time = Time()
    budget = HaltBudget(lambda: time.halted_ns, lambda: time.now_ns)
    try:
        with budget.spending():
            time.halt(SECOND)
            raise OSError
    except OSError:
        pass
    assert not budget.has_room


def test_unlimited() -> None:
    budget = HaltBudget.unlimited()
    with budget.spending():
        pass
    assert budget.has_room
