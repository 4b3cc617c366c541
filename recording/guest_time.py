"""A recording's times become the guest's own: how long the guest says that it ran between two halts.

Guest running time counts each halt from when it was asked for. On a busy host the guest runs on for milliseconds before it takes
effect, a part of the time that differs from boot to boot; its own clock counts that. Where the clock did not run yet, and between
the boots of a recording, it stays running time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from recording.guest_clock import GuestClocks
from recording.model import Halt
from recording.reader import Recording

_STOPS_IN_HALTS = "tcg"
"""The accelerator under which the guest's clock stands still as long as the guest does. Under KVM it may run on."""


def use_guest_time(recordings: Iterable[Recording]) -> bool:
    """Whether all of these can be told by their guests' clocks; then they are from now on (``Recording.retime``).

    Raises BadRecordingError.
    """
    found = []
    for recording in recordings:
        if recording.meta.get("accelerator") != _STOPS_IN_HALTS:
            return False
        halts = list(recording.halts())
        clocks = GuestClocks.of_readings(halts, recording.clocks())
        if not clocks.clocks:
            return False
        found.append((recording, guest_times(halts, clocks)))
    for recording, times_ns in found:
        recording.retime(times_ns)
    return bool(found)


def guest_times(halts: Sequence[Halt], clocks: GuestClocks) -> list[int]:
    """When each halt was, in nanoseconds of the guest's own time since the recording's start; it never goes back."""
    times = [halt.running_time_ns for halt in halts]
    found = times[:1]
    for before_ns, after_ns in pairwise(times):
        clock = clocks.clock_at(after_ns)
        shown = (None, None) if clock is None or before_ns < clock.times_ns[0] else (clock.at(before_ns), clock.at(after_ns))
        since, until = shown
        step = after_ns - before_ns if since is None or until is None else max(0, until - since)
        found.append(found[-1] + step)
    return found
