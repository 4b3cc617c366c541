"""Something goes wrong inside the profiler, at each stage of a recording: the guest runs on, what was recorded opens."""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from guestprof.cli import cli
from guestprof.recording_run import _Speaker
from guestprof.signals import StopSignals
from recording.errors import GuestprofError
from recording.profile import Profile
from recording.store import RecordingWriter
from sampler.attachment import Attachment
from sampler.discovery import TargetAddress
from sampler.guard import Guard
from sampler.knowledge import Caches
from sampler.memory import ProcessMemory
from sampler.planner import HaltPlanner
from sampler.qmp import Qmp
from sampler.recorder import Recorder
from sampler.rsp.registers import RegisterFile
from sampler.samples import SampleMaker
from sampler.schedule import Schedule
from sampler.session import Session
from sampler.storage import GuestDisks
from sampler.storage_link import Link
from sampler.stub import Stub
from sampler.target import Target
from sampler.tracker import KernelTracker
from sampler.transport import Connection
from sampler.user_stacks import TaskPlanner
from sampler.userspace import UserSpaces
from tests.conftest import StartGuest
from tests.qemu.aftermath import (
    assert_nothing_left,
    await_guards_end,
    disk_drive,
    forget_files,
    guards,
    sample_count,
    temporary_directory,
)
from tests.qemu.command import start_guestprof
from tests.qemu.guests import Guest
from unwind.kernel import KernelUnwinder

pytestmark = pytest.mark.qemu


@dataclass(frozen=True)
class Stage:
    """The ``call``-th call of a method fails: before it does its work, or after. has_data: samples were taken by then.

    needs_files: it is reached only where no earlier recording has kept the guest's files.
    """

    owner: type
    method: str
    call: int = 1
    after: bool = False
    has_data: bool = False
    needs_files: bool = False

    @property
    def seconds(self) -> float:
        """How long to record: until the stage is reached, however slow the machine is."""
        return 0.6 if self.call == 1 else 20

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.owner.__name__}.{self.method} {self.call}"


def stages() -> Iterator[Stage]:
    opening: list[tuple[type, str]] = [
        *((Qmp, "open_gdbstub"), (Connection, "open"), (Stub, "handshake"), (Stub, "threads"), (Stub, "read_file")),
        *((Target, "open"), (Target, "_open"), (ProcessMemory, "open"), (Target, "read_physical")),
        (Attachment, "_find_accelerator"),
        *((RecordingWriter, "__init__"), (StopSignals, "__enter__"), (Caches, "of_user"), (Recorder, "__init__")),
    ]
    # Not after it: as long as this process lives, Python keeps the pipe of a child that nobody waits for.
    yield Stage(Guard, "__init__")
    for owner, method in opening:
        yield Stage(owner, method)
        yield Stage(owner, method, after=True)
    # Each halt has two exchanges: the first stops the guest and reads the registers, the second reads stacks and resumes.
    for call in (41, 42):
        yield Stage(Stub, "exchange", call, has_data=True)
        yield Stage(Stub, "exchange", call, after=True, has_data=True)
    sampling: list[tuple[type, str]] = [
        *((Schedule, "advance"), (HaltPlanner, "probes"), (HaltPlanner, "plan"), (HaltPlanner, "captures"), (TaskPlanner, "plan")),
        *((RegisterFile, "__init__"), (Stub, "verify"), (KernelTracker, "see"), (SampleMaker, "note"), (UserSpaces, "look")),
        *((SampleMaker, "make"), (KernelUnwinder, "unwind"), (UserSpaces, "unwind")),
        *((RecordingWriter, "add_halt"), (RecordingWriter, "add_sample")),
    ]
    for owner, method in sampling:
        yield Stage(owner, method, 20, has_data=True)
    yield Stage(UserSpaces, "step", has_data=True)
    for owner, method in ((GuestDisks, "find_file"), (Qmp, "start_nbd_server"), (Qmp, "add_export"), (Link, "send")):
        yield Stage(owner, method, has_data=True, needs_files=True)
        yield Stage(owner, method, after=True, has_data=True, needs_files=True)
    yield Stage(UserSpaces, "tell_problems", has_data=True)
    yield Stage(GuestDisks, "close", has_data=True, needs_files=True)
    yield Stage(Qmp, "close_exports", has_data=True, needs_files=True)
    yield Stage(Qmp, "close_exports", after=True, has_data=True, needs_files=True)
    yield Stage(KernelTracker, "step", 2)
    yield Stage(Attachment, "poll_events", 2)
    yield Stage(RecordingWriter, "commit", 2, has_data=True)
    yield Stage(RecordingWriter, "close", has_data=True)
    yield Stage(Profile, "quality", has_data=True)
    yield Stage(_Speaker, "end", after=True, has_data=True)
    yield Stage(Stub, "detach", has_data=True)
    yield Stage(Stub, "detach", after=True, has_data=True)
    yield Stage(Qmp, "close_gdbstub", has_data=True)
    yield Stage(Qmp, "close_gdbstub", after=True, has_data=True)


@pytest.fixture(scope="module")
def guest(start_shared_guest: StartGuest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Without a stub, so that opening one and taking it away are stages too; with a disk, for the same reason."""
    return start_shared_guest("bookworm", stub=False, extra=disk_drive(tmp_path_factory.mktemp("disk")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is known of the guest's kernel and files from one test to the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with temporary_directory() as directory:
        monkeypatch.setattr("tempfile.tempdir", str(directory))
        yield directory


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The command sets handlers for the whole process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def make_fail(monkeypatch: pytest.MonkeyPatch, stage: Stage, error: type[BaseException]) -> Callable[[], int]:
    """Arm the stage; the function tells how often it was reached."""
    kind = stage.owner.__dict__[stage.method]
    plain = kind.__func__ if isinstance(kind, classmethod) else kind
    calls = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != stage.call:
            return plain(*arguments, **options)
        if stage.after:
            plain(*arguments, **options)
        raise error("injected")

    monkeypatch.setattr(stage.owner, stage.method, classmethod(failing) if isinstance(kind, classmethod) else failing)
    return lambda: calls


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("stage", list(stages()), ids=str)
@pytest.mark.usefixtures("own_signals")
def test_a_stage_fails(
    guest: Guest,
    cache: Path,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
    error: type[BaseException],
) -> None:
    path = tmp_path / "a.guestprof"
    if stage.needs_files:
        forget_files(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    calls = make_fail(monkeypatch, stage, error)
    arguments = ["record", "--qmp", str(guest.qmp), "-F", "200", "-d", str(stage.seconds), "-q", "-o", str(path)]
    if stage.owner is _Speaker:
        arguments.remove("-q")
    failed = False
    try:
        cli.main(arguments, prog_name="guestprof", standalone_mode=False)
    except (error, click.Abort, GuestprofError):
        # Not kept: its frames hold what a process that ends lets go of.
        failed = True
    gc.collect()
    assert failed != is_mended(stage, error)
    assert calls() >= stage.call
    monkeypatch.undo()
    assert_nothing_left(guest, temporary)
    if stage.has_data:
        assert sample_count(path) > 0


def is_mended(stage: Stage, error: type[BaseException]) -> bool:
    """Where QEMU's memory cannot be read, it is read through the stub."""
    return (stage.owner, stage.method) == (ProcessMemory, "open") and error is OSError


@pytest.mark.parametrize("kilobytes", [4, 64, 5000])
def test_a_full_disk(guest: Guest, tmp_path: Path, kilobytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file cannot grow beyond a limit (setrlimit(2)): while it is made, in the first commit, later."""
    path = tmp_path / "a.guestprof"
    with temporary_directory() as directory:
        monkeypatch.setenv("TMPDIR", str(directory))
        process = start_guestprof("record", "--qmp", guest.qmp, "-F", "500", "-d", "40", "--raw", "-o", path)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (kilobytes << 10, kilobytes << 10))
        _output, said = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert "Traceback" not in said
        assert f"guestprof: cannot write {path}: " in said
        assert said.endswith("what was recorded before is kept, make room or choose another file with -o\n")
        assert_nothing_left(guest, directory)
    if kilobytes == 5000:
        assert sample_count(path) > 0


def test_the_guard_is_killed(guest: Guest, tmp_path: Path) -> None:
    """The goodbye finds nobody; that is no reason to complain."""
    address = TargetAddress(None, str(guest.qmp), guest.pid, True)
    with Session(address) as session:
        session.target.resume()
        (guard,) = guards(guest.directory)
        guard.kill()
    assert await_guards_end(guest.directory) == 0
    assert guest.status() == "running"
