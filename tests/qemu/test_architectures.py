"""Guests of every architecture with stock kernels, with nothing from the host but the running QEMU.

Stacks, tasks, contexts, system calls, user stacks: as QEMU runs by default, and with one instruction per translation block, so that
halts fall on every instruction of prologues, of leaves, behind calls. (TCG otherwise halts between its blocks only.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recording.guest_clock import GuestClocks
from recording.model import Callchain, FrameKind, Space, StackEnd
from recording.reader import Recording
from tests.conftest import ALL_KERNELS, StartGuest, params_of
from tests.qemu.ahead import GuestsAhead
from tests.qemu.command import guestprof, report_of
from tests.qemu.guests import ARM64, MACHINES, Guest, Machine
from tests.qemu.test_stacks import check_groups, explain

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

SECONDS = "3"
HERTZ = "200"
MIN_SAMPLES = 40
"""Of each vCPU; some emulators are slow. What is checked of the samples are shares."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a recording of the mixed workload has. Shares are of 1.

    complete: of kernel stacks, those that end properly or stand in an entry window; entry: of those at most in an entry window
    (in entry code nearly every instruction ends a block of TCG's); entry_single: the same with one instruction per block.
    call: the function that makes system calls, as a stack of one shows it.
    user: of the user stacks whose program's file was found, those that are whole; None where none is found.
    """

    call: str
    entry: float
    entry_single: float
    complete: float = 0.995
    user: float | None = 0.95


EXPECTED = {
    # In the trampoline the link register or the frame pointer is hidden, so that some user stacks are cut.
    "arm64": Expected("el0_svc", entry=0.1, entry_single=0.1, user=0.9),
    "riscv64": Expected("do_trap_ecall_u", entry=0.4, entry_single=0.4, user=0.9),
    # The loop of busybox httpd never ends and takes its stack by the piece: 78 to 90 %, as httpd runs more or less.
    "s390x": Expected("__do_syscall", entry=0.3, entry_single=0.1, user=0.7),
    # Its busybox has no unwind data, and only some of its stacks follow from code.
    "i386": Expected("do_SYSENTER_32", entry=0.3, entry_single=0.1, user=None),
    "mips64el": Expected("syscall_common", entry=0.1, entry_single=0.1, user=0.9),
    "mipsel": Expected("syscall_common", entry=0.1, entry_single=0.1, user=0.85),
    "armhf": Expected("ret_fast_syscall", entry=0.3, entry_single=0.3, complete=0.98, user=0.85),
    "ppc64el": Expected("system_call_exception", entry=0.15, entry_single=0.15),
    "ppc64el-bookworm": Expected("system_call_exception", entry=0.3, entry_single=0.2),
}


@dataclass(frozen=True, slots=True)
class Boot:
    """A guest of the matrix."""

    machine: Machine
    suite: str
    vcpus: int
    append: str = ""


BOOTS = (
    *(
        # The newest kernel of each with as many processors as the machine can have; older ones as ``generations`` leaves them out.
        Boot(machine, suite, machine.vcpus if suite == machine.suites[-1] else 1)
        for machine in MACHINES
        for suite in (machine.suites if ALL_KERNELS else machine.suites[-1:])
    ),
    # The image among modules and vmalloc areas, and no KPTI.
    *([Boot(ARM64, "trixie", 1, "nokaslr")] if ALL_KERNELS else []),
)


def record(guest: Guest, path: Path, *options: str) -> dict[str, Any]:
    guestprof("record", "--connect", guest.target, "-F", HERTZ, "-d", SECONDS, "-o", path, "-q", *options)
    return report_of(path)


@pytest.fixture(scope="module")
def ahead(request: pytest.FixtureRequest, start_shared_guest: StartGuest) -> Iterator[GuestsAhead[Boot]]:
    def start(boot: Boot) -> Guest:
        return start_shared_guest(boot.suite, boot.vcpus, append=boot.append, machine=boot.machine)

    with GuestsAhead(params_of(request, "boot"), start) as guests:
        yield guests


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: f"{boot.machine.name}-{boot.suite}-{boot.vcpus}cpu{boot.append}")
def test_mixed_workload(ahead: GuestsAhead[Boot], tmp_path: Path, boot: Boot) -> None:
    expected = EXPECTED.get(f"{boot.machine.name}-{boot.suite}") or EXPECTED[boot.machine.name]
    guest = ahead.take(boot)
    path = tmp_path / "a.guestprof"
    report = record(guest, path)
    check_stacks(report, path, expected.complete, expected.entry)
    assert report["quality"]["samples"] >= MIN_SAMPLES * boot.vcpus
    assert report["meta"]["kernel_release"] in guest.console_text()
    check_tasks(report, path, expected)
    check_clock(path, report["meta"])
    # From here on: a boot of single instructions would take half a minute.
    guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
    single = tmp_path / "single.guestprof"
    check_stacks(record(guest, single, "--scan-stack"), single, expected.complete, expected.entry_single)
    check_guesses(single)
    if expected.user is not None:
        # What processes have mapped may be known from the middle of the first recording on only.
        check_user_stacks((path, single), expected.user)
    assert guest.status() == "running"


def check_stacks(report: dict[str, Any], path: Path, complete: float, entry: float) -> None:
    quality = report["quality"]
    assert quality["complete_share"] >= complete, explain(path)
    assert quality["entry_share"] <= entry
    assert quality["ends"].get("no-kernel", 0) == 0


def check_clock(path: Path, meta: dict[str, Any]) -> None:
    """The guest's own clock is read from when it was found on, and printk's wherever the kernel says how its run queues look."""
    with Recording.open(path) as recording:
        halts = list(recording.halts())
        clocks = GuestClocks.of_readings(halts, recording.clocks())
        readings = list(recording.clocks())
        has_types = not any(event.kind == "unknown" for event in recording.events())
    assert [clock.name.value for clock in clocks.clocks] == [*(["printk"] if has_types else []), "monotonic"], meta
    assert sum(reading.monotonic_ns is not None for reading in readings) > 0.5 * len(halts)
    # It runs as fast as the guest, and perhaps in halts.
    assert clocks.clocks[-1].gain > -0.1


def check_guesses(path: Path) -> None:
    """There are some only behind kernel stacks that could not be walked to their ends."""
    with Recording.open(path) as recording:
        for sample in recording.samples():
            chain = sample.callchain
            guesses = [frame for frame in chain.frames if frame.guess and frame.space is Space.KERNEL]
            assert not guesses or not (chain.end.is_proper or chain.end is StackEnd.ENTRY_WINDOW)


def check_tasks(report: dict[str, Any], path: Path, expected: Expected) -> None:
    quality = report["quality"]
    assert quality["task_share"] >= 0.99
    names = {row["name"]: row for row in report["functions"]}
    assert names[expected.call]["total_share"] > 0.1
    contexts = {row["name"] for row in report_of(path, "--by", "context")["contexts"]}
    assert contexts >= {"user", "system-call", "page-fault", "hard-irq"}, contexts
    processes = {row["name"] for row in report_of(path, "--by", "process")["processes"]}
    assert processes >= {"init", "dd", "find"}, processes
    calls = {row["name"] for row in report_of(path, "--by", "system-call")["system_calls"]}
    assert calls & {"read", "write", "clone", "wait4", "newfstatat", "statx", "execve"}, calls
    check_groups(path, quality["samples"])


def check_user_stacks(paths: tuple[Path, ...], share: float) -> None:
    """The static busybox has unwind data for all its code, or the code tells: with that known, stacks from its ``_start`` on."""
    names: set[str] = set()
    walked: list[Callchain] = []
    for path in paths:
        with Recording.open(path) as recording:
            names |= {image.name for image in recording.images() if image.kind is FrameKind.USER}
            walked += [
                sample.callchain
                for sample in recording.samples()
                if any(frame.space is Space.USER and frame.image is not None for frame in sample.callchain.frames)
            ]
    assert any(name.endswith("/busybox") for name in names)
    whole = [chain for chain in walked if chain.user_end is not None and chain.user_end.is_proper]
    assert len(whole) >= share * len(walked) > MIN_SAMPLES


def test_idle_and_dump(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("trixie", 2, append="guestprof.workload=idle", machine=ARM64)
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-F", "100", "-d", "3", "-o", path, "-q")
    quality = report_of(path)["quality"]
    assert quality["ends"]["idle-root"] > 0.9 * quality["samples"]
    vcpus = json.loads(guestprof("dump", "--connect", guest.target, "--json").stdout)
    for number, vcpu in enumerate(vcpus):
        assert (vcpu["vcpu"], vcpu["mode"]) == (number, "kernel")
        assert vcpu["task"]["comm"] == f"swapper/{number}"
        assert StackEnd(vcpu["end"]) is StackEnd.IDLE_ROOT
