"""Options that several commands share, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import cast

import click

from guest.elf.images import ImageRequest
from guest.host_files import HostFiles
from guestprof.elf_option import elf_option
from guestprof.values import Command, parse_vcpus
from sampler.discovery import TargetAddress, resolve_target
from sampler.memory import DEFAULT_MAX_HALT_S


def _compose(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    return lambda function: functools.reduce(lambda inner, decorate: decorate(inner), reversed(decorators), function)


def target_options(function: Command) -> Command:
    """--connect, --pid, --qmp: which guest."""
    return _compose(
        click.option("-c", "--connect", metavar="ADDRESS", help="QEMU's gdb stub: HOST:PORT or unix:PATH."),
        click.option("-p", "--pid", type=int, metavar="PID", help="The QEMU process."),
        click.option("--qmp", metavar="PATH", help="QEMU's QMP socket; opens a gdb stub if the guest has none."),
    )(function)


def _parse_vcpus(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    return None if value is None else parse_vcpus(value)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What ``sampling_options`` were given as: how to record, and where contents of the guest's files may come from."""

    frequency: float
    duration: float | None
    output: Path | None
    vcpus: tuple[int, ...] | None
    user: bool
    storage: bool
    sysroots: tuple[Path, ...]
    symbol_dirs: tuple[Path, ...]
    vmlinux: Path | None
    any_build: bool
    max_halt: float
    raw: bool
    scan_stack: bool
    images: tuple[ImageRequest, ...]
    force: bool
    quiet: bool
    verbose: bool


_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)
_SYMBOL_DIR = click.option(
    "--symbol-dir",
    "symbol_dirs",
    type=_DIRECTORY,
    multiple=True,
    metavar="DIR",
    help="Files with symbols and debug information, by build ID or path (such as /usr/lib/debug).",
)
_VMLINUX = _compose(
    click.option(
        "--vmlinux",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="The kernel's file with symbols and debug information (of its -dbg package); record and boot also take a System.map.",
    ),
    click.option("--any-build", is_flag=True, help="Take files although their build ID is not the guest's; results may be wrong."),
)


def host_file_options(function: Command) -> Command:
    """--vmlinux, --symbol-dir, --any-build. The command gets them as one argument, ``host_files``."""

    @functools.wraps(function)
    def packed(
        *arguments: object, vmlinux: Path | None, symbol_dirs: tuple[Path, ...], any_build: bool, **values: object
    ) -> object:
        return function(*arguments, host_files=HostFiles(vmlinux, symbol_dirs, any_build), **values)

    return _compose(_VMLINUX, _SYMBOL_DIR)(cast("Command", packed))


def sampling_options(output_help: str = "Default: guestprof-DATE-TIME.guestprof.") -> Callable[[Command], Command]:
    """-F, -d, -o, --vcpu, --raw ...: how to record. The command gets them as one argument, ``sampling``."""
    output = click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=output_help)

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def packed(*arguments: object, **values: object) -> object:
            own = {field.name: values.pop(field.name) for field in fields(SamplingOptions)}
            return function(*arguments, sampling=SamplingOptions(**own), **values)  # type: ignore[arg-type]

        return cast("Command", _RATE(output(_SAMPLING(packed))))

    return decorate


_RATE = _compose(
    click.option(
        "-F",
        "--frequency",
        type=click.FloatRange(0.1, 10_000),
        default=100,
        show_default=True,
        metavar="HZ",
        help="Halts a second; each halt samples every vCPU.",
    ),
    click.option("-d", "--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Until Ctrl-C if not given."),
)
_SAMPLING = _compose(
    click.option("--vcpu", "vcpus", metavar="LIST", callback=_parse_vcpus, help="Sample only these, for example 0,2-3."),
    click.option("--user/--no-user", default=True, show_default=True, help="Whether to walk user stacks."),
    click.option(
        "--storage/--no-storage",
        default=True,
        show_default=True,
        help="Whether to read files that user stacks go through from the guest's own disks and initrd, read-only.",
    ),
    click.option(
        "--sysroot",
        "sysroots",
        type=_DIRECTORY,
        multiple=True,
        metavar="DIR",
        help="The guest's files as a directory of this machine, where nothing else has them.",
    ),
    _VMLINUX,
    _SYMBOL_DIR,
    click.option(
        "--max-halt",
        type=click.FloatRange(0.2, 1000),
        default=1000 * DEFAULT_MAX_HALT_S,
        show_default=True,
        metavar="MS",
        help="How long reading memory through the stub may halt the guest at a time.",
    ),
    click.option(
        "--scan-stack",
        is_flag=True,
        help="Where a kernel stack cannot be walked on, take every return address above for a caller: guesses, marked as such.",
    ),
    elf_option,
    click.option("--raw", is_flag=True, help="Also keep what stacks are unwound from: some KB a sample, 10 MB a kernel."),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no summary."),
    click.option("-v", "--verbose", is_flag=True, help="Say what is found and decided."),
)


def find_target(connect: str | None, pid: int | None, qmp: str | None) -> TargetAddress:
    """The guest that the options name. A usage error where --connect and --pid are both there."""
    if connect is not None and pid is not None:
        raise click.UsageError("give --connect or --pid, not both")
    return resolve_target(connect=connect, pid=pid, qmp=qmp)


def default_output(now: datetime) -> Path:
    """A name for a recording that was given none."""
    return Path(f"guestprof-{now:%Y%m%d-%H%M%S}.guestprof")
