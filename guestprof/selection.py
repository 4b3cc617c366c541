"""Options that choose which samples of a recording to look at."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields
from typing import cast

import click

from guestprof.values import Command, RegexType, parse_vcpus
from recording.errors import UnknownMarkError
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


def time_options(function: Command) -> Command:
    """--since, --until."""
    since = click.option(
        "--since",
        type=MomentType(),
        metavar="MOMENT",
        help="From this moment on: seconds of guest running time, a milestone that guestprof timeline lists, console:REGEX, "
        "function:NAME, module:NAME or process:NAME.",
    )
    return since(click.option("--until", type=MomentType(), metavar="MOMENT", help="Up to this moment.")(function))


def mark_option(function: Command) -> Command:
    """--mark: lines of the console that are milestones; the command gets patterns by their names, ``marks``."""
    return click.option(
        "--mark",
        "marks",
        metavar="[NAME=]REGEX",
        multiple=True,
        callback=_patterns,
        help="The first console line that matches is a milestone, too; may be repeated.",
    )(function)


def _patterns(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    """``NAME=REGEX``, or a regular expression that is its own name."""
    patterns = {}
    for value in values:
        name, equals, regex = value.partition("=")
        if not equals or not re.fullmatch(r"[\w.:-]+", name):
            name, regex = value, value
        try:
            patterns[name] = re.compile(regex)
        except re.error as error:
            raise click.BadParameter(f"{regex!r} is no regular expression: {error}") from error
    return patterns


@dataclass(frozen=True, slots=True)
class SelectionOptions:
    """Which samples the command line asks for; moments are not looked up yet."""

    idle: bool = True
    since: str | None = None
    until: str | None = None
    vcpus: tuple[int, ...] | None = None
    processes: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    focus: tuple[re.Pattern[str], ...] = ()
    ignore: tuple[re.Pattern[str], ...] = ()
    inlined: bool = True

    def select(self, recording: Recording) -> Selection:
        """What that is in a recording. Raises UnknownMarkError where it does not have a moment, or one is not behind the other."""
        since_ns, until_ns = moments_of(recording, self.since, self.until)
        if since_ns is not None and until_ns is not None and since_ns >= until_ns:
            moments = f"--since {self.since} ({since_ns / 1e9:.4f} s) and --until {self.until} ({until_ns / 1e9:.4f} s)"
            raise UnknownMarkError(f"there is no time between {moments}; give an earlier --since or a later --until")
        return Selection(
            vcpus=None if self.vcpus is None else frozenset(self.vcpus),
            since_ns=since_ns,
            until_ns=until_ns,
            idle=self.idle,
            processes=frozenset(self.processes) or None,
            contexts=frozenset(map(Context, self.contexts)) or None,
            modules=frozenset(self.modules) or None,
            focus=self.focus or None,
            ignore=self.ignore or None,
            inlined=self.inlined and recording.has_source_lines,
        )


def selection_options(function: Command) -> Command:
    """--idle/--no-idle, --since, --until, --vcpu, --process, --context, --module, --focus, --ignore, --inlined.

    The command gets them as one argument, ``selected``.
    """

    @functools.wraps(function)
    def packed(*arguments: object, **values: object) -> object:
        own = {field.name: values.pop(field.name) for field in fields(SelectionOptions)}
        return function(*arguments, selected=SelectionOptions(**own), **values)  # type: ignore[arg-type]

    options = (
        click.option("--idle/--no-idle", default=True, help="Count samples of the idle loop.  [default: idle]"),
        time_options,
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
        click.option(
            "--module",
            "modules",
            metavar="NAME",
            multiple=True,
            help="Only stacks that go through this module, program or library (kernel, ext4, libc.so.6); may be repeated.",
        ),
        click.option(
            "--focus",
            type=RegexType(),
            metavar="REGEX",
            multiple=True,
            help="Only stacks with a function whose name or module it finds; repeated: with any of these.",
        ),
        click.option("--ignore", type=RegexType(), metavar="REGEX", multiple=True, help="Only stacks without such a function."),
        click.option(
            "--inlined/--no-inlined",
            default=True,
            help="Show functions that the compiler has inlined as frames of their own, where debug information told of them, or "
            "count their time for their callers.  [default: inlined]",
        ),
    )
    return functools.reduce(lambda inner, decorate: decorate(inner), reversed(options), cast("Command", packed))


def moments_of(recording: Recording, *moments: str | None) -> tuple[int | None, ...]:
    """Guest running time of each moment, None for none. The recording is only named where a moment is no plain time."""
    plain = [None if moment is None else seconds_ns(moment) for moment in moments]
    if all(moment is None or time_ns is not None for moment, time_ns in zip(moments, plain, strict=True)):
        return tuple(plain)
    profile = Profile(recording)
    return tuple([None if moment is None else find_mark(profile, moment) for moment in moments])
