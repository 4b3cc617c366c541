"""A frequency becomes deadlines: absolute, so that lateness does not add up, and jittered, so that no guest timer keeps step."""

from __future__ import annotations

from random import Random

_JITTER = 0.25
"""Share of the period by which a deadline moves at most, to either side: two halts are at least half a period apart."""

_LATE = 0.5
"""Share of the period by which a halt may follow its deadline before it counts as late."""


class Schedule:
    """Deadlines of one recording. Times are those of the caller's clock, in integer nanoseconds."""

    def __init__(self, frequency_hz: float, start_ns: int, rng: Random) -> None:
        self.period_ns = round(1e9 / frequency_hz)
        self.late = 0
        self.missed = 0
        self._start_ns = start_ns
        self._slot = 0
        self._rng = rng
        self.deadline_ns = start_ns

    def advance(self, now_ns: int) -> int:
        """Take the current deadline at ``now_ns`` and set the next one. Returns the lateness.

        Slots that have passed as a whole are missed and not made up for: halts in a burst would all see the same moment.
        """
        lateness_ns = max(0, now_ns - self.deadline_ns)
        if lateness_ns > _LATE * self.period_ns:
            self.late += 1
        current = max(self._slot, (now_ns - self._start_ns) // self.period_ns)
        self.missed += current - self._slot
        self._slot = current + 1
        shift = self._rng.uniform(-_JITTER, _JITTER)
        self.deadline_ns = self._start_ns + round((self._slot + shift) * self.period_ns)
        return lateness_ns
