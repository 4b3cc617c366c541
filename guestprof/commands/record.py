"""``guestprof record``: profile a guest that is running."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from guestprof.options import default_output, find_target, sampling_options, target_options
from guestprof.recording_run import RunOptions, record_session, require_kernel, require_running
from guestprof.signals import raise_on_sigterm
from sampler.recorder import RecorderOptions
from sampler.session import Session


@click.command()
@target_options
@sampling_options
def record(
    *,
    connect: str | None,
    pid: int | None,
    qmp: str | None,
    frequency: float,
    duration: float | None,
    output: Path | None,
    vcpus: tuple[int, ...] | None,
    raw: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Profile a running guest.

    By default the only QEMU of this machine. A guest needs a gdb stub (start QEMU with -gdb tcp:127.0.0.1:1234) or a QMP socket,
    through which a stub is opened for the time of the recording.
    """
    raise_on_sigterm()
    path = output or default_output(datetime.now())  # noqa: DTZ005  (a file name in local time)
    options = RunOptions(RecorderOptions(frequency, duration, raw), path, force, quiet, verbose)
    with Session(find_target(connect, pid, qmp), vcpus=vcpus) as session:
        require_running(session)
        outcome = record_session(session, options)
    require_kernel(outcome, path)
