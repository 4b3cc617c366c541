"""Boots from the first instruction: firmware by its address, the kernel from its first code on by its stacks, to an exact end."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from recording.initcalls import LEVELS
from recording.model import StackEnd
from recording.reader import Recording
from tests.conftest import KERNELS
from tests.qemu.command import guestprof, report_of
from tests.qemu.guests import QEMU

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

MACHINE = ("-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio")

_BEFORE = ("firmware", "option-rom", "boot-loader", "decompressor")
"""Milestones before the kernel's own."""
_ANY_TIME = ("console", "boot-code", "gap")
"""Kinds of events that may come at any time."""


@pytest.mark.parametrize("suite", KERNELS.values(), ids=KERNELS.keys())
def test_boot_until_a_symbol(guest_kernel: Callable[[str], Path], guest_initramfs: Path, tmp_path: Path, suite: str) -> None:
    path = tmp_path / "boot.guestprof"
    # One of them with page tables of five levels, and all else that TCG can emulate.
    processor = ("-cpu", "max") if suite == "bookworm" else ()
    command = (QEMU, *MACHINE, *processor, "-kernel", guest_kernel(suite), "-initrd", guest_initramfs, "-append", "console=ttyS0")
    said = guestprof("boot", "-F", "200", "--until-symbol", "run_init_process", "-o", path, "--", *command).stderr
    assert "Stopped: run_init_process was reached." in said
    report = report_of(path)
    # Code of alternatives that are not chosen yet (.altinstr_aux) has no rows, and takes longer the busier the host is.
    assert report["quality"]["complete_share"] >= 0.98
    assert "user-mode" not in report["quality"]["ends"]
    functions = {row["name"]: row for row in report["functions"]}
    assert functions["start_kernel"]["total_share"] > 0.05
    assert functions["kernel_init"]["total_share"] > 0.05
    assert {row["module"] for row in report["functions"] if row["kind"] == "firmware"} >= {"SeaBIOS", "Linux decompressor"}
    with Recording.open(path) as recording:
        samples = list(recording.samples())
        assert [event.kind for event in recording.events() if event.kind not in _ANY_TIME] == ["kernel-found", "mark", "end"]
        halts = [halt.running_time_ns for halt in recording.halts()]
        early = list(recording.halts())[:20]
    # Before its first instruction the guest stands: that is no part of the recording's time, and takes nothing of it away.
    for index, halt in enumerate(early):
        unexplained_ns = halt.host_time_ns - sum(each.halted_ns for each in early[:index]) - halt.running_time_ns
        assert 0 <= unexplained_ns - early[0].host_time_ns < 10_000_000
    # The kernel was found while it ran already; what had been sampled of it before that got its stacks too.
    assert samples[0].callchain.end is StackEnd.FIRMWARE
    assert all(sample.callchain.end is not StackEnd.NO_KERNEL for sample in samples)
    check_timeline(json.loads(guestprof("timeline", path, "-f", "json").stdout), halts)


def test_boots_of_a_command_line_with_a_stub_of_its_own(
    guest_kernel: Callable[[str], Path], guest_initramfs: Path, tmp_path: Path
) -> None:
    """As a user has it who debugs the guest now and then; twice, until the first process beside the idle one is seen."""
    path = tmp_path / "boot.guestprof"
    own = ("-S", "-s", "-daemonize", "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off")
    serial = tmp_path / "console"
    machine = (*MACHINE[:-1], f"file:{serial}", *own)
    command = (QEMU, *machine, "-kernel", guest_kernel("bookworm"), "-initrd", guest_initramfs, "-append", "console=ttyS0")
    said = guestprof("boot", "--runs", "2", "-F", "200", "--until-process", "kthreadd", "-o", path, "--", *command).stderr
    for option in own[:3]:
        assert said.count(f"{option} is left out: ") == 2
    assert said.count("Stopped: process kthreadd runs.") == 2
    assert not path.exists()
    for number in (1, 2):
        report = report_of(tmp_path / f"boot-{number}.guestprof", "--by", "process")
        assert "kthreadd" in {row["name"] for row in report["processes"]}
        assert report["meta"]["ended"] == "process kthreadd runs"
    failed = guestprof("boot", "--runs", "2", "-o", path, "--", *command, status=1)
    assert failed.stderr == f"guestprof: {tmp_path}/boot-1.guestprof exists; give --force to replace it, or another file with -o\n"


def check_timeline(timeline: dict[str, Any], halts: Sequence[int]) -> None:
    """The milestones of a boot that ends where init is executed, in the order in which Linux comes to them."""
    found = {row["name"]: row for row in timeline["milestones"]}
    order = (*_BEFORE, "kernel-entry", "start_kernel", "kernel_init", "smp_init", "initramfs", "free_initmem", "run_init_process")
    others = [name for name in found if not name.startswith("initcall-")]
    assert others == [name for name in order if name in found]
    # The others may be too short to be sampled.
    assert {"firmware", "decompressor", "kernel-entry", "start_kernel", "kernel_init", order[-1]} <= set(others)
    levels = [name.removeprefix("initcall-") for name in found if name.startswith("initcall-")]
    assert levels == [level for level in LEVELS if level in levels]
    assert "subsys" in levels
    assert len(levels) >= 4
    phases = timeline["phases"]
    assert [row["name"] for row in phases] == [name for name, row in found.items() if row["begins_phase"]]
    assert sum(row["samples"] for row in phases) == timeline["quality"]["samples"]
    assert {row["level"] for row in timeline["initcalls"] if row["name"] == "acpi_init"} == {"subsys"}
    check_console(found, f"initcall-{levels[-1]}", timeline["console"], halts)
    check_clock(timeline)


def check_clock(timeline: dict[str, Any]) -> None:
    """Printk's stamps are what the guest's own clock, read from its memory, shows when the lines come, or a little less."""
    clock = timeline["clock"]
    assert [row["name"] for row in clock["clocks"]] == ["printk", "monotonic"]
    assert clock["problem"] is None
    assert len(clock["stamps"]) == 1
    assert clock["agreement"]["lines"] > 30
    # Ticks come each 4 ms, and before there is another clock, printk's counts these.
    assert clock["agreement"]["early_ns"] < 30_000_000
    kernels = [row for row in timeline["milestones"] if row["name"] not in _BEFORE]
    shown = [row["guest_ns"] for row in kernels if row["guest_ns"] is not None]
    assert len(shown) >= len(kernels) - 2
    assert shown == sorted(shown)


def check_console(milestones: dict[str, Any], last_level: str, lines: Sequence[dict[str, Any]], halts: Sequence[int]) -> None:
    """What the kernel itself said, by the guest's clock too, lies where the milestones say.

    A line was noticed by the look at the console after it was written; the look before that was after the halt before the last.
    """
    (settled,) = [index for index, line in enumerate(lines) if "smp: Bringing up secondary CPUs" in line["text"]]
    stamps = [float(match[1]) for line in lines[settled:] if (match := re.match(r"\[ *(\d+\.\d+)\]", line["text"]))]
    assert len(stamps) > 50
    assert stamps == sorted(stamps)
    for text, after, before in (
        ("smp: Bringing up secondary CPUs", "kernel_init", "initcall-subsys"),
        ("NET: Registered ", "kernel_init", "initcall-subsys"),
        ("unpack rootfs image as initramfs", "initcall-subsys", "run_init_process"),
        ("(initmem) memory", last_level, "run_init_process"),
    ):
        noticed_ns = next(line["time_ns"] for line in lines if text in line["text"])
        not_before_ns = halts[max(0, bisect_right(halts, noticed_ns) - 2)]
        assert (milestones[after]["after_ns"] or 0) <= noticed_ns, text
        assert not_before_ns <= milestones[before]["time_ns"], text
