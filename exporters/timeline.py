"""The sections of a timeline: what its text, JSON and CSV consist of, and in which order rows stand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from recording.timeline import Seen, SeenInitcall, Timeline

_T = TypeVar("_T")


class Section(StrEnum):
    """The choices of ``timeline --show``."""

    MILESTONES = "milestones"
    PHASES = "phases"
    WAITS = "waits"
    MODULES = "modules"
    INITCALLS = "initcalls"
    PROCESSES = "processes"
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

    def rows(self, rows: Sequence[_T]) -> Sequence[_T]:
        """As many of these as are wanted."""
        return rows[: self.limit]


def by_time(initcalls: Sequence[SeenInitcall]) -> list[SeenInitcall]:
    """Those that took longest first."""
    return sorted(initcalls, key=lambda row: (-row.seen.weight_ns, row.seen.first_ns, row.function.name, row.function.module))


def uncertainty_ns(time_ns: int, after_ns: int | None) -> int | None:
    """How long before the sighting something may have happened; None where the recording began too late to tell."""
    return None if after_ns is None else time_ns - after_ns


def seen_uncertainty_ns(seen: Seen) -> int | None:
    """The same for a first sighting."""
    return uncertainty_ns(seen.first_ns, seen.after_ns)
