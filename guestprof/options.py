"""Options that several commands share, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from sampler.discovery import TargetAddress, resolve_target

Command = TypeVar("Command", bound=Callable[..., Any])


def _compose(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    return lambda function: functools.reduce(lambda inner, decorate: decorate(inner), reversed(decorators), function)


def target_options(function: Command) -> Command:
    """--connect, --pid, --qmp: which guest."""
    return _compose(
        click.option("-c", "--connect", metavar="ADDRESS", help="QEMU's gdb stub: HOST:PORT or unix:PATH."),
        click.option("-p", "--pid", type=int, metavar="PID", help="The QEMU process."),
        click.option("--qmp", metavar="PATH", help="QEMU's QMP socket; opens a gdb stub if the guest has none."),
    )(function)


def sampling_options(function: Command) -> Command:
    """-F, -d, -o, --vcpu, --raw, --force, -q, -v: how to record."""
    return _compose(
        click.option(
            "-F",
            "--frequency",
            type=click.FloatRange(0.1, 10_000),
            default=100,
            show_default=True,
            metavar="HZ",
            help="Halts a second; each halt samples every vCPU.",
        ),
        click.option(
            "-d", "--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Until Ctrl-C if not given."
        ),
        click.option(
            "-o",
            "--output",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Default: guestprof-DATE-TIME.guestprof.",
        ),
        click.option("--vcpu", "vcpus", metavar="LIST", callback=_parse_vcpus, help="Sample only these, for example 0,2-3."),
        click.option("--raw", is_flag=True, help="Also keep what stacks are unwound from: 0.6 KB a sample, 10 MB a kernel."),
        click.option("--force", is_flag=True, help="Replace an existing file."),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no summary."),
        click.option("-v", "--verbose", is_flag=True, help="Say what is found and decided."),
    )(function)


def find_target(connect: str | None, pid: int | None, qmp: str | None) -> TargetAddress:
    """The guest that the options name. A usage error where --connect and --pid are both there."""
    if connect is not None and pid is not None:
        raise click.UsageError("give --connect or --pid, not both")
    return resolve_target(connect=connect, pid=pid, qmp=qmp)


def default_output(now: datetime) -> Path:
    """A name for a recording that was given none."""
    return Path(f"guestprof-{now:%Y%m%d-%H%M%S}.guestprof")


def _parse_vcpus(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    return None if value is None else parse_vcpus(value)


def parse_vcpus(text: str) -> tuple[int, ...]:
    """``0,2-4`` as (0, 2, 3, 4). Raises click.BadParameter for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) - int(first) not in range(4096)):
            raise click.BadParameter(f"{text!r} is no list of vCPU numbers; write for example 0,2-3", param_hint="--vcpu")
        numbers.update(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(numbers))
