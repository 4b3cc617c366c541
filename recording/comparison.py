"""The profiles of two sides become rows of what differs, each with its sampling error: the view behind ``diff``.

Rows are matched by name (``recording.matching``), and tested as ``recording.contrast`` says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, partial

from recording.blocks import Cell, Side, side_of
from recording.collection import no_collection
from recording.contrast import FEWEST_RUNS, LEVEL, Contrast, Difference, Measure, Part, Verdict, corrected
from recording.matching import Key
from recording.names import Function
from recording.profile import Profile
from recording.rows import CompareBy, Rows

MOST_CAUSES = 10
_Where = tuple[int, Measure, "OfRow"]
_NEARLY_AS_STRONG = 0.95


class OfRow(StrEnum):
    """Which time of a row: while it was the innermost, or while it was anywhere on the stack."""

    SELF = "self"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """What is the same on both sides, and what differs of it.

    name: as the recordings have it, where they agree, else that of the key. path: names from the root, by path only.
    samples: in which it is anywhere on the stack, before and after.
    differences: by measure and part; rows without callees have no SELF.
    cause: its rank among the rows that the other differences follow from, from 0; None where it is none of them.
    follows: differences that are gone where the samples of the causes are left out: the row calls one, or has another share
        only because one has.
    """

    key: Key
    name: str
    path: tuple[str, ...]
    samples: tuple[int, int]
    differences: Mapping[tuple[Measure, OfRow], Difference]
    cause: int | None = None
    follows: frozenset[tuple[Measure, OfRow]] = frozenset()

    def verdict(self, of_row: OfRow) -> Verdict:
        """The surer one of both measures."""
        return min((self.differences[measure, of_row].verdict for measure in Measure), key=list(Verdict).index)


def _by_block() -> defaultdict[int, defaultdict[int, int]]:
    return defaultdict(partial(defaultdict, int))


@dataclass(slots=True)
class _Weights:
    """What the rows took on one side, by row and block."""

    of_self: defaultdict[int, defaultdict[int, int]] = field(default_factory=_by_block)
    of_total: defaultdict[int, defaultdict[int, int]] = field(default_factory=_by_block)
    self_samples: Counter[int] = field(default_factory=Counter)
    total_samples: Counter[int] = field(default_factory=Counter)

    def is_leaf(self, number: int) -> bool:
        """Whether a row is the innermost one wherever it is."""
        return self.self_samples[number] == self.total_samples[number]


def compare(
    before: Sequence[Profile], after: Sequence[Profile], by: CompareBy = CompareBy.FUNCTION, families: int = 1
) -> Comparison:
    """One recording or more of each side, all of them open; where each side has ``FEWEST_RUNS``, these are what varies.

    families: see ``Comparison``.
    """
    by_run = min(len(before), len(after)) >= FEWEST_RUNS
    return Comparison(side_of(before, by_run=by_run), side_of(after, by_run=by_run), by, families)


class Comparison:
    """Two sides by rows.

    sides: before and after. Rows are made when they are asked for: of a million samples that takes some seconds.
    """

    def __init__(self, before: Side, after: Side, by: CompareBy = CompareBy.FUNCTION, families: int = 1) -> None:
        """Use ``compare``. families: so many comparisons are made beside each other, and corrected for each other."""
        self.by = by
        self._families = families
        self.sides = (before, after)
        self._contrast = Contrast(*self.sides)
        self._rows = Rows(by, with_tasks=before.has_tasks and after.has_tasks)
        self._tests = 0

    @property
    def rows(self) -> list[ComparedRow]:
        """In no order."""
        return list(self._by_number.values())

    @property
    def tests(self) -> int:
        """So many figures were tested, and corrected for each other."""
        return self._tests if self._by_number else 0

    @cached_property
    def _by_number(self) -> dict[int, ComparedRow]:
        with no_collection():
            return self._compared()

    @cached_property
    def _weights(self) -> tuple[_Weights, ...]:
        return tuple(self._gathered(side, frozenset()) for side in self.sides)

    @property
    def is_testable(self) -> bool:
        """Whether both sides are long enough for a test."""
        return self._contrast.is_testable

    @property
    def parts(self) -> tuple[OfRow, ...]:
        """Which times its rows have."""
        return (OfRow.SELF, OfRow.TOTAL) if self.by.has_callees else (OfRow.TOTAL,)

    def row_of(self, function: Function) -> ComparedRow | None:
        """The row of a function (of a comparison by function)."""
        rows = self._by_number
        number = self._rows.number_of(function)
        return None if number is None else rows.get(number)

    def rows_along(self, cell: Cell) -> list[ComparedRow | None]:
        """The rows that samples count for, root first (of a comparison by path); None where a caller only leads to the next one."""
        rows = self._by_number
        return [rows.get(number) for number in self._rows.place(cell)]

    def samples_by_run(self) -> dict[Key, tuple[list[int], list[int]]]:
        """In how many samples of each recording of both sides a row is anywhere on the stack (of a comparison by function)."""
        found = {row.key: ([0] * self.sides[0].runs, [0] * self.sides[1].runs) for row in self.rows}
        for index, side in enumerate(self.sides):
            starts = sorted(side.firsts)
            for cell in side.cells:
                run = bisect_right(starts, min(cell.weights)) - 1
                for row in self.rows_along(cell):
                    if row is not None:
                        found[row.key][index][run] += cell.samples
        return found

    def differing(self, of_row: OfRow | None = None) -> list[ComparedRow]:
        """The rows that differ by more than noise, in any part or in one."""
        parts = self.parts if of_row is None else (of_row,)
        return [row for row in self.ordered() if any(row.verdict(part) is Verdict.DIFFERENT for part in parts)]

    def ordered(self, of_row: OfRow = OfRow.SELF) -> list[ComparedRow]:
        """What differs first: causes in their order, then other differences, what follows from causes, and noise; largest first."""
        part = of_row if of_row in self.parts else OfRow.TOTAL
        verdicts = list(Verdict)

        def rank(row: ComparedRow) -> tuple[object, ...]:
            verdict = row.verdict(part)
            differs = verdict is Verdict.DIFFERENT
            own = {(measure, part) for measure in Measure if row.differences[measure, part].verdict is Verdict.DIFFERENT}
            figure = row.differences[Measure.SHARE, part]
            return (
                verdicts.index(verdict),
                MOST_CAUSES if row.cause is None or not differs else row.cause,
                differs and own <= row.follows,
                -abs(figure.change),
                -abs(row.differences[Measure.TIME, part].change),
                row.path or (row.name,),
                row.key,
            )

        return sorted(self.rows, key=rank)

    def _gathered(self, side: Side, without: frozenset[int]) -> _Weights:
        """What the rows took. ``without``: cells of these innermost rows do not count."""
        samples: Counter[tuple[int, ...]] = Counter()
        blocks: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for cell in side.cells:
            place = self._rows.place(cell)
            if place and place[-1] not in without:
                samples[place] += cell.samples
                of_place = blocks[place]
                for block, weight in cell.weights.items():
                    of_place[block] += weight
        found = _Weights()
        for place, count in samples.items():
            targets = [found.of_self[place[-1]]] if self.by.has_callees else []
            targets += [found.of_total[number] for number in place]
            for target in targets:
                for block, weight in blocks[place].items():
                    target[block] += weight
            found.self_samples[place[-1]] += count
            for number in place:
                found.total_samples[number] += count
        return found

    def _part(self, number: int, of_row: OfRow, weights: Sequence[_Weights]) -> Part:
        is_self = of_row is OfRow.SELF
        before: Mapping[int, int]
        after: Mapping[int, int]
        before, after = ((each.of_self if is_self else each.of_total).get(number, {}) for each in weights)
        samples = sum((each.self_samples if is_self else each.total_samples)[number] for each in weights)
        return Part((before, after), samples)

    def _compared(self) -> dict[int, ComparedRow]:
        own = set(self._weights[0].self_samples) | set(self._weights[1].self_samples)
        implied = self._rows.implied(own) if self.by is CompareBy.PATH else set()
        numbers = [number for number in range(len(self._rows.keys)) if number not in implied]
        found = {
            (number, measure, part): self._contrast.difference(self._part(number, part, self._weights), measure)
            for number in numbers
            for part in self.parts
            for measure in Measure
        }
        # A row that calls nothing has one figure, not two.
        alike = {number for number in numbers if all(weights.is_leaf(number) for weights in self._weights)}
        tested = [
            where
            for where, difference in found.items()
            if difference.p is not None and not (where[0] in alike and where[2] is not self.parts[0])
        ]
        self._tests = len(tested)
        for where, p in zip(tested, corrected([found[where].p or 0.0 for where in tested]), strict=True):
            found[where] = replace(found[where], corrected_p=min(1.0, p * self._families))
        for number in alike:
            for measure in Measure:
                found[number, measure, OfRow.TOTAL] = found[number, measure, self.parts[0]]
        causes = self._causes(found, numbers)
        follows = self._following(found, causes)
        return {
            number: ComparedRow(
                self._rows.keys[number],
                self._rows.names[number],
                self._rows.path(number) if self.by is CompareBy.PATH else (),
                (self._weights[0].total_samples[number], self._weights[1].total_samples[number]),
                {(measure, part): found[number, measure, part] for measure in Measure for part in self.parts},
                causes.index(number) if number in causes else None,
                frozenset(follows.get(number, ())),
            )
            for number in numbers
        }

    def _causes(self, found: Mapping[_Where, Difference], numbers: Sequence[int]) -> list[int]:
        """The rows whose shares differ, the surest first, without those whose difference follows from the ones before."""
        part = self.parts[0]
        causes: list[int] = []
        excluded: tuple[dict[int, int], dict[int, int]] = ({}, {})
        left = {n: found[n, Measure.SHARE, part] for n in numbers if found[n, Measure.SHARE, part].verdict is Verdict.DIFFERENT}
        while left and len(causes) < MOST_CAUSES:
            strongest = max(difference.strength for difference in left.values())
            near = [n for n, difference in left.items() if difference.strength >= _NEARLY_AS_STRONG * strongest]
            # Where only two rows share the time, what one lost the other has won: more is likelier to be the cause.
            cause = max(near, key=lambda n: (left[n].change > 0, left[n].strength, -n))
            causes.append(cause)
            for side, weights in zip(excluded, self._part(cause, part, self._weights).weights, strict=True):
                for block, weight in weights.items():
                    side[block] = side.get(block, 0) + weight
            contrast = Contrast(*self.sides, excluded)
            again = {n: contrast.difference(self._part(n, part, self._weights), Measure.SHARE) for n in left if n not in causes}
            left = {n: difference for n, difference in again.items() if self._is_sure(difference)}
        return causes

    def _is_sure(self, difference: Difference) -> bool:
        """Whether a difference would be one among all rows, too."""
        return difference.p is not None and difference.p * self._tests * self._families <= LEVEL

    def _following(self, found: Mapping[_Where, Difference], causes: Sequence[int]) -> dict[int, set[tuple[Measure, OfRow]]]:
        """The differences of other rows which are gone where the samples of the causes are left out."""
        if not causes:
            return {}
        left = tuple(self._gathered(side, frozenset(causes)) for side in self.sides)
        excluded: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for side, weights in zip(excluded, self._weights, strict=True):
            for cause in causes:
                for block, weight in (weights.of_self if self.by.has_callees else weights.of_total).get(cause, {}).items():
                    side[block] = side.get(block, 0) + weight
        contrast = Contrast(*self.sides, excluded)
        # In boots time is what it is; in pieces of steady work, which are as long as asked for, less of it is a smaller share.
        is_course = all(side.is_course for side in self.sides)
        follows: dict[int, set[tuple[Measure, OfRow]]] = {}
        for (number, measure, part), difference in found.items():
            if difference.verdict is Verdict.DIFFERENT and not (number in causes and part is self.parts[0]):
                again = contrast.difference(self._part(number, part, left), measure if is_course else Measure.SHARE)
                if not self._is_sure(again):
                    follows.setdefault(number, set()).add((measure, part))
        return follows
