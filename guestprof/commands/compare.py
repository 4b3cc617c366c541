"""``guestprof compare``: boots of two kinds side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from exporters.compare import CompareView, result_lines
from exporters.paint import Paint
from exporters.registry import compare_formats
from guestprof.boot_run import BootOptions
from guestprof.commands.report import color_option, is_coloured
from guestprof.compare_run import record_sides, sides_of
from guestprof.engines import EngineOptions, engine_options
from guestprof.options import SamplingOptions, sampling_options
from guestprof.output import require_absent, write_output
from guestprof.recording_run import run_options
from guestprof.selection import mark_option
from guestprof.signals import raise_on_sigterm
from guestprof.values import RegexType
from guestprof.version import version
from recording.boots import compare_boots
from recording.collection import no_collection
from recording.errors import GuestprofError
from recording.reader import Recording

_DEFAULT_ROWS = 15
_RUNS = 3
_OF_FILES = frozenset({"words", "more_before", "more_after", "output", "force", "format_name", "rows", "marks", "color", "quiet"})
_SUFFIXES = {".html": "html", ".json": "json"}
_STANDARD_OUTPUT = Path("-")


@click.command()
@click.option("--accel", "accelerators", metavar="NAME", multiple=True, help="Compare accelerators: twice, such as kvm and tcg.")
@click.option(
    "--with",
    "names",
    metavar="NAME",
    multiple=True,
    help="Compare command lines: --with NAME -- QEMU ARGS... --with NAME -- QEMU ARGS...",
)
@click.option("--runs", type=click.IntRange(min=1), default=_RUNS, show_default=True, metavar="N", help="Boots of each side.")
@engine_options
@sampling_options("The report: .html, .json or text. Recordings are written beside it (FILE-SIDE-1.guestprof, ...).")
@click.option("--until-console", type=RegexType(), metavar="REGEX", help="A boot is over when a line of the console matches.")
@click.option("--until-symbol", metavar="NAME", help="A boot is over when this kernel function is reached.")
@click.option("--until-process", metavar="NAME", help="A boot is over when a sample shows a process or thread of this name.")
@click.option(
    "--before", "more_before", metavar="FILE", type=click.Path(path_type=Path), multiple=True, help="One more recording of A."
)
@click.option(
    "--after", "more_after", metavar="FILE", type=click.Path(path_type=Path), multiple=True, help="One more recording of B."
)
@mark_option
@click.option(
    "-n",
    "--rows",
    type=click.IntRange(0),
    help=f"Rows of each table at most, 0 for all. Default: {_DEFAULT_ROWS} in text, else all.",
)
@click.option(
    "-f", "--format", "format_name", type=click.Choice(list(compare_formats())), help="Default: as -o is named, else text."
)
@color_option
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="A B | -- QEMU ARGS...")
@click.pass_context
def compare(
    context: click.Context,
    *,
    accelerators: tuple[str, ...],
    names: tuple[str, ...],
    runs: int,
    engine: EngineOptions,
    sampling: SamplingOptions,
    until_console: re.Pattern[str] | None,
    until_symbol: str | None,
    until_process: str | None,
    more_before: tuple[Path, ...],
    more_after: tuple[Path, ...],
    marks: dict[str, re.Pattern[str]],
    rows: int | None,
    format_name: str | None,
    color: str,
    words: tuple[str, ...],
) -> None:
    """Compare boots of two kinds: record both, several times in turn, or take recordings that guestprof boot made.

    The boots are aligned on milestones that all of them reach. The report has how long each phase took, with the spread and what is
    noise, the functions that differ in each phase, and what one side alone runs.

    \b
    guestprof compare --accel kvm --accel tcg --until-console login: -- qemu-system-x86_64 ...
    guestprof compare -d 20 --with old -- qemu-system-x86_64 ... --with new -- qemu-system-x86_64 ...
    guestprof compare before.guestprof after.guestprof
    """  # noqa: D301  (click reads \b)
    output = sampling.output or _STANDARD_OUTPUT
    format_name = format_name or _SUFFIXES.get(output.suffix, "text")
    if not sampling.force and output != _STANDARD_OUTPUT:
        require_absent(output)
    if accelerators or names:
        if more_before or more_after:
            raise click.UsageError("--before and --after are for recordings; --runs makes more boots")
        if sampling.duration is None and not (until_console or until_symbol or until_process):
            raise click.UsageError("say when a boot is over: --until-console, --until-symbol, --until-process or -d")
        raise_on_sigterm()
        sides = sides_of(words, accelerators, names)
        run = run_options(
            replace(sampling, output=None if sampling.output == _STANDARD_OUTPUT else sampling.output),
            engine,
            until_symbol=until_symbol,
            until_process=until_process,
        )
        files = record_sides(sides, run, BootOptions(until_console), runs)
        if not all(files):
            raise KeyboardInterrupt
        labels = sides[0].name, sides[1].name
    else:
        files, labels = _recordings(context, words, more_before, more_after), ("A", "B")
    with no_collection(), ExitStack() as stack:
        first, second = [[stack.enter_context(Recording.open(path)) for path in paths] for paths in files]
        comparison = compare_boots((first, second), marks)
        _require_boots([*files[0], *files[1]], [boot.milestones for side in comparison.sides for boot in side])
        limit = (_DEFAULT_ROWS if format_name == "text" else None) if rows is None else rows or None
        view = CompareView(comparison, labels, limit)
        export = compare_formats(Paint(is_coloured(color) and output == _STANDARD_OUTPUT))[format_name].export
        write_output(output, [export(view, version())], force=sampling.force)
        for line in () if sampling.quiet or output == _STANDARD_OUTPUT else result_lines(view):
            click.echo(line, err=True)


def _recordings(
    context: click.Context, words: Sequence[str], more_before: Sequence[Path], more_after: Sequence[Path]
) -> tuple[list[Path], list[Path]]:
    """Of both sides. Raises click.UsageError where the words are not two files, or options say how to record."""
    if len(words) != 2:
        raise click.UsageError(
            "give two recordings (more of them with --before and --after), or --accel or --with twice and a command"
        )
    for name in context.params:
        if name not in _OF_FILES and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is for boots; these are compared with --accel or --with twice")
    return [Path(words[0]), *more_before], [Path(words[1]), *more_after]


def _require_boots(files: Sequence[Path], milestones: Sequence[object]) -> None:
    """Raises GuestprofError for a recording without any milestone."""
    for path, found in zip(files, milestones, strict=True):
        if not found:
            raise GuestprofError(
                f"{path} does not show its guest boot, so there is nothing to align it by; guestprof diff compares such"
            )
