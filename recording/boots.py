"""The recorded boots of two sides become a comparison: how long each phase took, which functions differ in it, and what one side
alone runs.

Durations are by the guests' own clocks where all boots can be told by these, else of guest running time. The spread of a side's
boots is the error of its mean; no error is less than that of finding a milestone by samples. A single boot does not tell how much
boots vary: then durations are not tested. All figures of a kind are corrected for each other (Holm), those of functions for the
number of phases, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recording.alignment import Boot, CommonPhase, Unmatched, align, boot_of
from recording.comparison import ComparedRow, Comparison, OfRow, compare
from recording.contrast import FEWEST_SAMPLES, Difference, Measure, compare_means, corrected
from recording.guest_time import use_guest_time
from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording, Selection
from recording.rows import CompareBy

WHOLE = "whole boot"
_OF_KERNEL = frozenset({FrameKind.KERNEL, FrameKind.MODULE})
_Sides = tuple[Sequence[Recording], Sequence[Recording]]


@dataclass(frozen=True, slots=True)
class Shares:
    """Of a phase on one side, parts of 1: a vCPU waited, ran user code, ran code from before the kernel."""

    idle: float
    user: float
    firmware: float


@dataclass(frozen=True, slots=True)
class ComparedPhase:
    """A phase of all boots.

    duration: in nanoseconds, before and after, on average of the boots. shares: of each side, None where it has no sample.
    is_bounded: whether its end is something that the guests did, and not how long was recorded.
    functions: what was sampled in it; profiles: the same of each boot.
    """

    common: CommonPhase
    duration: Difference
    shares: tuple[Shares | None, Shares | None]
    is_bounded: bool
    functions: Comparison
    profiles: tuple[Sequence[Profile], Sequence[Profile]]

    @property
    def name(self) -> str:
        """Of the milestone that begins it."""
        return self.common.name


@dataclass(frozen=True, slots=True)
class OneSided:
    """A function that samples of one side alone have.

    side: 0 or 1. in_every_boot: whether each of several boots of this side has samples enough of it to be tested by itself.
    has_symbol: whether the other side's kernel or modules have a function of that name; None for code of others.
    """

    row: ComparedRow
    side: int
    in_every_boot: bool
    has_symbol: bool | None

    @property
    def time_ns(self) -> float:
        """What it took itself, of a boot on average."""
        figure = self.row.differences[Measure.TIME, OfRow.SELF]
        return figure.after if self.side else figure.before


@dataclass(frozen=True, slots=True)
class BootComparison:
    """Two sides' boots.

    by_guest_clock: whether all times are by the guests' own clocks, and not guest running time.
    whole: how long the boots took. functions: of the whole boots.
    is_bounded: whether something in the guests ended the recordings.
    """

    sides: tuple[Sequence[Boot], Sequence[Boot]]
    by_guest_clock: bool
    phases: Sequence[ComparedPhase]
    unmatched: Sequence[Unmatched]
    whole: Difference
    is_bounded: bool
    functions: Comparison
    one_sided: Sequence[OneSided]

    @property
    def profiles(self) -> tuple[list[Profile], list[Profile]]:
        """Of whole boots."""
        before, after = self.sides
        return [boot.profile for boot in before], [boot.profile for boot in after]


def compare_boots(recordings: _Sides, wanted: Mapping[str, re.Pattern[str]] | None = None) -> BootComparison:
    """Recordings of boots, one or more of each side, all of them open. ``wanted``: more milestones, see ``find_milestones``.

    From then on these recordings are told by the guests' clocks, if they can be.
    """
    by_guest_clock = use_guest_time([recording for side in recordings for recording in side])
    first, second = [[boot_of(Profile(recording), wanted) for recording in side] for side in recordings]
    sides = first, second
    common, unmatched = align(sides)
    is_bounded = all(boot.is_bounded for side in sides for boot in side)
    families = len(common) + 1
    phases = [_phase(phase, recordings, is_bounded=is_bounded or not phase.is_last, families=families) for phase in common]
    lengths = tuple([float(boot.duration_ns) for boot in side] for side in sides)
    whole = compare_means((lengths[0], lengths[1]), ([0.0] * len(first), [0.0] * len(second)))
    durations = [*[phase.duration for phase in phases], whole if is_bounded else replace(whole, p=None)]
    if min(len(first), len(second)) == 1:
        durations = [replace(each, p=None) for each in durations]
    durations = _corrected(durations)
    functions = compare([boot.profile for boot in first], [boot.profile for boot in second], CompareBy.FUNCTION, families)
    return BootComparison(
        sides,
        by_guest_clock,
        [replace(phase, duration=duration) for phase, duration in zip(phases, durations, strict=False)],
        unmatched,
        durations[-1],
        is_bounded,
        functions,
        _one_sided(functions, sides),
    )


def _phase(common: CommonPhase, recordings: _Sides, *, is_bounded: bool, families: int) -> ComparedPhase:
    first, second = [
        [
            # The last halt is the end of the last phase, and the begin of no other.
            Profile(recording, Selection(since_ns=span.start_ns, until_ns=span.end_ns + common.is_last if is_bounded else None))
            for recording, span in zip(side, spans, strict=True)
        ]
        for side, spans in zip(recordings, common.spans, strict=True)
    ]
    durations = tuple([float(span.duration_ns) for span in side] for side in common.spans)
    variances = tuple([span.variance for span in side] for side in common.spans)
    difference = compare_means((durations[0], durations[1]), (variances[0], variances[1]))
    return ComparedPhase(
        common,
        difference if is_bounded else replace(difference, p=None),
        (_shares(common, 0), _shares(common, 1)),
        is_bounded,
        compare(first, second, CompareBy.FUNCTION, families),
        (first, second),
    )


def _shares(common: CommonPhase, side: int) -> Shares | None:
    phases = [span.phase for span in common.spans[side] if span.phase is not None]
    whole_ns = sum(phase.weight_ns for phase in phases)
    if not whole_ns:
        return None
    return Shares(
        sum(phase.idle_ns for phase in phases) / whole_ns,
        sum(phase.user_ns for phase in phases) / whole_ns,
        sum(phase.firmware_ns for phase in phases) / whole_ns,
    )


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """For each other, those that are tested."""
    tested = [index for index, difference in enumerate(differences) if difference.p is not None]
    values = dict(zip(tested, corrected([differences[index].p or 0.0 for index in tested]), strict=True))
    return [replace(difference, corrected_p=values.get(index)) for index, difference in enumerate(differences)]


def _one_sided(functions: Comparison, sides: tuple[Sequence[Boot], Sequence[Boot]]) -> list[OneSided]:
    """What took most first."""
    rows = []
    by_run = functions.samples_by_run()
    for row in functions.rows:
        before, after = row.samples
        if not (before and after):
            side = int(after > 0)
            in_every_boot = min(map(len, sides)) > 1 and min(by_run[row.key][side]) >= FEWEST_SAMPLES
            has_symbol = _has_symbol(row, sides[1 - side]) if row.key.kind in _OF_KERNEL else None
            rows.append(OneSided(row, side, in_every_boot, has_symbol))
    return sorted(rows, key=lambda row: (-row.time_ns, row.row.key))


def _has_symbol(row: ComparedRow, boots: Sequence[Boot]) -> bool:
    tables = (image.symbols for boot in boots for image in boot.profile.images if image.symbols is not None)
    return any(table.find(row.name) is not None for table in tables)
