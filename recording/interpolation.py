"""A moment by one clock becomes the same moment by another, where both clocks' times of the halts are known."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def interpolated(time_ns: int, known_ns: Sequence[int], wanted_ns: Sequence[int]) -> int:
    """``known_ns``, ascending, and ``wanted_ns``: the halts by both clocks.

    Between two halts both are taken to run evenly, outside of them equally fast.
    """
    index = max(0, bisect_right(known_ns, time_ns) - 1)
    since_ns = time_ns - known_ns[index]
    if since_ns > 0 and index + 1 < len(known_ns):
        return wanted_ns[index] + (wanted_ns[index + 1] - wanted_ns[index]) * since_ns // (known_ns[index + 1] - known_ns[index])
    return wanted_ns[index] + since_ns
