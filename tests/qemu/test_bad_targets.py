"""Pointing guestprof at what it cannot profile: one clear sentence, a fitting exit status, nobody harmed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestprof.cli import run
from guestprof.debian import fetch_package
from guestprof.initramfs import WORKLOAD_MARK, build_initramfs, find_busybox
from recording.errors import MissingDependencyError
from recording.model import StackEnd
from recording.reader import Recording
from sampler.qmp import Qmp
from sampler.target import Target
from tests.conftest import StartGuest
from tests.qemu.aftermath import await_guards_end, sample_count, temporary_directory
from tests.qemu.command import guestprof
from tests.qemu.guests import QEMU, Guest, GuestOptions
from unwind.arch.registry import ARCHITECTURES

pytestmark = pytest.mark.qemu

HIGHER_HALF = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cbf00106631c0b9001066f3ab66c70600100320000066c706f81f0320000066c70600200330000066c706f02f0330000066c7060030"
    "8300000066b8200000000f22e066b8001000000f22d866b9800000c00f32660d000100000f300f0116b87c0f20c0660d010000800f22c0ea7d7c080048b8000000"
    "80ffffffff488d204881c4007c00004805997c0000ffe048ffc3e802000000ebf648ffc9c390000000000000000000000000009a20000f00a87c"
)
"""tests/guests/higher_half.S, without the zeros and the mark at its end."""
HIGHER_HALF_LOOP = range(0xFFFFFFFF80007C99, 0xFFFFFFFF80007CA7)


def refused(path: Path, *arguments: str | Path, status: int = 1) -> str:
    """The only line of a recording that cannot begin."""
    said = guestprof("record", *arguments, "-o", path, status=status).stderr
    assert not path.exists()
    assert said.count("\n") == 1
    return said


class Server:
    """A TCP server on this machine that answers whatever it gets with the same. None: it closes at once."""

    def __init__(self, answer: bytes | None, greeting: bytes = b"") -> None:
        self._answer = answer
        self._greeting = greeting
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _peer = self._server.accept()
                with client, contextlib.suppress(OSError):
                    client.sendall(self._greeting)
                    while self._answer is not None and client.recv(4096):
                        client.sendall(self._answer)

    def close(self) -> None:
        self._server.close()


def packet(payload: bytes) -> bytes:
    return b"+$%b#%02x" % (payload, sum(payload) & 0xFF)


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, because there may be a QEMU on this machine."""
    monkeypatch.setattr("sampler.discovery.find_processes", list)
    monkeypatch.setattr(sys, "argv", ["guestprof", "record", "-o", str(tmp_path / "a")])
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "guestprof: no QEMU runs on this machine; start one, or give --connect HOST:PORT\n"


def test_a_closed_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = refused(tmp_path / "a", "--connect", f"127.0.0.1:{port}")
    assert said.startswith(f"guestprof: nothing listens at 127.0.0.1:{port}; start QEMU with -s (port 1234) or -gdb")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--connect", "unix:/nonesuch/gdb"], "there is no socket unix:/nonesuch/gdb; check the path"),
        (["--connect", "nonsense"], "'nonsense' is no address of a gdb stub; give HOST:PORT or unix:PATH"),
        (["--connect", "127.0.0.1:99999"], "'127.0.0.1:99999' is no address of a gdb stub; give HOST:PORT or unix:PATH"),
        (["--qmp", "/nonesuch/qmp"], "there is no QMP socket /nonesuch/qmp; check the path"),
        (["--pid", str(os.getpid())], f"process {os.getpid()} is no QEMU system emulator, or not yours; check the number"),
        (["--pid", "99999999"], "process 99999999 is no QEMU system emulator, or not yours; check the number"),
    ],
)
def test_nonsense(tmp_path: Path, options: list[str], words: str) -> None:
    assert refused(tmp_path / "a", *options).startswith(f"guestprof: {words}")


def test_wrong_usage(tmp_path: Path) -> None:
    said = guestprof("record", "--connect", "127.0.0.1:1", "--pid", "1", "-o", tmp_path / "a", status=2).stderr
    assert "Error: give --connect or --pid, not both" in said
    said = guestprof("record", "--vcpu", "x", "-o", tmp_path / "a", status=2).stderr
    assert "'x' is no list of vCPU numbers; write for example 0,2-3" in said
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("greeting", "answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "answers in another protocol than gdb's: it is no gdb stub; check the address"),
        (b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", "answers in another protocol than gdb's: it is no gdb stub; check the address"),
        (
            b"",
            b"",
            "accepts the connection but does not answer: another debugger holds the stub (QEMU serves one at a time), or it is",
        ),
        (b"", None, "closed the connection at once: it is no gdb stub, or QEMU is ending; check the address"),
        (b"", packet(b""), "speaks gdb's protocol but is not QEMU's gdb stub; check the address"),
        (b"", packet(b"swbreak+"), "speaks gdb's protocol but states no packet size: it is not QEMU's gdb stub"),
    ],
)
def test_a_server_that_is_no_stub(tmp_path: Path, greeting: bytes, answer: bytes | None, words: str) -> None:
    server = Server(answer, greeting)
    assert refused(tmp_path / "a", "--connect", server.address).startswith(f"guestprof: {server.address} {words}")
    server.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_stub_that_sends_garbage(tmp_path: Path, seed: int) -> None:
    """Bytes that hold "$" and "#" look like packets whose checksums are wrong, or whose content makes no sense."""
    garbage = random.Random(seed).randbytes(70_000)
    server = Server(garbage)
    assert "gdb stub" in refused(tmp_path / "a", "--connect", server.address)
    server.close()


@pytest.fixture(scope="module")
def guest(start_shared_guest: StartGuest) -> Guest:
    return start_shared_guest("bookworm", append="guestprof.workload=idle")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vcpu", "7"], "there is no vCPU 7; the guest has 1, counted from 0"),
        (["--vcpu", "0-2"], "there is no vCPU 1; the guest has 1, counted from 0"),
    ],
)
def test_a_vcpu_that_is_not_there(guest: Guest, tmp_path: Path, options: list[str], words: str) -> None:
    assert refused(tmp_path / "a", "--connect", guest.target, *options) == f"guestprof: {words}\n"
    assert await_guards_end(guest.directory) == 0
    assert guest.status() == "running"


def test_an_output_that_cannot_be_written(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("precious")
    said = guestprof("record", "--connect", guest.target, "-o", path, status=1).stderr
    assert said == f"guestprof: {path} exists; use --force to replace it\n"
    assert path.read_text() == "precious"
    missing = tmp_path / "missing" / "a"
    said = refused(missing, "--connect", guest.target)
    assert said == f"guestprof: cannot write {missing}: No such file or directory; choose another file with -o\n"
    guestprof("record", "--connect", guest.target, "-d", "0.5", "-o", path, "--force")
    assert sample_count(path) > 0
    assert await_guards_end(guest.directory) == 0
    assert guest.status() == "running"


def test_a_stub_that_another_client_holds(guest: Guest, tmp_path: Path) -> None:
    with Target.open(guest.target) as other:
        other.resume()
        said = refused(tmp_path / "a", "--connect", guest.target)
        assert "accepts the connection but does not answer: another debugger holds the stub (QEMU serves one at a time)" in said
        assert guest.status() == "running"
    guestprof("record", "--connect", guest.target, "-d", "0.5", "-o", tmp_path / "a")
    assert guest.status() == "running"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist; name a file that 'guestprof record' wrote"),
        (b"", "is empty; record again"),
        (b"no recording at all", "is no recording of guestprof; name a file that 'guestprof record' wrote"),
    ],
)
@pytest.mark.parametrize("command", [["report"], ["export", "-f", "folded", "-o", "-"]], ids=["report", "export"])
def test_a_foreign_file(tmp_path: Path, command: list[str], content: bytes | None, words: str) -> None:
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    assert guestprof(*command, path, status=1).stderr == f"guestprof: {path} {words}\n"


def test_a_damaged_recording(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "a"
    guestprof("record", "--connect", guest.target, "-d", "0.5", "-o", path, "-q")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for command in (("report",), ("export", "-f", "speedscope", "-o", "-")):
        said = guestprof(*command, path, status=1).stderr
        assert said.startswith(f"guestprof: {path} is damaged (")
        assert said.endswith("); record again\n")


@pytest.fixture
def machine() -> Iterator[Callable[..., tuple[str, str]]]:
    """Starts a QEMU without a kernel; gives the addresses of its stub and its QMP socket."""
    with contextlib.ExitStack() as stack:

        def start(*options: str | Path, binary: str = QEMU) -> tuple[str, str]:
            if shutil.which(binary) is None:
                pytest.skip(f"{binary} is not installed")
            directory = stack.enter_context(temporary_directory())
            # -daemonize returns when the sockets are there.
            sockets = f"-gdb unix:{directory}/gdb,server=on,wait=off -qmp unix:{directory}/qmp,server=on,wait=off"
            command = [binary, *f"-accel tcg -m 32 -nodefaults -display none {sockets} -daemonize".split(), *map(str, options)]
            subprocess.run(command, check=True, timeout=60)
            stack.callback(quit_machine, f"{directory}/qmp")
            return f"unix:{directory}/gdb", f"{directory}/qmp"

        yield start


def quit_machine(qmp: str) -> None:
    with Qmp.open(qmp) as machine:
        machine.execute("quit")


def test_a_machine_of_an_unknown_architecture(machine: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    gdb, qmp = machine("-M", "virt", binary="qemu-system-or1k")
    said = refused(tmp_path / "a", "--connect", gdb)
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    assert said == (
        f"guestprof: the guest's architecture is 'or1k', which guestprof cannot profile yet (it knows {known});"
        " a gdb that knows it can: --engine gdb\n"
    )
    with Qmp.open(qmp) as client:
        assert client.status() == "running"


def test_a_32_bit_kernel_on_a_64_bit_machine(tmp_path: Path) -> None:
    try:
        package = fetch_package("bookworm", "i386", r"linux-image-[0-9][0-9.-]*-686-pae-unsigned")
        busybox = find_busybox("i386")
    except MissingDependencyError as error:
        pytest.skip(f"no 32-bit guest: {error}")
    (kernel,) = package.glob("boot/vmlinuz-*")
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(build_initramfs(busybox))
    path = tmp_path / "a"
    with Guest(GuestOptions(kernel, initramfs)) as guest:
        guest.wait_for(WORKLOAD_MARK)
        said = guestprof("record", "--connect", guest.target, "-o", path, status=1).stderr
        assert said.endswith(": start it with qemu-system-i386, or boot a 64-bit one\n")
        assert said.count("the guest runs the 32-bit kernel 6.1") == 1
        # It was refused before the first sample.
        assert sample_count(path) == 0
        said = guestprof("dump", "--connect", guest.target, status=1).stderr
        assert said.startswith("guestprof: the guest runs the 32-bit kernel 6.1")
        assert guest.status() == "running"
        assert await_guards_end(guest.directory) == 0


def ends_without_linux(path: Path, gdb: str, qmp: str) -> set[StackEnd]:
    """Why the stacks of a guest end that runs no Linux. It is told, and what was recorded is kept."""
    said = guestprof("record", "--connect", gdb, "-d", "2", "-o", path, status=1).stderr
    assert "guestprof: no Linux kernel was found in the guest's memory, so the samples in" in said
    assert said.endswith(
        "profile a guest that runs Linux (or name what else it runs with --elf), or record for longer if it is still booting\n"
    )
    with Recording.open(path) as recording:
        samples = list(recording.samples())
        assert "kernel_release" not in recording.meta
    assert len(samples) > 20
    assert guestprof("report", path).stdout
    assert guestprof("dump", "--connect", gdb).stdout.startswith("no Linux kernel was found in the guest's memory\n")
    with Qmp.open(qmp) as client:
        assert client.status() == "running"
    return {sample.callchain.end for sample in samples}


def test_a_guest_that_is_nothing_but_firmware(machine: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    assert ends_without_linux(tmp_path / "a", *machine()) == {StackEnd.FIRMWARE}


def test_a_kernel_that_is_not_linux(machine: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    """It runs where Linux would run."""
    image = tmp_path / "image"
    image.write_bytes(HIGHER_HALF.ljust(510, b"\0") + b"\x55\xaa")
    gdb, qmp = machine("-drive", f"file={image},format=raw,if=ide")
    path = tmp_path / "a"
    assert StackEnd.NO_KERNEL in ends_without_linux(path, gdb, qmp)
    with Recording.open(path) as recording:
        chains = [sample.callchain for sample in recording.samples() if sample.callchain.end is StackEnd.NO_KERNEL]
    assert chains
    assert all(chain.frames[0].pc in HIGHER_HALF_LOOP for chain in chains)
