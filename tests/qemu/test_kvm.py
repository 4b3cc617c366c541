"""A kernel under KVM: the accelerator's own traps (stale registers, a TSC that runs on) must not spoil stacks.

The machines that run these tests emulate supervisor code under KVM, slowly and not completely: a bzImage spends minutes unpacking
itself, so the kernel is booted unpacked (PVH entry), and only the first part of its boot is looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from recording.reader import Recording
from tests.qemu.command import guestprof, report_of
from tests.qemu.guests import QEMU

pytestmark = pytest.mark.qemu

_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
"""Debian's 6.1 compresses its kernel so (lz4_Frame_format.md, legacy frame; arch/x86/boot/compressed/Makefile)."""


def unpack(bzimage: Path, vmlinux: Path) -> None:
    """The ELF file in a kernel image that is compressed with lz4."""
    data = bzimage.read_bytes()
    start = data.index(_LZ4_LEGACY_MAGIC)
    # The decompressor ends with an error at what follows the stream in the image; the output counts.
    result = subprocess.run(["lz4", "-dc"], input=data[start:], capture_output=True, check=False)
    assert result.stdout[:4] == b"\x7fELF", result.stderr
    vmlinux.write_bytes(result.stdout)


@pytest.fixture
def vmlinux(guest_kernel: Callable[[str], Path], tmp_path: Path) -> Path:
    """Debian's 6.1, unpacked."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is not there or not ours: KVM is not tested")
    if shutil.which("lz4") is None or shutil.which(QEMU) is None:
        pytest.skip("lz4 or QEMU is not installed: KVM is not tested (Debian: apt-get install lz4 qemu-system-x86)")
    path = tmp_path / "vmlinux"
    unpack(guest_kernel("bookworm"), path)
    return path


def test_early_boot_under_kvm(vmlinux: Path, guest_initramfs: Path, tmp_path: Path) -> None:
    path = tmp_path / "kvm.guestprof"
    options = ("boot", "-F", "100", "-d", "20", "-o", path, "-q", "--")
    machine = (QEMU, "-accel", "kvm", "-cpu", "qemu64", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio")
    guestprof(*options, *machine, "-kernel", vmlinux, "-initrd", guest_initramfs, "-append", "console=ttyS0")
    report = report_of(path)
    assert report["meta"]["accelerator"] == "kvm"
    assert report["meta"]["kernel_release"].startswith("6.1.")
    assert report["quality"]["complete_share"] >= 0.99
    totals = {row["name"]: row["total_share"] for row in report["functions"]}
    assert totals["x86_64_start_kernel"] > 0.02
    assert totals["start_kernel"] > 0.02
    with Recording.open(path) as recording:
        assert next(event.kind for event in recording.events()) == "kernel-found"
