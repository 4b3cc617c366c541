"""A profile becomes the table that ``report`` prints: first how far it can be trusted, then what took the time."""

from __future__ import annotations

from collections.abc import Sequence

from exporters.paint import PLAIN, Paint
from exporters.report import GroupBy, Neighbours, Row, SortBy, report_table
from exporters.text import counted, duration, halted_line, machine, percent, printable, rate_line, shortened, stacks_line, user_line
from recording.model import UserEnd
from recording.profile import Profile
from recording.quality import Quality
from recording.views import Total

_NAME_WIDTH = 60
_MODULE_WIDTH = 30
_LINE_WIDTH = 100
_MAX_FILES = 5
_FILE_WIDTH = 140
USER_END_HELP = {
    UserEnd.NO_REGISTERS: "the kernel was being entered or left, or its stack could not be walked; a few are normal",
    UserEnd.NO_MAPPINGS: "the process was gone before its memory map was read, or the map is damaged, or not to be found",
    UserEnd.NOT_READ: "reading more through the stub would halt the guest too much; run guestprof where it may read QEMU's memory",
    UserEnd.NOT_MAPPED: "a return address leads to no code: a stack that was damaged, or code that keeps none",
    UserEnd.NO_UNWIND_INFO: "code without unwind tables and frame pointers; build it with -fasynchronous-unwind-tables",
    UserEnd.NO_FILE_CONTENTS: (
        "unwind tables of unreadable files; let guestprof read the guest's disks, or name a copy with --sysroot DIR"
    ),
    UserEnd.UNREADABLE_MEMORY: "stack that was paged out, or deeper than what is copied in a halt",
    UserEnd.DID_NOT_ADVANCE: "a stack that leads back to itself: damaged, or code that keeps none",
    UserEnd.DEPTH_LIMIT: "deeper than what is kept of a stack",
}
"""What cut a user stack short, and what helps where something does."""


def export_report_text(
    profile: Profile,
    *,
    by: GroupBy = GroupBy.FUNCTION,
    sort: SortBy = SortBy.SELF,
    limit: int | None = None,
    neighbours: Neighbours | None = None,
    paint: Paint = PLAIN,
) -> bytes:
    """Lines of text. Names longer than 60 characters are cut; the JSON report has them whole."""
    table = report_table(profile, by=by, sort=sort, limit=limit, neighbours=neighbours)
    rows, lines = table.rows, head_lines(profile)
    if neighbours is not None and table.of is not None:
        name = shortened(printable(neighbours.function), _NAME_WIDTH)
        took = f"{percent(table.of.total_share, 2)} of the time, {duration(table.of.total.total_ns)}"
        lines += [f"{neighbours.word} of {name}, which took {took}, in {counted(table.of.total.samples, 'sample')}", ""]
    lines.append(
        f"{'self %':>8}  {'self time':>10}  {'total %':>8}  {'total time':>10}  {'samples':>9}  {_heading(rows, by)}".rstrip()
    )
    width = _name_width(rows)
    lines += [_line(row, by, width, paint) for row in rows]
    if not rows:
        lines.append("no samples are selected")
    return ("\n".join(lines) + "\n").encode()


def head_lines(profile: Profile) -> list[str]:
    """What was profiled and how far it can be trusted, and an empty line."""
    lines = [machine(profile.meta), *quality_lines(profile.quality(), profile.unreadable_files())]
    return [*lines, *(f"unknown  {printable(text)}" for text in profile.unknown()), ""]


def quality_lines(quality: Quality, unreadable_files: Sequence[str] = ()) -> list[str]:
    """The quality block for people."""
    ends = ", ".join(f"{end.value} {count:,}" for end, count in sorted(quality.ends.items(), key=lambda item: -item[1]))
    return [
        f"samples  {quality.samples:,}",
        f"rate     {rate_line(quality)}",
        f"halted   {halted_line(quality)}",
        f"stacks   {stacks_line(quality)}",
        f"ends     {ends or 'none'}",
        *_task_lines(quality),
        *_user_lines(quality, unreadable_files),
    ]


def _task_lines(quality: Quality) -> list[str]:
    if quality.no_tasks is not None:
        return [f"tasks    none: {quality.no_tasks}"]
    if quality.task_share is None:
        return []
    return [f"tasks    {percent(quality.task_share, 2)} of the samples outside of firmware have a known task"]


def _user_lines(quality: Quality, unreadable_files: Sequence[str]) -> list[str]:
    """How many user stacks are whole, what the others were lost to, and what would help."""
    if quality.user_complete_share is None:
        return ["user     no user stacks were asked for (--no-user)"] if UserEnd.NOT_WANTED in quality.user_ends else []
    lines = [f"user     {user_line(quality)}"]
    lost = [(end, count) for end, count in quality.user_ends.items() if end in USER_END_HELP]
    lines += [
        f"         {counted(count, 'stack')} cut, {end.value}: {USER_END_HELP[end]}"
        for end, count in sorted(lost, key=lambda row: -row[1])
    ]
    if UserEnd.NO_FILE_CONTENTS in quality.user_ends:
        lines += [f"         - {shortened(printable(text), _FILE_WIDTH)}" for text in unreadable_files[:_MAX_FILES]]
        more = len(unreadable_files) - _MAX_FILES
        if more > 0:
            lines.append(f"         - and {counted(more, 'file')} more")
    return lines


def _name_width(rows: list[Row]) -> int:
    return min(_NAME_WIDTH, max((len(printable(row.total.label)) for row in rows), default=0))


def _label(total: Total, by: GroupBy) -> str:
    if by is GroupBy.LINE:
        return _tail(printable(total.name), _LINE_WIDTH)
    name = shortened(printable(total.label), _NAME_WIDTH)
    return name if total.pid is None else f"{name} ({total.pid})"


def _heading(rows: list[Row], by: GroupBy) -> str:
    if by is GroupBy.FUNCTION:
        return f"{'function':<{max(_name_width(rows), 8)}}  module"
    return by.value


def _module(name: str) -> str:
    """A long path loses its directories rather than its file."""
    return _tail(name, _MODULE_WIDTH) if "/" in name else shortened(name, _MODULE_WIDTH)


def _tail(name: str, width: int) -> str:
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _line(row: Row, by: GroupBy, width: int, paint: Paint) -> str:
    total = row.total
    name = _label(total, by)
    if by is GroupBy.FUNCTION:
        module = paint.faint(_module(printable(total.module)))
        name = f"{paint.kind(f'{name:<{max(width, 8)}}', total.kind)}  {module}"
    own, whole = (paint.share(f"{percent(value, 2):>8}", value) for value in (row.self_share, row.total_share))
    return f"{own}  {duration(total.self_ns):>10}  {whole}  {duration(total.total_ns):>10}  {total.samples:>9,}  {name}".rstrip()
