"""The recordings of one side of a comparison become blocks of time, from which sampling errors are estimated.

Samples near each other in time are alike (one burst of work gives many), so that counting them as independent ones would call
noise a difference. Blocks are long enough to be nearly independent of each other; all vCPUs of one halt are in one block, as they
are not independent either. Where a side has several recordings, these are its blocks: what varies from run to run is then seen.

What a late sample stands for beyond some periods is left out of shares and times: nobody saw what ran then, and one such sample may
weigh as much as a hundred others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median_low

from recording.profile import Origin, Profile, Stack, Walk

_STEADY = (500_000_000, 20, 64)
_COURSE = (40_000_000, 20, 400)
"""Wanted length of a block in nanoseconds, fewest and most blocks of a recording."""
_HALTS_IN_BLOCK = 4
"""The fewest, on average."""
_FARTHEST = 10
"""A sample stands for no more than so many times the usual time between two halts."""


@dataclass(slots=True, eq=False)
class Cell:
    """The selected samples of a stack with one origin on one vCPU. weights: guest running time by block, in nanoseconds."""

    stack: Stack
    origin: Origin
    vcpu: int
    weights: dict[int, int] = field(default_factory=dict)
    samples: int = 0


class _Cells(dict[int, Cell]):
    """The cells of a stack with one origin by vCPU, made when they are asked for."""

    def __init__(self, stack: Stack, origin: Origin) -> None:
        super().__init__()
        self._stack, self._origin = stack, origin

    def __missing__(self, vcpu: int) -> Cell:
        cell = self[vcpu] = Cell(self._stack, self._origin, vcpu)
        return cell


@dataclass(slots=True, eq=False)
class Side:
    """One side of a comparison, cut into blocks.

    by_run: whether its blocks are its recordings.
    is_course: whether its blocks are of boots from the machine's start, which have a course, and not of pieces of steady work.
    is_bounded: whether running times are the work's, as in boots up to a chosen moment, and not only how long was recorded.
    runs: number of recordings. duration_ns: guest running time that they span in all.
    weights: of the selected samples of each block. firsts: the blocks with which recordings begin.
    squares: sum of the squared weights of all selected samples. left_out_ns: what late ones stand for and was not seen.
    has_tasks: whether any of these has a task.
    """

    by_run: bool
    is_course: bool
    is_bounded: bool = True
    runs: int = 0
    duration_ns: int = 0
    samples: int = 0
    squares: int = 0
    left_out_ns: int = 0
    weights: list[int] = field(default_factory=list)
    firsts: set[int] = field(default_factory=set)
    cells: list[Cell] = field(default_factory=list)
    has_tasks: bool = False

    @property
    def weight_ns(self) -> int:
        """Of all selected samples."""
        return sum(self.weights)

    @property
    def effective_samples(self) -> float:
        """As many samples of equal weights would be as sure: a late one that stands for much is no better than another."""
        return self.weight_ns**2 / self.squares if self.squares else 0.0

    def add(self, profile: Profile) -> None:
        """One more recording."""
        halts = profile.halt_times()
        start_ns = halts[0] if halts else 0
        span_ns = halts[-1] - start_ns + 1 if halts else 1
        first, count = len(self.weights), 1 if self.by_run else _block_count(len(halts), span_ns, is_course=self.is_course)
        self.runs += 1
        self.has_tasks |= profile.has_tasks
        self.duration_ns += span_ns - 1
        self.firsts.add(first)
        self.weights += [0] * count
        most_ns = longest_ns(halts)
        known: dict[tuple[int, int], _Cells] = {}

        def cells_of(walk: Walk, origin: Origin) -> _Cells:
            return known.setdefault((id(walk.stack), id(origin)), _Cells(walk.stack, origin))

        for values, *columns in profile.batches(cells_of):
            for cells, vcpu, time_ns, weight_ns in zip(values, *columns, strict=True):
                if weight_ns > most_ns:
                    self.left_out_ns += weight_ns - most_ns
                    weight_ns = most_ns  # noqa: PLW2901  (what is left of it)
                cell = cells[vcpu]
                block = first + (time_ns - start_ns) * count // span_ns
                cell.samples += 1
                cell.weights[block] = cell.weights.get(block, 0) + weight_ns
                self.weights[block] += weight_ns
                self.squares += weight_ns * weight_ns
        added = [cell for cells in known.values() for cell in cells.values()]
        self.cells += added
        self.samples += sum(cell.samples for cell in added)


def longest_ns(halts: Sequence[int]) -> int:
    """The longest time that one sample may stand for; the rest of it was seen by nobody."""
    return _FARTHEST * median_low([after - before for before, after in pairwise(halts)]) if len(halts) > 1 else sys.maxsize


def side_of(profiles: Sequence[Profile], *, by_run: bool = False) -> Side:
    """One side, of one recording or more."""
    are_boots = bool(profiles) and all(profile.begins_with_machine for profile in profiles)
    are_cut = bool(profiles) and all(profile.selection.until_ns is not None for profile in profiles)
    have_ended = bool(profiles) and all(has_ended_by_itself(profile) for profile in profiles)
    side = Side(by_run, are_boots and not by_run, (are_boots and have_ended) or are_cut)
    for profile in profiles:
        side.add(profile)
    return side


def has_ended_by_itself(profile: Profile) -> bool:
    """Whether something in the guest ended a recording, and neither its duration nor a signal; one that was killed does not say."""
    ended = profile.meta.get("ended")
    return isinstance(ended, str) and not ended.endswith((" are over", " came"))


def _block_count(halts: int, span_ns: int, *, is_course: bool) -> int:
    length_ns, fewest, most = _COURSE if is_course else _STEADY
    return max(1, min(max(fewest, span_ns // length_ns), most, halts // _HALTS_IN_BLOCK))
