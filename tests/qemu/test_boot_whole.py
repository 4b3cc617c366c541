"""Boots from the reset vector to the login prompt: firmware, boot loader, decompressor, kernel, initramfs, systemd, all by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from recording.errors import MissingDependencyError
from recording.model import FrameKind
from recording.phases import GAP
from recording.profile import Profile
from recording.reader import Recording
from tests.conftest import skip_loudly
from tests.qemu.command import guestprof
from tests.qemu.disk_guest import AMD64, ARM64, LOGIN, debian_disk, uboot_disk

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

_LONG_NS = 50_000_000
_PC = ("qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "512", "-nographic")
_ARM64 = ("qemu-system-aarch64", "-M", "virt", "-accel", "tcg", "-cpu", "cortex-a57", "-m", "512", "-nographic")
_RISCV64 = ("qemu-system-riscv64", "-M", "virt", "-accel", "tcg", "-m", "512", "-nographic")
_OVMF = Path("/usr/share/ovmf/OVMF.fd")
"""Program and variables in one, as every release of the package has it."""
_EFI_ARM64 = Path("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd")
_UBOOT = Path("/usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin")


@dataclass(frozen=True, slots=True)
class Boot:
    """command: QEMU's, without the disk. needs: a firmware file and its package.

    milestones: in this order, others between them. modules: of code from before the kernel that takes long enough to be seen.
    """

    command: Sequence[str | Path]
    disk: Callable[[], Path]
    milestones: tuple[str, ...]
    modules: frozenset[str]
    needs: tuple[Path, str] | None = None


_KERNEL = ("start_kernel", "kernel_init", "user")
_END = ("init", "init:systemd", f"console:{LOGIN}")
BOOTS = {
    "seabios": Boot(
        _PC,
        lambda: debian_disk(AMD64),
        ("firmware", "boot-loader", "decompressor", "kernel-entry", *_KERNEL, *_END),
        frozenset({"SeaBIOS", "GRUB", "GRUB relocator", "Linux decompressor"}),
    ),
    "ovmf": Boot(
        (*_PC, "-bios", _OVMF),
        lambda: debian_disk(AMD64),
        ("firmware", "boot-loader", "decompressor", "kernel-entry", *_KERNEL, *_END),
        frozenset({"DxeCore", "GRUB", "Linux decompressor"}),
        (_OVMF, "ovmf"),
    ),
    "arm64": Boot(
        (*_ARM64, "-bios", _EFI_ARM64),
        lambda: debian_disk(ARM64),
        ("firmware", "boot-loader", "kernel-entry", *_KERNEL, *_END),
        frozenset({"DxeCore", "GRUB"}),
        (_EFI_ARM64, "qemu-efi-aarch64"),
    ),
    "riscv64": Boot(
        (*_RISCV64, "-kernel", _UBOOT),
        uboot_disk,
        ("firmware", "boot-loader", "kernel-entry", *_KERNEL, "init", f"console:{LOGIN}"),
        frozenset({"U-Boot"}),
        (_UBOOT, "u-boot-qemu"),
    ),
}


@pytest.mark.parametrize("boot", BOOTS.values(), ids=BOOTS.keys())
def test_boot_from_reset_to_login(tmp_path: Path, boot: Boot) -> None:
    path = tmp_path / "boot.guestprof"
    command = [*boot.command, "-drive", f"file={_overlay(boot, tmp_path)},if=virtio,format=qcow2"]
    said = guestprof("boot", "-F", "200", "--until-console", LOGIN, "-o", path, "--", *command).stderr
    assert "Stopped: the console says " in said
    timeline = json.loads(guestprof("timeline", path, "-f", "json").stdout)
    check_milestones(boot, [row["name"] for row in timeline["milestones"]], timeline["phases"])
    assert sum(row["samples"] for row in timeline["phases"]) >= 0.99 * timeline["quality"]["samples"]
    with Recording.open(path) as recording:
        profile = Profile(recording)
        check_names(boot, profile)
        explained = {event.running_time_ns for event in recording.events() if event.kind == GAP}
        halts = [halt.running_time_ns for halt in recording.halts()]
    assert {after for before, after in pairwise(halts) if after - before > _LONG_NS} <= explained


def check_milestones(boot: Boot, names: Sequence[str], phases: Sequence[dict[str, object]]) -> None:
    """All are there, in the order of a boot, and every sample is in a phase that begins with one."""
    assert [name for name in names if name in boot.milestones] == list(boot.milestones)
    assert phases[0]["name"] == "firmware"
    assert {str(phase["name"]) for phase in phases} <= set(names)


def check_names(boot: Boot, profile: Profile) -> None:
    """Code from before the kernel is named by what it belongs to, but for a few samples (before its firmware volume was read)."""
    before: Counter[str] = Counter()
    for count in profile.counts:
        leaf = count.stack.functions[-1]
        if leaf.kind is FrameKind.FIRMWARE:
            before[leaf.module] += count.samples
    assert boot.modules <= set(before)
    assert before["[firmware]"] <= 0.03 * profile.samples, before


def _overlay(boot: Boot, directory: Path) -> Path:
    """A disk of the guest's own, on which nothing is kept."""
    qemu = str(boot.command[0])
    if shutil.which(qemu) is None:
        skip_loudly(f"{qemu} is not installed")
    if boot.needs is not None and not boot.needs[0].exists():
        skip_loudly(f"{boot.needs[0]} is not there (Debian: {boot.needs[1]})")
    if os.geteuid() != 0:
        skip_loudly("disk images of Debian are made as root only")
    try:
        image = boot.disk()
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise
    overlay = directory / "disk.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "qcow2", str(overlay)]
    subprocess.run(command, check=True)
    return overlay
