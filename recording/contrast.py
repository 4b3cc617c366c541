"""What a row took in the blocks of two sides becomes a difference with its sampling error: an interval and a test.

A share is a ratio of sums over blocks, whose variance is that of the residuals ``w - share * W`` (Cochran, *Sampling Techniques*,
1977, 6.4). Blocks of steady work vary about their mean. A boot has a course: what happens once would look like the largest of all
errors; so its blocks are compared with their neighbours (von Neumann, 1941), and only what changes between them counts as error.
No variance is less than that of independent samples. The two sides are compared by Welch's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from recording.blocks import Side
from recording.student import quantile, two_sided_p

LEVEL = 0.05
"""How often any row at all may be called different where nothing is."""
FEWEST_BLOCKS = 8
"""Fewer blocks of a recording tell nothing of the error."""
FEWEST_RUNS = 5
"""Where both sides have so many recordings, these are the blocks. Fewer tell too little of how much runs vary to be the only
measure of it; of boots, no variance is taken to be less than that between two or more runs.
"""
FEWEST_SAMPLES = 10
"""Rows of fewer samples, on both sides together, are not tested: no difference of theirs could be told from noise."""
CONFIDENCE = 0.95
"""Of each interval by itself."""
_MANY = 1e9
"""Degrees of freedom of an error that is known."""


class Measure(StrEnum):
    """What rows are compared in: their share of the selected running time, or running time itself (of a recording, on average)."""

    SHARE = "share"
    TIME = "time"


class Verdict(StrEnum):
    """What a difference is worth."""

    DIFFERENT = "different"
    """Significant among all rows together."""
    UNSURE = "unsure"
    """Significant by itself, but among so many rows some are by chance."""
    NOISE = "noise"
    """Within the sampling error."""
    UNTESTED = "untested"
    """Too few samples, a recording that is too short to tell, or times that depend on how long was recorded."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row's figure before and after, in shares of 1 or nanoseconds.

    low, high: the difference (after - before) with its 95 % interval, None where the error is not known.
    p: of the test that there is none, None where that is not tested. corrected_p: the same among all rows.
    """

    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected_p: float | None = None

    @property
    def change(self) -> float:
        """What is more (or less, below 0) after than before."""
        return self.after - self.before

    @property
    def strength(self) -> float:
        """How many times the interval's half width the change is; 0 where there is none."""
        if self.low is None or self.high is None:
            return 0.0
        return abs(self.change) / (self.high - self.low) * 2 if self.high > self.low else math.inf if self.change else 0.0

    @property
    def verdict(self) -> Verdict:
        """What it is worth."""
        if self.p is None or self.corrected_p is None:
            return Verdict.UNTESTED
        if self.corrected_p <= LEVEL:
            return Verdict.DIFFERENT
        return Verdict.UNSURE if self.p <= 1 - CONFIDENCE else Verdict.NOISE


@dataclass(frozen=True, slots=True)
class Part:
    """What a row took on both sides: guest running time by block, and samples."""

    weights: tuple[Mapping[int, int], Mapping[int, int]]
    samples: int


class Contrast:
    """Compares parts of two sides. ``excluded`` weights of blocks are no part of the whole that shares are of."""

    def __init__(self, before: Side, after: Side, excluded: tuple[Mapping[int, int], Mapping[int, int]] = ({}, {})) -> None:
        self._sides = (before, after)
        self._wholes = [
            [weight - without.get(block, 0) for block, weight in enumerate(side.weights)]
            for side, without in zip(self._sides, excluded, strict=True)
        ]
        self._sums = [sum(whole) for whole in self._wholes]

    @property
    def is_testable(self) -> bool:
        """Whether both sides have blocks enough, and samples."""
        return all(
            len(side.weights) >= (FEWEST_RUNS if side.by_run else FEWEST_BLOCKS) and total > 0
            for side, total in zip(self._sides, self._sums, strict=True)
        )

    def difference(self, part: Part, measure: Measure) -> Difference:
        """A part's difference, without a correction for many rows. Times that only tell how long was recorded are not tested."""
        sums = [sum(weights.values()) for weights in part.weights]
        shares = [min(1.0, taken / whole) if whole else 0.0 for taken, whole in zip(sums, self._sums, strict=True)]
        figures = (
            shares
            if measure is Measure.SHARE
            else [taken / max(1, side.runs) for taken, side in zip(sums, self._sides, strict=True)]
        )
        if part.samples < FEWEST_SAMPLES or not self.is_testable:
            return Difference(*figures)
        # Under the hypothesis that nothing differs, both sides have this share.
        common = sum(sums) / sum(self._sums) if sum(self._sums) else 0.0
        variances, freedoms = [], []
        for index, side in enumerate(self._sides):
            scale = self._sums[index] if measure is Measure.SHARE else side.runs
            residuals = self._residuals(
                index, part.weights[index], shares[index] if measure is Measure.SHARE else None, sums[index]
            )
            spread, freedom = _spread(side, residuals)
            floor = common * (1 - common) * side.squares
            variances.append(max(spread, floor) / scale**2)
            freedoms.append(freedom)
        found = welch(figures[0], figures[1], variances, freedoms)
        is_bounded = all(side.is_bounded for side in self._sides)
        return found if is_bounded or measure is Measure.SHARE else replace(found, p=None)

    def _residuals(self, index: int, weights: Mapping[int, int], share: float | None, total: int) -> list[float]:
        """How far each block is from what it would have if all were alike."""
        whole = self._wholes[index]
        if share is None:
            mean = total / len(whole)
            return [weights.get(block, 0) - mean for block in range(len(whole))]
        return [weights.get(block, 0) - share * weight for block, weight in enumerate(whole)]


def _spread(side: Side, residuals: Sequence[float]) -> tuple[float, float]:
    """The variance of the blocks' sum, and its degrees of freedom."""
    count = len(residuals)
    if not side.is_course:
        return _of_sum(residuals), count - 1
    steps = [(here - before) ** 2 for block, (before, here) in enumerate(pairwise(residuals), 1) if block not in side.firsts]
    # Of normal values the mean of squared steps has this many degrees of freedom.
    within = count * sum(steps) / (2 * len(steps)), 2 * (count - 1) ** 2 / (3 * count - 4)
    if side.runs == 1:
        return within
    starts = sorted(side.firsts)
    runs = [sum(residuals[first:end]) for first, end in zip(starts, [*starts[1:], count], strict=True)]
    return max(within, (_of_sum(runs), side.runs - 1.0))


def _of_sum(residuals: Sequence[float]) -> float:
    """The variance of a sum, by its parts' distances from their mean."""
    count = len(residuals)
    return count / (count - 1) * sum(value * value for value in residuals)


def compare_means(
    values: tuple[Sequence[float], Sequence[float]], variances: tuple[Sequence[float], Sequence[float]]
) -> Difference:
    """The difference of two means of runs, without a correction for many. ``variances``: of each value, by how it was measured.

    The error is how much the runs of a side vary, or that of the measurement where this is more (or there is one run alone).
    """
    means, errors, freedoms = [], [], []
    for of_side, measured in zip(values, variances, strict=True):
        count = len(of_side)
        mean = sum(of_side) / count
        least = sum(measured) / count**2, _MANY
        between = (_of_sum([value - mean for value in of_side]) / count**2, count - 1.0) if count > 1 else least
        error, freedom = max(least, between)
        means.append(mean)
        errors.append(error)
        freedoms.append(freedom)
    return welch(means[0], means[1], errors, freedoms)


def welch(before: float, after: float, variances: Sequence[float], freedoms: Sequence[float]) -> Difference:
    """Two means and the difference of these, by the variance of each and its degrees of freedom."""
    variance = sum(variances)
    if variance <= 0:
        return Difference(before, after, after - before, after - before, 1.0 if before == after else 0.0)
    error = math.sqrt(variance)
    # Welch and Satterthwaite: a side that adds little of the error adds little of its uncertainty.
    freedom = 1 / sum((part / variance) ** 2 / of_side for part, of_side in zip(variances, freedoms, strict=True))
    reach = quantile(CONFIDENCE, freedom) * error
    change = after - before
    return Difference(before, after, change - reach, change + reach, two_sided_p(change / error, freedom))


def corrected(values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): p values such that any at all is at or below a level by chance only as often as that level says."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        result[index] = highest
    return result
