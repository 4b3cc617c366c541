"""``guestprof report``: tables of a recording."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from exporters.paint import Paint
from exporters.registry import ReportOptions, report_formats
from exporters.report import GroupBy, Neighbours, SortBy
from exporters.report_tree import TreeLimits
from guestprof.selection import SelectionOptions, selection_options
from recording.errors import GuestprofError
from recording.profile import Profile
from recording.reader import Recording

_DEFAULT_ROWS = 40
_DEFAULT_LEAST_PERCENT = 1.0

color_option = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours in text; auto: on a terminal, unless NO_COLOR is set.",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--sort", type=click.Choice([sort.value for sort in SortBy]), default="self", show_default=True)
@click.option("--by", type=click.Choice([by.value for by in GroupBy]), default="function", show_default=True)
@click.option("--callers", metavar="NAME", help="What calls this function, and how much of its time is spent for each.")
@click.option("--callees", metavar="NAME", help="What this function calls, and how much of its time that takes.")
@click.option("--tree", is_flag=True, help="The call tree, from the roots down.")
@click.option(
    "--min-percent",
    type=click.FloatRange(0, 100),
    default=_DEFAULT_LEAST_PERCENT,
    show_default=True,
    metavar="P",
    help="Leave out what has less of the time (--tree).",
)
@click.option("--depth", type=click.IntRange(0), metavar="N", help="No more levels than this below the root (--tree).")
@selection_options
@click.option(
    "-n",
    "--rows",
    type=click.IntRange(0),
    help=f"At most so many rows, 0 for all. Default: {_DEFAULT_ROWS} in tables of text, else all.",
)
@click.option("-f", "--format", "format_name", type=click.Choice(list(report_formats())), default="text", show_default=True)
@color_option
def report(
    *,
    file: Path,
    sort: str,
    by: str,
    callers: str | None,
    callees: str | None,
    tree: bool,
    min_percent: float,
    depth: int | None,
    selected: SelectionOptions,
    rows: int | None,
    format_name: str,
    color: str,
) -> None:
    """Print how a recording's time was spent: exclusive (self) and inclusive (total), recursion counted once.

    Before the table stands how far the figures can be trusted. Shares are of the time of all samples that the options choose.
    """
    if (by != "function") + (callers is not None) + (callees is not None) + tree > 1:
        raise click.UsageError("give one of --by, --callers, --callees and --tree: each makes a table of its own")
    has_limit = format_name == "text" and not tree
    limit = (_DEFAULT_ROWS if has_limit else None) if rows is None else rows or None
    name = callers if callees is None else callees
    options = ReportOptions(
        GroupBy(by),
        SortBy(sort),
        limit,
        None if name is None else Neighbours(name, is_callers=callers is not None),
        TreeLimits(min_percent / 100, depth, limit) if tree else None,
    )
    with Recording.open(file) as recording:
        if by == GroupBy.LINE.value and not recording.has_source_lines:
            raise GuestprofError(
                f"{file} has no source lines; guestprof symbolize {file} --vmlinux FILE reads them out of debug files"
            )
        profile = Profile(recording, selected.select(recording))
        data = report_formats(Paint(is_coloured(color)))[format_name].export(profile, options)
    sys.stdout.buffer.write(data)


def is_coloured(choice: str) -> bool:
    """https://no-color.org: set to anything but nothing."""
    return choice == "always" or (choice == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
