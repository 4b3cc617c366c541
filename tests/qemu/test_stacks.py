"""Kernel stacks of stock kernels, with nothing from the host but the running QEMU: nearly all whole, the others with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporters.report import GroupBy, report_rows
from recording.model import Space, StackEnd
from recording.profile import Profile
from recording.reader import Recording
from tests.conftest import StartGuest
from tests.qemu.command import guestprof, report_of
from tests.qemu.guests import Guest
from tests.qemu.relay import Relay

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

MIN_COMPLETE = 0.997
MAX_ENTRY = 0.01
MAX_ENTRY_KPTI = 0.1
MIN_SAMPLES = 100
"""Of each vCPU; there are 1000 on a machine that has nothing else to do. Rates are what ``benchmarks/`` measures."""
SECONDS = "5"
HERTZ = "200"


def record(guest: Guest, path: Path) -> None:
    guestprof("record", "--connect", guest.target, "-F", HERTZ, "-d", SECONDS, "-o", path, "-q")


def explain(path: Path) -> str:
    """The stacks that are not whole, for the message of a failed test."""
    lines = []
    with Recording.open(path) as recording:
        for sample in recording.samples():
            end = sample.callchain.end
            if end.is_kernel and not end.is_proper and end is not StackEnd.ENTRY_WINDOW:
                lines.append(f"{end.value}: {[hex(frame.pc) for frame in sample.callchain.frames]}")
    return "\n".join(lines[:20])


def test_mixed_workload(matrix_guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    record(matrix_guest, path)
    report = report_of(path)
    quality = report["quality"]
    assert quality["complete_share"] >= MIN_COMPLETE, explain(path)
    assert quality["entry_share"] <= MAX_ENTRY
    assert sum(quality["ends"].values()) == quality["samples"]
    assert quality["ends"].get("no-kernel", 0) == 0
    assert quality["samples"] >= MIN_SAMPLES * matrix_guest.options.vcpus
    assert quality["task_share"] >= 0.99
    names = {row["name"]: row for row in report["functions"]}
    assert names["do_syscall_64"]["total_share"] > 0.1
    assert names["entry_SYSCALL_64_after_hwframe"]["total_ns"] >= names["do_syscall_64"]["total_ns"]
    assert report["meta"]["kernel_release"] in matrix_guest.console_text()
    assert matrix_guest.status() == "running"
    folded = guestprof("export", path, "-f", "folded", "-o", "-").stdout
    assert sum(int(line.rsplit(" ", 1)[1]) for line in folded.splitlines()) == quality["samples"]
    check_groups(path, quality["samples"])


def check_groups(path: Path, samples: int) -> None:
    """Each sample is in one row of a report by what runs, and so is its time; in one by system calls those that are in one."""
    with Recording.open(path) as recording:
        weights = [(sample.weight_ns, sample.system_call is not None) for sample in recording.samples()]
        profile = Profile(recording)
    whole = samples, sum(weight_ns for weight_ns, _in_call in weights)
    for group in (GroupBy.PROCESS, GroupBy.CONTEXT, GroupBy.THREAD, GroupBy.VCPU):
        assert sums(profile, group) == whole
    in_calls = [weight_ns for weight_ns, in_call in weights if in_call]
    assert sums(profile, GroupBy.SYSTEM_CALL) == (len(in_calls), sum(in_calls))
    assert len(in_calls) > 0.1 * samples


def sums(profile: Profile, group: GroupBy) -> tuple[int, int]:
    """Samples and nanoseconds of a report's rows."""
    rows = report_rows(profile, by=group)
    return sum(row.total.samples for row in rows), sum(row.total.self_ns for row in rows)


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_page_table_isolation(start_guest: StartGuest, tmp_path: Path, suite: str) -> None:
    """With KPTI a vCPU in user mode has the kernel unmapped, and more halts fall on entry code (``mov %cr3`` ends a block)."""
    guest = start_guest(suite, append="pti=on")
    path = tmp_path / "a.guestprof"
    record(guest, path)
    quality = report_of(path)["quality"]
    assert quality["complete_share"] >= MIN_COMPLETE, explain(path)
    assert quality["entry_share"] <= MAX_ENTRY_KPTI
    assert quality["ends"]["user-entry"] > MIN_SAMPLES


def test_one_instruction_per_block(start_guest: StartGuest, tmp_path: Path) -> None:
    """Plain TCG halts at block starts only; so halts fall on every instruction, prologues and thunks too."""
    guest = start_guest("bookworm")
    # From here on: a boot of single instructions takes a minute.
    guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
    path = tmp_path / "a.guestprof"
    record(guest, path)
    quality = report_of(path)["quality"]
    assert quality["complete_share"] >= MIN_COMPLETE, explain(path)


def test_idle_guest(start_guest: StartGuest, tmp_path: Path) -> None:
    """Both vCPUs wait nearly all the time; without idle samples next to nothing is left."""
    guest = start_guest("trixie", 2, append="guestprof.workload=idle")
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-F", "100", "-d", "5", "-o", path, "-q")
    everything, busy = report_of(path), report_of(path, "--no-idle")
    assert everything["quality"]["ends"]["idle-root"] > 0.9 * everything["quality"]["samples"]
    assert busy["quality"]["samples"] < 0.1 * everything["quality"]["samples"]
    assert everything["quality"]["complete_share"] >= MIN_COMPLETE, explain(path)


def test_dump(start_guest: StartGuest) -> None:
    guest = start_guest("trixie", 2)
    vcpus = json.loads(guestprof("dump", "--connect", guest.target, "--json").stdout)
    assert [vcpu["vcpu"] for vcpu in vcpus] == [0, 1]
    for vcpu in vcpus:
        assert vcpu["mode"] in ("user", "kernel")
        assert vcpu["task"]["comm"]
        assert (vcpu["task"]["pid"] == 0) == vcpu["task"]["comm"].startswith("swapper/")
        assert vcpu["frames"]
        assert StackEnd(vcpu["end"])
    text = guestprof("dump", "--connect", guest.target).stdout
    assert text.startswith("Linux 6.12")
    assert "vCPU 1: " in text
    assert guest.status() == "running"


def test_second_attach_uses_the_cache(start_guest: StartGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    guest = start_guest("bookworm")
    first = json.loads(guestprof("dump", "--connect", guest.target, "--json").stdout)
    entries = list(cache.rglob("*.kernel"))
    assert len(entries) == 1
    before = entries[0].read_bytes()
    second = json.loads(guestprof("dump", "--connect", guest.target, "--json").stdout)
    assert entries[0].read_bytes() == before
    assert first[0]["frames"]
    assert second[0]["frames"]


def test_memory_through_the_stub_alone(start_guest: StartGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest on another machine has no QEMU process to read from: everything comes through the stub, while sampling goes on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    guest = start_guest("bookworm", 2)
    path = tmp_path / "a.guestprof"
    with Relay(guest.gdb) as relay:
        said = guestprof("record", "--connect", relay.address, "-F", "100", "-d", "15", "-o", path, "-v").stderr
    assert "guest memory is read through the stub" in said
    report = report_of(path)
    ends = report["quality"]["ends"]
    assert report["meta"]["kernel_release"] in guest.console_text()
    kernel_stacks = report["quality"]["samples"] - ends.get("user-mode", 0)
    assert ends.get("no-kernel", 0) < 0.02 * kernel_stacks
    assert report["quality"]["complete_share"] >= 0.98, explain(path)
    with Recording.open(path) as recording:
        has_task = [sample.task is not None for sample in recording.samples()]
    # On a slow machine the first samples come before all of the kernel was read.
    known = has_task[has_task.index(True) :]
    assert len(known) >= MIN_SAMPLES
    assert sum(known) >= 0.99 * len(known)
    processes = {row["name"] for row in report_of(path, "--by", "process")["processes"]}
    # "init" runs the shell script of that name.
    assert processes >= {"init", "dd", "find"}, processes
    assert guest.status() == "running"


def test_without_user_stacks(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("bookworm")
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-F", HERTZ, "-d", "5", "--no-user", "-o", path, "-q")
    quality = report_of(path)["quality"]
    assert list(quality["user_ends"]) == ["not-wanted"]
    assert quality["user_complete_share"] is None
    assert quality["task_share"] >= 0.99
    with Recording.open(path) as recording:
        for sample in recording.samples():
            chain = sample.callchain
            user = [frame for frame in chain.frames if frame.space is Space.USER]
            # In user mode the vCPU's own PC is no stack.
            assert len(user) == (chain.end is StackEnd.USER_MODE)
            assert not any(frame.image is not None for frame in user)
