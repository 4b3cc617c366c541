"""Options that choose which samples of a recording to look at."""

from __future__ import annotations

import functools

import click

from guestprof.options import Command, parse_vcpus
from recording.model import Context
from recording.reader import Selection


def selection_options(function: Command) -> Command:
    """--idle/--no-idle, --since, --until, --vcpu, --process, --context."""
    options = (
        click.option("--idle/--no-idle", default=True, help="Count samples of the idle loop.  [default: idle]"),
        click.option("--since", type=click.FloatRange(0), metavar="S", help="From this second of guest running time on."),
        click.option("--until", type=click.FloatRange(0), metavar="S", help="Up to this second."),
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
    idle: bool,
    since: float | None,
    until: float | None,
    vcpus: tuple[int, ...] | None,
    processes: tuple[str, ...],
    contexts: tuple[str, ...],
) -> Selection:
    """What the options select; times in seconds."""
    return Selection(
        vcpus=None if vcpus is None else frozenset(vcpus),
        since_ns=None if since is None else round(since * 1e9),
        until_ns=None if until is None else round(until * 1e9),
        idle=idle,
        processes=frozenset(processes) or None,
        contexts=frozenset(map(Context, contexts)) or None,
    )
