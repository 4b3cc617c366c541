"""Addresses, and what is said when nobody is there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from recording.errors import StubError, TransportError
from sampler.target import Target
from sampler.transport import Connection, split_address


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("localhost:1234", ("localhost", 1234)),
        ("tcp:10.0.0.1:99", ("10.0.0.1", 99)),
        (":1234", ("127.0.0.1", 1234)),
        ("[::1]:1234", ("::1", 1234)),
        ("unix:/run/gdb", "/run/gdb"),
        ("unix:gdb:1", "gdb:1"),
    ],
)
def test_addresses(address: str, where: tuple[str, int] | str) -> None:
    assert split_address(address) == where


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", "localhost:0", "localhost:65536", "localhost:12a", "unix:", "/run/gdb"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(TransportError, match=r"is no address of a gdb stub; give HOST:PORT or unix:PATH"):
        split_address(address)


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_closed_port_says_how_to_start_qemu() -> None:
    port = closed_port()
    with pytest.raises(TransportError, match=rf"nothing listens at 127.0.0.1:{port}; start QEMU with -s"):
        Connection.open(f"127.0.0.1:{port}")


def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"there is no socket unix:.*/none; check the path"):
        Connection.open(f"unix:{tmp_path}/none")


def test_a_dead_socket_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "dead"))
    with pytest.raises(TransportError, match=r"nothing listens at unix:.*/dead"):
        Connection.open(f"unix:{tmp_path}/dead")


def test_a_datagram_socket_is_no_stub(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "d"))
        with pytest.raises(TransportError, match="is no stream socket"):
            Connection.open(f"unix:{tmp_path}/d")


def test_a_path_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="too long"):
        Connection.open(f"unix:{tmp_path}/{'a' * 200}")


def test_the_process_behind_a_unix_socket_is_known(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        connection = Connection.open(f"unix:{tmp_path}/s")
        assert connection.peer_pid() == os.getpid()
        assert connection.receive_waiting() == b""
        connection.close()


def test_a_tcp_server_that_is_no_stub_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(StubError, match=f"{address} accepts the connection but does not answer"):
            Target.open(address, timeout_s=0.1)


def test_receiving_waits_no_longer_than_told() -> None:
    left, right = socket.socketpair()
    connection = Connection(left, "x", 0.01)
    with pytest.raises(TimeoutError):
        connection.receive()
    right.sendall(b"abc")
    assert connection.receive() == b"abc"
    right.close()
    with pytest.raises(TransportError, match="powered off or QEMU ended"):
        connection.receive()
    with pytest.raises(TransportError, match="powered off or QEMU ended"):
        connection.receive_waiting()
    with pytest.raises(TransportError, match="powered off or QEMU ended"):
        connection.send(b"x")
    connection.close()
    connection.close()
