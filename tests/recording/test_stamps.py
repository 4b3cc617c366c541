"""Stamped lines of a console: what their clock is, and how they agree with the guest's."""

from __future__ import annotations

import pytest

from recording.guest_clock import GuestClocks
from recording.model import ClockReading, Event, Halt
from recording.stamps import Stamped, agreement, fit_stamps, stamp_of, stamped_lines
from tests.builders.recordings import MS


@pytest.mark.parametrize(
    ("text", "stamp_ns"),
    [
        ("[    0.000000] Linux version 6.1.0", 0),
        ("[12345.678901] a", 12345_678901_000),
        ("<6>[    1.500000] b", 1_500_000_000),
        ("[    1.000001][    T1] c", 1_000_001_000),
        ("[    1.000001]", 1_000_001_000),
        ("login: ", None),
        ("[  OK  ] Started", None),
        ("x [    1.000000] y", None),
        ("[1.5] z", None),
    ],
)
def test_stamps(text: str, stamp_ns: int | None) -> None:
    assert stamp_of(text) == stamp_ns


def lines(count: int, rate: float, zero_ns: int) -> list[Stamped]:
    """Each a little later than its stamp, but for two; the first hundred ms come together, when the console is there."""
    made = []
    for index in range(count):
        stamp_ns = 10 * MS * index
        late_ns = 0 if index in (20, count - 10) else MS + index % 7 * 100_000
        time_ns = zero_ns + round(stamp_ns / rate) + late_ns
        made.append(Stamped(max(time_ns, zero_ns + 100 * MS), stamp_ns))
    return made


def test_the_stamps_clock() -> None:
    fit = fit_stamps(lines(200, 1.25, 300 * MS))
    assert fit is not None
    assert fit.rate == pytest.approx(1.25, abs=1e-6)
    assert abs(fit.zero_ns - 300 * MS) < 1000
    assert MS < fit.residual_ns < 2 * MS
    assert fit.lines == 200


def test_too_few_to_tell() -> None:
    assert fit_stamps(lines(7, 1.0, 0)) is None
    assert fit_stamps([Stamped(MS * index, 0) for index in range(20)]) is None
    # They come in no order that a clock could have.
    assert fit_stamps([Stamped(MS * (100 - index), MS * index) for index in range(20)]) is None


def test_each_boot_begins_anew() -> None:
    def event(time_ns: int, text: str) -> Event:
        return Event(time_ns, "console", text)

    console = [event(1, "[    1.000000] a"), event(2, "b"), event(3, "[    0.999990] c"), event(4, "[    0.000000] d")]
    assert stamped_lines(console) == [[Stamped(1, 1000 * MS), Stamped(3, 999_990_000)], [Stamped(4, 0)]]


def test_agreement() -> None:
    halts = [Halt(5 * MS * index, 5 * MS * index, 0, 0) for index in range(100)]
    clocks = GuestClocks.of_readings(halts, [ClockReading(index, 0, None, 5 * MS * index + 5 * MS) for index in range(10, 100)])
    # The clock is 5 ms ahead of running time.
    made = [Stamped(20 * MS, 0), *(Stamped(100 * MS + late * MS, 105 * MS) for late in (1, 2, 9))]
    found = agreement(made, clocks)
    assert found is not None
    # The clock changes in each halt, which come all 5 ms: between two of them is not known.
    assert found.lines == 3
    assert abs(found.late_ns - 2 * MS) < 3 * MS
    assert found.early_ns == 0
    early = agreement([Stamped(100 * MS, 130 * MS)], clocks)
    assert early is not None
    assert abs(early.early_ns - 20 * MS) < 6 * MS
    assert agreement(made, GuestClocks()) is None
    assert agreement([], clocks) is None
