"""A comparison becomes what ``diff`` tells: which rows in which order, and sentences about them. Its formats only write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from exporters.text import counted, duration, hertz, machine, percent, printable, shortened
from recording.blocks import Side
from recording.comparison import ComparedRow, Comparison, OfRow
from recording.contrast import FEWEST_BLOCKS, FEWEST_RUNS, LEVEL, Difference, Measure, Verdict
from recording.profile import Profile

_MOST_NAMES = 3
_EVEN = 0.7
_LEFT_OUT = 0.005
_NAME_WIDTH = 60


class Worth(StrEnum):
    """What a difference is worth, in a word."""

    DIFFERS = "differs"
    """By more than noise."""
    FOLLOWS = "follows"
    """Also, but only because of other rows."""
    UNSURE = "unsure"
    NOISE = "noise"
    UNTESTED = "untested"

    @classmethod
    def of(cls, verdict: Verdict) -> Worth:
        """Of a difference by itself, whatever others may follow from it."""
        return cls.DIFFERS if verdict is Verdict.DIFFERENT else cls(verdict.value)


@dataclass(frozen=True, slots=True)
class DiffView:
    """A comparison and how it is shown.

    profiles: before and after. part: which time of a row it is ordered by; ``limit``: at most so many rows.
    measure: for formats that have one figure a row.
    """

    comparison: Comparison
    profiles: tuple[Sequence[Profile], Sequence[Profile]]
    part: OfRow = OfRow.SELF
    limit: int | None = None
    measure: Measure = Measure.SHARE

    @property
    def shown_part(self) -> OfRow:
        """The part, where rows have it."""
        return self.part if self.part in self.comparison.parts else OfRow.TOTAL

    def rows(self) -> list[ComparedRow]:
        """What is shown, in its order."""
        return self.comparison.ordered(self.shown_part)[: self.limit]


def worth_of(row: ComparedRow, measure: Measure, part: OfRow) -> Worth:
    """What one difference of a row is worth."""
    worth = Worth.of(row.differences[measure, part].verdict)
    return Worth.FOLLOWS if worth is Worth.DIFFERS and (measure, part) in row.follows else worth


def worth_of_row(row: ComparedRow, part: OfRow) -> Worth:
    """The most that either measure's difference is worth."""
    return min((worth_of(row, measure, part) for measure in Measure), key=list(Worth).index)


def signed(measure: Measure, value: float) -> str:
    """A difference with its sign: ``+5.40`` percentage points, ``-12.30 ms``."""
    text = f"{abs(100 * value):.2f}" if measure is Measure.SHARE else duration(abs(value))
    return ("-" if value < 0 else "+") + text


def reach(measure: Measure, difference: Difference) -> str:
    """Half the interval's width, ``±0.61`` or ``±4.10 ms``; nothing where there is none."""
    if difference.low is None or difference.high is None:
        return ""
    return "±" + signed(measure, (difference.high - difference.low) / 2)[1:]


def side_line(profiles: Sequence[Profile], side: Side) -> str:
    """What one side is: ``Linux 6.1 on x86_64, TCG, 1 vCPU; 1,500 samples in 6.00 s at 249.8 Hz``."""
    if not profiles:
        return "no recording"
    rates = [quality.achieved_hz for quality in (profile.quality() for profile in profiles) if quality.achieved_hz is not None]
    told = list(dict.fromkeys(machine(profile.meta) for profile in profiles))
    of_runs = "" if side.runs == 1 else f"{counted(side.runs, 'recording')}, "
    rate = hertz(sum(rates) / len(rates)) if rates else "an unknown rate"
    samples = counted(side.samples, "sample")
    if side.effective_samples < _EVEN * side.samples:
        samples += f" (as sure as {side.effective_samples:,.0f} evenly spaced ones)"
    whole_ns = side.weight_ns + side.left_out_ns
    if side.left_out_ns > _LEFT_OUT * whole_ns:
        samples += f", {percent(side.left_out_ns / whole_ns)} of the time left out as nothing saw it,"
    return f"{' / '.join(told)}; {of_runs}{samples} in {duration(side.duration_ns)} of running time at {rate}"


def result_lines(view: DiffView) -> list[str]:
    """The answer in a sentence or two: what differs, or that nothing does, and how fine that was looked."""
    comparison = view.comparison
    if not comparison.is_testable:
        return [_untestable(comparison)]
    differing = comparison.differing(view.shown_part)
    if not differing and not comparison.differing():
        return [f"no significant difference: {_fineness(view)}"]
    if not differing:
        return [f"no significant difference of {view.shown_part.value} times: {_fineness(view)}"]
    own = [row for row in differing if worth_of_row(row, view.shown_part) is Worth.DIFFERS]
    following = len(differing) - len(own)
    names = ", ".join(named(row, view) for row in own[:_MOST_NAMES]) + (", ..." if len(own) > _MOST_NAMES else "")
    verb = "differs" if len(own) == 1 else "differ"
    lines = [f"{counted(len(own), _word(view))} {verb} significantly: {names}"]
    if following:
        causes = "that one" if len(own) == 1 else "those"
        lines.append(f"{counted(following, _word(view))} more only because of {causes}: without its samples no difference is left")
    return lines


def _untestable(comparison: Comparison) -> str:
    least = FEWEST_RUNS if comparison.sides[0].by_run else FEWEST_BLOCKS
    sides = zip("AB", comparison.sides, strict=True)
    short = [letter for letter, side in sides if len(side.weights) < least or not side.weight_ns]
    verb = "is" if len(short) == 1 else "are"
    return f"{' and '.join(short)} {verb} too short (or too little is selected) to tell differences from noise; record for longer"


def _fineness(view: DiffView) -> str:
    """Beside "no difference" it must be said how large one might have been missed."""
    widest = max(
        (
            difference
            for row in view.comparison.rows
            if (difference := row.differences[Measure.SHARE, view.shown_part]).low is not None
        ),
        key=lambda difference: (difference.high or 0.0) - (difference.low or 0.0),
        default=None,
    )
    if widest is None:
        return "no row has enough samples to be tested"
    return (
        f"{view.comparison.tests:,} figures tested, all within the sampling error (at most {reach(Measure.SHARE, widest)} points)"
    )


def named(row: ComparedRow, view: DiffView, first: Measure = Measure.SHARE) -> str:
    """A row that differs, with how much: ``grind (+9.00 ±5.30 points)``; in the first measure, unless only the other differs."""
    measures = sorted(Measure, key=lambda measure: measure is not first)
    measure = next((each for each in measures if worth_of(row, each, view.shown_part) is Worth.DIFFERS), first)
    difference = row.differences[measure, view.shown_part]
    unit = " points" if measure is Measure.SHARE else ""
    return f"{label(row, _NAME_WIDTH)} ({signed(measure, difference.change)} {reach(measure, difference)}{unit})"


def label(row: ComparedRow, width: int) -> str:
    """A row's name, or its path, cut to its innermost functions."""
    if not row.path:
        return shortened(printable(row.name), width)
    path = " > ".join(printable(name) for name in row.path)
    return path if len(path) <= width else "…" + path[1 - width :]


def _word(view: DiffView) -> str:
    return view.comparison.by.value.replace("-", " ")


def method_lines(comparison: Comparison) -> list[str]:
    """How differences were told from noise, and what to be careful about."""
    before, after = comparison.sides
    if not comparison.is_testable:
        return []
    rate = f"{100 * LEVEL:g} %"
    lines = [
        f"± is a row's own 95 % interval, from {_blocks(before)} (A) and {_blocks(after)} (B)",
        f"{counted(comparison.tests, 'test')}, Holm's correction: {rate} of comparisons of equal work find a difference",
        f"unsure: outside of its own interval, as {rate} of all rows are by chance",
    ]
    if not before.by_run:
        varies = "from boot to boot" if before.is_course and after.is_course else "more slowly than the recordings are long"
        lines.append(f"what varies {varies} is not in these errors: give {FEWEST_RUNS} recordings of each side (--before, --after)")
    if not (before.is_bounded and after.is_bounded):
        lengths = " and ".join(duration(side.duration_ns / max(1, side.runs)) for side in comparison.sides)
        lines.append(f"running times are of {lengths}, as long as was recorded, and not tested; --until makes them comparable")
    return lines


def _blocks(side: Side) -> str:
    if side.by_run:
        return counted(side.runs, "recording")
    block = duration(side.duration_ns / len(side.weights))
    return f"{counted(len(side.weights), 'block')} of {block}{', each against the next' if side.is_course else ''}"
