"""A QEMU command line becomes a recording that begins with the guest's first instruction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from guestprof.console_watch import ConsoleWatch
from guestprof.engines import open_session
from guestprof.output import require_absent
from guestprof.recording_run import RunOptions, record_session, was_interrupted
from sampler.console import Console
from sampler.discovery import resolve_target
from sampler.launch import LaunchedQemu
from sampler.recorder import Outcome


@dataclass(frozen=True, slots=True)
class BootOptions:
    """``until_console``: stop at a line that it finds; ``keep_running``: leave the guest be."""

    until_console: re.Pattern[str] | None = None
    keep_running: bool = False


def record_boot(command: Sequence[str], run: RunOptions, options: BootOptions) -> Outcome:
    """Start QEMU, record, end QEMU or leave it running. Raises GuestprofError for what goes wrong."""
    with LaunchedQemu(command) as qemu:
        for note in () if run.quiet else qemu.notes:
            click.echo(note, err=True)
        if options.keep_running:
            qemu.keep_running()
        address = resolve_target(connect=f"unix:{qemu.gdb_path}", qmp=str(qemu.qmp_path), pid=qemu.pid)
        with open_session(
            address, run.gdb, vcpus=run.vcpus, resume_at_exit=True, max_halt_s=run.max_halt_s, sources=run.sources
        ) as session:
            qemu.dismiss_guard()
            try:
                return record_session(session, replace(run, watch=ConsoleWatch(Console(qemu.console_path), options.until_console)))
            finally:
                if options.keep_running and not qemu.has_ended:
                    click.echo(
                        f"QEMU {qemu.pid} runs on; its gdb stub is unix:{qemu.gdb_path}, its QMP socket {qemu.qmp_path}", err=True
                    )


def record_boots(command: Sequence[str], run: RunOptions, options: BootOptions, runs: int) -> None:
    """Record a boot several times, each into a file of its own where there is more than one; Ctrl-C ends them all.

    Raises GuestprofError for what goes wrong, before the first boot where a file is there already.
    """
    outputs = [run.output] if runs == 1 else [numbered(run.output, number) for number in range(1, runs + 1)]
    for output in () if run.force else outputs:
        require_absent(output)
    for output in outputs:
        if was_interrupted(record_boot(command, replace(run, output=output), options)):
            return


def numbered(path: Path, number: int) -> Path:
    """The file of one of several boots."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
