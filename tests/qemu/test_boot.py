"""Boots from the first instruction: firmware by its address, the kernel from its first code on by its stacks, to an exact end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recording.model import StackEnd
from recording.reader import Recording
from tests.conftest import KERNELS
from tests.qemu.command import guestprof, report_of
from tests.qemu.guests import QEMU

pytestmark = pytest.mark.qemu

MACHINE = ("-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio")


@pytest.mark.parametrize("suite", KERNELS.values(), ids=KERNELS.keys())
def test_boot_until_a_symbol(guest_kernel: Callable[[str], Path], guest_initramfs: Path, tmp_path: Path, suite: str) -> None:
    path = tmp_path / "boot.guestprof"
    command = (QEMU, *MACHINE, "-kernel", guest_kernel(suite), "-initrd", guest_initramfs, "-append", "console=ttyS0")
    said = guestprof("boot", "-F", "200", "--until-symbol", "run_init_process", "-o", path, "--", *command).stderr
    assert "Stopped: run_init_process was reached." in said
    report = report_of(path)
    assert report["quality"]["complete_share"] >= 0.99
    assert "user-mode" not in report["quality"]["ends"]
    functions = {row["name"]: row for row in report["functions"]}
    assert functions["start_kernel"]["total_share"] > 0.05
    assert functions["kernel_init"]["total_share"] > 0.05
    assert functions["[firmware]"]["kind"] == "firmware"
    with Recording.open(path) as recording:
        samples = list(recording.samples())
        assert [event.kind for event in recording.events()] == ["kernel-found", "end"]
    # The kernel was found while it ran already; what had been sampled of it before that got its stacks too.
    assert samples[0].callchain.end is StackEnd.FIRMWARE
    assert all(sample.callchain.end is not StackEnd.NO_KERNEL for sample in samples)


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
