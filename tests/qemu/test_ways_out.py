"""``guestprof record`` ends in every way that there is: the guest runs on, the recording opens, nothing lies about."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recording.reader import Recording
from tests.conftest import StartGuest
from tests.qemu.aftermath import (
    assert_nothing_left,
    await_guards_end,
    await_samples,
    disk_drive,
    forget_files,
    guards,
    last_sample_s,
    sample_count,
    temporary_directory,
)
from tests.qemu.command import start_guestprof
from tests.qemu.guests import Guest

pytestmark = pytest.mark.qemu

KILLS = int(os.environ.get("GUESTPROF_KILLS", "8"))
"""How often to kill -9 in test_kill_9; 100 for the figures in the documentation."""
SEED = int(os.environ.get("GUESTPROF_SEED", "20240607"))
MAX_MISSING_S = 5.0
"""What is recorded is committed each half second; a busy machine may take its time for it."""


@pytest.fixture(scope="module")
def guest(start_shared_guest: StartGuest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """With a disk that QEMU is to serve."""
    return start_shared_guest("bookworm", extra=disk_drive(tmp_path_factory.mktemp("disk")))


@pytest.fixture(scope="module")
def stubless(start_shared_guest: StartGuest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A guest without a gdb stub: guestprof opens one through QMP."""
    drive = disk_drive(tmp_path_factory.mktemp("disk"))
    return start_shared_guest("bookworm", stub=False, append="guestprof.workload=idle", extra=drive)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with temporary_directory() as directory:
        monkeypatch.setenv("TMPDIR", str(directory))
        yield directory


def start_record(guest: Guest, path: Path, *options: str) -> subprocess.Popen[str]:
    target = ("--connect", guest.target) if guest.options.stub else ("--qmp", str(guest.qmp))
    return start_guestprof("record", *target, "-F", "500", "-o", path, *options)


def end(process: subprocess.Popen[str], status: int) -> str:
    """What it said; it must end with that status and without a traceback."""
    _output, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def assert_whole(path: Path) -> None:
    """One single file with samples, closed in order."""
    assert sample_count(path) > 0
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]


@pytest.mark.parametrize("name", ["guest", "stubless"])
def test_the_planned_end(request: pytest.FixtureRequest, tmp_path: Path, temporary: Path, name: str) -> None:
    guest: Guest = request.getfixturevalue(name)
    path = tmp_path / "a.guestprof"
    said = end(start_record(guest, path, "-d", "2"), 0)
    assert "Stopped: 2 s are over." in said
    assert_whole(path)
    assert_nothing_left(guest, temporary)


@pytest.mark.parametrize("name", ["guest", "stubless"])
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 0, "Stopped: SIGINT came."), (signal.SIGTERM, 143, "guestprof: terminated")],
)
def test_a_signal_with_data(
    request: pytest.FixtureRequest, tmp_path: Path, temporary: Path, name: str, number: signal.Signals, status: int, words: str
) -> None:
    guest: Guest = request.getfixturevalue(name)
    path = tmp_path / "a.guestprof"
    process = start_record(guest, path)
    await_samples(path)
    process.send_signal(number)
    assert words in end(process, status)
    assert_whole(path)
    assert_nothing_left(guest, temporary)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_there_is_data(
    stubless: Guest, tmp_path: Path, temporary: Path, number: signal.Signals, status: int
) -> None:
    process = start_record(stubless, tmp_path / "a.guestprof")
    # The guard is started before the guest is halted for the first time.
    while not guards(stubless.directory):
        assert process.poll() is None
    process.send_signal(number)
    end(process, status)
    assert_nothing_left(stubless, temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_is_loaded(tmp_path: Path, temporary: Path, stubless: Guest, number: signal.Signals) -> None:
    """Nothing is open yet: it just ends."""
    process = start_record(stubless, tmp_path / "a.guestprof")
    while "guestprof" not in Path(f"/proc/{process.pid}/cmdline").read_text() or not _has_loaded_python(process.pid):
        assert process.poll() is None
    process.send_signal(number)
    _output, said = process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number)
    assert "Traceback" not in said
    assert_nothing_left(stubless, temporary)


def _has_loaded_python(pid: int) -> bool:
    """Whether an extension module is in place: the interpreter runs and imports (which modules are built in differs)."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return "/lib-dynload/" in maps or "/site-packages/" in maps


@pytest.mark.parametrize("name", ["guest", "stubless"])
def test_impatient_ctrl_c(request: pytest.FixtureRequest, tmp_path: Path, temporary: Path, name: str) -> None:
    """Ctrl-C again and again, until the program has ended: it hits the cleaning up as well."""
    guest: Guest = request.getfixturevalue(name)
    path = tmp_path / "a.guestprof"
    process = start_record(guest, path)
    await_samples(path)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.003)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert sample_count(path) > 0
    assert_nothing_left(guest, temporary)


def test_kill_9(guest: Guest, stubless: Guest, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment: while it starts, in the middle of a halt, in between, while it writes, while QEMU serves it a disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = random.Random(SEED)
    missing_s: list[float] = []
    without_samples = guards_called = served = 0
    for number in range(KILLS):
        victim = stubless if number % 4 == 3 else guest
        path = tmp_path / f"{number}.guestprof"
        if number % 3 == 1:
            forget_files(tmp_path / "cache")
        process = start_record(victim, path, "-q")
        if number % 3 == 0:
            time.sleep(rng.uniform(0.1, 0.8))
        elif number % 3 == 1:
            await_exports(victim)
            served += 1
            time.sleep(rng.uniform(0.0, 0.3))
        else:
            await_samples(path)
            time.sleep(rng.uniform(0.0, 1.0))
        assert process.poll() is None
        killed_s = time.time()
        process.kill()
        process.communicate(timeout=60)
        guards_called += await_guards_end(victim.directory)
        assert victim.status() == "running", f"after kill {number} of seed {SEED}"
        assert victim.execute("query-block-exports") == []
        if not path.exists() or not path.stat().st_size or not sample_count(path):
            # It was learning the kernel, or within its first half second.
            without_samples += 1
            continue
        missing_s.append(killed_s - last_sample_s(path))
    for victim in (guest, stubless):
        assert_nothing_left(victim, temporary)
    print(
        f"{KILLS} kills: {KILLS} resumed, {without_samples} before there were samples, {served} while QEMU served a disk; "
        f"missing tail: worst {max(missing_s) * 1e3:.0f} ms, median {sorted(missing_s)[len(missing_s) // 2] * 1e3:.0f} ms"
    )
    assert guards_called > KILLS / 2
    assert len(missing_s) >= KILLS // 3
    assert max(missing_s) < MAX_MISSING_S
    for victim in (guest, stubless):
        assert not re.search(r"BUG|Oops|lockup|stall", victim.console_text())


def test_kill_9_at_a_rate_that_cannot_be_kept(guest: Guest, tmp_path: Path, temporary: Path) -> None:
    """Halts are left out rather than that captures wait in memory, and the search for the kernel gets its turns."""
    path = tmp_path / "a.guestprof"
    process = start_record(guest, path, "-F", "10000")
    await_kernel(path)
    killed_s = time.time()
    process.kill()
    process.communicate(timeout=60)
    assert killed_s - last_sample_s(path) < MAX_MISSING_S
    assert_nothing_left(guest, temporary)


def await_exports(guest: Guest) -> None:
    deadline = time.monotonic() + 30
    while not guest.execute("query-block-exports"):
        assert time.monotonic() < deadline, "the guest's disk was not wanted"
        time.sleep(0.02)


def await_kernel(path: Path) -> None:
    await_samples(path)
    deadline = time.monotonic() + 30
    while True:
        with Recording.open(path) as recording:
            if "kernel_release" in recording.meta:
                return
        assert time.monotonic() < deadline, "no kernel was found"
        time.sleep(0.02)
