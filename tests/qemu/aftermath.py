"""What a profiler leaves behind: a guest that must run, a guard that must end, a directory that must be empty, a recording."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from recording.reader import Recording
from tests.qemu.guests import Guest, GuestFailedError

_PATIENCE_S = 30.0
_POLL_S = 0.02


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory to give to a profiler as $TMPDIR. Not under pytest's tmp_path: a unix socket's path may have 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="gp-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def guards(mark: Path) -> list[psutil.Process]:
    """The guard processes whose command line names something in ``mark``: a guest's directory, or a profiler's own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "sampler.guard" in command and any(str(mark) in word for word in command):
                found.append(process)
    return found


def await_guards_end(mark: Path) -> int:
    """Wait until no guard is left; how many there were."""
    alive = guards(mark)
    _gone, left = psutil.wait_procs(alive, _PATIENCE_S)
    assert not left, f"guards did not end: {left}"
    return len(alive)


def assert_nothing_left(guest: Guest, temporary: Path) -> None:
    """The guest runs, no guard waits for anything, nothing lies about; QEMU serves no disk, a stub that was opened is gone."""
    await_guards_end(guest.directory)
    assert guest.status() == "running"
    if not guest.options.stub:
        devices = guest.execute("query-chardev")
        assert isinstance(devices, list)
        assert "gdb" not in {device["label"] for device in devices}
    assert guest.execute("query-block-exports") == []
    with pytest.raises(GuestFailedError, match="NBD server not running"):
        guest.execute("nbd-server-stop")
    assert not list(temporary.iterdir())


def disk_drive(directory: Path) -> tuple[str, ...]:
    """QEMU's options for a disk that the guest does not look at, but that guestprof has QEMU serve."""
    disk = directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    return "-drive", f"file={disk},if=virtio,format=raw"


def forget_files(cache: Path) -> None:
    """Files of the guest that earlier recordings have kept ($XDG_CACHE_HOME): the next one opens the guest's storage."""
    shutil.rmtree(cache / "guestprof" / "files", ignore_errors=True)


def last_sample_s(path: Path) -> float:
    """When the last sample of a recording was taken, in seconds since 1970; its beginning where it has none."""
    with Recording.open(path) as recording:
        halts = list(recording.halts())
        taken = [sample.halt for sample in recording.samples()]
        said = recording.meta.get("started_at")
    if said is None:
        # Killed within the milliseconds between the making of the file and its first row.
        return path.stat().st_mtime
    began = datetime.fromisoformat(said).timestamp()
    return began + (halts[max(taken)].host_time_ns / 1e9 if taken else 0.0)


def sample_count(path: Path) -> int:
    """How many samples a recording has."""
    with Recording.open(path) as recording:
        return sum(1 for _sample in recording.samples())


def await_file(path: Path) -> None:
    """Wait until a recording is there, its first row or not."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(_POLL_S)


def await_samples(path: Path, count: int = 1) -> None:
    """Wait until the recording holds so many (each opening sees the state of that moment)."""
    await_file(path)
    deadline = time.monotonic() + _PATIENCE_S
    while sample_count(path) < count:
        assert time.monotonic() < deadline, "not enough samples came"
        time.sleep(_POLL_S)
