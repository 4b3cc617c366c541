"""A timeline becomes one table of comma-separated values (RFC 4180): a row for each thing that happened or was seen first.

Times are nanoseconds of guest running time since the recording's start, and ``guest_ns`` what the guest's own clock showed at
``time_ns``; what a kind of row does not have is empty. What is not visible in a name is written as an escape.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from exporters.text import printable
from exporters.timeline import Section, TimelineView
from recording.names import Function
from recording.processes import Owner
from recording.seen import Seen
from recording.timeline import LoadedModule, Timeline
from recording.units import Unit
from recording.waits import Waker

_COLUMNS = (
    *("what", "time_ns", "after_ns", "end_ns", "duration_ns", "samples", "name", "module", "kind", "process", "pid", "boot"),
    *("idle_ns", "user_ns", "kernel_ns", "firmware_ns", "detail", "guest_ns"),
)
"""end_ns: of the last sighting. duration_ns: of a phase or wait; of what is sampled, the running time of its samples."""


def export_timeline_csv(view: TimelineView) -> bytes:
    """One heading and one line a row: sections in their order, rows within them in time order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    timeline = view.timeline
    for section, rows in (
        (Section.MILESTONES, _milestones(timeline)),
        (Section.PHASES, _phases(timeline)),
        (Section.WAITS, _waits(view)),
        (Section.MODULES, (row for module in view.rows(timeline.modules) for row in _module(module))),
        (Section.INITCALLS, _initcalls(view)),
        (Section.PROCESSES, _processes(view)),
        (Section.UNITS, (row for unit in view.rows(timeline.units) for row in _unit(unit))),
        (Section.GROUPS, ({"what": "group", "name": row.path, **_seen(row.seen)} for row in view.rows(timeline.groups))),
        (Section.SYSTEM_CALLS, _system_calls(view)),
        (Section.FUNCTIONS, _functions(view)),
        (Section.EVENTS, _events(view)),
        (Section.CONSOLE, _console(view)),
    ):
        if view.shows(section):
            writer.writerows(
                {key: _cell(value) for key, value in {**row, "guest_ns": view.guest_ns(row.get("time_ns"))}.items()} for row in rows
            )
    return text.getvalue().encode()


def _cell(value: object) -> object:
    return "" if value is None else printable(value) if isinstance(value, str) else value


def _seen(seen: Seen) -> dict[str, Any]:
    return {
        "time_ns": seen.first_ns,
        "after_ns": seen.after_ns,
        "end_ns": seen.last_ns,
        "duration_ns": seen.weight_ns,
        "samples": seen.samples,
    }


def _function(function: Function) -> dict[str, Any]:
    return {"name": function.name, "module": function.module, "kind": function.kind.value}


def _owner(owner: Owner) -> dict[str, Any]:
    return {"process": owner.name, "pid": owner.pid}


def _milestones(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for row in timeline.milestones:
        times = {"time_ns": row.time_ns, "after_ns": row.after_ns}
        yield {"what": "milestone", **times, "name": row.name, "boot": row.boot, "detail": row.title}


def _phases(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for row in timeline.course.phases:
        yield {
            "what": "phase",
            "time_ns": row.start_ns,
            "end_ns": row.end_ns,
            "duration_ns": row.duration_ns,
            "samples": row.samples,
            "name": row.name,
            "idle_ns": row.idle_ns,
            "user_ns": row.user_ns,
            "kernel_ns": row.kernel_ns,
            "firmware_ns": row.firmware_ns,
            "detail": row.title,
        }


def _waits(view: TimelineView) -> Iterator[dict[str, Any]]:
    """``name``: of the thread that ran when it ended; empty where the recording ended idle."""
    for row in view.rows(view.timeline.course.waits):
        times = {"time_ns": row.start_ns, "end_ns": row.end_ns, "duration_ns": row.duration_ns}
        waker = row.ended_by
        yield {"what": "wait", **times} if waker is None else {"what": "wait", **times, **_waker(waker)}


def _waker(waker: Waker) -> dict[str, Any]:
    detail = " ".join(word for word in (waker.system_call, waker.running) if word is not None)
    return {"name": waker.name, "kind": waker.context.value, "detail": detail}


def _module(module: LoadedModule) -> Iterator[dict[str, Any]]:
    """When it was loaded and unloaded, first seen and initialised: each a row, as far as it is known."""
    for what, time_ns in (("module-load", module.loaded_ns), ("module-unload", module.unloaded_ns)):
        if time_ns is not None:
            yield {"what": what, "time_ns": time_ns, "name": module.name, "boot": module.boot}
    for what, seen in (("module", module.seen), ("module-init", module.init)):
        if seen is not None:
            yield {"what": what, "name": module.name, "boot": module.boot, **_seen(seen)}


def _initcalls(view: TimelineView) -> Iterator[dict[str, Any]]:
    for row in view.rows(view.timeline.initcalls):
        yield {"what": "initcall", **_function(row.function), **_seen(row.seen), "detail": row.level}


def _processes(view: TimelineView) -> Iterator[dict[str, Any]]:
    for row in view.rows(view.timeline.processes):
        name = {"name": row.process.name, "kind": row.process.kind.value, "detail": row.cgroup}
        yield {"what": "process", **name, **_owner(row.process), **_seen(row.seen)}


def _unit(unit: Unit) -> Iterator[dict[str, Any]]:
    """Its start, and its tasks: each a row, as far as it is known."""
    if unit.starting_ns is not None:
        times = {"time_ns": unit.starting_ns, "end_ns": unit.started_ns, "duration_ns": unit.start_ns}
        yield {"what": "unit-start", **times, "name": unit.name, "detail": "failed" if unit.failed else None}
    if unit.seen is not None:
        yield {"what": "unit", "name": unit.name, **_seen(unit.seen), "detail": unit.slice}


def _system_calls(view: TimelineView) -> Iterator[dict[str, Any]]:
    for row in view.rows(view.timeline.system_calls):
        yield {"what": "system-call", "name": row.name, **_owner(row.process), **_seen(row.seen)}


def _functions(view: TimelineView) -> Iterator[dict[str, Any]]:
    for row in view.rows(view.timeline.functions):
        yield {"what": "function", **_function(row.function), **_owner(row.process), **_seen(row.seen)}


def _events(view: TimelineView) -> Iterator[dict[str, Any]]:
    for row in view.rows(view.timeline.events):
        yield {"what": "event", "time_ns": row.running_time_ns, "name": row.kind, "detail": row.text}


def _console(view: TimelineView) -> Iterator[dict[str, Any]]:
    for row in view.rows(view.timeline.console):
        yield {"what": "console", "time_ns": row.running_time_ns, "detail": row.text}
