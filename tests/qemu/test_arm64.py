"""arm64 guests with stock kernels, with nothing from the host but the running QEMU: stacks, tasks, contexts, user stacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recording.model import FrameKind, Space, StackEnd
from recording.reader import Recording
from tests.conftest import StartGuest
from tests.qemu.command import guestprof, report_of
from tests.qemu.guests import ARM, Guest
from tests.qemu.test_stacks import MIN_SAMPLES, check_groups, explain

pytestmark = pytest.mark.qemu

MIN_COMPLETE = 0.995
MAX_ENTRY = 0.4
"""TCG halts between its blocks only, and in entry code nearly every instruction ends one: with one an instruction it is 3 %."""
SECONDS = "3"


def record(guest: Guest, path: Path) -> None:
    guestprof("record", "--connect", guest.target, "-F", "200", "-d", SECONDS, "-o", path, "-q")


@pytest.mark.parametrize(("suite", "vcpus", "append"), [("bookworm", 2, ""), ("trixie", 1, "nokaslr"), ("trixie", 2, "")])
def test_mixed_workload(start_guest: StartGuest, tmp_path: Path, suite: str, vcpus: int, append: str) -> None:
    """Without KASLR the image lies among modules and vmalloc areas, and there is no KPTI."""
    guest = start_guest(suite, vcpus, append=append, machine=ARM)
    path = tmp_path / "a.guestprof"
    record(guest, path)
    report = report_of(path)
    quality = report["quality"]
    assert quality["complete_share"] >= MIN_COMPLETE, explain(path)
    assert quality["entry_share"] <= MAX_ENTRY
    assert quality["ends"].get("no-kernel", 0) == 0
    assert quality["samples"] >= MIN_SAMPLES * vcpus
    assert quality["task_share"] >= 0.99
    assert report["meta"]["kernel_release"] in guest.console_text()
    names = {row["name"]: row for row in report["functions"]}
    assert names["el0_svc"]["total_share"] > 0.1
    assert names["el0t_64_sync"]["total_ns"] >= names["el0_svc"]["total_ns"]
    contexts = {row["name"] for row in report_of(path, "--by", "context")["contexts"]}
    assert contexts >= {"user", "system-call", "page-fault", "hard-irq"}, contexts
    calls = {row["name"] for row in report_of(path, "--by", "system-call")["system_calls"]}
    assert calls & {"read", "write", "clone", "wait4", "newfstatat", "execve"}, calls
    processes = {row["name"] for row in report_of(path, "--by", "process")["processes"]}
    assert processes >= {"init", "dd", "find"}, processes
    check_groups(path, quality["samples"])
    check_user_stacks(path)
    assert guest.status() == "running"


def check_user_stacks(path: Path) -> None:
    """The static busybox has unwind data for all its code: with that known, stacks from its ``_start`` on."""
    with Recording.open(path) as recording:
        images = list(recording.images())
        walked = [
            sample.callchain
            for sample in recording.samples()
            if any(frame.space is Space.USER and frame.image is not None for frame in sample.callchain.frames)
        ]
    assert any(image.kind is FrameKind.USER and image.name.endswith("/busybox") for image in images)
    whole = [chain for chain in walked if chain.user_end is not None and chain.user_end.is_proper]
    assert len(whole) >= 0.95 * len(walked) > MIN_SAMPLES


def test_one_instruction_per_block(start_guest: StartGuest, tmp_path: Path) -> None:
    """Halts fall on every instruction: of prologues, of leaves, behind calls."""
    guest = start_guest("trixie", machine=ARM)
    # From here on: a boot of single instructions takes half a minute.
    guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
    path = tmp_path / "a.guestprof"
    record(guest, path)
    quality = report_of(path)["quality"]
    assert quality["complete_share"] >= MIN_COMPLETE, explain(path)
    assert quality["entry_share"] <= MAX_ENTRY


def test_idle_and_dump(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("trixie", 2, append="guestprof.workload=idle", machine=ARM)
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-F", "100", "-d", "3", "-o", path, "-q")
    quality = report_of(path)["quality"]
    assert quality["ends"]["idle-root"] > 0.9 * quality["samples"]
    vcpus = json.loads(guestprof("dump", "--connect", guest.target, "--json").stdout)
    for number, vcpu in enumerate(vcpus):
        assert (vcpu["vcpu"], vcpu["mode"]) == (number, "kernel")
        assert vcpu["task"]["comm"] == f"swapper/{number}"
        assert StackEnd(vcpu["end"]) is StackEnd.IDLE_ROOT
