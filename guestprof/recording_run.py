"""A session and options become a recording, with one line that says what happens, a progress line and a summary."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from guest.elf.images import ImageRequest, load_images
from guest.host_files import HostFiles
from guest.host_kernel import KernelFinder
from guest.system_map import is_system_map
from guestprof.engines import AnyRecorder, AnySession, EngineOptions, make_recorder
from guestprof.options import SamplingOptions, default_output
from guestprof.signals import StopSignals, Terminated
from guestprof.symbolizing import open_host_kernel, run_symbolize
from guestprof.version import version
from recording.errors import GuestprofError
from recording.profile import Profile
from recording.reader import Recording
from recording.sources import save_sources
from recording.store import RecordingWriter
from sampler.gdb.recorder import GdbRecorder
from sampler.gdb.session import GdbOptions, GdbSession
from sampler.memory import DEFAULT_MAX_HALT_S
from sampler.recorder import Outcome, Progress, RecorderOptions
from sampler.session import FileSources
from sampler.user_stacks import USER_STACK_SIZE

_PROGRESS_PERIOD_S = 0.5
_EVENT_PERIOD_S = 0.25
_RESET = "RESET"
_WATCHED = ("SHUTDOWN", "POWERDOWN", "GUEST_PANICKED")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to record, and what to say meanwhile.

    gdb: how gdb is used, None for the own engine. vcpus: sample only these. sources: of files that user stacks go through.
    max_halt_s: see ``sampler.memory.StubMemory``.
    images: files whose code the guest runs.
    host_files: whose source lines and inlined functions are put into the recording at its end. host_kernel: finds the kernel's.
    watch: is asked between samples, and returns why to stop, or None; it may tell the recorder of events.
    """

    recorder: RecorderOptions
    output: Path
    gdb: GdbOptions | None = None
    vcpus: tuple[int, ...] | None = None
    sources: FileSources = field(default_factory=FileSources)
    host_files: HostFiles = HostFiles()  # noqa: RUF009  (it never changes)
    host_kernel: KernelFinder | None = None
    max_halt_s: float = DEFAULT_MAX_HALT_S
    force: bool = False
    quiet: bool = False
    verbose: bool = False
    watch: Callable[[AnyRecorder], str | None] | None = None
    images: tuple[ImageRequest, ...] = ()


def run_options(
    sampling: SamplingOptions,
    engine: EngineOptions | None = None,
    *,
    until_symbol: str | None = None,
    until_process: str | None = None,
    prepare: bool = False,
) -> RunOptions:
    """What the options of a command say. A usage error where they do not go together."""
    gdb = None if engine is None else engine.chosen(sampling.images, sampling.vmlinux)
    if gdb is not None and (sampling.raw or until_process is not None):
        raise click.UsageError("--raw and --until-process need the own engine: gdb keeps no captures and knows no tasks")
    size = USER_STACK_SIZE if sampling.user else 0
    host_files = HostFiles(sampling.vmlinux, sampling.symbol_dirs, sampling.any_build)
    # Before the first sample there is time to fetch a file.
    host_kernel = open_host_kernel(host_files, may_fetch=prepare, quiet=sampling.quiet)
    if sampling.vmlinux is not None and is_system_map(sampling.vmlinux):
        # There are no lines in it for the recording's end.
        host_files = replace(host_files, vmlinux=None)
    recorder = RecorderOptions(
        *(sampling.frequency, sampling.duration, sampling.raw, until_symbol, until_process, size, prepare, sampling.scan_stack),
        kernel_build_id=None if host_kernel is None else host_kernel.build_id,
    )
    return RunOptions(
        recorder,
        sampling.output or default_output(datetime.now()),  # noqa: DTZ005  (a file name in local time)
        gdb,
        sampling.vcpus,
        FileSources(sampling.storage, sampling.sysroots, sampling.symbol_dirs),
        host_files,
        host_kernel,
        sampling.max_halt / 1000,
        sampling.force,
        sampling.quiet,
        sampling.verbose,
        images=sampling.images,
    )


def record_session(session: AnySession, options: RunOptions) -> Outcome:
    """Record until the end, write everything, say what came of it. Raises what ended it early, when all is written.

    SIGINT and SIGTERM end it as a duration does; SIGTERM is then raised as Terminated.
    """
    say = _Speaker(options)
    any_build = options.host_files.any_build
    images = None if isinstance(session, GdbSession) else load_images(options.images, session.architecture, any_build=any_build)
    with StopSignals() as signals, RecordingWriter(options.output, clock=time.monotonic, overwrite=options.force) as writer:
        _describe_run(writer, session, options)
        recorder = make_recorder(session, writer, options.recorder, images, options.host_kernel)
        say.start(session)
        outcome = recorder.run(_Watch(session, recorder, writer, options, signals, say))
        if options.watch is not None:
            # What came since it was asked last.
            options.watch(recorder)
        writer.set_meta("ended", outcome.reason)
        writer.set_meta("missed", outcome.progress.missed)
        writer.set_meta("problem", recorder.problem)
    if isinstance(recorder, GdbRecorder):
        save_sources(options.output, recorder.sources())
    say.end(outcome)
    if options.gdb is None and outcome.progress.samples and (not options.host_files.is_empty or os.environ.get("DEBUGINFOD_URLS")):
        run_symbolize(options.output, options.host_files, quiet=options.quiet)
    if outcome.error is not None:
        raise outcome.error
    if signals.requested is signal.SIGTERM:
        raise Terminated
    if signals.requested is signal.SIGINT and not outcome.progress.samples:
        raise KeyboardInterrupt
    return outcome


def was_interrupted(outcome: Outcome) -> bool:
    """Whether Ctrl-C ended a recording."""
    return outcome.reason == _interrupted_by(signal.SIGINT)


def _interrupted_by(which: signal.Signals) -> str:
    return f"{which.name} came"


class _Watch:
    """What has to be looked at between samples."""

    def __init__(
        self,
        session: AnySession,
        recorder: AnyRecorder,
        writer: RecordingWriter,
        options: RunOptions,
        signals: StopSignals,
        say: _Speaker,
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._writer = writer
        self._has_begun = False
        self._options = options
        self._signals = signals
        self._say = say
        self._next_events = 0.0

    def __call__(self, progress: Progress) -> str | None:
        """Why to stop, or None."""
        if self._signals.requested is not None:
            return _interrupted_by(self._signals.requested)
        if progress.halts and not self._has_begun:
            # Learning the kernel comes before the recording's own time.
            self._has_begun = True
            self._writer.set_meta("started_at", _time_ago((time.monotonic_ns() - self._recorder.start_ns) / 1e9))
        now = time.monotonic()
        if now >= self._next_events:
            self._next_events = now + _EVENT_PERIOD_S
            for event in self._session.poll_events():
                if event.name == _RESET:
                    self._recorder.note_reset()
                elif event.name in _WATCHED:
                    self._recorder.add_event(event.name.lower().replace("_", "-"), f"QEMU says {event.name}")
        self._say.progress(progress)
        return self._options.watch(self._recorder) if self._options.watch is not None else None


class _Speaker:
    """Writes to standard error: a line at the start, a progress line on a terminal, a summary."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._on_terminal = sys.stderr.isatty() and not options.quiet
        self._next = 0.0
        self._kernel: str | None = None

    def _line(self, text: str) -> None:
        if not self._options.quiet:
            click.echo(("\r\x1b[K" if self._on_terminal else "") + text, err=True)

    def start(self, session: AnySession) -> None:
        recorder = self._options.recorder
        how_long = "until Ctrl-C" if recorder.duration_s is None else f"for {recorder.duration_s:g} s; Ctrl-C ends it earlier"
        count = len(session.vcpus)
        who = f"{count} vCPU{'s' if count > 1 else ''} of {session.name} ({session.accelerator})"
        self._line(f"Sampling {who} {recorder.frequency_hz:g} times a second {how_long}.")
        if self._options.verbose:
            self._line(session.how())

    def progress(self, progress: Progress) -> None:
        if progress.kernel != self._kernel:
            self._kernel = progress.kernel
            if self._options.verbose:
                self._line(f"Found Linux {progress.kernel}." if progress.kernel else "The kernel is gone; looking for the next.")
        now = time.monotonic()
        if self._on_terminal and now >= self._next:
            self._next = now + _PROGRESS_PERIOD_S
            share = progress.halted_ns / max(1, progress.host_time_ns)
            click.echo(
                f"\r\x1b[K{progress.host_time_ns / 1e9:6.1f} s  {progress.samples} samples  halted {share:.1%}  "
                f"late {progress.late}  {progress.kernel or 'no kernel yet'}",
                nl=False,
                err=True,
            )

    def end(self, outcome: Outcome) -> None:
        if outcome.error is None:
            # An error is told once, when all is written.
            self._line(f"Stopped: {outcome.reason}.")
        with Recording.open(self._options.output) as recording:
            quality = Profile(recording).quality()
        parts = [f"{quality.samples} samples in {outcome.progress.host_time_ns / 1e9:.1f} s"]
        if quality.achieved_hz is not None:
            parts.append(f"{quality.achieved_hz:.1f} halts a second")
        if quality.halted_share is not None:
            parts.append(f"guest halted {quality.halted_share:.1%} of the time")
        if quality.complete_share is not None:
            parts.append(f"{quality.complete_share:.1%} of kernel stacks whole")
        if quality.user_complete_share is not None:
            parts.append(f"{quality.user_complete_share:.1%} of user stacks whole")
        self._line(f"Wrote {self._options.output}: {', '.join(parts)}.")
        self._line(f"Next: guestprof report {shlex.quote(str(self._options.output))}")


def _describe_run(writer: RecordingWriter, session: AnySession, options: RunOptions) -> None:
    """Everything about the run that a later reader may ask for."""
    for key, value in {
        "guestprof_version": version(),
        "command_line": shlex.join(["guestprof", *sys.argv[1:]]),
        "started_at": _time_ago(0),
        "host": os.uname().nodename,
        "requested_hz": options.recorder.frequency_hz,
        "duration_s": options.recorder.duration_s,
        "accelerator": session.accelerator,
        "qemu_version": session.qemu_version,
        "qemu_pid": session.pid,
        "stub": session.stub_address,
        "vcpus": len(session.vcpus),
        **({"elf_files": [image.path.name for image in options.images]} if options.images else {}),
        **session.facts(),
    }.items():
        writer.set_meta(key, value)
    writer.commit()


def _time_ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def require_running(session: AnySession) -> None:
    """Raises GuestprofError where the guest stood still when we came: whoever paused it may have a reason."""
    if session.was_running is False:
        raise GuestprofError(
            f"the guest of {session.name} stands still (QEMU says: {session.run_state}), so there is "
            "nothing to record; resume it (QMP cont, virsh resume; after a shutdown QMP system_reset first) and record again"
        )


def require_kernel(outcome: Outcome, options: RunOptions) -> None:
    """Raises GuestprofError where samples were taken but nothing was found to explain them."""
    if not outcome.progress.samples or outcome.is_explained:
        return
    if options.images:
        files = ", ".join(str(image.path) for image in options.images)
        raise GuestprofError(
            f"the guest was never seen to run the code of {files}, so the samples in {options.output} are addresses without stacks;"
            " check where the guest has it in memory (--elf FILE@BIAS: run-time minus link-time addresses)"
        )
    raise GuestprofError(
        f"no Linux kernel was found in the guest's memory, so the samples in {options.output} are addresses without stacks; profile"
        " a guest that runs Linux (or name what else it runs with --elf), or record for longer if it is still booting"
    )
