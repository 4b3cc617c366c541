"""``guestprof diff``: what differs between two recordings, and what is noise."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from exporters.diff import DiffView
from exporters.diff_folded import FoldedSide, export_diff_folded
from exporters.paint import Paint
from exporters.registry import diff_formats
from guestprof.commands.report import color_option, is_coloured
from guestprof.output import write_output
from guestprof.selection import SelectionOptions, selection_options
from guestprof.version import version
from recording.collection import no_collection
from recording.comparison import OfRow, compare
from recording.contrast import Measure
from recording.errors import GuestprofError, UnknownMarkError
from recording.profile import Profile
from recording.reader import Recording
from recording.rows import CompareBy

_DEFAULT_ROWS = 40
_STANDARD_OUTPUT = Path("-")
_FOLDED = "folded"
"""The format that has stacks as they are and compares nothing."""


@click.command()
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--before",
    "more_before",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="One more recording of A's side.",
)
@click.option(
    "--after", "more_after", metavar="FILE", type=click.Path(path_type=Path), multiple=True, help="One more recording of B's side."
)
@click.option("--by", type=click.Choice([by.value for by in CompareBy]), default="function", show_default=True)
@click.option(
    "--sort",
    type=click.Choice([part.value for part in OfRow]),
    default="self",
    show_default=True,
    help="Which times the table has: of rows themselves, or with all that they called.",
)
@click.option(
    "--measure",
    type=click.Choice([measure.value for measure in Measure]),
    default="share",
    show_default=True,
    help="What folded stacks count: millionths of the time, or microseconds. Other formats have both.",
)
@selection_options
@click.option(
    "-n", "--rows", type=click.IntRange(0), help=f"At most so many rows, 0 for all. Default: {_DEFAULT_ROWS} in text, else all."
)
@click.option("-f", "--format", "format_name", type=click.Choice([*diff_formats(), _FOLDED]), default="text", show_default=True)
@color_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=_STANDARD_OUTPUT,
    help="Default: standard output.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def diff(
    *,
    before: Path,
    after: Path,
    more_before: tuple[Path, ...],
    more_after: tuple[Path, ...],
    by: str,
    sort: str,
    measure: str,
    selected: SelectionOptions,
    rows: int | None,
    format_name: str,
    color: str,
    output: Path,
    force: bool,
) -> None:
    """Print what differs between recordings A (before) and B (after), and what is only noise.

    Functions, paths and so on are matched by name, never by address, so that kernels, builds and architectures may differ. Each row
    has its share of the time and its running time on both sides, the difference, and the sampling error of that.
    """
    limit = (_DEFAULT_ROWS if format_name == "text" else None) if rows is None else rows or None
    paths_of_sides = (before, *more_before), (after, *more_after)
    if format_name == _FOLDED:
        first, second = (_folded(paths, selected) for paths in paths_of_sides)
        write_output(output, [export_diff_folded(first, second, Measure(measure))], force=force)
        return
    with no_collection(), ExitStack() as stack:
        sides = tuple([_opened(stack, path, selected) for path in paths] for paths in paths_of_sides)
        comparison = compare(sides[0], sides[1], CompareBy(by))
        view = DiffView(comparison, (sides[0], sides[1]), OfRow(sort), limit, Measure(measure))
        write_output(output, [diff_formats(Paint(is_coloured(color)))[format_name].export(view, version())], force=force)


def _folded(paths: Sequence[Path], selected: SelectionOptions) -> FoldedSide:
    """A side of which no more than one recording is in memory at a time."""
    folded = FoldedSide()
    for path in paths:
        with no_collection(), ExitStack() as stack:
            folded.add(_opened(stack, path, selected))
        gc.collect()
    return folded


def _opened(stack: ExitStack, path: Path, selected: SelectionOptions) -> Profile:
    """The profile of a file; what cannot be done is told with its name."""
    recording = stack.enter_context(Recording.open(path))
    try:
        return Profile(recording, selected.select(recording))
    except UnknownMarkError as error:
        raise GuestprofError(f"{path}: {error}") from error
