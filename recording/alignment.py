"""The boots of two sides become phases that all of them have: what lies between milestones that the boots reached in one order.

A milestone that one side never reached, or that comes in another order in some boot, divides nothing: its time belongs to the phase
before. It is told, and never guessed. One that only some boots of each side show was too short to be sampled in the others: there
it began between the last halt of the phase before and the first of the phase after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recording.blocks import has_ended_by_itself
from recording.milestones import Milestone, find_milestones, usual_place
from recording.phases import Phase, course_of
from recording.profile import Profile

BEFORE = "start"
"""The name of what lies before the first milestone."""


@dataclass(frozen=True, slots=True)
class Span:
    """A phase in one boot.

    phase: what was sampled in it; None where no sample is in it. start_ns, end_ns: guest running time since the recording's start.
    variance: of its duration, in square nanoseconds: a milestone lies anywhere between the halt that shows it and the one before.
    """

    phase: Phase | None
    start_ns: int
    end_ns: int
    variance: float

    @property
    def duration_ns(self) -> int:
        """Guest running time."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class Boot:
    """One recording of a boot.

    milestones: those that begin phases, by name. start_ns: where the recording begins; end: where it ends, as a milestone.
    first_ns: its first halt.
    is_bounded: whether something in the guest ended it, and not how long was recorded.
    """

    profile: Profile
    milestones: Mapping[str, Milestone]
    start_ns: int
    first_ns: int
    end: Milestone
    is_bounded: bool

    @property
    def duration_ns(self) -> int:
        """Guest running time."""
        return self.end.time_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class CommonPhase:
    """name, title: of the milestone that begins it. spans: of each boot of each side. is_last: whether the recordings end it.

    unseen: in so many boots of each side it was too short to be sampled.
    """

    name: str
    title: str
    spans: tuple[tuple[Span, ...], tuple[Span, ...]]
    unseen: tuple[int, int]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A milestone that divides nothing. found: in how many boots of each side; where in all, their order differs."""

    name: str
    found: tuple[int, int]
    is_misplaced: bool


def boot_of(profile: Profile, wanted: Mapping[str, re.Pattern[str]] | None = None) -> Boot:
    """A recording of a boot. ``wanted``: more milestones, see ``find_milestones``."""
    begins = {each.name: each for each in find_milestones(profile, wanted) if each.begins_phase}
    course, halts = course_of(profile, ()), profile.halt_times()
    end = Milestone("", "", course.end_ns, halts[-2] if len(halts) > 1 else None)
    return Boot(profile, begins, course.start_ns, halts[0] if halts else 0, end, has_ended_by_itself(profile))


def align(sides: tuple[Sequence[Boot], Sequence[Boot]]) -> tuple[list[CommonPhase], list[Unmatched]]:
    """Phases that all boots have in common, in their order, and the milestones that could not divide them."""
    boots = [boot for side in sides for boot in side]
    names = list(dict.fromkeys(name for boot in boots for name in boot.milestones))
    first, second = [{name: sum(name in boot.milestones for boot in side) for name in names} for side in sides]
    chain = _in_one_order([name for name in names if first[name] and second[name]], boots)
    # Where nothing follows, a boot that does not show one may not have come to it.
    is_bounded = all(boot.is_bounded for boot in boots)
    while chain and not is_bounded and first[chain[-1]] + second[chain[-1]] < len(boots):
        chain.pop()
    common = [name for name in names if first[name] + second[name] == len(boots)]
    unmatched = [Unmatched(name, (first[name], second[name]), name in common) for name in names if name not in chain]
    return _phases(chain, sides), unmatched


def _in_one_order(names: Sequence[str], boots: Sequence[Boot]) -> list[str]:
    """As many of these as all boots reach in one order; those that most boots show come first."""
    shown = {name: sum(name in boot.milestones for boot in boots) for name in names}
    chain: list[str] = []
    for name in sorted(names, key=lambda name: -shown[name]):
        place = next((place for place, other in enumerate(chain) if not _follows(name, other, names, boots)), len(chain))
        if all(_follows(other, name, names, boots) for other in chain[place:]):
            chain.insert(place, name)
    return chain


def _follows(name: str, before: str, names: Sequence[str], boots: Sequence[Boot]) -> bool:
    """Whether each boot that shows both does so in this order; in one halt they are seen in the order of the names.

    Where no boot shows both, the kernel's own order counts, if it is known of these.
    """
    times = [
        (boot.milestones[before].time_ns, boot.milestones[name].time_ns)
        for boot in boots
        if name in boot.milestones and before in boot.milestones
    ]
    if not times:
        earlier, later = usual_place(before), usual_place(name)
        return earlier is not None and later is not None and earlier < later
    if all(first_ns == then_ns for first_ns, then_ns in times):
        return names.index(before) < names.index(name)
    return all(first_ns <= then_ns for first_ns, then_ns in times)


def _phases(chain: Sequence[str], sides: tuple[Sequence[Boot], Sequence[Boot]]) -> list[CommonPhase]:
    boots = [boot for side in sides for boot in side]
    titles = {name: milestone.title for boot in boots for name, milestone in boot.milestones.items()}
    begins = [[_begins(boot, chain) for boot in side] for side in sides]
    has_before = not chain or any(
        of_boot[0].time_ns > boot.first_ns
        for side, of_side in zip(sides, begins, strict=True)
        for boot, of_boot in zip(side, of_side, strict=True)
    )
    names = [*([BEFORE] if has_before else []), *chain]
    first, second = [
        [_spans(boot, names, of_boot) for boot, of_boot in zip(side, of_side, strict=True)]
        for side, of_side in zip(sides, begins, strict=True)
    ]
    return [
        CommonPhase(
            name,
            titles.get(name, "before the first milestone"),
            (tuple([of_boot[index] for of_boot in first]), tuple([of_boot[index] for of_boot in second])),
            (_unseen(name, sides[0]), _unseen(name, sides[1])),
            index == len(names) - 1,
        )
        for index, name in enumerate(names)
    ]


def _unseen(name: str, boots: Sequence[Boot]) -> int:
    return 0 if name == BEFORE else sum(name not in boot.milestones for boot in boots)


def _begins(boot: Boot, chain: Sequence[str]) -> list[Milestone]:
    """Of each phase. One that was not seen began in the same gap between halts as the next that was."""
    found: list[Milestone] = []
    for name in reversed(chain):
        found.append(boot.milestones.get(name, found[-1] if found else boot.end))
    return found[::-1]


def _spans(boot: Boot, names: Sequence[str], begins: Sequence[Milestone]) -> list[Span]:
    sampled = {phase.name: phase for phase in course_of(boot.profile, list(dict.fromkeys(begins))).phases}
    moments = [(each.time_ns, _variance(each)) for each in begins]
    # What the first sample stands for began before it was taken.
    moments[: 1 + len(moments) - len(names)] = [(boot.start_ns, 0.0)]
    ends = [*moments[1:], (boot.end.time_ns, 0.0)]
    return [
        Span(sampled.get(name) if name == BEFORE or name in boot.milestones else None, start_ns, end_ns, variance + after)
        for name, (start_ns, variance), (end_ns, after) in zip(names, moments, ends, strict=True)
    ]


def _variance(milestone: Milestone) -> float:
    """Of a moment that is anywhere between two halts with equal probability."""
    return 0.0 if milestone.after_ns is None else (milestone.time_ns - milestone.after_ns) ** 2 / 12
