"""A profile becomes what happened when: milestones, phases, waits, and the first sighting of everything that was sampled.

A first sighting is an upper bound: what was seen first in one halt began, if it lasts, after the halt before; what is shorter than
the time between two halts may have run earlier without being seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from recording.guest_clock import GuestClocks
from recording.initcalls import initcall_levels
from recording.milestones import KERNEL_INIT, Milestone, find_milestones, initcall_of
from recording.model import Event, FrameKind
from recording.names import Function
from recording.phases import Course, course_of
from recording.processes import Owner
from recording.profile import Appearance, Profile, Stack
from recording.seen import Seen, SeenGroup, seen_first
from recording.stamps import Agreement, StampClock, agreement, fit_stamps, stamped_lines
from recording.units import Unit, units_of
from recording.waits import WaitTotal, wait_totals

_LOADED, _UNLOADED, _KERNEL_GONE = "module-loaded", "module-unloaded", "kernel-gone"
NO_CLOCK = "no-clock"
"""Kinds of events."""
_OF_MODULES = "module"
"""The level of initcalls of modules."""
_AT = re.compile(r"(.*) at 0x[0-9a-f]+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SeenFunction:
    """process, vcpu: of the first sighting."""

    function: Function
    seen: Seen
    process: Owner
    vcpu: int


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """A process under one name: one that executes another program is another one. cgroup: at the first sighting."""

    process: Owner
    cgroup: str | None
    seen: Seen


@dataclass(frozen=True, slots=True)
class SeenSystemCall:
    """A system call of a process."""

    process: Owner
    name: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class SeenInitcall:
    """What ``do_one_initcall`` called: a function that initialised the kernel or a module.

    One that ends by calling another (a tail call) is hidden by that one. level: ``module``, or one of ``recording.initcalls``, or
    None where the kernel's symbols do not tell.
    """

    function: Function
    level: str | None
    seen: Seen


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module.

    loaded_ns, unloaded_ns: when the list of modules was first read with it, and without it; None where that was not seen.
    init: of its initialisation, seen: of all its code; None where no sample has it.
    """

    name: str
    boot: int
    loaded_ns: int | None
    unloaded_ns: int | None
    seen: Seen | None
    init: Seen | None


@dataclass(frozen=True, slots=True)
class TimelineClock:
    """The guest's clocks of the whole recording, and what the stamps of its console's lines tell: by themselves, and of the clocks.

    problem: why no clock was read, None where one was.
    """

    clocks: GuestClocks
    stamps: tuple[StampClock, ...]
    agreement: Agreement | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened when; lists of first sightings are in the order of these."""

    clock: TimelineClock

    milestones: list[Milestone]
    course: Course
    waits: list[WaitTotal]
    initcalls: list[SeenInitcall]
    modules: list[LoadedModule]
    processes: list[SeenProcess]
    groups: list[SeenGroup]
    units: list[Unit]
    system_calls: list[SeenSystemCall]
    functions: list[SeenFunction]
    events: list[Event]
    console: list[Event]


@dataclass(frozen=True, slots=True)
class _SeenStack:
    """process, vcpu: of the first sighting."""

    seen: Seen
    process: Owner
    vcpu: int


@dataclass(slots=True)
class _Loading:
    """A module from its loading on."""

    loaded_ns: int
    is_selected: bool
    unloaded_ns: int | None = None


@dataclass(slots=True)
class _Sightings:
    """First sightings while they are gathered, each dictionary in their order."""

    functions: dict[int, SeenFunction] = field(default_factory=dict)
    processes: dict[Owner, SeenProcess] = field(default_factory=dict)
    groups: dict[str, SeenGroup] = field(default_factory=dict)
    calls: dict[tuple[Owner, str], SeenSystemCall] = field(default_factory=dict)
    initcalls: dict[tuple[int, Function, bool], SeenInitcall] = field(default_factory=dict)
    modules: dict[tuple[int, str], Seen] = field(default_factory=dict)
    inits: dict[tuple[int, str], Seen] = field(default_factory=dict)


def timeline_of(profile: Profile, wanted: Mapping[str, re.Pattern[str]] | None = None) -> Timeline:
    """The milestones of the whole recording, and all else of what the profile selects. ``wanted``: see ``find_milestones``."""
    milestones = find_milestones(profile, wanted)
    course = course_of(profile, milestones)
    found = _sightings(profile)
    groups = list(found.groups.values())
    return Timeline(
        _clock(profile.unselected()),
        milestones,
        course,
        wait_totals(course.waits),
        list(found.initcalls.values()),
        _modules(profile, found),
        list(found.processes.values()),
        groups,
        units_of(groups, profile.console()),
        list(found.calls.values()),
        list(found.functions.values()),
        profile.events(),
        profile.console(),
    )


def _clock(whole: Profile) -> TimelineClock:
    clocks, lines = whole.clocks(), stamped_lines(whole.console())
    stamps = tuple(fit for fit in map(fit_stamps, lines) if fit is not None)
    problem = next((event.text for event in whole.events() if event.kind == NO_CLOCK), None)
    return TimelineClock(clocks, stamps, agreement(chain.from_iterable(lines), clocks), None if clocks.clocks else problem)


def _sightings(profile: Profile) -> _Sightings:
    found = _Sightings()
    stacks: dict[tuple[int, Stack], _SeenStack] = {}
    for each in profile.appearances():
        process = each.origin.process
        key = each.walk.boot, each.walk.stack
        stack = stacks.get(key)
        if stack is None:
            stack = stacks[key] = _SeenStack(seen_first(each), process, each.vcpu)
        stack.seen.add(each)
        _add_origin(found, each, process)
    _add_stacks(found, stacks, profile)
    return found


def _add_origin(found: _Sightings, each: Appearance, process: Owner) -> None:
    """Whose time it was."""
    task, call = each.origin.task, each.origin.system_call
    cgroup = None if task is None else task.cgroup
    known = found.processes.get(process)
    if known is None:
        known = found.processes[process] = SeenProcess(process, cgroup, seen_first(each))
    known.seen.add(each)
    if call is not None:
        name = f"{call.table}:{call.number}" if call.name is None else call.name
        if (process, name) not in found.calls:
            found.calls[process, name] = SeenSystemCall(process, name, seen_first(each))
        found.calls[process, name].seen.add(each)
    if cgroup is not None:
        if cgroup not in found.groups:
            found.groups[cgroup] = SeenGroup(cgroup, seen_first(each))
        found.groups[cgroup].seen.add(each)


def _add_stacks(found: _Sightings, stacks: Mapping[tuple[int, Stack], _SeenStack], profile: Profile) -> None:
    """What functions, modules and initcalls they go through; they come in the order of their first sightings."""
    levels = initcall_levels(profile.images)
    for (boot, stack), known in stacks.items():
        modules: dict[str, None] = {}
        for index in dict.fromkeys(stack.indexes):
            function = profile.functions[index]
            if index not in found.functions:
                found.functions[index] = SeenFunction(function, seen_first(known.seen), known.process, known.vcpu)
            found.functions[index].seen.add(known.seen)
            if function.kind is FrameKind.MODULE:
                modules[function.module] = None
        for module in modules:
            found.modules.setdefault((boot, module), seen_first(known.seen)).add(known.seen)
        initcall = initcall_of(stack)
        if initcall is not None:
            _add_initcall(found, boot, initcall, levels.get(boot, {}), known.seen, stack)


def _add_initcall(found: _Sightings, boot: int, function: Function, levels: Mapping[str, str], seen: Seen, stack: Stack) -> None:
    is_kernels = any(frame.name == KERNEL_INIT for frame in stack.functions)
    key = boot, function, is_kernels
    if key not in found.initcalls:
        level = levels.get(function.name) if is_kernels else _OF_MODULES
        found.initcalls[key] = SeenInitcall(function, level, seen_first(seen))
    found.initcalls[key].seen.add(seen)
    if function.kind is FrameKind.MODULE:
        found.inits.setdefault((boot, function.module), seen_first(seen)).add(seen)


def _modules(profile: Profile, found: _Sightings) -> list[LoadedModule]:
    """Those loaded, unloaded or seen in the selected time, in the order of their loading, else of their first sighting."""
    selected, boot = set(profile.events()), 0
    rows: dict[tuple[int, str, int], _Loading] = {}
    there: dict[str, _Loading] = {}
    for event in profile.unselected().events():
        match = _AT.fullmatch(event.text)
        name = event.text if match is None else match[1]
        if event.kind == _KERNEL_GONE:
            boot += 1
            there.clear()
        elif event.kind == _LOADED:
            there[name] = rows[boot, name, len(rows)] = _Loading(event.running_time_ns, is_selected=event in selected)
        elif event.kind == _UNLOADED and name in there:
            gone = there.pop(name)
            gone.unloaded_ns = event.running_time_ns
            gone.is_selected |= event in selected
    modules = []
    for (boot, name, _), loading in rows.items():
        key = boot, f"[{name}]"
        seen = found.modules.get(key)
        if loading.is_selected or seen is not None:
            modules.append(LoadedModule(name, boot, loading.loaded_ns, loading.unloaded_ns, seen, found.inits.get(key)))
    told = {(module.boot, f"[{module.name}]") for module in modules}
    for (boot, shown), seen in found.modules.items():
        if (boot, shown) not in told:
            name = shown.removeprefix("[").removesuffix("]")
            modules.append(LoadedModule(name, boot, None, None, seen, found.inits.get((boot, shown))))
    return sorted(modules, key=_module_time)


def _module_time(module: LoadedModule) -> int:
    if module.loaded_ns is not None:
        return module.loaded_ns
    return 0 if module.seen is None else module.seen.first_ns
