"""A profile becomes the rows of the ``report`` command: which totals, in which order, how many. Its formats only write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from exporters.text import share
from recording.neighbours import callee_totals, caller_totals
from recording.profile import Profile
from recording.source_paths import line_totals
from recording.views import (
    Total,
    context_totals,
    function_totals,
    module_totals,
    process_totals,
    system_call_totals,
    thread_totals,
    unit_totals,
    vcpu_totals,
)


class GroupBy(StrEnum):
    """What the rows of a report are."""

    FUNCTION = "function"
    MODULE = "module"
    PROCESS = "process"
    THREAD = "thread"
    VCPU = "vcpu"
    CONTEXT = "context"
    SYSTEM_CALL = "system-call"
    LINE = "line"
    UNIT = "unit"

    @property
    def has_pids(self) -> bool:
        """Whether rows have a number beside their name."""
        return self in {GroupBy.PROCESS, GroupBy.THREAD}


class SortBy(StrEnum):
    """What a report's rows are ordered by, largest first."""

    SELF = "self"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rows of a report that are the callers or the callees of a function."""

    function: str
    is_callers: bool

    @property
    def word(self) -> str:
        """What the rows are."""
        return "callers" if self.is_callers else "callees"


@dataclass(frozen=True, slots=True)
class Row:
    """A total with its shares of all selected guest running time."""

    total: Total
    self_share: float
    total_share: float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, and what the function took whose neighbours they are, None where they are no neighbours."""

    rows: list[Row]
    of: Row | None = None


_TOTALS: dict[GroupBy, Callable[[Profile], list[Total]]] = {
    GroupBy.FUNCTION: function_totals,
    GroupBy.MODULE: module_totals,
    GroupBy.PROCESS: process_totals,
    GroupBy.THREAD: thread_totals,
    GroupBy.VCPU: vcpu_totals,
    GroupBy.CONTEXT: context_totals,
    GroupBy.SYSTEM_CALL: system_call_totals,
    GroupBy.LINE: line_totals,
    GroupBy.UNIT: unit_totals,
}


def report_table(
    profile: Profile,
    *,
    by: GroupBy = GroupBy.FUNCTION,
    sort: SortBy = SortBy.SELF,
    limit: int | None = None,
    neighbours: Neighbours | None = None,
) -> Table:
    """The rows of a report, or those of a function's neighbours, by their time in it. Raises UnknownFunctionError."""
    if neighbours is None:
        return Table(report_rows(profile, by=by, sort=sort, limit=limit))
    find = caller_totals if neighbours.is_callers else callee_totals
    whole, totals = find(profile, neighbours.function)
    totals.sort(key=lambda total: (-total.total_ns, -total.self_ns))
    return Table([_row(profile, total) for total in totals[:limit]], _row(profile, whole))


def _row(profile: Profile, total: Total) -> Row:
    return Row(total, share(total.self_ns, profile.weight_ns), share(total.total_ns, profile.weight_ns))


def report_rows(
    profile: Profile, *, by: GroupBy = GroupBy.FUNCTION, sort: SortBy = SortBy.SELF, limit: int | None = None
) -> list[Row]:
    """The rows of a report. vCPUs stand in the order of their numbers; others by time, and by name where that is equal."""
    totals = _TOTALS[by](profile)
    if by is not GroupBy.VCPU:
        if sort is SortBy.SELF:
            totals.sort(key=lambda total: (-total.self_ns, -total.total_ns))
        else:
            totals.sort(key=lambda total: (-total.total_ns, -total.self_ns))
    return [_row(profile, total) for total in totals[:limit]]
