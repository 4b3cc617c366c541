"""Which engine halts and unwinds: guestprof's own, or a gdb; the options that say so, and what they open and record with."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import click

from guest.elf.images import GuestImages, ImageRequest
from guest.host_kernel import KernelFinder
from recording.store import RecordingWriter
from sampler.discovery import TargetAddress
from sampler.gdb.recorder import GdbRecorder
from sampler.gdb.session import GdbOptions, GdbSession
from sampler.knowledge import Caches, Sources
from sampler.memory import DEFAULT_MAX_HALT_S
from sampler.recorder import Outcome, Progress, Recorder, RecorderOptions
from sampler.session import FileSources, Session

Command = TypeVar("Command", bound=Callable[..., Any])
AnySession = Session | GdbSession
OWN, GDB = "own", "gdb"


class AnyRecorder(Protocol):
    """What records: ``sampler.recorder.Recorder`` or ``sampler.gdb.recorder.GdbRecorder``."""

    @property
    def problem(self) -> str | None:
        """What kept it from understanding the guest."""

    @property
    def start_ns(self) -> int:
        """When the recording's time began, by the monotonic clock."""

    def run(self, watch: Callable[[Progress], str | None]) -> Outcome:
        """Record."""

    def note_reset(self) -> None:
        """QEMU says that the guest was reset."""

    def running_ns(self) -> int:
        """Guest running time now."""

    def add_event(self, kind: str, text: str, time_ns: int | None = None) -> None:
        """Keep an event."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What ``engine_options`` were given as."""

    engine: str = OWN
    gdb: str | None = None
    gdb_commands: tuple[str, ...] = ()
    gdb_timeout: float = 10.0

    def chosen(self, images: Sequence[ImageRequest], vmlinux: Path | None = None) -> GdbOptions | None:
        """How to use gdb, which reads the files itself; None for the own engine. A usage error where options do not go together."""
        if self.engine == GDB:
            images = [*([] if vmlinux is None else [ImageRequest(vmlinux)]), *images]
            if any(image.root is not None for image in images):
                raise click.UsageError("gdb knows one address space: --elf FILE,root=ADDRESS needs the own engine")
            return GdbOptions(self.gdb, tuple(images), self.gdb_commands, self.gdb_timeout)
        if self.gdb is not None or self.gdb_commands:
            raise click.UsageError("--gdb and --gdb-command are for --engine gdb")
        return None


def engine_options(function: Command) -> Command:
    """--engine, --gdb ...: what halts and unwinds. The command gets them as one argument, ``engine``."""

    @functools.wraps(function)
    def packed(*arguments: object, **values: object) -> object:
        own = {field.name: values.pop(field.name) for field in fields(EngineOptions)}
        return function(*arguments, engine=EngineOptions(**own), **values)  # type: ignore[arg-type]

    return cast("Command", functools.reduce(lambda inner, decorate: decorate(inner), reversed(_OPTIONS), packed))


_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice([OWN, GDB]),
        default=OWN,
        show_default=True,
        help="What halts and unwinds: guestprof itself, or a gdb (slower; for targets that guestprof does not know).",
    ),
    click.option("--gdb", metavar="PATH", help="The gdb of --engine gdb; gdb-multiarch or gdb if not given."),
    click.option(
        "--gdb-command",
        "gdb_commands",
        multiple=True,
        metavar="COMMAND",
        help="For gdb, before it connects: 'set architecture xtensa'.",
    ),
    click.option(
        "--gdb-timeout",
        type=click.FloatRange(0, 3600, min_open=True),
        default=10,
        show_default=True,
        metavar="SECONDS",
        help="How long gdb may take for an answer.",
    ),
)


def open_session(
    address: TargetAddress,
    gdb: GdbOptions | None,
    *,
    vcpus: Sequence[int] | None = None,
    resume_at_exit: bool | None = None,
    max_halt_s: float = DEFAULT_MAX_HALT_S,
    sources: FileSources | None = None,
) -> AnySession:
    """A guest that is ready to be profiled; see ``sampler.session.Session`` and ``sampler.gdb.session.GdbSession``."""
    if gdb is not None:
        return GdbSession(address, gdb, vcpus=vcpus, resume_at_exit=resume_at_exit)
    return Session(
        address, vcpus=vcpus, resume_at_exit=resume_at_exit, max_halt_s=max_halt_s, sources=sources or FileSources(storage=False)
    )


def make_recorder(
    session: AnySession,
    writer: RecordingWriter,
    options: RecorderOptions,
    images: GuestImages | None = None,
    host_kernel: KernelFinder | None = None,
) -> AnyRecorder:
    """What records such a session. images, host_kernel: see ``sampler.knowledge.Sources``."""
    jitter = random.Random()  # noqa: S311  (nothing to keep secret)
    if isinstance(session, GdbSession):
        return GdbRecorder(session, writer, options, rng=jitter)
    sources = Sources(session.memory, Caches.of_user(), session.files, images, host_kernel, session.monitor)
    return Recorder(session.target, sources, writer, options, rng=jitter)
