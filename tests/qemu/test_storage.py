"""A real QEMU's disks, read through its own block layer; in every way out it serves nothing of ours afterwards.

There is no guest in it: the disk is all that matters, and QEMU owns it from its start on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from guest.memory import run_steps
from recording.errors import StubError
from sampler.discovery import find_process
from sampler.qmp import Qmp
from sampler.storage import GuestDisks
from sampler.storage_link import StoredFile
from tests.builders.disks import MTIME_S, PROGRAM, ext4_number, make_ext4, make_mbr, make_tree, need, run
from tests.qemu.aftermath import await_guards_end
from tests.qemu.guests import QEMU

pytestmark = pytest.mark.qemu

PATIENCE_S = 30.0
POLL_S = 0.02
UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import sys
import time
from pathlib import Path
from guest.memory import run_steps
from sampler.discovery import find_process
from sampler.guard import Guard
from sampler.qmp import Qmp
from sampler.storage import GuestDisks
from tests.qemu.test_storage import Identity

def main():
    gdb, qmp, directory, pid, number = sys.argv[1:]
    socket = Path(directory) / "nbd"
    guard = Guard("unix:" + gdb, qmp=qmp, exports=socket, remove=Path(directory))
    with Qmp.open(qmp) as machine, GuestDisks(machine, find_process(int(pid)), socket=socket) as disks:
        file = run_steps(disks.find_file(Identity(int(number)), "/usr/bin/program"))
        print(file.origin, disks._link.pid, flush=True)
        # A signal that came just before one long wait would be noticed after it.
        while True:
            time.sleep(0.05)
    guard.goodbye()

main()
"""


class Identity:
    """A file on the test's disk."""

    size = len(PROGRAM)
    file_system = "ext4"
    source = "vda1"
    uuid: bytes | None = UUID
    mtime_ns = MTIME_S * 10**9

    def __init__(self, number: int) -> None:
        self.number = number


class Machine:
    """A QEMU that stands before its first instruction, with two disks. monitor: a QMP socket for the test itself."""

    def __init__(self, directory: Path, disk: Path, overlay: Path) -> None:
        self.directory = directory
        self.qmp, self.monitor, self.gdb = (directory / name for name in ("qmp", "monitor", "gdb"))
        command = [
            *(QEMU, "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32"),
            *("-drive", f"if=virtio,format=qcow2,file={overlay}", "-drive", f"if=ide,media=cdrom,format=raw,file={disk}"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off", "-qmp", f"unix:{self.monitor},server=on,wait=off"),
            *("-chardev", f"socket,id=g0,path={self.gdb},server=on,wait=off", "-gdb", "chardev:g0"),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while not all(path.exists() for path in (self.qmp, self.monitor, self.gdb)):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(POLL_S)

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(self.monitor))
            with connection.makefile("rwb") as stream:
                answer: dict[str, Any] = {}
                for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    stream.write(json.dumps(request).encode() + b"\n")
                    stream.flush()
                    answer = {}
                    while "return" not in answer and "error" not in answer:
                        answer = json.loads(stream.readline())
                return answer

    def assert_serves_nothing(self) -> None:
        assert self.ask("query-block-exports") == {"return": []}
        assert self.ask("nbd-server-stop")["error"]["desc"] == "NBD server not running"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A disk with a partition, and the program's inode number."""
    root = tmp_path_factory.mktemp("disks")
    part = make_ext4(root / "part", make_tree(root / "tree"))
    disk = make_mbr(root / "disk", [part])
    return disk, ext4_number(part, "/usr/bin/program")


@pytest.fixture
def machine(disks: tuple[Path, int]) -> Iterator[Machine]:
    # Not under pytest's tmp_path: a unix socket's path may have 107 bytes (unix(7)).
    directory = Path(tempfile.mkdtemp(prefix="gp-"))
    overlay = directory / "overlay.qcow2"
    run(need("qemu-img", "qemu-utils"), "create", "-f", "qcow2", "-b", disks[0], "-F", "raw", overlay)
    started = Machine(directory, disks[0], overlay)
    try:
        yield started
    finally:
        started.close()
        shutil.rmtree(directory, ignore_errors=True)


def find(storage: GuestDisks, number: int) -> StoredFile:
    found = run_steps(storage.find_file(Identity(number), "/usr/bin/program"))
    assert isinstance(found, StoredFile), found
    return found


def test_a_file_through_qemu(machine: Machine, disks: tuple[Path, int]) -> None:
    nbd = machine.directory / "nbd"
    with Qmp.open(str(machine.qmp)) as qmp:
        with GuestDisks(qmp, find_process(machine.process.pid), socket=nbd) as storage:
            machine.assert_serves_nothing()
            file = find(storage, disks[1])
            assert file.origin == "ext4 on virtio0 partition 1"
            assert file.read(0, len(PROGRAM)) == PROGRAM
            (first, second) = machine.ask("query-block-exports")["return"]
            assert {first["id"], second["id"]} == {"guestprof-0", "guestprof-1"}
            assert nbd.is_socket()
        assert not nbd.exists()
        machine.assert_serves_nothing()
        with pytest.raises(StubError, match="NBD server not running"):
            qmp.execute("nbd-server-stop")


def test_what_the_guest_has_just_written_is_seen(machine: Machine, disks: tuple[Path, int]) -> None:
    """It is the same block layer, so nothing need be in the image file yet."""
    at = disks[0].read_bytes().index(PROGRAM[:4096])
    with (
        Qmp.open(str(machine.qmp)) as qmp,
        GuestDisks(qmp, find_process(machine.process.pid), socket=machine.directory / "nbd") as storage,
    ):
        qmp.monitor(f'qemu-io virtio0 "write -P 0x5a {at} 512"')
        assert find(storage, disks[1]).read(0, 513) == b"\x5a" * 512 + PROGRAM[512:513]


def test_an_exception(machine: Machine, disks: tuple[Path, int]) -> None:
    with Qmp.open(str(machine.qmp)) as qmp:

        def fail() -> None:
            with GuestDisks(qmp, find_process(machine.process.pid), socket=machine.directory / "nbd") as storage:
                find(storage, disks[1])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        machine.assert_serves_nothing()


def test_an_interruption_while_disks_are_being_exported(machine: Machine) -> None:
    """Ctrl-C after each of the steps."""
    with Qmp.open(str(machine.qmp)) as qmp:

        def interrupt(steps: int) -> None:
            with GuestDisks(qmp, find_process(machine.process.pid), socket=machine.directory / "nbd") as storage:
                job = storage.find_file(Identity(2), "/usr/bin/program")
                for _ in range(steps):
                    next(job)
                raise KeyboardInterrupt

        for steps in range(1, 8):
            with pytest.raises(KeyboardInterrupt):
                interrupt(steps)
            machine.assert_serves_nothing()


def test_a_server_of_somebody_else_is_left_alone(machine: Machine, disks: tuple[Path, int]) -> None:
    other = machine.directory / "other"
    assert "return" in machine.ask("nbd-server-start", addr={"type": "unix", "data": {"path": str(other)}})
    (first, *_more) = machine.ask("query-block")["return"]
    node = first["inserted"]["node-name"]
    export = {"type": "nbd", "id": "theirs", "node-name": node, "name": "theirs"}
    assert "return" in machine.ask("block-export-add", **export)
    with Qmp.open(str(machine.qmp)) as qmp:
        with GuestDisks(qmp, find_process(machine.process.pid), socket=machine.directory / "nbd") as storage:
            # From the image files.
            assert find(storage, disks[1]).read(0, 100) == PROGRAM[:100]
        assert [each["id"] for each in machine.ask("query-block-exports")["return"]] == ["theirs"]
    assert other.is_socket()


def test_after_the_power_off_the_image_is_read(machine: Machine, disks: tuple[Path, int]) -> None:
    with Qmp.open(str(machine.qmp)) as qmp:
        storage = GuestDisks(qmp, find_process(machine.process.pid), socket=machine.directory / "nbd")
        file = find(storage, disks[1])
        assert file.read(0, 10) == PROGRAM[:10]
        machine.process.kill()
        machine.process.wait()
        assert file.read(0, len(PROGRAM)) == PROGRAM
        again = find(storage, disks[1])
        assert again.read(0, len(PROGRAM)) == PROGRAM
        assert storage.close() is False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals(machine: Machine, disks: tuple[Path, int], number: signal.Signals) -> None:
    """A profiler of its own that has exports open: killed, terminated, interrupted."""
    directory = Path(tempfile.mkdtemp(prefix="gp-"))
    arguments = [str(machine.gdb), str(machine.qmp), str(directory), str(machine.process.pid), str(disks[1])]
    code = HOLDER
    if number is signal.SIGTERM:
        code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n" + code
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        origin, _, worker = process.stdout.readline().strip().rpartition(" ")
        assert origin == "ext4 on virtio0 partition 1"
        reader = psutil.Process(int(worker))
        assert len(machine.ask("query-block-exports")["return"]) == 2
        process.send_signal(number)
        process.wait(PATIENCE_S)
        # Where it was not killed it did not say goodbye to the guard either: that one finds nothing left to do.
        await_guards_end(directory)
        machine.assert_serves_nothing()
        assert not directory.exists()
        psutil.wait_procs([reader], PATIENCE_S)
        assert not reader.is_running()
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(directory, ignore_errors=True)
