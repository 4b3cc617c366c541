from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recording.errors import TransportError
from sampler.gdb.relay import Relay
from sampler.rsp.codec import encode_packet
from sampler.transport import Connection


class Ends:
    """A relay, and the sockets of a gdb and of a stub that it is between."""

    def __init__(self, directory: Path) -> None:
        ours, self.stub = socket.socketpair()
        self.connection = Connection(ours, "stub", 1.0)
        self.relay = Relay(directory / "r")
        self.relay.connect(self.connection)
        self.gdb = socket.socket(socket.AF_UNIX)
        self.gdb.connect(str(directory / "r"))
        for each in (self.gdb, self.stub):
            each.setblocking(False)
        self.relay.serve(self.relay.sources()[0])

    def from_gdb(self, data: bytes) -> None:
        self.gdb.sendall(data)
        self.relay.serve(self.relay.sources()[0])

    def at_stub(self) -> bytes:
        return _waiting(self.stub)

    def at_gdb(self) -> bytes:
        return _waiting(self.gdb)


def _waiting(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except BlockingIOError:
        return b""


@pytest.fixture
def ends() -> Iterator[Ends]:
    with tempfile.TemporaryDirectory(prefix="gp-") as directory:
        made = Ends(Path(directory))
        yield made
        made.relay.close()
        for each in (made.gdb, made.stub, made.connection):
            each.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"?",
        b"g",
        b"m8021f7,3",
        b"p1f",
        b"Hg1",
        b"T1",
        b"qSupported:xmlRegisters=i386",
        b"qXfer:features:read:target.xml:0,ffb",
        b"vCont?",
        b"vCont;c",
        b"vCont;c:1;s:2",
        b"vCtrlC",
        b"vMustReplyEmpty",
        b"D",
        b"D;1",
        b"c",
        b"QPassSignals:e;10;14",
    ],
)
def test_what_reads_halts_or_resumes_passes_as_it_is(ends: Ends, payload: bytes) -> None:
    unit = b"+" + encode_packet(payload)
    ends.from_gdb(unit)
    assert ends.at_stub() == unit
    assert ends.at_gdb() == b""
    assert ends.relay.refused == []


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"M8021f7,3:000102", b"E01"),
        (b"G0011", b"E01"),
        (b"X8021f7,3:}\x03ab", b""),
        (b"X0,0:", b""),
        (b"P1=00", b""),
        (b"k", b""),
        (b"vKill;1", b""),
        (b"vRun;2f", b""),
        (b"vFile:open:2f,0,0", b""),
        (b"vAttach;1", b""),
        (b"vCtrlCx", b""),
        (b"R00", b""),
        (b"!", b""),
        (b"Qqemu.PhyMemMode:1", b""),
        (b"QStartNoAckMode", b""),
        (b"QNonStop:1", b""),
        (b"i", b""),
        (b"", b""),
        (b"\xff", b""),
    ],
)
def test_what_writes_or_ends_is_refused(ends: Ends, payload: bytes, answer: bytes) -> None:
    ends.from_gdb(b"$" + payload + b"#00")
    assert ends.at_stub() == b""
    assert ends.at_gdb() == b"+" + encode_packet(answer)
    assert ends.relay.refused == [payload[:20]]


@pytest.mark.parametrize("payload", [b"Z0,1000,1", b"z0,1000,1", b"Z1,1000,4", b"Z2,1000,4"])
def test_breakpoints_are_acknowledged_and_not_set(ends: Ends, payload: bytes) -> None:
    ends.from_gdb(encode_packet(payload))
    assert ends.at_stub() == b""
    assert ends.at_gdb() == b"+$OK#9a"


def test_packets_come_in_parts_and_together(ends: Ends) -> None:
    ends.from_gdb(b"+$m10")
    assert ends.at_stub() == b"+"
    ends.from_gdb(b",4#")
    assert ends.at_stub() == b""
    ends.from_gdb(b"xx$k#6b$g#67\x03garbage+")
    assert ends.at_stub() == b"$m10,4#xx$g#67\x03+"
    assert ends.at_gdb() == b"+$#00"


def test_what_the_stub_says_passes_as_it_is(ends: Ends) -> None:
    ends.stub.sendall(b"+$T02thread:01;#04\xff")
    ends.relay.serve(ends.relay.sources()[1])
    assert ends.at_gdb() == b"+$T02thread:01;#04\xff"


def test_the_end_of_the_stub_is_an_error_and_that_of_gdb_is_not(ends: Ends) -> None:
    ends.stub.close()
    with pytest.raises(TransportError, match="closed the connection"):
        ends.relay.serve(ends.relay.sources()[1])
    ends.gdb.close()
    ends.relay.serve(ends.relay.sources()[0])
    assert len(ends.relay.sources()) == 1


def test_a_path_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="cannot make a socket for gdb"):
        Relay(tmp_path / ("x" * 200))
