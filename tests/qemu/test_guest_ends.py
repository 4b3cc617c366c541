"""The guest powers off, reboots, is paused or killed while it is recorded: what was recorded is kept, and one sentence says why."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from recording.model import FrameKind, Space, StackEnd
from recording.names import Namer
from recording.reader import Recording
from tests.conftest import StartGuest
from tests.qemu.aftermath import await_guards_end, await_samples, sample_count
from tests.qemu.command import guestprof, start_guestprof
from tests.qemu.guests import Guest
from tests.qemu.relay import Relay

pytestmark = pytest.mark.qemu

MIN_COMPLETE = 0.99
SAMPLES = 150


def test_a_guest_that_powers_off(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest(append="guestprof.poweroff=6")
    path = tmp_path / "a.guestprof"
    said = guestprof("record", "--connect", guest.target, "-o", path).stderr
    assert "QEMU closed the connection: the guest was powered off or QEMU ended.\n" in said
    assert guest.wait_for_end() == 0
    assert sample_count(path) > 20
    assert await_guards_end(guest.directory) == 0


def test_a_guest_that_powers_off_and_whose_qemu_stays(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest(append="guestprof.poweroff=6", extra=("-no-shutdown",))
    path = tmp_path / "a.guestprof"
    said = guestprof("record", "--connect", guest.target, "-o", path).stderr
    assert "the guest stopped by itself: it shut down and QEMU keeps it (-no-shutdown).\n" in said
    assert sample_count(path) > 20
    assert guest.status() == "shutdown"
    assert await_guards_end(guest.directory) == 0
    said = guestprof("record", "--connect", guest.target, "-o", tmp_path / "b.guestprof", status=1).stderr
    assert "stands still (QEMU says: shutdown), so there is nothing to record; resume it" in said
    assert not (tmp_path / "b.guestprof").exists()


@pytest.mark.parametrize("local", [True, False], ids=["qmp", "registers"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_guest_that_reboots(start_guest: StartGuest, tmp_path: Path, vcpus: int, local: bool) -> None:
    """The next kernel lies elsewhere (KASLR). Without QMP, and without QEMU's process, the registers alone tell of the reset."""
    guest = start_guest(vcpus=vcpus, reboots=True)
    path = tmp_path / "a.guestprof"
    with Relay(guest.gdb) as relay:
        process = start_guestprof("record", "--connect", guest.target if local else relay.address, "-F", "100", "-o", path)
        await_samples(path, SAMPLES)
        guest.execute("system_reset")
        guest.wait_for("guestprof: userspace", count=2)
        guest.wait_for("guestprof: workload", count=2)
        await_events(path, "kernel-found", 2)
        await_samples(path, sample_count(path) + SAMPLES)
        process.terminate()
        _output, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (143, False), said
    with Recording.open(path) as recording:
        events = [event.kind for event in recording.events() if event.kind.startswith("kernel-")]
        images = [image for image in recording.images() if image.name == "vmlinux"]
        samples = list(recording.samples())
    assert events[:3] == ["kernel-found", "kernel-gone", "kernel-found"]
    assert [image.boot for image in images[:2]] == [0, 1]
    assert images[0].ranges[0] != images[1].ranges[0]
    namer = Namer(images)
    for boot in (0, 1):
        ends = Counter(sample.callchain.end for sample in samples if sample.boot == boot)
        named = [
            (frame.kind, frame.name)
            for sample in samples
            if sample.boot == boot and sample.callchain.end.is_proper
            for frame in (namer.name(each, boot) for each in sample.callchain.frames if each.space is Space.KERNEL)
        ]
        kernel = sum(count for end, count in ends.items() if end.is_kernel)
        proper = sum(count for end, count in ends.items() if end.is_proper or end is StackEnd.ENTRY_WINDOW)
        assert kernel > 20, ends
        assert proper >= MIN_COMPLETE * kernel - 1, ends
        # No module is loaded in this guest, so every frame has its name, by the symbols of its own boot.
        assert {kind for kind, _name in named} == {FrameKind.KERNEL}
        assert {"entry_SYSCALL_64_after_hwframe", "do_syscall_64", "ret_from_fork"} <= {name for _kind, name in named}
    assert guest.status() == "running"


def await_events(path: Path, kind: str, count: int) -> None:
    deadline = time.monotonic() + 60
    found = 0
    while time.monotonic() < deadline:
        with Recording.open(path) as recording:
            found = [event.kind for event in recording.events()].count(kind)
        if found >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{found} {kind}, not {count}")


def test_a_qemu_that_is_killed(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest()
    path = tmp_path / "a.guestprof"
    process = start_guestprof("record", "--connect", guest.target, "-o", path)
    await_samples(path)
    guest.process.kill()
    _output, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (0, False), said
    assert "QEMU closed the connection: the guest was powered off or QEMU ended.\n" in said
    assert sample_count(path) > 0
    assert await_guards_end(guest.directory) == 0


def pause_until_it_ends(guest: Guest, process: subprocess.Popen[str]) -> str:
    """What it said. A pause that comes while the profiler has the guest halted is over when it lets the guest run again."""
    for _ in range(20):
        guest.execute("stop")
        try:
            return process.communicate(timeout=3)[1]
        except subprocess.TimeoutExpired:
            assert any(guest.status() == "running" for _ in range(500)), "it waits for a paused guest"
    raise AssertionError("it did not notice that the guest was paused")


def test_a_guest_that_somebody_pauses(start_guest: StartGuest, tmp_path: Path) -> None:
    """It stays paused: whoever paused it may have a reason. The same for one that was paused before."""
    guest = start_guest()
    path = tmp_path / "a.guestprof"
    process = start_guestprof("record", "--connect", guest.target, "-o", path)
    await_samples(path)
    said = pause_until_it_ends(guest, process)
    assert (process.returncode, "Traceback" in said) == (1, False), said
    assert said.endswith(
        "the guest stopped by itself: somebody else paused it (QMP stop, virsh suspend); resume it there and record again\n"
    )
    assert said.count("somebody else paused it") == 1
    assert sample_count(path) > 0
    assert guest.status() == "paused"
    said = guestprof("record", "--connect", guest.target, "-o", tmp_path / "b.guestprof", status=1).stderr
    assert f"the guest of QEMU {guest.pid} stands still (QEMU says: paused), so there is nothing to record; resume it" in said
    assert guest.status() == "paused"
    assert "vCPU 0" in guestprof("dump", "--connect", guest.target).stdout
    assert guest.status() == "paused"
    guest.execute("cont")
    guestprof("record", "--connect", guest.target, "-d", "1", "-o", tmp_path / "b.guestprof")
    assert guest.status() == "running"
