"""A comparison of boots becomes what ``compare`` tells: which functions of which phases, and sentences. Formats only write them."""

from __future__ import annotations

from dataclasses import dataclass

from exporters.diff import DiffView, Worth, named, reach, side_line, signed, worth_of_row
from exporters.text import counted, duration, printable, shortened
from recording.alignment import Unmatched
from recording.boots import BootComparison, ComparedPhase, OneSided
from recording.comparison import ComparedRow, OfRow
from recording.contrast import FEWEST_RUNS, FEWEST_SAMPLES, LEVEL, Difference, Measure

_MOST_NAMES = 3
_NAME_WIDTH = 60
_SAME = {Worth.NOISE: "differs by no more than its error", Worth.UNSURE: "may differ", Worth.UNTESTED: "is not tested"}
_TOLD = frozenset({Worth.DIFFERS, Worth.FOLLOWS})


@dataclass(frozen=True, slots=True)
class CompareView:
    """A comparison and how it is shown. names: of both sides. limit: rows of each table at most, None for all."""

    boots: BootComparison
    names: tuple[str, str]
    limit: int | None = None

    def of_phase(self, phase: ComparedPhase, part: OfRow) -> DiffView:
        """The functions of a phase, by one of their times."""
        return DiffView(phase.functions, phase.profiles, part, self.limit)

    def differing(self, phase: ComparedPhase, part: OfRow) -> list[ComparedRow]:
        """The functions of a phase that differ by more than noise, most surely first."""
        view = self.of_phase(phase, part)
        return [row for row in phase.functions.ordered(view.shown_part) if worth_of_row(row, view.shown_part) in _TOLD]

    def one_sided(self, side: int) -> list[OneSided]:
        """What this side alone runs, and often enough that this is no accident of sampling: in each boot, or by the test."""
        rows = [row for row in self.boots.one_sided if row.side == side]
        return [row for row in rows if row.in_every_boot or worth_of_row(row.row, OfRow.TOTAL) in _TOLD]

    def seldom(self) -> int:
        """How many functions were seen on one side alone, too seldom to say that the other never runs them."""
        return len(self.boots.one_sided) - len(self.one_sided(0)) - len(self.one_sided(1))


def side_lines(view: CompareView) -> list[str]:
    """What each side is: ``tcg: Linux 6.1 on x86_64, TCG, 1 vCPU; 3 recordings, ...``."""
    sides = zip(view.names, view.boots.profiles, view.boots.functions.sides, strict=True)
    return [f"{printable(name)}: {side_line(profiles, side)}" for name, profiles, side in sides]


def change_of(difference: Difference) -> str:
    """``+310.00 ms ±20.00 ms``, nothing behind the figure where the error is not known."""
    return f"{signed(Measure.TIME, difference.change)} {reach(Measure.TIME, difference)}".rstrip()


def result_lines(view: CompareView) -> list[str]:
    """The answer in sentences: how long the boots took, which phases differ, and because of which functions."""
    boots = view.boots
    lines = [_whole(view)]
    differing = [phase for phase in boots.phases if Worth.of(phase.duration.verdict) is Worth.DIFFERS]
    lines += [_of_phase(view, phase) for phase in differing]
    others = [phase for phase in boots.phases if phase not in differing and view.differing(phase, OfRow.SELF)]
    lines += [
        f"{phase.name}, whose duration {_SAME[Worth.of(phase.duration.verdict)]}: {_functions(view, phase)}" for phase in others
    ]
    if not differing and not others and Worth.of(boots.whole.verdict) is not Worth.DIFFERS:
        tested = sum(phase.functions.tests for phase in boots.phases) + sum(phase.duration.p is not None for phase in boots.phases)
        lines.append(f"no significant difference: {tested:,} figures tested, all within their error")
    return lines


def _whole(view: CompareView) -> str:
    boots = view.boots
    lengths = (
        f"{duration(boots.whole.before)} ({printable(view.names[0])}), {duration(boots.whole.after)} ({printable(view.names[1])})"
    )
    if boots.is_bounded and boots.whole.p is None:
        return f"the boots took {lengths}: {change_of(boots.whole)}, not tested"
    if not boots.is_bounded:
        return f"the recordings are of {lengths}: how long was recorded, not how long the boots took"
    verdict = {Worth.NOISE: ", within its error", Worth.UNSURE: ", which may be chance"}.get(Worth.of(boots.whole.verdict), "")
    return f"the boots took {lengths}: {change_of(boots.whole)}{verdict}"


def _of_phase(view: CompareView, phase: ComparedPhase) -> str:
    figures = f"{duration(phase.duration.before)} and {duration(phase.duration.after)}: {change_of(phase.duration)}"
    found = _functions(view, phase)
    return f"{phase.name} differs, {figures}{'; ' + found if found else '; no single function does by more than noise'}"


def _functions(view: CompareView, phase: ComparedPhase) -> str:
    """Those whose own time differs, with how much."""
    own = [row for row in view.differing(phase, OfRow.SELF) if worth_of_row(row, OfRow.SELF) is Worth.DIFFERS]
    if not own:
        return ""
    names = [named(row, view.of_phase(phase, OfRow.SELF), Measure.TIME) for row in own[:_MOST_NAMES]]
    names += ["..."] if len(own) > _MOST_NAMES else []
    return f"{counted(len(own), 'function')} in it {'differs' if len(own) == 1 else 'differ'}: {', '.join(names)}"


def unmatched_lines(view: CompareView) -> list[str]:
    """A sentence for each milestone that could not be a boundary, or was not seen in every boot."""
    unseen = [_unseen(view, phase) for phase in view.boots.phases if any(phase.common.unseen)]
    return [*(_unmatched(view, each) for each in view.boots.unmatched), *unseen]


def _unseen(view: CompareView, phase: ComparedPhase) -> str:
    return f"{phase.name} was too short to be sampled in {_counts(view, phase.common.unseen)}: there it took no time"


def _unmatched(view: CompareView, each: Unmatched) -> str:
    name = shortened(printable(each.name), _NAME_WIDTH)
    if each.is_misplaced:
        return f"{name} comes in another order in some boots: no boundary"
    return f"{name} was seen in {_counts(view, each.found)}: no boundary, its time is in the phase before"


def _counts(view: CompareView, numbers: tuple[int, int]) -> str:
    """``1 of 3 boots of old and none of new``."""
    sides = zip(numbers, view.boots.sides, view.names, strict=True)
    return " and ".join(f"{number or 'none'} of {counted(len(side), 'boot')} of {printable(name)}" for number, side, name in sides)


def method_lines(view: CompareView) -> list[str]:
    """How differences were told from noise, and what to be careful about."""
    boots = view.boots
    counts = [len(side) for side in boots.sides]
    spread = "how much the boots of a side vary" if min(counts) > 1 else "how exactly milestones are known"
    level = f"{100 * LEVEL:g} %"
    lines = [
        "times are by the guests' own clocks" if boots.by_guest_clock else "times are guest running time",
        f"± is half of a figure's own 95 % interval, of durations by {spread}",
        f"Holm's correction: {level} of comparisons of equal boots find a duration that differs, {level} a function",
        f"functions are tested where both sides together have {FEWEST_SAMPLES} samples of them",
    ]
    if min(counts) == 1:
        more = "give several of each side (--runs, --before, --after)"
        lines.append(f"a single boot does not tell how much boots vary, so durations are not tested: {more}")
    elif min(counts) < FEWEST_RUNS:
        lines.append(f"with {FEWEST_RUNS} boots of each side (--runs {FEWEST_RUNS}) functions, too, are compared boot by boot")
    if not boots.is_bounded:
        lines.append("something else than the guests ended a recording: what comes last is as long as was recorded, and not tested")
    return lines
