"""What the stub hides, learnt by the monitor or by letting a vCPU run on: what is sent, and that the guest runs afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from recording.errors import StubError, TransportError
from sampler.stub import GuestStoppedError
from tests.sampler.test_target import FakeStub, Planner, open_target, packets
from unwind.arch import Architecture
from unwind.arch.x86_64 import X86_64
from unwind.hidden import EntryRun, Hidden, MonitorRegisters

LANDINGS = (0x5000, 0x6000)
PLACE = 0x1111_1111_1111_1111
"""What the fake stub says of every register."""
RUN_THERE = EntryRun(lambda registers, _read: LANDINGS if registers["rip"] == PLACE else ())
ASK = MonitorRegisters(
    (("epc", 8), ("rbp", 8)),
    lambda registers: registers["rax"] == PLACE,
    ("cpu {vcpu}", "info registers"),
    r"EPC 0x(?P<epc>[0-9a-f]+) RBP 0x(?P<rbp>[0-9a-f]+)",
)
SET, REMOVE = packets(b"Z1,5000,4", b"Z1,6000,4"), (b"z1,5000,4", b"z1,6000,4")


@pytest.fixture
def stub() -> Iterator[FakeStub]:
    fake = FakeStub()
    yield fake
    fake.client.close()
    fake.join()


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hidden], None]:
    """Targets are of an architecture whose stub hides something."""

    def choose(hidden: Hidden) -> Architecture:
        return replace(X86_64, hidden=hidden)

    return lambda hidden: monkeypatch.setattr("sampler.target.choose_architecture", lambda *_about: choose(hidden))


def arrive(stub: FakeStub, rip: bytes = b"0060000000000000") -> None:
    """A vCPU that runs alone stops at a breakpoint, where its registers are others."""

    def answer(payload: bytes) -> bytes:
        if payload.startswith(b"vCont"):
            stub.answers[b"g"] = packets(b"22" * 24 + rip + b"22" * 204)
            return packets(b"T05thread:01;")
        return usual(payload)

    usual, stub._usual = stub._usual, answer  # type: ignore[method-assign]


def test_a_vcpu_runs_on_alone_to_where_its_registers_are_saved(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(RUN_THERE)
    arrive(stub)
    with open_target(stub) as target:
        target.resume()
        state = target.capture(Planner())
        assert (state.registers[0]["rip"], state.registers[0]["rax"], state.trips) == (PLACE, 0x2222_2222_2222_2222, 4)
    stub.join()
    assert stub.sent[1:6] == [
        b"\x03" + packets(b"g"),
        SET,
        packets(b"vCont;c:01"),
        packets(*REMOVE, b"Hg01", b"g"),
        packets(b"c"),
    ]
    assert stub.running


def test_registers_that_tell_all_are_left_alone(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(EntryRun(lambda _registers, _read: ()))
    with open_target(stub) as target:
        target.resume()
        assert target.capture(Planner()).trips == 1
    stub.join()
    assert stub.sent[1:3] == [b"\x03" + packets(b"g"), packets(b"c")]


def test_a_vcpu_that_stops_elsewhere_is_taken_as_it_is(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(RUN_THERE)
    arrive(stub, b"0070000000000000")
    with open_target(stub) as target:
        target.resume()
        assert target.capture(Planner()).registers[0]["rip"] == 0x7000


def test_code_is_read_once_and_by_the_vcpu_that_stands_there(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    found = []

    def landings(_registers: object, read: Callable[[int, int], bytes | None]) -> tuple[int, ...]:
        found.append(read(0x7000, 4))
        return LANDINGS

    hide(EntryRun(landings))
    arrive(stub, b"11" * 8)
    with open_target(stub) as target:
        target.resume()
        assert [target.capture(Planner()).trips for _time in range(2)] == [5, 4]
    assert found == [b"\x07\x07\x07\x07"]
    assert packets(b"Hg01", b"m7000,4") in stub.sent


def test_a_vcpu_that_arrives_nowhere_is_halted_again(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(RUN_THERE)
    stub.answers[b"vCont;c:01"] = b""
    with open_target(stub) as target:
        target.resume()
        assert target.capture(Planner()).registers[0]["rip"] == PLACE
    stub.join()
    at = stub.sent.index(packets(b"vCont;c:01"))
    assert stub.sent[at + 1 :][:3] == [b"\x03" + packets(b"qC"), packets(*REMOVE, b"Hg01", b"g"), packets(b"c")]
    assert stub.running


def test_somebody_pauses_the_guest_while_a_vcpu_runs(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(RUN_THERE)
    stub.answers[b"vCont;c:01"] = packets(b"T02thread:01;")
    with open_target(stub) as target:
        target.resume()
        with pytest.raises(GuestStoppedError, match="somebody else paused it"):
            target.capture(Planner())
    stub.join()
    assert packets(*REMOVE) in stub.sent
    assert not stub.running


def test_a_breakpoint_of_the_recordings_own_comes_first(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(RUN_THERE)
    arrive(stub)
    with open_target(stub) as target:
        target.set_breakpoint(0x6000)
        target.resume()
        with pytest.raises(GuestStoppedError) as caught:
            target.capture(Planner())
        assert caught.value.is_breakpoint
    stub.join()
    assert packets(b"Z1,5000,4") in stub.sent
    assert packets(b"z1,5000,4", b"Hg01", b"g") in stub.sent
    assert packets(b"z1,6000,1") in stub.sent
    assert stub.running


@pytest.mark.parametrize("refused", [b"Z1,5000,4", b"Z1,6000,4"])
def test_without_breakpoints_registers_stay_hidden(stub: FakeStub, hide: Callable[[Hidden], None], refused: bytes) -> None:
    hide(RUN_THERE)
    stub.answers[refused] = packets(b"")
    with open_target(stub) as target:
        target.resume()
        assert [target.capture(Planner()).registers[0]["rip"] for _time in range(2)] == [PLACE, PLACE]
    stub.join()
    assert stub.sent.count(SET) == 1
    assert packets(*REMOVE) in stub.sent
    assert stub.running


@pytest.mark.parametrize(
    ("payload", "answer"), [(b"z1,6000,4", b"$OK#00"), (b"z1,5000,4", packets(b"E22")), (b"g", packets(b"zz"))]
)
def test_a_run_that_breaks_off_leaves_no_breakpoint_and_the_guest_running(
    stub: FakeStub, hide: Callable[[Hidden], None], payload: bytes, answer: bytes
) -> None:
    hide(RUN_THERE)
    arrive(stub)
    with open_target(stub) as target:
        target.resume()
        arrived = stub._usual

        def broken(asked: bytes) -> bytes:
            if asked.startswith(b"vCont"):
                found = arrived(asked)
                stub.answers[payload] = answer
                return found
            return arrived(asked)

        stub._usual = broken  # type: ignore[method-assign, assignment]
        with pytest.raises((StubError, KeyError)):
            target.capture(Planner())
        assert not target.is_halted
        stub.answers.clear()
    stub.join()
    assert stub.running


def test_qemu_ends_while_a_vcpu_runs(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(RUN_THERE)
    stub.eof_after = b"vCont;c:01"
    stub.answers[b"vCont;c:01"] = b""
    with open_target(stub) as target:
        target.resume()
        with pytest.raises(TransportError, match="powered off or QEMU ended"):
            target.capture(Planner())


def said(*lines: str) -> bytes:
    """A monitor's output, a packet a line."""
    return packets(*(b"O" + line.encode().hex().encode() for line in lines), b"OK")


def monitor(command: str) -> bytes:
    return b"qRcmd," + command.encode().hex().encode()


def test_the_monitor_tells_registers_in_one_round_trip(stub: FakeStub, hide: Callable[[Hidden], None]) -> None:
    hide(ASK)
    stub.answers[monitor("cpu 0")] = said("\r\n")
    stub.answers[monitor("info registers")] = said("\r\n", "RAX 0x1\r\n", "EPC 0x80001234 RBP 0x77\r\n", "more\r\n")
    with open_target(stub) as target:
        target.resume()
        state = target.capture(Planner())
        assert dict(state.registers[0]) == {"rax": PLACE, "rsp": PLACE, "rip": PLACE, "epc": 0x8000_1234, "rbp": 0x77}
        assert state.trips == 2
    stub.join()
    assert stub.sent[1:4] == [
        b"\x03" + packets(b"g"),
        packets(monitor("cpu 0"), monitor("info registers")),
        packets(b"c"),
    ]


@pytest.mark.parametrize("answer", [said("\r\n", "nothing of the kind\r\n"), packets(b""), packets(b"E01")])
def test_a_monitor_that_does_not_tell_is_no_error(stub: FakeStub, hide: Callable[[Hidden], None], answer: bytes) -> None:
    hide(ASK)
    stub.answers[monitor("cpu 0")] = said("\r\n")
    stub.answers[monitor("info registers")] = answer
    with open_target(stub) as target:
        target.resume()
        assert all("epc" not in target.capture(Planner()).registers[0] for _time in range(2))
    stub.join()
    assert sum(monitor("info registers") in sent for sent in stub.sent) == 1
    assert stub.running
