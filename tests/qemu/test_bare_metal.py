"""Guests without an operating system are profiled by their ELF files alone: every call path is known, and so are the shares."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from recording.errors import MissingDependencyError
from recording.profile import Profile
from recording.reader import Recording
from tests.conftest import skip_loudly
from tests.qemu.bare_guests import PATHS, SHARES, X86_64, X86_64_RING3, BareGuest, BareMachine, build
from tests.qemu.command import guestprof, report_of

pytestmark = pytest.mark.qemu

_SIGMAS = 4.5
"""How far a share may be from the truth: a sampling error that comes once in 100,000 times."""
_WHOLE = 0.99
_KVM = ("-accel", "kvm", "-cpu", "qemu64")


def built(machine: BareMachine, directory: Path) -> Path:
    """The guest's file; skips where there is no compiler."""
    try:
        return build(machine, directory / f"{machine.name}.elf")
    except MissingDependencyError as error:
        skip_loudly(str(error))
        raise


def check(recording: Path) -> None:
    """Whether shares, paths and ends are what the guest's source says."""
    with Recording.open(recording) as opened:
        walks = [(count.stack.functions, count.samples) for count in Profile(opened).counts]
    leaves = dict.fromkeys(SHARES, 0)
    for functions, samples in walks:
        names = [function.name for function in functions]
        if names[-1] in leaves:
            leaves[names[-1]] += samples
            assert names[-len(PATHS[names[-1]]) :] == PATHS[names[-1]]
    total = sum(leaves.values())
    assert total > 200
    for name, share in SHARES.items():
        assert abs(leaves[name] / total - share) < _SIGMAS * math.sqrt(share * (1 - share) / total), (leaves, total)
    report = report_of(recording)
    assert report["quality"]["complete_share"] >= _WHOLE
    assert {row["kind"] for row in report["functions"] if row["name"] in PATHS} == {"kernel"}


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_x86_64(accelerator: str, tmp_path: Path) -> None:
    if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip_loudly("/dev/kvm is not there or not ours: KVM is not tested")
    machine = X86_64 if accelerator == "tcg" else X86_64_RING3
    kernel, path = built(machine, tmp_path), tmp_path / "bare.guestprof"
    with BareGuest(machine, kernel, *(_KVM if accelerator == "kvm" else ("-accel", "tcg"))) as guest:
        guestprof("record", "--connect", guest.target, "--elf", kernel, "-F", "400", "-d", "2", "-o", path, "-q")
    check(path)
