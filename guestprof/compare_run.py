"""Two QEMU command lines become recordings of both, boot by boot in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from guestprof.boot_run import BootOptions, record_boot
from guestprof.output import require_absent
from guestprof.recording_run import RunOptions, was_interrupted
from sampler.command_line import with_accelerator

_WITH, _END = "--with", "--"
_NAME = re.compile(r"[\w.+:=,@-]+")


@dataclass(frozen=True, slots=True)
class BootedSide:
    """What one side is called, and the QEMU command line that it boots."""

    name: str
    command: tuple[str, ...]


def sides_of(words: Sequence[str], accelerators: Sequence[str], names: Sequence[str]) -> tuple[BootedSide, BootedSide]:
    """Both sides of a command line. Raises click.UsageError where these are not two.

    words: all that stands behind the first ``--``. names: the first name of ``--with``; the second one is among the words.
    """
    if accelerators and names:
        raise click.UsageError("give --accel twice, or --with twice, not both")
    if accelerators:
        first, second = _two(list(accelerators), "--accel", "--accel kvm --accel tcg -- qemu-system-x86_64 ...")
        return BootedSide(first, with_accelerator(words, first)), BootedSide(second, with_accelerator(words, second))
    commands: list[list[str]] = [[]]
    labels = [*names]
    rest = list(words)
    while rest:
        if rest[0] == _WITH and rest[2:3] == [_END]:
            labels.append(rest[1])
            commands.append([])
            rest = rest[3:]
        else:
            commands[-1].append(rest.pop(0))
    example = "--with old -- qemu-system-x86_64 ... --with new -- qemu-system-x86_64 ..."
    first, second = _two(labels, "--with", example)
    if len(names) != 1 or not all(commands):
        raise click.UsageError(f"each --with needs a QEMU command line of its own: {example}")
    return BootedSide(first, tuple(commands[0])), BootedSide(second, tuple(commands[1]))


def _two(names: list[str], option: str, example: str) -> tuple[str, str]:
    if len(names) != 2 or names[0] == names[1]:
        raise click.UsageError(f"two sides with different names are compared, each with {option}: {example}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise click.UsageError(f"{option} {name!r}: recordings are named so; use letters, digits and .+:=,@_- only")
    return names[0], names[1]


def record_sides(
    sides: tuple[BootedSide, BootedSide], run: RunOptions, options: BootOptions, runs: int
) -> tuple[list[Path], list[Path]]:
    """Boot both sides so many times, in turn (A B, B A, A B ...), so that what changes on the host meets both alike.

    Each boot is recorded into a file of its own, ``OUTPUT-SIDE-NUMBER.guestprof``. Ctrl-C ends it; what it interrupted is not among
    the files that are returned. Raises GuestprofError for what goes wrong, before the first boot where a file is there already.
    """
    files = [[_file(run.output, side, number) for number in range(1, runs + 1)] for side in sides]
    for path in () if run.force else (path for of_side in files for path in of_side):
        require_absent(path)
    made: tuple[list[Path], list[Path]] = ([], [])
    for number in range(runs):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            path = files[place][number]
            if not run.quiet:
                click.echo(f"Boot {number + 1} of {runs} of {sides[place].name}:", err=True)
            if was_interrupted(record_boot(sides[place].command, replace(run, output=path), options)):
                return made
            made[place].append(path)
    return made


def _file(output: Path, side: BootedSide, number: int) -> Path:
    return output.with_name(f"{output.stem}-{side.name}-{number}.guestprof")
