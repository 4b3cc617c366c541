"""``guestprof record``: profile a guest that is running."""

from __future__ import annotations

import click

from guestprof.engines import EngineOptions, engine_options, open_session
from guestprof.options import SamplingOptions, find_target, sampling_options, target_options
from guestprof.recording_run import record_session, require_kernel, require_running, run_options
from guestprof.signals import raise_on_sigterm


@click.command()
@target_options
@sampling_options()
@engine_options
def record(
    *,
    connect: str | None,
    pid: int | None,
    qmp: str | None,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Profile a running guest.

    By default the only QEMU of this machine. A guest needs a gdb stub (start QEMU with -gdb tcp:127.0.0.1:1234) or a QMP socket,
    through which a stub is opened for the time of the recording.
    """
    raise_on_sigterm()
    options = run_options(sampling, engine, prepare=True)
    target = find_target(connect, pid, qmp)
    with open_session(target, options.gdb, vcpus=options.vcpus, max_halt_s=options.max_halt_s, sources=options.sources) as session:
        require_running(session)
        outcome = record_session(session, options)
    if options.gdb is None:
        require_kernel(outcome, options)
