"""The examples, run as their users run them, on real guests. Those that compare boots: tests/qemu/test_compare.py."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recording.reader import Recording
from sampler.qmp import Qmp
from tests.conftest import StartGuest
from tests.qemu.command import EXAMPLES, report_of, run_example

pytestmark = pytest.mark.qemu

VIRSH = """#!{python}
# Stands in for libvirt's, which these machines do not run: it passes monitor commands on to the guest's QEMU, as libvirt does.
import sys
from sampler.qmp import Qmp
assert sys.argv[1:4] == ["qemu-monitor-command", "web1", "--hmp"], sys.argv
with Qmp.open("{qmp}") as qmp:
    print(qmp.monitor(sys.argv[4]))
"""


def test_a_guest_that_runs(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("bookworm")
    table = run_example("profile_running_guest.sh", guest.target, "4", cwd=tmp_path)
    assert "do_syscall_64" in table
    assert (tmp_path / "guest.svg").read_text("utf-8").startswith("<svg")
    assert (tmp_path / "guest.speedscope.json").stat().st_size > 1000

    lines = run_example("first_seen.py", tmp_path / "guest.guestprof", cwd=tmp_path).splitlines()
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    assert any(line.split()[-1] == "do_syscall_64" for line in lines)

    with sqlite3.connect(f"file:{tmp_path / 'guest.guestprof'}?mode=ro", uri=True) as connection:
        rows = connection.execute((EXAMPLES / "stack_ends.sql").read_text("utf-8")).fetchall()
    assert {end: count for end, count, _seconds in rows} == report_of(tmp_path / "guest.guestprof")["quality"]["ends"]


def test_a_guest_of_libvirt(start_guest: StartGuest, tmp_path: Path) -> None:
    """A stand-in for ``virsh``: there is no libvirt here."""
    guest = start_guest("bookworm", stub=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "virsh").write_text(VIRSH.format(python=sys.executable, qmp=guest.qmp), "utf-8")
    (programs / "virsh").chmod(0o755)
    table = run_example("libvirt_guest.sh", "web1", "2", cwd=tmp_path, programs=programs, PORT="23711")
    assert "[kernel]" in table
    assert report_of(tmp_path / "web1.guestprof")["quality"]["samples"] > 20
    with Qmp.open(str(guest.qmp)) as qmp:
        assert qmp.find_gdbstub() is None


def test_boot_flame_graph(guest_kernel: Callable[[str], Path], guest_initramfs: Path, tmp_path: Path) -> None:
    """A small guest instead of an image that a boot loader is on."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    kernel = ("-kernel", guest_kernel("bookworm"), "-initrd", guest_initramfs, "-append", "console=ttyS0")
    text = run_example("boot_flame_graph.sh", image, *kernel, cwd=tmp_path, UNTIL="Run /init")
    assert "start_kernel" in text
    assert "phases, each from its milestone to the next" in text
    assert (tmp_path / "boot.svg").read_text("utf-8").startswith("<svg")
    assert (tmp_path / "boot.html").read_bytes().startswith(b"<!DOCTYPE html>")
    with Recording.open(tmp_path / "boot.guestprof") as recording:
        assert recording.meta["ended"].startswith("the console says")
