"""A timeline becomes the JSON of ``timeline -f json`` (``exporters/schemas/timeline.schema.json``); scripts rely on its shape.

Times are nanoseconds of guest running time since the recording's start. ``after_ns``: the last halt before a first sighting, null
where there was none. ``guest_ns`` and the like: by the guest's own clock, null where that is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from exporters.report_json import encodable_meta, quality_values
from exporters.text import encodable
from exporters.timeline import Section, TimelineView
from recording.guest_clock import ClockName
from recording.milestones import Milestone
from recording.model import Event
from recording.names import Function
from recording.phases import Phase
from recording.processes import Owner
from recording.profile import Profile, Stack
from recording.seen import Seen, SeenGroup
from recording.stamps import stamp_of
from recording.timeline import LoadedModule, SeenFunction, SeenInitcall, SeenProcess, SeenSystemCall
from recording.units import Unit, start_by_guest
from recording.waits import Wait, WaitTotal, Waker


def export_timeline_json(profile: Profile, view: TimelineView) -> bytes:
    """One document: ``meta``, ``quality``, ``course``, and a member for each section that is shown."""
    course = view.timeline.course
    document: dict[str, Any] = {
        "meta": encodable_meta(profile),
        "quality": quality_values(profile.quality()),
        "course": {
            "start_ns": course.start_ns,
            "end_ns": course.end_ns,
            "interval_p50_ns": course.interval_p50_ns,
            "interval_max_ns": course.interval_max_ns,
        },
    }
    for section, rows in _SECTIONS.items():
        if view.shows(section):
            document[section.value.replace("-", "_")] = rows(view)
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _clock(view: TimelineView) -> dict[str, Any]:
    clock = view.timeline.clock
    agreement = clock.agreement
    return {
        "clocks": [
            {
                "name": each.name.value,
                "boot": each.boot,
                "first_read_ns": each.first_read_ns,
                "readings": each.readings,
                "margin_p50_ns": each.margin_ns,
                "rate": 1 + each.gain,
                "halted_share": each.halted_share,
                "ahead_ns": clock.clocks.ahead.get(each.boot) if each.name is ClockName.MONOTONIC else None,
            }
            for each in clock.clocks.clocks
        ],
        "stamps": [
            {"lines": each.lines, "zero_ns": each.zero_ns, "rate": each.rate, "residual_p50_ns": each.residual_ns}
            for each in clock.stamps
        ],
        "agreement": None
        if agreement is None
        else {"lines": agreement.lines, "late_p50_ns": agreement.late_ns, "early_ns": agreement.early_ns},
        "problem": None if clock.problem is None else encodable(clock.problem),
    }


def _milestone(view: TimelineView, row: Milestone) -> dict[str, Any]:
    return {
        "name": encodable(row.name),
        "title": encodable(row.title),
        "time_ns": row.time_ns,
        "after_ns": row.after_ns,
        "guest_ns": view.guest_ns(row.time_ns),
        "boot": row.boot,
        "begins_phase": row.begins_phase,
    }


def _phase(view: TimelineView, row: Phase) -> dict[str, Any]:
    return {
        "name": encodable(row.name),
        "start_ns": row.start_ns,
        "end_ns": row.end_ns,
        "guest_start_ns": view.guest_ns(row.start_ns),
        "guest_end_ns": view.guest_ns(row.end_ns),
        "samples": row.samples,
        "weight_ns": row.weight_ns,
        "idle_ns": row.idle_ns,
        "user_ns": row.user_ns,
        "kernel_ns": row.kernel_ns,
        "firmware_ns": row.firmware_ns,
        "top": [{**_function(function), "self_ns": self_ns} for function, self_ns in row.top],
    }


def _waits(view: TimelineView) -> dict[str, Any]:
    course = view.timeline.course
    return {
        "total_ns": sum(wait.duration_ns for wait in course.waits),
        "by": [_wait_total(row) for row in view.rows(view.timeline.waits)],
        "spans": [_wait(row) for row in view.rows(course.waits)],
        "vcpus": [
            {
                "vcpu": row.vcpu,
                "idle_ns": row.idle_ns,
                "longest_ns": row.longest_ns,
                "spans": row.spans,
                "weight_ns": row.weight_ns,
            }
            for row in course.vcpus
        ],
    }


def _waker(waker: Waker) -> dict[str, Any]:
    return {
        "name": encodable(waker.name),
        "context": waker.context.value,
        "system_call": None if waker.system_call is None else encodable(waker.system_call),
        "running": None if waker.running is None else encodable(waker.running),
    }


def _stack(stack: Stack) -> list[str]:
    """Names, root first."""
    return [encodable(function.name) for function in stack.functions]


def _wait_total(row: WaitTotal) -> dict[str, Any]:
    return {
        "ended_by": _waker(row.ended_by),
        "total_ns": row.total_ns,
        "longest_ns": row.longest_ns,
        "waits": row.waits,
        "stack": _stack(row.stack),
        "stack_waits": row.stack_waits,
    }


def _wait(row: Wait) -> dict[str, Any]:
    return {
        "start_ns": row.start_ns,
        "end_ns": row.end_ns,
        "least_ns": row.least_ns,
        "ended_by": None if row.ended_by is None else _waker(row.ended_by),
        "vcpu": row.vcpu,
        "stack": None if row.stack is None else _stack(row.stack),
    }


def _seen(seen: Seen) -> dict[str, Any]:
    return {
        "first_ns": seen.first_ns,
        "after_ns": seen.after_ns,
        "last_ns": seen.last_ns,
        "samples": seen.samples,
        "weight_ns": seen.weight_ns,
    }


def _function(function: Function) -> dict[str, Any]:
    return {"name": encodable(function.name), "module": encodable(function.module), "kind": function.kind.value}


def _owner(owner: Owner) -> dict[str, Any]:
    return {"process": encodable(owner.name), "pid": owner.pid}


def _module(row: LoadedModule) -> dict[str, Any]:
    return {
        "name": encodable(row.name),
        "boot": row.boot,
        "loaded_ns": row.loaded_ns,
        "unloaded_ns": row.unloaded_ns,
        "seen": None if row.seen is None else _seen(row.seen),
        "init": None if row.init is None else _seen(row.init),
    }


def _initcall(row: SeenInitcall) -> dict[str, Any]:
    return {**_function(row.function), "level": row.level, **_seen(row.seen)}


def _process(row: SeenProcess) -> dict[str, Any]:
    cgroup = None if row.cgroup is None else encodable(row.cgroup)
    return {**_owner(row.process), "kind": row.process.kind.value, "cgroup": cgroup, **_seen(row.seen)}


def _group(row: SeenGroup) -> dict[str, Any]:
    return {"path": encodable(row.path), **_seen(row.seen)}


def _unit(view: TimelineView, row: Unit) -> dict[str, Any]:
    return {
        "name": encodable(row.name),
        "slice": None if row.slice is None else encodable(row.slice),
        "starting_ns": row.starting_ns,
        "started_ns": row.started_ns,
        "start_ns": row.start_ns,
        "start_guest_ns": start_by_guest(row, view.timeline.clock.clocks),
        "failed": row.failed,
        "seen": None if row.seen is None else _seen(row.seen),
    }


def _system_call(row: SeenSystemCall) -> dict[str, Any]:
    return {**_owner(row.process), "name": encodable(row.name), **_seen(row.seen)}


def _seen_function(row: SeenFunction) -> dict[str, Any]:
    return {**_function(row.function), **_owner(row.process), "vcpu": row.vcpu, **_seen(row.seen)}


def _event(row: Event) -> dict[str, Any]:
    return {"time_ns": row.running_time_ns, "kind": encodable(row.kind), "text": encodable(row.text)}


def _line(view: TimelineView, row: Event) -> dict[str, Any]:
    times = {"guest_ns": view.guest_ns(row.running_time_ns), "stamp_ns": stamp_of(row.text)}
    return {"time_ns": row.running_time_ns, **times, "text": encodable(row.text)}


_SECTIONS: dict[Section, Callable[[TimelineView], Any]] = {
    Section.CLOCK: _clock,
    Section.MILESTONES: lambda view: [_milestone(view, row) for row in view.timeline.milestones],
    Section.PHASES: lambda view: [_phase(view, row) for row in view.timeline.course.phases],
    Section.WAITS: _waits,
    Section.MODULES: lambda view: [_module(row) for row in view.rows(view.timeline.modules)],
    Section.INITCALLS: lambda view: [_initcall(row) for row in view.rows(view.timeline.initcalls)],
    Section.PROCESSES: lambda view: [_process(row) for row in view.rows(view.timeline.processes)],
    Section.UNITS: lambda view: [_unit(view, row) for row in view.rows(view.timeline.units)],
    Section.GROUPS: lambda view: [_group(row) for row in view.rows(view.timeline.groups)],
    Section.SYSTEM_CALLS: lambda view: [_system_call(row) for row in view.rows(view.timeline.system_calls)],
    Section.FUNCTIONS: lambda view: [_seen_function(row) for row in view.rows(view.timeline.functions)],
    Section.EVENTS: lambda view: [_event(row) for row in view.rows(view.timeline.events)],
    Section.CONSOLE: lambda view: [_line(view, row) for row in view.rows(view.timeline.console)],
}
