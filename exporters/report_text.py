"""A profile becomes the table that ``report`` prints: first how far it can be trusted, then what took the time."""

from __future__ import annotations

from exporters.report import GroupBy, Row, SortBy, report_rows
from exporters.text import duration, halted_line, machine, percent, printable, rate_line, shortened, stacks_line
from recording.profile import Profile
from recording.quality import Quality

_NAME_WIDTH = 60
_MODULE_WIDTH = 30


def export_report_text(
    profile: Profile, *, by: GroupBy = GroupBy.FUNCTION, sort: SortBy = SortBy.SELF, limit: int | None = None
) -> bytes:
    """Lines of plain text. Names longer than 60 characters are cut; the JSON report has them whole."""
    rows = report_rows(profile, by=by, sort=sort, limit=limit)
    lines = [machine(profile.meta), *quality_lines(profile.quality()), ""]
    lines.append(
        f"{'self %':>8}  {'self time':>10}  {'total %':>8}  {'total time':>10}  {'samples':>9}  {_heading(rows, by)}".rstrip()
    )
    width = _name_width(rows)
    lines += [_line(row, by, width) for row in rows]
    if not rows:
        lines.append("no samples are selected")
    return ("\n".join(lines) + "\n").encode()


def quality_lines(quality: Quality) -> list[str]:
    """The quality block for people."""
    ends = ", ".join(f"{end.value} {count:,}" for end, count in sorted(quality.ends.items(), key=lambda item: -item[1]))
    return [
        f"samples  {quality.samples:,}",
        f"rate     {rate_line(quality)}",
        f"halted   {halted_line(quality)}",
        f"stacks   {stacks_line(quality)}",
        f"ends     {ends or 'none'}",
    ]


def _name_width(rows: list[Row]) -> int:
    return min(_NAME_WIDTH, max((len(printable(row.total.name)) for row in rows), default=0))


def _heading(rows: list[Row], by: GroupBy) -> str:
    if by is GroupBy.FUNCTION:
        return f"{'function':<{max(_name_width(rows), 8)}}  module"
    return by.value


def _line(row: Row, by: GroupBy, width: int) -> str:
    total = row.total
    name = shortened(printable(total.name), _NAME_WIDTH)
    if by is GroupBy.FUNCTION:
        name = f"{name:<{max(width, 8)}}  {shortened(printable(total.module), _MODULE_WIDTH)}"
    figures = f"{percent(row.self_share, 2):>8}  {duration(total.self_ns):>10}  {percent(row.total_share, 2):>8}"
    return f"{figures}  {duration(total.total_ns):>10}  {total.samples:>9,}  {name}".rstrip()
