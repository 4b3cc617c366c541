"""NBD: its messages byte by byte, qemu-nbd as a real server, servers that break the protocol."""

from __future__ import annotations

import io
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording.errors import StorageError
from sampler.nbd import Export, NbdDevice, encode_disconnect, encode_hello, encode_read, parse_reply, read_export
from tests.builders.disks import need

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
OPTION_MAGIC = bytes.fromhex("0003e889045565a9")
EXPORT = OPTION_MAGIC + struct.pack(">III", 7, 3, 12) + struct.pack(">HQH", 0, 5000, 0x3)
BLOCK_SIZES = OPTION_MAGIC + struct.pack(">III", 7, 3, 14) + struct.pack(">HIII", 3, 1, 4096, 1 << 25)
ACK = OPTION_MAGIC + struct.pack(">III", 7, 1, 0)


def receiver(data: bytes) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)

    def receive(size: int) -> bytes:
        found = stream.read(size)
        if len(found) != size:
            raise StorageError("the end")
        return found

    return receive


def test_hello() -> None:
    expected = "00000003" + b"IHAVEOPT".hex() + "00000007" + "00000008" + "00000002" + b"d0".hex() + "0000"
    assert encode_hello(GREETING, "d0").hex() == expected
    assert encode_hello(b"NBDMAGICIHAVEOPT\x00\x01", "d0")[:4] == b"\0\0\0\1"


@pytest.mark.parametrize("greeting", [b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\3", b"HTTP/1.1 400 Bad R", b"NBDMAGICIHAVEOPT\0\2"])
def test_other_servers(greeting: bytes) -> None:
    with pytest.raises(StorageError, match="no NBD server of the fixed newstyle kind"):
        encode_hello(greeting, "d0")


def test_negotiation() -> None:
    assert read_export(receiver(BLOCK_SIZES + EXPORT + ACK), "d0") == Export(5000, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ACK, "does not say how large"),
        (OPTION_MAGIC + struct.pack(">III", 7, 0x80000006, 4) + b"what", "refuses the export d0: what"),
        (OPTION_MAGIC + struct.pack(">III", 7, 0x80000001, 0), "refuses the export d0: error 1"),
        (OPTION_MAGIC + struct.pack(">III", 6, 1, 0), "breaks the protocol"),
        (OPTION_MAGIC + struct.pack(">III", 7, 3, 1 << 31), "breaks the protocol"),
        (bytes(20), "breaks the protocol"),
        (OPTION_MAGIC + struct.pack(">III", 7, 3, 2) + b"\0\0", "breaks the protocol"),
        (EXPORT.replace(struct.pack(">Q", 5000), b"\xff" * 8) + ACK, "18446744073709551615 bytes"),
        (BLOCK_SIZES * 100, "does not end its negotiation"),
    ],
)
def test_negotiations_that_fail(data: bytes, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        read_export(receiver(data), "d0")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_export_or_refused(data: bytes) -> None:
    for start in (b"", OPTION_MAGIC, OPTION_MAGIC + struct.pack(">I", 7)):
        try:
            assert read_export(receiver(start + data), "d0").size >= 0
        except StorageError:
            continue


def test_requests_and_replies() -> None:
    assert encode_read(5, 0x1000, 0x200).hex() == "25609513" + "00000000" + "0000000000000005" + "0000000000001000" + "00000200"
    assert encode_disconnect().hex() == "25609513" + "0000" + "0002" + "00" * 20
    assert parse_reply(bytes.fromhex("67446698" + "00000005" + "0000000000000007")) == (5, 7)
    with pytest.raises(StorageError):
        parse_reply(bytes.fromhex("668e33ef" + "00" * 12))


# A real server


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nbd") / "image"
    path.write_bytes(random.Random(5).randbytes((3 << 20) + 512))
    return path


@pytest.fixture
def server(image: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    path = tmp_path / "socket"
    command = [need("qemu-nbd", "qemu-utils"), "-r", "-t", "-f", "raw", "-x", "disk", "-k", str(path), str(image)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield str(path), process
    finally:
        process.kill()
        process.wait()


def test_qemu_nbd(server: tuple[str, subprocess.Popen[bytes]], image: Path) -> None:
    data = image.read_bytes()
    with NbdDevice(server[0], "disk") as device:
        assert device.size == len(data)
        assert device.read(0, len(data)) == data
        assert device.read(len(data) - 1, 1) == data[-1:]
        assert device.read(1 << 20, 0) == b""
        for offset, size in ((len(data), 1), (-1, 2), (0, -1), (1 << 70, 1)):
            with pytest.raises(StorageError, match="refused to read"):
                device.read(offset, size)
        assert device.read(77, 1000) == data[77:1077]
    with pytest.raises(StorageError, match="the NBD server refuses the export other"):
        NbdDevice(server[0], "other")


def test_a_server_that_ends(server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    with NbdDevice(server[0], "disk") as device:
        server[1].kill()
        server[1].wait()
        for _ in range(2):
            with pytest.raises(StorageError, match="the NBD server of disk does not answer"):
                device.read(0, 1 << 20)
    with pytest.raises(StorageError, match=r"cannot reach the NBD server at .*gone"):
        NbdDevice(str(tmp_path / "gone"), "disk")


# Servers that break the protocol


def serve(path: Path, *answers: tuple[int, bytes]) -> threading.Thread:
    """A server that waits for so many bytes before each of its answers, then holds its tongue until the client goes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        connection, _ = listener.accept()
        with listener, connection:
            for awaited, answer in answers:
                missing = awaited
                while missing > 0:
                    missing -= len(connection.recv(missing))
                connection.sendall(answer)
            while connection.recv(4096):
                pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


HELLO_SIZE = len(encode_hello(GREETING, "disk"))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (struct.pack(">IIQ", 0x67446698, 0, 99), "answers what was not asked"),
        (struct.pack(">IIQ", 0x67446698, 5, 0), "cannot be read at 0x0: the NBD server reports error 5"),
        (bytes(16), "breaks the protocol"),
        (struct.pack(">IIQ", 0x67446698, 0, 0) + b"half", "does not answer: timed out"),
        (b"", "does not answer: timed out"),
    ],
)
def test_servers_that_lie(tmp_path: Path, reply: bytes, said: str) -> None:
    thread = serve(tmp_path / "socket", (0, GREETING), (HELLO_SIZE, EXPORT + ACK), (28, reply))
    device = NbdDevice(str(tmp_path / "socket"), "disk", timeout_s=0.2)
    with pytest.raises(StorageError, match=said):
        device.read(0, 100)
    # Nothing that comes late is taken for an answer to something else.
    with pytest.raises(StorageError):
        device.read(0, 100)
    thread.join(10)
    assert not thread.is_alive()


def test_answers_in_another_order(tmp_path: Path) -> None:
    size = (1 << 18) + 4
    export = EXPORT.replace(struct.pack(">Q", 5000), struct.pack(">Q", size))
    second = struct.pack(">IIQ", 0x67446698, 0, 1 << 18) + b"tail"
    first = struct.pack(">IIQ", 0x67446698, 0, 0) + b"x" * (1 << 18)
    thread = serve(tmp_path / "socket", (0, GREETING), (HELLO_SIZE, export + ACK), (56, second + first))
    with NbdDevice(str(tmp_path / "socket"), "disk") as device:
        assert device.read(0, size) == b"x" * (1 << 18) + b"tail"
    thread.join(10)
    assert not thread.is_alive()


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    thread = serve(tmp_path / "socket")
    with pytest.raises(StorageError, match="cannot reach the NBD server"):
        NbdDevice(str(tmp_path / "socket"), "disk", timeout_s=0.2)
    thread.join(10)
    assert not thread.is_alive()
