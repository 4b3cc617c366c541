"""Guests without an operating system are profiled by their ELF files alone: every call path is known, and so are the shares."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path

import pytest

from recording.errors import MissingDependencyError
from recording.milestones import MARK
from recording.model import FrameKind
from recording.profile import Profile
from recording.quality import Quality
from recording.reader import Recording
from sampler.replay import replay
from tests.conftest import skip_loudly
from tests.qemu.bare_guests import OTHERS, PATHS, SHARES, X86_64, X86_64_RING3, BareGuest, BareMachine, build
from tests.qemu.command import guestprof

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

_SIGMAS = 6
"""How far a share may be from the truth. On a busy host a guest may stand still between two halts, so that samples repeat, and the
sampling error is larger than that of as many throws of a die."""
_WHOLE = 0.99
_MIN_SAMPLES = 100
_MIN_BY_GDB = 25
"""gdb takes 6 ms and more for a halt, on a busy machine much more."""
_BY_GDB = ("x86_64", "arm64", "riscv64", "mips")
"""Also recorded by ``--engine gdb``, which must give the same report."""
_KVM = ("-accel", "kvm", "-cpu", "qemu64")


def built(machine: BareMachine, directory: Path) -> Path:
    """The guest's file; skips where there is no compiler."""
    try:
        return build(machine, directory / f"{machine.name}.elf")
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise


def check(recording: Path, min_samples: int = _MIN_SAMPLES) -> Quality:
    """Whether shares, paths and ends are what the guest's source says."""
    with Recording.open(recording) as opened:
        profile = Profile(opened)
        counts, quality = profile.counts, profile.quality()
    leaves = dict.fromkeys(SHARES, 0)
    for count in counts:
        names = [function.name for function in count.stack.functions]
        if names[-1] in leaves:
            leaves[names[-1]] += count.samples
            assert names[-len(PATHS[names[-1]]) :] == PATHS[names[-1]]
            assert count.stack.functions[-1].kind is FrameKind.KERNEL
    total = sum(leaves.values())
    assert total >= min_samples
    for name, share in SHARES.items():
        assert abs(leaves[name] / total - share) < _SIGMAS * math.sqrt(share * (1 - share) / total), (leaves, total)
    assert quality.complete_share is not None
    assert quality.complete_share >= _WHOLE, quality.ends
    assert quality.task_share is None
    return quality


def check_both(machine: BareMachine, directory: Path, *accelerator: str) -> None:
    """Record a guest, and once more with gdb."""
    path, by_gdb = record(machine, directory, *accelerator)
    assert check(path).no_tasks == "no Linux was seen, and of other kernels only the code is known"
    with Recording.open(path) as opened:
        assert opened.meta["architecture"] == machine.architecture
        assert all(sample.callchain == chain for sample, chain in replay(opened))
    if by_gdb is not None:
        assert check(by_gdb, _MIN_BY_GDB).no_tasks == "gdb does not tell which task runs"


def record(machine: BareMachine, directory: Path, *accelerator: str) -> tuple[Path, Path | None]:
    """Recordings of a guest at work, the second by gdb, which are all that is left of it."""
    kernel, path, by_gdb = built(machine, directory), directory / "own", None
    with BareGuest(machine, kernel, *accelerator) as guest:
        file = f"{kernel}@{machine.bias:#x}" if machine.bias else kernel
        options = ("--connect", guest.target, "--elf", file, "-q")
        guestprof("record", *options, "-F", "500", "-d", "1.2", "--raw", "-o", path)
        if machine.name in _BY_GDB and shutil.which("gdb-multiarch"):
            by_gdb = directory / "gdb"
            guestprof("record", *options, "--engine", "gdb", "-F", "100", "-d", "1", "-o", by_gdb)
    kernel.unlink()
    return path, by_gdb


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_x86_64(accelerator: str, tmp_path: Path) -> None:
    if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip_loudly("/dev/kvm is not there or not ours: KVM is not tested")
    machine = X86_64 if accelerator == "tcg" else X86_64_RING3
    check_both(machine, tmp_path, *(_KVM if accelerator == "kvm" else ("-accel", "tcg")))


@pytest.mark.parametrize("machine", OTHERS, ids=lambda machine: machine.name)
def test_other_architectures(machine: BareMachine, tmp_path: Path) -> None:
    check_both(machine, tmp_path)


def test_a_file_of_another_build(tmp_path: Path) -> None:
    machine = next(each for each in OTHERS if each.name == "riscv64")
    kernel = built(machine, tmp_path)
    other = build(machine, tmp_path / "other.elf", rounds=1)
    with BareGuest(machine, kernel) as guest:
        said = guestprof("dump", "--connect", guest.target, "--elf", other, status=1).stderr
        assert re.fullmatch(
            rf"guestprof: the guest runs build [0-9a-f]{{40}} of other\.elf, {re.escape(str(other))} is of build [0-9a-f]{{40}};"
            r" name the file of the same build \(or give --any-build\)\n",
            said,
        )
        assert "serve" in guestprof("dump", "--connect", guest.target, "--elf", other, "--any-build").stdout


def test_a_boot_up_to_a_function_of_the_file(tmp_path: Path) -> None:
    machine = next(each for each in OTHERS if each.name == "riscv64")
    kernel, path, console = built(machine, tmp_path), tmp_path / "a", tmp_path / "console"
    qemu = (*machine.qemu, "-nodefaults", "-display", "none", "-kernel", str(kernel), "-serial", f"file:{console}")
    said = guestprof("boot", "-d", "60", "--until-symbol", "leaf_two", "--elf", kernel, "-o", path, "--", *qemu).stderr
    assert "Stopped: leaf_two was reached." in said
    assert console.read_text("latin-1") == "ready\n"
    with Recording.open(path) as opened:
        assert [event.text for event in opened.events() if event.kind == MARK] == ["leaf_two"]
