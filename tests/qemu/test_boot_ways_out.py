"""``guestprof boot`` ends in every way that there is: QEMU is ended, or kept running where that was asked for."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from guestprof.initramfs import USERSPACE_MARK
from recording.reader import Recording
from sampler.qmp import Qmp
from tests.qemu.aftermath import await_guards_end, await_samples, guards, sample_count, temporary_directory
from tests.qemu.command import guestprof, start_guestprof
from tests.qemu.guests import QEMU

pytestmark = pytest.mark.qemu


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where QEMU's sockets lie; whatever runs from there is ended with the test."""
    with temporary_directory() as directory:
        monkeypatch.setenv("TMPDIR", str(directory))
        yield directory
        for process in qemus(directory):
            process.kill()
            process.wait(30)


@pytest.fixture
def qemu_command(guest_kernel: Callable[[str], Path], guest_initramfs: Path) -> tuple[str, ...]:
    options = f"{QEMU} -accel tcg -cpu qemu64,-cx16 -m 256 -nodefaults -display none -no-reboot -serial stdio".split()
    return (*options, "-kernel", str(guest_kernel("bookworm")), "-initrd", str(guest_initramfs), "-append", "console=ttyS0")


def qemus(directory: Path) -> list[psutil.Process]:
    """QEMUs whose sockets lie there, those of which only the parent has yet to take notice not counted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command and Path(command[0]).name == QEMU and any(str(directory) in word for word in command):
                found.append(process)
    return found


def assert_ended(temporary: Path) -> None:
    assert not qemus(temporary)
    assert await_guards_end(temporary) == 0
    assert not list(temporary.iterdir())


def assert_kept(temporary: Path) -> None:
    await_guards_end(temporary)
    (kept,) = qemus(temporary)
    assert kept.status() != psutil.STATUS_ZOMBIE
    (directory,) = temporary.iterdir()
    with Qmp.open(f"{directory}/qmp") as qmp:
        assert qmp.status() == "running"
    # Its stub serves the next one.
    assert "vCPU 0" in guestprof("dump", "--connect", f"unix:{directory}/gdb").stdout
    with Qmp.open(f"{directory}/qmp") as qmp:
        assert qmp.status() == "running"


def check(temporary: Path, *, kept: bool) -> None:
    if kept:
        assert_kept(temporary)
    else:
        assert_ended(temporary)


KEEP = pytest.mark.parametrize("keep", [(), ("--keep-running",)], ids=["ended", "kept"])


@KEEP
def test_the_planned_end(tmp_path: Path, temporary: Path, qemu_command: tuple[str, ...], keep: tuple[str, ...]) -> None:
    path = tmp_path / "a.guestprof"
    said = guestprof("boot", "-o", path, *keep, "--until-console", USERSPACE_MARK, "--", *qemu_command).stderr
    assert f"Stopped: the console says '{USERSPACE_MARK} 6.1" in said
    assert ("QEMU " in said and "runs on; its gdb stub is unix:" in said) == bool(keep)
    with Recording.open(path) as recording:
        assert recording.meta["kernel_release"].startswith("6.1")
    check(temporary, kept=bool(keep))


@KEEP
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal(
    tmp_path: Path, temporary: Path, qemu_command: tuple[str, ...], keep: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    path = tmp_path / "a.guestprof"
    process = start_guestprof("boot", "-o", path, *keep, "--", *qemu_command)
    await_samples(path)
    process.send_signal(number)
    _output, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (status, False), said
    assert sample_count(path) > 0
    check(temporary, kept=bool(keep))


@KEEP
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_there_is_data(
    tmp_path: Path, temporary: Path, qemu_command: tuple[str, ...], keep: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    process = start_guestprof("boot", "-o", tmp_path / "a.guestprof", *keep, "--", *qemu_command)
    await_qemu(process, temporary)
    process.send_signal(number)
    _output, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (status, False), said
    if keep and not qemus(temporary):
        # It came before QEMU had its sockets: there was nothing yet that could be kept.
        assert_ended(temporary)
    else:
        check(temporary, kept=bool(keep))


@KEEP
def test_an_error(tmp_path: Path, temporary: Path, qemu_command: tuple[str, ...], keep: tuple[str, ...]) -> None:
    options = ("--until-symbol", "no_such_function", *keep)
    said = guestprof("boot", "-o", tmp_path / "a.guestprof", *options, "--", *qemu_command, status=1).stderr
    assert "has no function no_such_function; check the name given to --until-symbol" in said
    assert sample_count(tmp_path / "a.guestprof") > 0
    check(temporary, kept=bool(keep))


def test_kill_9(tmp_path: Path, temporary: Path, qemu_command: tuple[str, ...]) -> None:
    """Nobody is there to end QEMU, so the guest runs on."""
    path = tmp_path / "a.guestprof"
    process = start_guestprof("boot", "-F", "500", "-o", path, "--", *qemu_command)
    await_samples(path)
    process.kill()
    process.communicate(timeout=60)
    assert sample_count(path) > 0
    assert_kept(temporary)


def test_kill_9_while_qemu_starts(tmp_path: Path, temporary: Path, qemu_command: tuple[str, ...]) -> None:
    """The guest does not wait before its first instruction for ever."""
    process = start_guestprof("boot", "-o", tmp_path / "a.guestprof", "--", *qemu_command)
    await_qemu(process, temporary)
    process.kill()
    process.communicate(timeout=60)
    assert_kept(temporary)


def await_qemu(process: subprocess.Popen[str], temporary: Path) -> None:
    while not (qemus(temporary) and guards(temporary)):
        assert process.poll() is None


def test_a_qemu_that_does_not_start(tmp_path: Path, temporary: Path) -> None:
    path = tmp_path / "a.guestprof"
    said = guestprof("boot", "-o", path, "--", QEMU, "-no-such-option", status=1).stderr
    assert said.startswith("guestprof: QEMU ended at once (status 1): ")
    assert "-no-such-option: invalid option" in said
    assert_ended(temporary)
    said = guestprof("boot", "-o", path, "--keep-running", "--", QEMU, "-no-such-option", status=1).stderr
    assert "QEMU ended at once (status 1)" in said
    assert_ended(temporary)
    said = guestprof("boot", "-o", path, "--", "qemu-system-nonesuch", status=1).stderr
    assert said == "guestprof: qemu-system-nonesuch is not installed; install QEMU (Debian: apt-get install qemu-system-x86)\n"
    assert not path.exists()
