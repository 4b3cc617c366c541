"""A timeline becomes what ``timeline`` prints: tables of what happened when, each with what it is known by.

Times are seconds of guest running time since the recording's start, and by the guest's own clock where that is known. Beside a
first sighting stands how much earlier it may have happened: the time since the halt before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from exporters.text import counted, duration, halted_line, machine, percent, printable, rate_line, share, shortened
from exporters.timeline import Section, TimelineView, by_start, by_time, seen_uncertainty_ns, uncertainty_ns
from recording.guest_clock import ClockName
from recording.names import Function
from recording.processes import Owner
from recording.profile import Profile, Stack
from recording.seen import Seen
from recording.timeline import LoadedModule
from recording.units import Unit
from recording.waits import Waker

_NAME_WIDTH = 48
_STACK_WIDTH = 150
_TOP = 3
_FRAMES = 6
_HINT = "what is shorter may be missing, or have run earlier unseen"

_FIRST = f"{'seen at':>10} {'may be':>10}"
_SEEN = f"{_FIRST}  {'time':>10}  {'samples':>7}"
_LASTING = f"{_FIRST}  {'last at':>10}  {'time':>10}  {'samples':>7}"


def export_timeline_text(profile: Profile, view: TimelineView) -> bytes:
    """Lines of plain text. Long names are cut; JSON and CSV have them whole."""
    quality, course = profile.quality(), view.timeline.course
    lines = [
        machine(profile.meta),
        f"time     {_at(course.start_ns)} to {_at(course.end_ns)} s of guest running time, {quality.samples:,} samples",
        f"rate     {rate_line(quality)}",
        f"halted   {halted_line(quality)}",
        f"bounds   {duration(course.interval_p50_ns)} between halts (median), {duration(course.interval_max_ns)} at most; {_HINT}",
    ]
    for section, body in _SECTIONS.items():
        if view.shows(section):
            lines += ["", *body(view)]
    return ("\n".join(lines) + "\n").encode()


def _at(time_ns: int) -> str:
    return f"{time_ns / 1e9:,.4f}"


def _first(time_ns: int, early_ns: int | None) -> str:
    """``1.2345 -4.96 ms``: seen first at, and how much earlier it may have been."""
    return f"{_at(time_ns):>10} {'' if early_ns is None else '-' + duration(early_ns):>10}"


def _seen(seen: Seen) -> str:
    """The columns of ``_SEEN``."""
    return f"{_first(seen.first_ns, seen_uncertainty_ns(seen))}  {duration(seen.weight_ns):>10}  {seen.samples:>7,}"


def _lasting(seen: Seen) -> str:
    """The columns of ``_LASTING``."""
    first = _first(seen.first_ns, seen_uncertainty_ns(seen))
    return f"{first}  {_at(seen.last_ns):>10}  {duration(seen.weight_ns):>10}  {seen.samples:>7,}"


def _function(function: Function) -> str:
    """With its module, or its file without directories, unless the name says that already."""
    name, module = _short(function.name), function.module.rpartition("/")[2]
    is_told = module == "[kernel]" or function.name == function.module or function.name.startswith(f"{module}+")
    return name if is_told else f"{name} {_short(module if module.startswith('[') else f'[{module}]')}"


def _owner(owner: Owner) -> str:
    name = shortened(printable(owner.name), _NAME_WIDTH)
    return name if owner.pid is None else f"{name} ({owner.pid})"


def _cut(view: TimelineView, section: Section, rows: Sequence[object]) -> list[str]:
    """Says how many rows are left out."""
    more = 0 if view.limit is None else len(rows) - view.limit
    return [f"  and {counted(more, 'row')} more: --show {section.value} -n 0"] if more > 0 else []


def _table(title: str, heading: str, lines: Iterator[str], nothing: str, more: list[str] | None = None) -> list[str]:
    rows = list(lines)
    return [f"{title}:", *([heading, *rows] if rows else [f"  {nothing}"]), *(more or [])]


def _milestones(view: TimelineView) -> list[str]:
    rows = view.timeline.milestones
    width = max((len(_short(row.name)) for row in rows), default=0)
    lines = (
        f"{_first(row.time_ns, uncertainty_ns(row.time_ns, row.after_ns))}{_guest(view, row.time_ns)}"
        f"  {_short(row.name):<{width}}  {_long(row.title)}"
        for row in rows
    )
    nothing = "none: the recording did not see its guest boot (guestprof boot does)"
    return _table("milestones", f"{_FIRST}{_guest_heading(view)}  milestone", lines, nothing)


def _guest_heading(view: TimelineView) -> str:
    return f"  {'guest time':>10}" if view.has_clock else ""


def _guest(view: TimelineView, time_ns: int) -> str:
    """A column with the guest's own time, where there is any."""
    shown_ns = view.guest_ns(time_ns)
    return f"  {'' if shown_ns is None else _at(shown_ns):>10}" if view.has_clock else ""


def _clock(view: TimelineView) -> list[str]:
    clock = view.timeline.clock
    lines = []
    for each in clock.clocks.clocks:
        name = "printk's clock" if each.name is ClockName.PRINTK else "CLOCK_MONOTONIC"
        known = f"known to {duration(each.margin_ns)} (median) from {_at(each.first_read_ns)} s on"
        lines.append(f"  {name}{_of_boot(each.boot)}: {known}, {_rate(1 + each.gain)}")
        ahead_ns = clock.clocks.ahead.get(each.boot)
        if each.name is ClockName.MONOTONIC and ahead_ns is not None:
            lines.append(f"    {duration(abs(ahead_ns))} {'behind' if ahead_ns < 0 else 'ahead of'} printk's")
    lines += [
        f"  stamps of {counted(stamps.lines, 'line')} of the console{_of_boot(boot)}: 0 at {_at(stamps.zero_ns)} s, "
        f"{_rate(stamps.rate)}; the lines came {duration(stamps.residual_ns)} later (median)"
        for boot, stamps in enumerate(clock.stamps)
    ]
    if clock.agreement is not None:
        late, early_ns = duration(clock.agreement.late_ns), clock.agreement.early_ns
        first = f"one {duration(early_ns)} before its own" if early_ns else "none before its own"
        count = counted(clock.agreement.lines, "stamped line")
        lines.append(f"  by the guest's clock {count} came {late} after their stamps (median), {first}")
    return ["the guest's clock:", *(lines or [f"  {clock.problem or 'it was not read'}"])]


def _of_boot(boot: int) -> str:
    return f" of boot {boot + 1}" if boot else ""


def _rate(rate: float) -> str:
    return f"{rate:.4f} s in a second of running time"


def _short(name: str) -> str:
    return shortened(printable(name), _NAME_WIDTH)


def _long(text: str) -> str:
    return shortened(printable(text), _STACK_WIDTH)


def _phases(view: TimelineView) -> list[str]:
    course = view.timeline.course
    whole_ns = course.end_ns - course.start_ns

    def lines() -> Iterator[str]:
        for row in course.phases:
            parts = (row.idle_ns, row.user_ns, row.kernel_ns, row.firmware_ns)
            shares = "  ".join(f"{percent(share(part, row.weight_ns), 1) if part else '-':>8}" for part in parts)
            took = f"{_at(row.start_ns):>10}  {duration(row.duration_ns):>9}  {percent(share(row.duration_ns, whole_ns), 1):>7}"
            if view.has_clock:
                guest_ns = view.guest_took_ns(row.start_ns, row.end_ns)
                took += f"  {'' if guest_ns is None else duration(guest_ns):>9}"
            yield f"{took}  {row.samples:>7,}  {shares}  {_short(row.name)}"
            busy_ns = row.weight_ns - row.idle_ns
            top = [f"{_function(function)} {percent(share(self_ns, busy_ns), 0)}" for function, self_ns in row.top[:_TOP]]
            if top:
                yield f"{'':24}{', '.join(top)}"

    columns = "  ".join(f"{what:>8}" for what in ("idle", "user", "kernel", "firmware"))
    guest = f"  {'by guest':>9}" if view.has_clock else ""
    heading = f"{'from':>10}  {'for':>9}  {'share':>7}{guest}  {'samples':>7}  {columns}  phase"
    title = "phases, each from its milestone to the next, and the functions that took most of its busy time"
    return _table(title, heading, lines(), "no samples are selected")


def _waker(waker: Waker) -> str:
    what = f"{_short(waker.name)}, {waker.context.value}"
    if waker.system_call is not None:
        what += f" {_short(waker.system_call)}"
    return what if waker.running is None else f"{what}: {_short(waker.running)}"


def _stack(stack: Stack) -> str:
    """The innermost functions, innermost last."""
    names = [_short(function.name) for function in stack.functions[-_FRAMES:]]
    cut = "… " if len(stack.functions) > _FRAMES else ""
    return f"{cut}{' > '.join(names)}"


def _waits(view: TimelineView) -> list[str]:
    timeline = view.timeline
    course = timeline.course
    total_ns = sum(wait.duration_ns for wait in course.waits)
    whole = percent(share(total_ns, course.end_ns - course.start_ns))
    every = "the vCPU" if len(course.vcpus) == 1 else "all vCPUs"

    def lines() -> Iterator[str]:
        for row in view.rows(timeline.waits):
            yield f"{duration(row.total_ns):>10}  {row.waits:>6,}  {duration(row.longest_ns):>10}  {_waker(row.ended_by)}"
            often = f"{row.stack_waits} of {row.waits}: " if row.waits > 1 else ""
            yield f"{'':32}{often}{shortened(_stack(row.stack), _STACK_WIDTH)}"

    title = f"waits, {every} idle: {duration(total_ns)} ({whole}) in {counted(len(course.waits), 'span')}, by what ended them"
    table = _table(
        title, f"{'total':>10}  {'waits':>6}  {'longest':>10}  ended by", lines(), "none", _cut(view, Section.WAITS, timeline.waits)
    )
    longest = sorted(course.waits, key=lambda wait: (-wait.duration_ns, wait.start_ns))
    if longest:
        shown = view.rows(longest)
        table += ["the longest waits, and how long they were at least, should they have begun and ended between halts:"]
        table += [f"{'from':>10}  {'for':>10}  {'at least':>10}  ended by"]
        table += [
            f"{_at(row.start_ns):>10}  {duration(row.duration_ns):>10}  {duration(row.least_ns):>10}  "
            f"{'the end of the recording' if row.ended_by is None else _waker(row.ended_by)}"
            for row in shown
        ]
    if len(course.vcpus) > 1:
        table += [
            f"  vCPU {row.vcpu} idle {percent(share(row.idle_ns, row.weight_ns))}, {counted(row.spans, 'span')}, "
            f"{duration(row.longest_ns)} at most"
            for row in course.vcpus
        ]
    return table


def _modules(view: TimelineView) -> list[str]:
    rows = view.timeline.modules

    def line(row: LoadedModule) -> str:
        loaded = "" if row.loaded_ns is None else _at(row.loaded_ns)
        seen = " " * len(_FIRST) if row.seen is None else _first(row.seen.first_ns, seen_uncertainty_ns(row.seen))
        init = "" if row.init is None else duration(row.init.weight_ns)
        total = "" if row.seen is None else duration(row.seen.weight_ns)
        gone = "" if row.unloaded_ns is None else f"  unloaded at {_at(row.unloaded_ns)}"
        return f"{loaded:>10}  {seen}  {init:>10}  {total:>10}  {_short(row.name)}{gone}"

    return _table(
        "modules: when they were found loaded, when their code was in a stack first, what their start took, and all of their code",
        f"{'loaded':>10}  {_FIRST}  {'start':>10}  {'total':>10}  module",
        map(line, view.rows(rows)),
        "none",
        _cut(view, Section.MODULES, rows),
    )


def _initcalls(view: TimelineView) -> list[str]:
    rows = by_time(view.timeline.initcalls)
    lines = (f"{_seen(row.seen)}  {row.level or '-':<8}  {_function(row.function)}" for row in view.rows(rows))
    return _table(
        "initcalls that took longest",
        f"{_SEEN}  {'level':<8}  initcall",
        lines,
        "none",
        _cut(view, Section.INITCALLS, rows),
    )


def _processes(view: TimelineView) -> list[str]:
    rows = view.timeline.processes
    lines = (
        f"{_lasting(row.seen)}  {_owner(row.process)}{'' if row.cgroup in (None, '/') else '  ' + _short(row.cgroup or '')}"
        for row in view.rows(rows)
    )
    return _table(
        "processes",
        f"{_LASTING}  process",
        lines,
        "no samples are selected",
        _cut(view, Section.PROCESSES, rows),
    )


def _units(view: TimelineView) -> list[str]:
    rows = by_start(view)

    def line(row: Unit) -> str:
        took_ns = view.start_ns(row)
        took = "" if took_ns is None else duration(took_ns)
        seen = " " * len(_LASTING) if row.seen is None else _lasting(row.seen)
        failed = "  failed" if row.failed else ""
        where = "" if row.slice is None else f"  {_short(row.slice)}"
        return f"{took:>10}  {seen}  {_short(row.name)}{where}{failed}"

    return _table(
        "systemd's units, by what their start took as the console says it, then by the time that their tasks used",
        f"{'start':>10}  {_LASTING}  unit",
        map(line, view.rows(rows)),
        "none is known",
        _cut(view, Section.UNITS, rows),
    )


def _groups(view: TimelineView) -> list[str]:
    rows = view.timeline.groups
    lines = (f"{_lasting(row.seen)}  {_long(row.path)}" for row in view.rows(rows))
    return _table(
        "control groups",
        f"{_LASTING}  group",
        lines,
        "none is known",
        _cut(view, Section.GROUPS, rows),
    )


def _system_calls(view: TimelineView) -> list[str]:
    rows = view.timeline.system_calls
    lines = (f"{_seen(row.seen)}  {_short(row.name):<18}  {_owner(row.process)}" for row in view.rows(rows))
    return _table(
        "system calls of each process",
        f"{_SEEN}  {'system call':<18}  process",
        lines,
        "none",
        _cut(view, Section.SYSTEM_CALLS, rows),
    )


def _functions(view: TimelineView) -> list[str]:
    rows = view.timeline.functions
    lines = (f"{_seen(row.seen)}  {_function(row.function)}  {_owner(row.process)}" for row in view.rows(rows))
    return _table(
        "functions, with all that they call, and the process that was seen in them first",
        f"{_SEEN}  function",
        lines,
        "no samples are selected",
        _cut(view, Section.FUNCTIONS, rows),
    )


def _events(view: TimelineView) -> list[str]:
    rows = view.timeline.events
    lines = (f"{_at(row.running_time_ns):>10}  {_short(row.kind)}  {_long(row.text)}" for row in view.rows(rows))
    return _table("what happened", f"{'at':>10}  event", lines, "nothing", _cut(view, Section.EVENTS, rows))


def _console(view: TimelineView) -> list[str]:
    rows = view.timeline.console
    lines = (
        f"{_at(row.running_time_ns):>10}{_guest(view, row.running_time_ns)}  {_long(row.text)}".rstrip() for row in view.rows(rows)
    )
    return _table(
        "console", f"{'at':>10}{_guest_heading(view)}  line", lines, "no line was recorded", _cut(view, Section.CONSOLE, rows)
    )


_SECTIONS: dict[Section, Callable[[TimelineView], list[str]]] = {
    Section.CLOCK: _clock,
    Section.MILESTONES: _milestones,
    Section.PHASES: _phases,
    Section.WAITS: _waits,
    Section.MODULES: _modules,
    Section.INITCALLS: _initcalls,
    Section.PROCESSES: _processes,
    Section.UNITS: _units,
    Section.GROUPS: _groups,
    Section.SYSTEM_CALLS: _system_calls,
    Section.FUNCTIONS: _functions,
    Section.EVENTS: _events,
    Section.CONSOLE: _console,
}
