"""``guestprof report``: tables of a recording."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from exporters.registry import REPORT_FORMATS
from exporters.report import GroupBy, SortBy
from guestprof.selection import selection_of, selection_options
from recording.profile import Profile
from recording.reader import Recording

_DEFAULT_ROWS = 40


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--sort", type=click.Choice([sort.value for sort in SortBy]), default="self", show_default=True)
@click.option("--by", type=click.Choice([by.value for by in GroupBy]), default="function", show_default=True)
@selection_options
@click.option(
    "-n", "--rows", type=click.IntRange(0), help=f"At most so many rows, 0 for all. Default: {_DEFAULT_ROWS} in text, else all."
)
@click.option("-f", "--format", "format_name", type=click.Choice(list(REPORT_FORMATS)), default="text", show_default=True)
def report(
    *,
    file: Path,
    sort: str,
    by: str,
    idle: bool,
    since: str | None,
    until: str | None,
    vcpus: tuple[int, ...] | None,
    processes: tuple[str, ...],
    contexts: tuple[str, ...],
    rows: int | None,
    format_name: str,
) -> None:
    """Print how a recording's time was spent: exclusive (self) and inclusive (total), recursion counted once.

    Before the table stands how far the figures can be trusted.
    """
    limit = (_DEFAULT_ROWS if format_name == "text" else None) if rows is None else rows or None
    with Recording.open(file) as recording:
        profile = Profile(recording, selection_of(recording, idle, since, until, vcpus, processes, contexts))
        data = REPORT_FORMATS[format_name].export(profile, GroupBy(by), SortBy(sort), limit)
    sys.stdout.buffer.write(data)
