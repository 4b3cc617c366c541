"""The sections of a timeline: what its text, JSON and CSV consist of, and in which order rows stand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from recording.seen import Seen
from recording.timeline import SeenInitcall, Timeline
from recording.units import Unit, start_by_guest

_T = TypeVar("_T")


class Section(StrEnum):
    """The choices of ``timeline --show``."""

    CLOCK = "clock"
    MILESTONES = "milestones"
    PHASES = "phases"
    WAITS = "waits"
    MODULES = "modules"
    INITCALLS = "initcalls"
    PROCESSES = "processes"
    UNITS = "units"
    GROUPS = "groups"
    SYSTEM_CALLS = "system-calls"
    FUNCTIONS = "functions"
    EVENTS = "events"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class TimelineView:
    """A timeline and what of it is to be shown.

    limit: rows of each section at most, None for all; milestones and phases are always whole.
    """

    timeline: Timeline
    sections: Collection[Section]
    limit: int | None = None

    def shows(self, section: Section) -> bool:
        """Whether a section is wanted."""
        return section in self.sections

    @property
    def has_clock(self) -> bool:
        """Whether the guest's own time is known of anything."""
        return bool(self.timeline.clock.clocks.clocks)

    def guest_ns(self, time_ns: int | None) -> int | None:
        """What the guest's own clock showed at a moment of guest running time; None where that is not known."""
        return None if time_ns is None else self.timeline.clock.clocks.at(time_ns)

    def guest_took_ns(self, start_ns: int | None, end_ns: int | None) -> int | None:
        """How long something took by the guest's own clock."""
        start, end = self.guest_ns(start_ns), self.guest_ns(end_ns)
        return None if start is None or end is None else end - start

    def start_ns(self, unit: Unit) -> int | None:
        """How long a unit's start took, by printk's stamps or the guest's own clock where these are known."""
        return start_by_guest(unit, self.timeline.clock.clocks) or unit.start_ns

    def rows(self, rows: Sequence[_T]) -> Sequence[_T]:
        """As many of these as are wanted."""
        return rows[: self.limit]


def by_start(view: TimelineView) -> list[Unit]:
    """Units of which more is known than that they are there: those whose start took longest first, then by their time."""
    rows = [unit for unit in view.timeline.units if unit.seen is not None or unit.start_ns is not None]
    return sorted(rows, key=lambda unit: -(view.start_ns(unit) or 0))


def by_time(initcalls: Sequence[SeenInitcall]) -> list[SeenInitcall]:
    """Those that took longest first."""
    return sorted(initcalls, key=lambda row: (-row.seen.weight_ns, row.seen.first_ns, row.function.name, row.function.module))


def uncertainty_ns(time_ns: int, after_ns: int | None) -> int | None:
    """How long before the sighting something may have happened; None where the recording began too late to tell."""
    return None if after_ns is None else time_ns - after_ns


def seen_uncertainty_ns(seen: Seen) -> int | None:
    """The same for a first sighting."""
    return uncertainty_ns(seen.first_ns, seen.after_ns)
