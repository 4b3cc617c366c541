"""The samples of vCPUs as rows of numbers for the HTML report; too many of them are merged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_SAMPLES = 1 << 20
"""Of more than these a page keeps no single ones: what a vCPU had several times within a short time becomes one."""


@dataclass(frozen=True, slots=True)
class Track:
    """The samples of a vCPU in time order: the stack's number, weight, moment (guest running time), how many it stands for."""

    vcpu: int
    stacks: array[int] = field(default_factory=lambda: array("I"))
    weights_ns: array[int] = field(default_factory=lambda: array("Q"))
    times_ns: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("I"))

    def add(self, stack: int, weight_ns: int, time_ns: int, count: int) -> None:
        """Append a sample."""
        self.stacks.append(stack)
        self.weights_ns.append(weight_ns)
        self.times_ns.append(time_ns)
        self.counts.append(count)


def fitting(tracks: list[Track], most: int = MOST_SAMPLES) -> list[Track]:
    """The tracks, with samples merged within stretches of time that are as short as leaves at most so many."""
    total = sum(len(track.stacks) for track in tracks)
    if total <= most:
        return tracks
    span_ns = max(track.times_ns[-1] for track in tracks) - min(track.times_ns[0] for track in tracks)
    stretch_ns = max(1, span_ns * len(tracks) // most)
    while True:
        merged = [_merged(track, stretch_ns) for track in tracks]
        if sum(len(track.stacks) for track in merged) <= most or stretch_ns > span_ns:
            return merged
        stretch_ns *= 2


def _merged(track: Track, stretch_ns: int) -> Track:
    merged = Track(track.vcpu)
    now, begin_ns = None, 0
    found: dict[int, list[int]] = {}
    for stack, weight_ns, time_ns, count in _rows(track):
        if time_ns // stretch_ns != now:
            _flush(merged, found, begin_ns)
            now, begin_ns = time_ns // stretch_ns, time_ns - weight_ns
        row = found.setdefault(stack, [0, 0])
        row[0] += weight_ns
        row[1] += count
    _flush(merged, found, begin_ns)
    return merged


def _rows(track: Track) -> Iterable[tuple[int, int, int, int]]:
    return zip(track.stacks, track.weights_ns, track.times_ns, track.counts, strict=True)


def _flush(track: Track, found: dict[int, list[int]], begin_ns: int) -> None:
    """Lay what was found within a stretch one after the other."""
    for stack, (weight_ns, count) in found.items():
        begin_ns += weight_ns
        track.add(stack, weight_ns, begin_ns, count)
    found.clear()
