"""Options that choose which samples of a recording to look at."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import click

from guestprof.options import Command, parse_vcpus
from recording.marks import find_mark, seconds_ns
from recording.model import Context
from recording.profile import Profile
from recording.reader import Recording, Selection

_NEGATIVE = re.compile(r"-[0-9.]")


class MomentType(click.ParamType[str]):
    """A moment of a recording: what it is called, as ``recording.marks`` understands it."""

    name = "moment"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The text itself, unless it can be nobody's name for a moment."""
        if not value.strip() or _NEGATIVE.match(value.strip()):
            self.fail(f"{value!r} is no moment: give seconds of guest running time or a milestone", parameter, context)
        return value


def time_options() -> tuple[Callable[[Command], Command], ...]:
    """--since, --until."""
    return (
        click.option(
            "--since",
            type=MomentType(),
            metavar="MOMENT",
            help="From this moment on: seconds of guest running time, a milestone that guestprof timeline lists, console:REGEX, "
            "function:NAME, module:NAME or process:NAME.",
        ),
        click.option("--until", type=MomentType(), metavar="MOMENT", help="Up to this moment."),
    )


def selection_options(function: Command) -> Command:
    """--idle/--no-idle, --since, --until, --vcpu, --process, --context."""
    options = (
        click.option("--idle/--no-idle", default=True, help="Count samples of the idle loop.  [default: idle]"),
        *time_options(),
        click.option(
            "--vcpu",
            "vcpus",
            metavar="LIST",
            callback=lambda _context, _parameter, value: None if value is None else parse_vcpus(value),
            help="Only these, for example 0,2-3.",
        ),
        click.option("--process", "processes", metavar="NAME|PID", multiple=True, help="Only this process; may be repeated."),
        click.option(
            "--context",
            "contexts",
            type=click.Choice([context.value for context in Context]),
            multiple=True,
            help="Only what was done in this context; may be repeated.",
        ),
    )
    return functools.reduce(lambda inner, decorate: decorate(inner), reversed(options), function)


def selection_of(
    recording: Recording,
    idle: bool,
    since: str | None,
    until: str | None,
    vcpus: tuple[int, ...] | None,
    processes: tuple[str, ...],
    contexts: tuple[str, ...],
) -> Selection:
    """What the options select. Raises UnknownMarkError where the recording does not have a moment."""
    since_ns, until_ns = moments_of(recording, since, until)
    return Selection(
        vcpus=None if vcpus is None else frozenset(vcpus),
        since_ns=since_ns,
        until_ns=until_ns,
        idle=idle,
        processes=frozenset(processes) or None,
        contexts=frozenset(map(Context, contexts)) or None,
    )


def moments_of(recording: Recording, *moments: str | None) -> tuple[int | None, ...]:
    """Guest running time of each moment, None for none. The recording is only named where a moment is no plain time."""
    plain = [None if moment is None else seconds_ns(moment) for moment in moments]
    if all(moment is None or time_ns is not None for moment, time_ns in zip(moments, plain, strict=True)):
        return tuple(plain)
    profile = Profile(recording)
    return tuple([None if moment is None else find_mark(profile, moment) for moment in moments])
