"""The target against a scripted stub at the other end of a socket pair: what it sends, byte by byte, and makes of answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from recording.errors import GuestMemoryError, StubError, TransportError, UnsupportedTargetError
from sampler.rsp.codec import encode_packet
from sampler.stub import GuestStoppedError
from sampler.target import HaltedState, Read, Target
from sampler.transport import Connection

G_SIZE = 236
REGISTERS = b"11" * G_SIZE
XML = (
    b"""<?xml version="1.0"?><target><architecture>i386:x86-64</architecture><feature name="core">%b</feature></target>"""
    % b"".join(b'<reg name="%b" bitsize="64"/>' % name for name in b"rax rbp rsp rip".split())
)
OK = encode_packet(b"OK")
STOP = b"$T02thread:01;#04"


class LoggedConnection(Connection):
    """Keeps what is written, a write an entry."""

    def __init__(self, connected: socket.socket, sent: list[bytes], timeout_s: float) -> None:
        super().__init__(connected, "the fake stub", timeout_s)
        self._sent = sent

    def send(self, data: bytes) -> None:
        self._sent.append(data)
        super().send(data)


class FakeStub:
    """QEMU 7.2's stub in a thread: halts when a client connects, answers by a table. ``sent`` is what the client wrote.

    ``answers`` maps a payload to the raw bytes of its answer; ``eof_after`` closes the connection behind that payload.
    ``swallow`` is how many ``^C`` are lost.
    """

    def __init__(self, threads: int = 1) -> None:
        self.client, self._server = socket.socketpair()
        self.sent: list[bytes] = []
        self._asked = 0
        self.threads = threads
        self.running = False
        self.tells_stops = True
        self._resumed = threading.Event()
        self.answers: dict[bytes, bytes] = {}
        self.eof_after: bytes | None = None
        self.greeting = STOP
        self.swallow = 0
        self.silent = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self, timeout_s: float = 10.0) -> Connection:
        self._thread.start()
        return LoggedConnection(self.client, self.sent, timeout_s)

    def inject(self, data: bytes) -> None:
        """Bytes that nobody asked for, when the guest runs."""
        assert self._resumed.wait(10)
        self.running = False
        self._server.sendall(data)

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._server.close()

    def _serve(self) -> None:
        try:
            self._server.sendall(self.greeting)
            pending = b""
            while data := self._server.recv(65536):
                if self.silent:
                    continue
                pending = self._consume(pending + data)
        except OSError:
            pass
        self._server.close()

    def _consume(self, data: bytes) -> bytes:
        while data:
            if data[:1] == b"\x03":
                data = data[1:]
                if self.swallow:
                    self.swallow -= 1
                elif self.running:
                    self.running = False
                    self._resumed.clear()
                    self._server.sendall(STOP if self.tells_stops else b"")
            elif self.running:
                # gdb_read_byte: any byte halts a running guest and is lost.
                self.running = False
                self._server.sendall(STOP)
                data = data[1:]
            elif data[:1] == b"$":
                end = data.find(b"#")
                if end < 0 or end + 3 > len(data):
                    return data
                self._answer(data[1:end])
                data = data[end + 3 :]
            else:
                data = data[1:]
        return b""

    def _answer(self, payload: bytes) -> None:
        # A client that has gone gets no answer; what it asked for is done, as in QEMU.
        with contextlib.suppress(OSError):
            self._server.sendall(b"+" + self.answers.get(payload, self._usual(payload)))
        if payload in (b"c", b"D;1", b"D") and payload not in self.answers:
            self.running = True
            self._resumed.set()
        if payload == self.eof_after:
            self._server.shutdown(socket.SHUT_RDWR)

    def _usual(self, payload: bytes) -> bytes:
        if payload == b"c":
            return b""
        if payload.startswith(b"m"):
            address, size = (int(text, 16) for text in payload[1:].split(b","))
            return encode_packet(b"%02x" % (address >> 12 & 0xFF) * size)
        if payload.startswith(b"qSupported"):
            return encode_packet(b"PacketSize=1000;qXfer:features:read+;vContSupported+;multiprocess+")
        if payload.startswith(b"qXfer:features:read:target.xml:"):
            offset, length = (int(text, 16) for text in payload.rsplit(b":", 1)[1].split(b","))
            more = b"m" if offset + length < len(XML) else b"l"
            return encode_packet(more + XML[offset : offset + length])
        table = {
            b"qqemu.Supported": b"sstepbits;sstep;PhyMemMode",
            b"qfThreadInfo": b"m01",
            b"g": REGISTERS,
            b"qC": b"QC01",
        }
        if payload == b"qsThreadInfo":
            self._asked += 1
            return encode_packet(b"m%02x" % (self._asked + 1) if self._asked < self.threads else b"l")
        if payload in table:
            return encode_packet(table[payload])
        if payload.startswith((b"Hg", b"Qqemu.PhyMemMode", b"D", b"Z", b"z")):
            return OK
        return encode_packet(b"")


Open = Callable[..., Target]


@pytest.fixture
def stub() -> Iterator[FakeStub]:
    fake = FakeStub()
    yield fake
    fake.client.close()
    fake.join()


def open_target(fake: FakeStub, **options: object) -> Target:
    target = Target(fake.start(), timeout_s=10.0, **options)  # type: ignore[arg-type]
    fake.sent.clear()
    return target


class Planner:
    """Hands out the batches of reads one after the other; the last of them is the last."""

    def __init__(self, probes: Sequence[Read] = (), *batches: Sequence[Read]) -> None:
        self._probes = probes
        self._batches = list(batches) or [()]
        self.states: list[HaltedState] = []

    def probes(self) -> Sequence[Read]:
        return self._probes

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        self.states.append(state)
        batch = self._batches[len(self.states) - 1]
        return batch, len(self.states) == len(self._batches)


def packets(*payloads: bytes) -> bytes:
    return b"".join(map(encode_packet, payloads))


def test_opening_asks_for_what_it_needs_in_order(stub: FakeStub) -> None:
    with Target(stub.start(), timeout_s=10.0) as target:
        assert (target.vcpu_count, target.vcpus, target.architecture.name) == (1, (0,), "x86_64")
        assert [register.name for register in target.layout.registers] == ["rax", "rbp", "rsp", "rip"]
        assert target.is_halted
    stub.join()
    assert stub.sent == [
        packets(b"qSupported:xmlRegisters=i386"),
        packets(b"qqemu.Supported"),
        packets(b"Qqemu.PhyMemMode:0"),
        packets(b"qXfer:features:read:target.xml:0,7fd"),
        packets(b"qfThreadInfo"),
        packets(b"qsThreadInfo"),
        packets(b"Hg01", b"g"),
        packets(b"Qqemu.PhyMemMode:0", b"D;1"),
    ]
    assert stub.running


def test_one_vcpu_costs_two_writes_and_no_thread_change(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.resume()
        probe, stack = Read(0, 0x5000, 8), Read(0, 0x7000, 0x1800)
        state = target.capture(Planner([probe], [stack]))
        assert state.trips == 2
        assert state.reads == {probe: b"\x05" * 8, stack: b"\x07" * 0x1000 + b"\x08" * 0x800}
        assert dict(state.registers[0]) == dict.fromkeys(("rax", "rbp", "rsp", "rip"), 0x1111_1111_1111_1111)
    stub.join()
    assert stub.sent == [
        packets(b"c"),
        b"\x03" + packets(b"g", b"m5000,8"),
        packets(b"m7000,800", b"m7800,800", b"m8000,800", b"c"),
        b"\x03" + packets(b"qC"),
        packets(b"Qqemu.PhyMemMode:0", b"D;1"),
    ]
    assert stub.running


def test_what_a_vcpus_mode_hides_is_read_physically_behind_the_rest_of_the_same_write(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.resume()
        hidden, other = Read(0, 0xFFFF_0000_0000_5000, 8, 0x4000_5000), Read(0, 0x7000, 8)
        state = target.capture(Planner([], [hidden, other]))
        assert state.trips == 2
        assert state.reads == {hidden: b"\x05" * 8, other: b"\x07" * 8}
    stub.join()
    physical = packets(b"Qqemu.PhyMemMode:1", b"m40005000,8", b"Qqemu.PhyMemMode:0")
    assert stub.sent[2] == packets(b"m7000,8") + physical + packets(b"c")
    assert stub.running


def test_each_vcpu_is_selected_once_a_trip() -> None:
    fake = FakeStub(threads=3)
    with open_target(fake, vcpus=[0, 2]) as target:
        target.resume()
        state = target.capture(Planner([Read(2, 0x1000, 1)], [Read(2, 0x3000, 1), Read(0, 0x2000, 1), Read(2, 0x4000, 1)]))
        assert (state.vcpus, len(state.registers), state.trips) == ((0, 2), 2, 2)
        assert state.reads[Read(0, 0x2000, 1)] == b"\x02"
        target.capture(Planner())
    fake.join()
    assert fake.sent[:5] == [
        packets(b"c"),
        b"\x03" + packets(b"g", b"Hg03", b"g", b"m1000,1"),
        packets(b"Hg01", b"m2000,1", b"Hg03", b"m3000,1", b"m4000,1", b"c"),
        b"\x03" + packets(b"Hg01", b"g", b"Hg03", b"g"),
        packets(b"c"),
    ]


def test_more_trips_are_counted_and_only_the_last_resumes(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.resume()
        planner = Planner((), [Read(0, 0x1000, 1)], [Read(0, 0x2000, 1)])
        state = target.capture(planner)
        assert state.trips == 3
        assert [seen.trips for seen in planner.states] == [1, 2]
        assert planner.states[1].reads[Read(0, 0x1000, 1)] == b"\x01"
    stub.join()
    assert stub.sent[1:4] == [b"\x03" + packets(b"g"), packets(b"m1000,1"), packets(b"m2000,1", b"c")]


def test_pages_that_are_not_mapped_are_none(stub: FakeStub) -> None:
    stub.answers[b"m7800,800"] = encode_packet(b"E14")
    stub.answers[b"m9000,4"] = encode_packet(b"E14")
    stub.answers[b"ma000,4"] = encode_packet(b"0011")
    with open_target(stub) as target:
        target.resume()
        state = target.capture(Planner((), [Read(0, 0x7000, 0x1000), Read(0, 0x9000, 4), Read(0, 0xA000, 4), Read(0, 0x3000, 2)]))
    assert [state.reads[read] for read in state.reads] == [None, None, None, b"\x03\x03"]


@pytest.mark.parametrize("read", [Read(1, 0, 8), Read(0, 0, 0), Read(0, -1, 8), Read(0, 1 << 64, 8), Read(0, 0, 1 << 30)])
def test_impossible_reads_are_refused_and_the_guest_runs(stub: FakeStub, read: Read) -> None:
    with open_target(stub) as target:
        target.resume()
        with pytest.raises(GuestMemoryError, match="asked for"):
            target.capture(Planner((), [read]))
        assert not target.is_halted
    stub.join()
    assert stub.running


def test_escaped_and_run_length_encoded_replies_are_understood(stub: FakeStub) -> None:
    payload = b"0*(" + b"1" * (G_SIZE * 2 - 12)
    stub.answers[b"g"] = b"$%b#%02x" % (payload, sum(payload) & 255)
    with open_target(stub) as target:
        target.resume()
        assert target.capture(Planner()).registers[0]["rax"] == 0x1111_0000_0000_0000


@pytest.mark.parametrize(
    ("signal", "meaning", "resumed"), [(2, "somebody else paused it", False), (5, "breakpoint", True), (3, "shut down", True)]
)
def test_a_guest_that_stopped_by_itself_is_reported(stub: FakeStub, signal: int, meaning: str, resumed: bool) -> None:
    with open_target(stub) as target:
        target.resume()
        target.capture(Planner())
        stub.inject(encode_packet(b"T%02xthread:01;" % signal))
        with pytest.raises(GuestStoppedError, match=meaning) as caught:
            target.capture(Planner())
        assert caught.value.signal == signal
    stub.join()
    # The stop is acknowledged, or QEMU would swallow the next ^C.
    assert b"+" in stub.sent
    assert stub.running is resumed


def test_replies_without_a_stop_reply_mean_that_the_guest_stood_still_before(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.resume()
        stub.tells_stops = False
        with pytest.raises(GuestStoppedError, match="somebody else paused it"):
            target.capture(Planner())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"$11#00", "checksum is wrong"),
        (encode_packet(b"Sxx"), "answers nothing that was asked"),
        (encode_packet(b"zz" * G_SIZE), "not hexadecimal"),
    ],
)
def test_garbage_is_the_stubs_fault_and_the_guest_runs(stub: FakeStub, answer: bytes, message: str) -> None:
    with open_target(stub) as target:
        target.resume()
        stub.answers[b"m1000,ec"] = answer
        with pytest.raises(StubError, match=message):
            target.capture(Planner((), [Read(0, 0x1000, G_SIZE)]))
        stub.answers.clear()
        assert target.capture(Planner()).trips == 1
    stub.join()
    assert stub.running


def test_an_exception_of_the_planner_leaves_the_guest_running_and_the_conversation_in_step(stub: FakeStub) -> None:
    class Failing(Planner):
        def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
            raise ZeroDivisionError

    with open_target(stub) as target:
        target.resume()
        with pytest.raises(ZeroDivisionError):
            target.capture(Failing())
        assert not target.is_halted
        assert target.capture(Planner()).trips == 1
    stub.join()
    assert stub.running


def test_a_closed_connection_says_that_qemu_ended(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.resume()
        stub.eof_after = b"g"
        with pytest.raises(TransportError, match="powered off or QEMU ended"):
            target.capture(Planner((), [Read(0, 0x1000, 8)]))


def test_an_exit_reply_says_that_qemu_ended(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.resume()
        target.capture(Planner())
        stub.inject(encode_packet(b"W00"))
        with pytest.raises(TransportError, match="powered off or QEMU ended"):
            target.capture(Planner())


def test_a_swallowed_interrupt_is_asked_again(stub: FakeStub) -> None:
    with Target(stub.start(0.2), timeout_s=0.2) as target:
        target.resume()
        stub.swallow = 1
        target.halt()
        assert target.read_physical([(0x3000, 2)]) == [b"\x03\x03"]
        target.resume()
    stub.join()
    assert stub.running


def test_physical_reads_are_batches_within_the_physical_mode(stub: FakeStub) -> None:
    with open_target(stub) as target:
        assert target.read_physical([(0x1000, 1)] * 65) == [b"\x01"] * 65
        stub.answers[b"m2000,1"] = encode_packet(b"E14")
        assert target.read_physical([(0x2000, 1), (0x3000, 0x900)]) == [None, b"\x03" * 0x900]
    stub.join()
    assert stub.sent[0] == packets(b"Qqemu.PhyMemMode:1", *[b"m1000,1"] * 64, b"Qqemu.PhyMemMode:0")
    assert stub.sent[1] == packets(b"Qqemu.PhyMemMode:1", b"m1000,1", b"Qqemu.PhyMemMode:0")
    assert stub.sent[2] == packets(b"Qqemu.PhyMemMode:1", b"m2000,1", b"m3000,800", b"m3800,100", b"Qqemu.PhyMemMode:0")


def test_halts_outside_a_capture_are_counted(stub: FakeStub) -> None:
    ticks = iter(range(0, 10**9, 1000))
    with Target(stub.start(), timeout_s=10.0, clock=lambda: next(ticks)) as target:
        target.resume()
        before = target.extra_halted_ns
        assert before > 0
        target.capture(Planner())
        assert target.extra_halted_ns == before
        target.read_physical([(0x1000, 1)])
        assert target.extra_halted_ns > before


def test_monitor_output_comes_in_pieces(stub: FakeStub) -> None:
    stub.answers[b"qRcmd," + b"info x".hex().encode()] = (
        packets(b"O0d0a", b"O" + b"one\r\n".hex().encode(), b"O" + b"two".hex().encode()) + OK
    )
    stub.answers[b"qRcmd," + b"info y".hex().encode()] = encode_packet(b"E01")
    with open_target(stub) as target:
        assert target.monitor("info x") == "one\ntwo"
        with pytest.raises(StubError, match="refuses the monitor command 'info y'"):
            target.monitor("info y")
        assert target.is_halted


def test_detach_falls_back_to_the_old_form_and_then_to_continue(stub: FakeStub) -> None:
    stub.answers[b"D;1"] = encode_packet(b"E22")
    stub.answers[b"D"] = encode_packet(b"E22")
    open_target(stub).detach()
    stub.join()
    assert stub.sent == [packets(b"Qqemu.PhyMemMode:0", b"D;1"), packets(b"D"), packets(b"c")]
    assert stub.running


def test_a_guest_that_was_paused_is_not_detached(stub: FakeStub) -> None:
    with open_target(stub, resume_at_exit=False) as target:
        state = target.capture(Planner((), [Read(0, 0x1000, 1)]), resume=False)
        assert state.trips == 2
    stub.join()
    assert stub.sent == [packets(b"g"), packets(b"m1000,1")]
    assert not stub.running


def test_a_breakpoint_is_taken_away_when_it_was_hit(stub: FakeStub) -> None:
    with open_target(stub) as target:
        target.set_breakpoint(0x1234)
        target.resume()
        target.capture(Planner())
        stub.inject(encode_packet(b"T05thread:01;"))
        with pytest.raises(GuestStoppedError) as caught:
            target.capture(Planner())
        assert caught.value.is_breakpoint
    stub.join()
    assert stub.sent[0] == packets(b"Z1,1234,1")
    assert packets(b"z1,1234,1") in stub.sent


def test_the_reply_to_connecting_does_not_shift_the_conversation(stub: FakeStub) -> None:
    stub.greeting = STOP + STOP
    with open_target(stub) as target:
        assert target.vcpu_count == 1


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "another protocol than gdb's"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another protocol than gdb's"),
    ],
)
def test_a_server_that_is_no_stub_is_named(stub: FakeStub, greeting: bytes, message: str) -> None:
    stub.greeting = greeting
    stub.silent = True
    with pytest.raises(StubError, match=f"the fake stub .*{message}"):
        Target(stub.start(0.5), timeout_s=0.5)


def test_a_stub_that_never_answers_is_left_a_detach(stub: FakeStub) -> None:
    stub.silent = True
    stub.greeting = b""
    with pytest.raises(StubError, match="another debugger holds the stub"):
        Target(stub.start(0.1), timeout_s=0.1)
    stub.join()
    assert b"".join(stub.sent) == packets(b"qSupported:xmlRegisters=i386", b"D;1")


def test_a_stub_of_another_program_is_refused(stub: FakeStub) -> None:
    stub.answers[b"qSupported:xmlRegisters=i386"] = encode_packet(b"vContSupported+")
    with pytest.raises(StubError, match="not QEMU's gdb stub"):
        Target(stub.start(), timeout_s=10.0)


def test_a_vcpu_that_is_not_there_is_refused_and_the_guest_runs(stub: FakeStub) -> None:
    with pytest.raises(UnsupportedTargetError, match="there is no vCPU 1; the guest has 1"):
        Target(stub.start(), timeout_s=10.0, vcpus=[1])
    stub.join()
    assert stub.running
