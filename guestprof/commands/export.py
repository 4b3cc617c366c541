"""``guestprof export``: a recording in a format that other tools open."""

from __future__ import annotations

from pathlib import Path

import click

from exporters.per import Per
from exporters.registry import EXPORT_FORMATS, ExportOptions
from guestprof.output import write_output
from guestprof.selection import SelectionOptions, selection_options
from guestprof.version import version
from recording.collection import no_collection
from recording.profile import Profile
from recording.reader import Recording


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-f", "--format", "format_name", type=click.Choice(list(EXPORT_FORMATS)), required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Default: beside FILE; - for standard output.",
)
@selection_options
@click.option("--annotate/--no-annotate", default=True, help="Mark kernel frames with _[k] (folded).  [default: annotate]")
@click.option(
    "--per",
    type=click.Choice([per.value for per in Per]),
    default="vcpu",
    show_default=True,
    help="What each profile of the file is of (speedscope, firefox).",
)
@click.option("--title", help="Title over the picture.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def export(
    *,
    file: Path,
    format_name: str,
    output: Path | None,
    selected: SelectionOptions,
    annotate: bool,
    per: str,
    title: str | None,
    force: bool,
) -> None:
    """Write a recording in a format that other tools open; speedscope files for https://www.speedscope.app, SVG for browsers."""
    chosen = EXPORT_FORMATS[format_name]
    options = ExportOptions(version(), title, annotate, lambda text: click.echo(f"guestprof: {text}", err=True), Per(per))
    with no_collection(), Recording.open(file) as recording:
        profile = Profile(recording, selected.select(recording))
        path = output or file.with_name(file.name.removesuffix(".guestprof") + chosen.suffix)
        write_output(path, chosen.pieces(profile, options), force=force)
