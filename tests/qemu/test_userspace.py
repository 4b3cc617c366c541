"""A Debian guest from power-on: kernel, modules, systemd and a workload in the same stacks, with nothing given but QEMU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from tests.conftest import KERNELS
from tests.qemu.command import guestprof, report_of
from tests.qemu.debian_guest import DebianOptions, qemu_command

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

FIRST_ROUND = "guestprof: round 1"


@pytest.mark.parametrize("suite", KERNELS.values(), ids=KERNELS.keys())
def test_boot_and_workload(guest_kernel: Callable[[str], Path], debian_image: Path, tmp_path: Path, suite: str) -> None:
    path, console = tmp_path / "boot.guestprof", tmp_path / "console"
    command = qemu_command(DebianOptions(guest_kernel(suite), suite, debian_image), tmp_path, console)
    guestprof("boot", "-F", "200", "-d", "90", "--until-console", FIRST_ROUND, "-o", path, "-q", "--", *command)
    assert FIRST_ROUND in console.read_text("utf-8", "replace")

    quality = report_of(path)["quality"]
    print(suite, quality)
    assert quality["task_share"] >= 0.995
    assert quality["complete_share"] >= 0.99
    assert quality["user_complete_share"] >= 0.97
    with Recording.open(path) as recording:
        check_stacks(Profile(recording))
    check_outputs(path)
    check_timeline(json.loads(guestprof("timeline", path, "--mark", f"round={FIRST_ROUND}", "-f", "json").stdout))


def check_clock_and_units(timeline: dict[str, Any]) -> None:
    """By both clocks of the kernel; systemd's units by their groups, as the console says nothing of them (quiet)."""
    assert [row["name"] for row in timeline["clock"]["clocks"]] == ["printk", "monotonic"]
    times = {row["name"]: row["guest_ns"] for row in timeline["milestones"]}
    assert 0 < times["init"] < times["init:systemd"] < times["round"]
    units = {row["name"]: row for row in timeline["units"]}
    assert units["workload.service"]["slice"] == "system.slice"
    assert units["workload.service"]["seen"]["weight_ns"] > units["init.scope"]["seen"]["weight_ns"] > 0


def check_stacks(profile: Profile) -> None:
    """Modules, libraries and programs by their names, in stacks that go from the program's start into the kernel."""
    modules: Counter[str] = Counter()
    chains: Counter[tuple[str, str]] = Counter()
    processes: Counter[str] = Counter()
    unknown = nameless = 0
    for count in profile.counts:
        processes[count.origin.process.name] += count.samples
        kinds = [function.kind for function in count.stack.functions]
        for function in count.stack.functions:
            if function.kind is FrameKind.MODULE:
                modules[function.module] += count.samples
                nameless += count.samples if function.name.startswith("0x") else 0
            unknown += count.samples if function.kind is FrameKind.UNKNOWN else 0
        if count.stack.user_end is not None and count.stack.user_end.is_proper and FrameKind.MODULE in kinds:
            chains[count.origin.process.name, "module"] += count.samples
        if "_start" in [function.name for function in count.stack.functions]:
            chains[count.origin.process.name, "_start"] += count.samples
    assert nameless == 0
    # The first code of a module may be freed before the module is read: 0 to 5 of 12,000 samples. Systemd's services spend some
    # time in filters of system calls, which no list of the kernel's has; the tasks lead to them.
    assert unknown <= 0.002 * profile.samples
    assert {"[virtio_blk]", "[virtio_net]"} <= set(modules)
    # A program's own system call or page fault, whose user stack is whole, and a module that serves it.
    assert sum(samples for (_, what), samples in chains.items() if what == "module") > 0
    assert {"python3", "openssl", "xz", "find", "sha256sum", "systemd", "workload.sh"} <= set(processes)
    assert chains["python3", "_start"] > 10


def check_outputs(path: Path) -> None:
    """The command line's tables and stacks say the same."""
    folded = guestprof("export", path, "-f", "folded", "-o", "-").stdout.splitlines()
    assert any(line.startswith("python3;_start;") for line in folded)
    # A stripped program without a name for its entry point.
    assert any("[k]" in line and line.startswith(("find;_start;", "find;find+0x")) for line in folded)
    contexts = {row["name"] for row in report_of(path, "--by", "context")["contexts"]}
    assert {"user", "idle", "system-call", "page-fault", "hard-irq"} <= contexts
    processes = {row["name"] for row in report_of(path, "--by", "process")["processes"]}
    assert any(name.startswith("python3") for name in processes)


def check_timeline(timeline: dict[str, Any]) -> None:
    """From firmware to the workload's first line: what must come before what."""
    milestones = [row["name"] for row in timeline["milestones"]]
    order = ("firmware", "kernel-entry", "start_kernel", "kernel_init", "initcall-subsys", "init", "init:systemd", "round")
    assert [name for name in milestones if name in order] == list(order)
    times = {row["name"]: row["time_ns"] for row in timeline["milestones"]}
    # In the list of modules before their code runs, which the initramfs has them loaded for; found loaded a few halts later.
    modules = {row["name"]: row for row in timeline["modules"]}
    assert {"virtio_blk", "virtio_net", "overlay"} <= set(modules)
    assert all(times["init"] < modules[name]["loaded_ns"] < times["init:systemd"] for name in ("virtio_blk", "virtio_net"))
    assert all(row["unloaded_ns"] is None for row in timeline["modules"])
    assert modules["virtio_blk"]["seen"]["first_ns"] > times["init"]
    first = {(row["process"], row["pid"]): row["first_ns"] for row in reversed(timeline["processes"])}
    assert first["init", 1] <= times["init"]
    assert times["init:systemd"] <= min(time_ns for (name, _), time_ns in first.items() if name == "python3")
    calls = {(row["process"], row["name"]): row["first_ns"] for row in reversed(timeline["system_calls"])}
    assert times["init"] <= calls["init", "finit_module"] < times["init:systemd"]
    groups = [row["path"] for row in timeline["groups"]]
    assert groups.index("/init.scope") < groups.index("/system.slice/workload.service")
    check_clock_and_units(timeline)
    # The guest waits for its disk: something is always idle, and each span but the last is ended by something.
    assert timeline["waits"]["total_ns"] > 0
    assert all(span["ended_by"] is not None for span in timeline["waits"]["spans"][:-1])
    assert sum(row["samples"] for row in timeline["phases"]) == timeline["quality"]["samples"]
