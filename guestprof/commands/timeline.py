"""``guestprof timeline``: what happened when in a recording."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from exporters.registry import TIMELINE_FORMATS
from exporters.timeline import Section, TimelineView
from guestprof.selection import SelectionOptions, mark_option, time_options
from guestprof.values import parse_vcpus
from recording.collection import no_collection
from recording.profile import Profile
from recording.reader import Recording
from recording.timeline import timeline_of

_DEFAULT_ROWS = 15
_DEFAULT_SECTIONS = tuple(section for section in Section if section not in {Section.EVENTS, Section.CONSOLE})


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--show",
    "sections",
    type=click.Choice([section.value for section in Section]),
    multiple=True,
    help="Only this section; may be repeated. Default: all, but no events and console lines in text.",
)
@mark_option
@time_options
@click.option(
    "--vcpu",
    "vcpus",
    metavar="LIST",
    callback=lambda _context, _parameter, value: None if value is None else parse_vcpus(value),
    help="Only these, for example 0,2-3.",
)
@click.option(
    "-n",
    "--rows",
    type=click.IntRange(0),
    help=f"At most so many rows of each section, 0 for all. Default: {_DEFAULT_ROWS} in text, else all.",
)
@click.option("-f", "--format", "format_name", type=click.Choice(list(TIMELINE_FORMATS)), default="text", show_default=True)
def timeline(
    *,
    file: Path,
    sections: tuple[str, ...],
    marks: dict[str, re.Pattern[str]],
    since: str | None,
    until: str | None,
    vcpus: tuple[int, ...] | None,
    rows: int | None,
    format_name: str,
) -> None:
    """Print what happened when: milestones and phases of a boot, what it waited for, and first sightings.

    First sightings are those of modules, initcalls, processes, control groups, system calls and functions. Times are guest running
    time since the recording began.
    """
    is_text = format_name == "text"
    shown = tuple(map(Section, sections)) or (_DEFAULT_SECTIONS if is_text else tuple(Section))
    limit = (_DEFAULT_ROWS if is_text else None) if rows is None else rows or None
    with no_collection(), Recording.open(file) as recording:
        profile = Profile(recording, SelectionOptions(since=since, until=until, vcpus=vcpus).select(recording))
        view = TimelineView(timeline_of(profile, marks), shown, limit)
        data = TIMELINE_FORMATS[format_name].export(profile, view)
    sys.stdout.buffer.write(data)
