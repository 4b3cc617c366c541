"""The sampler against a real QEMU whose guest is nothing but firmware: a tiny machine that is up at once."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from recording.errors import StubError, TransportError, UnsupportedTargetError
from sampler.discovery import resolve_target
from sampler.guard import Guard, resume_through_stub
from sampler.memory import ProcessMemory, StubMemory, open_memory
from sampler.qmp import Qmp, QmpEvent
from sampler.session import Session
from sampler.stub import GuestStoppedError
from sampler.target import HaltedState, Read, Target

QEMU = "qemu-system-x86_64"
ROOT = Path(__file__).resolve().parents[2]
RESET_VECTOR = 0xFFFF_FFF0
"""Firmware's far jump: its bytes are the same in every SeaBIOS."""

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which(QEMU) is None, reason=f"{QEMU} is not installed: the sampler is NOT tested against a real QEMU"
    ),
]


@dataclass(frozen=True)
class Machine:
    directory: Path
    process: psutil.Process

    @property
    def gdb(self) -> str:
        return f"unix:{self.directory}/gdb"

    @property
    def qmp(self) -> str:
        return f"{self.directory}/qmp"

    def status(self) -> str:
        with Qmp.open(self.qmp) as machine:
            return machine.status()


Start = Callable[..., Machine]


def kill(pid: int) -> None:
    """Kill a process that is not our child, and wait until it has ended (pidfd_open(2): readable then)."""
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([descriptor], [], [], 20)
    os.close(descriptor)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts machines and ends them. ``-daemonize`` returns when the sockets are there."""
    machines: list[Machine] = []

    def start_machine(*options: str, stub: bool = True) -> Machine:
        directory = Path(tempfile.mkdtemp(prefix="gp-test-"))
        gdb = ["-chardev", f"socket,id=g,path={directory}/gdb,server=on,wait=off", "-gdb", "chardev:g"] if stub else []
        command = [QEMU, "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "32", *gdb, *options]
        command += ["-qmp", f"unix:{directory}/qmp,server=on,wait=off", "-daemonize", "-pidfile", str(directory / "pid")]
        subprocess.run(command, check=True, timeout=60)
        machine = Machine(directory, psutil.Process(int((directory / "pid").read_text())))
        machines.append(machine)
        return machine

    yield start_machine
    for machine in machines:
        if machine.process.is_running():
            kill(machine.process.pid)
        shutil.rmtree(machine.directory, ignore_errors=True)


class FixedPlanner:
    """Reads the same of every vCPU in each halt; calls ``hook`` in the middle of it."""

    def __init__(
        self,
        probes: Sequence[Read] = (),
        reads: Sequence[Read] = (),
        hook: Callable[[], object] = lambda: None,
    ) -> None:
        self._probes = probes
        self._reads = reads
        self._hook = hook
        self.seen: list[HaltedState] = []

    def probes(self) -> Sequence[Read]:
        return self._probes

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        self.seen.append(state)
        self._hook()
        return self._reads, True


def test_capture_takes_two_round_trips_and_leaves_the_guest_running(start: Start) -> None:
    machine = start()
    low = Read(0, 0x1000, 0x1000)
    with Target.open(machine.gdb) as target:
        assert target.architecture.name == "x86_64"
        assert target.layout.size == 608
        target.resume()
        planner = FixedPlanner([Read(0, RESET_VECTOR, 16)], [low, Read(0, 0x10, 1)])
        states = [target.capture(planner) for _ in range(50)]
    assert {state.trips for state in states} == {2}
    for state in states:
        assert state.registers[0]["cr0"] & 0x10
        assert 0 < state.halted_ns < 5_000_000_000
        assert len(state.reads[low] or b"") == 0x1000
        # A far jump, and the date behind it, as in every PC's firmware.
        reset = state.reads[Read(0, RESET_VECTOR, 16)] or b""
        assert (reset[0], reset[7:8], reset[10:11]) == (0xEA, b"/", b"/")
    assert machine.status() == "running"


def test_all_vcpus_take_two_round_trips(start: Start) -> None:
    machine = start("-smp", "3")
    with Target.open(machine.gdb) as target:
        target.resume()
        state = target.capture(FixedPlanner((), [Read(vcpu, 0x1000, 64) for vcpu in (2, 0, 1)]))
        assert (state.vcpus, len(state.registers), len(state.reads), state.trips) == ((0, 1, 2), 3, 3, 2)
    with Target.open(machine.gdb, vcpus=[2]) as target:
        target.resume()
        state = target.capture(FixedPlanner())
        assert (state.vcpus, len(state.registers), state.trips) == ((2,), 1, 1)
    with pytest.raises(UnsupportedTargetError, match="there is no vCPU 3; the guest has 3"):
        Target.open(machine.gdb, vcpus=[3])
    assert machine.status() == "running"


def test_a_guest_can_be_captured_while_it_stays_halted(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as target:
        first = target.capture(FixedPlanner(), resume=False)
        assert target.is_halted
        assert machine.status() == "paused"
        second = target.capture(FixedPlanner(), resume=False)
        assert dict(first.registers[0]) == dict(second.registers[0])
        target.capture(FixedPlanner())
        assert machine.status() == "running"
    assert machine.status() == "running"


def test_physical_reads_leave_the_virtual_mode_on(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as target:
        pieces = target.read_physical([(RESET_VECTOR, 16), (0x1000, 0x1801), (0x4000_0000, 8)])
        assert [len(piece or b"") for piece in pieces] == [16, 0x1801, 8]
        assert (pieces[0] or b"")[0] == 0xEA
        assert pieces[2] == bytes(8)
        target.resume()
        many = target.read_physical([(address, 16) for address in range(0, 0x10_0000, 0x1000)])
        assert len(many) == 256
        assert not target.is_halted
        assert target.extra_halted_ns > 0


def test_monitor_through_the_stub(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as target:
        target.resume()
        assert target.monitor("info kvm") == "kvm support: disabled\n"
        assert target.monitor("info status").startswith("VM status: paused")
        assert not target.is_halted
    assert machine.status() == "running"


def test_an_exception_in_the_middle_of_a_halt_resumes_the_guest(start: Start) -> None:
    machine = start()

    def fail() -> None:
        raise KeyboardInterrupt

    with Target.open(machine.gdb) as target:
        target.resume()
        with pytest.raises(KeyboardInterrupt):
            target.capture(FixedPlanner(hook=fail))
        assert machine.status() == "running"
        assert target.capture(FixedPlanner()).trips == 1
    assert machine.status() == "running"


def test_an_exception_inside_the_contexts_resumes_the_guest(start: Start) -> None:
    machine = start()
    with pytest.raises(ZeroDivisionError), Target.open(machine.gdb) as target, target.halted():
        raise ZeroDivisionError
    assert machine.status() == "running"


def test_a_guest_that_somebody_pauses_is_reported_and_stays_paused(start: Start) -> None:
    machine = start()
    with Qmp.open(machine.qmp) as qmp:
        with Target.open(machine.gdb) as target:
            target.resume()
            target.capture(FixedPlanner())
            qmp.execute("stop")
            with pytest.raises(GuestStoppedError, match="somebody else paused it") as caught:
                target.capture(FixedPlanner())
            assert caught.value.is_paused
        assert qmp.status() == "paused"
        qmp.resume()
        # What the paused conversation left behind does not swallow the ^C of the next one.
        with Target.open(machine.gdb) as target:
            target.resume()
            assert target.capture(FixedPlanner()).trips == 1
        assert qmp.status() == "running"


def test_a_paused_guest_is_left_paused_if_asked(start: Start) -> None:
    machine = start("-S")
    with Target.open(machine.gdb, resume_at_exit=False) as target:
        state = target.capture(FixedPlanner(), resume=False)
        assert state.registers[0]["rip"] == 0xFFF0
    assert machine.status() == "prelaunch"


def test_a_breakpoint_stops_the_guest_once(start: Start) -> None:
    machine = start("-S")
    with Target.open(machine.gdb) as target:
        # The reset vector: first of all instructions, so resuming runs into it (cs base + 0xfff0).
        target.set_breakpoint(0xFE05B)
        target.resume()
        with pytest.raises(GuestStoppedError, match="breakpoint") as caught:
            _capture_until_stopped(target)
        assert caught.value.is_breakpoint
        state = target.capture(FixedPlanner(), resume=False)
        assert (state.registers[0]["cs"] << 4) + state.registers[0]["rip"] == 0xFE05B
        target.resume()
        assert target.capture(FixedPlanner()).trips == 1
    assert machine.status() == "running"


def _capture_until_stopped(target: Target) -> None:
    for _ in range(100_000):
        target.capture(FixedPlanner())


def test_a_guest_that_powers_off_is_said_to_have_ended(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as target:
        target.resume()
        kill(machine.process.pid)
        with pytest.raises(TransportError, match="powered off or QEMU ended"):
            target.capture(FixedPlanner())


def test_a_second_client_is_told_that_another_holds_the_stub(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as first:
        first.resume()
        with pytest.raises(StubError, match="another debugger holds the stub"):
            Target.open(machine.gdb, timeout_s=0.3)
        assert first.capture(FixedPlanner()).trips == 1
    # QEMU still serves the connection that gave up; its last words are a detach, so the guest runs after that too.
    with Target.open(machine.gdb) as third:
        third.resume()
    assert machine.status() == "running"


CHILD = """
import os, signal, sys
from sampler.guard import Guard
from sampler.target import Target
class Planner:
    def probes(self): return ()
    def plan(self, state): os.kill(os.getpid(), signal.SIGKILL)
guard = Guard(sys.argv[1])
print(guard.pid, flush=True)
target = Target.open(sys.argv[1])
target.resume()
target.capture(Planner())
"""


def test_kill_9_in_the_middle_of_a_halt_is_mended_by_the_guard(start: Start) -> None:
    machine = start()
    with subprocess.Popen([sys.executable, "-c", CHILD, machine.gdb], stdout=subprocess.PIPE, cwd=ROOT, text=True) as child:
        assert child.stdout is not None
        guard = psutil.Process(int(child.stdout.readline()))
        assert child.wait(30) == -signal.SIGKILL
    _wait(guard)
    assert machine.status() == "running"


def _wait(process: psutil.Process) -> None:
    try:
        process.wait(30)
    except psutil.NoSuchProcess:
        return


def test_the_guard_ends_with_the_goodbye_and_ignores_signals(start: Start) -> None:
    machine = start("-S")
    with Guard(machine.gdb) as guard:
        process = psutil.Process(guard.pid)
        process.send_signal(signal.SIGINT) if _is_ready(process) else None
        assert process.is_running()
    assert not process.is_running()
    assert machine.status() == "prelaunch"


def _is_ready(process: psutil.Process) -> bool:
    """Whether the guard has set its signals (SigIgn of proc(5) has SIGINT's bit)."""
    for _ in range(10_000_000):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
        if ignored & 1 << signal.SIGTERM - 1:
            return True
    return False


def test_resume_through_the_stub_gives_up_where_there_is_none(tmp_path: Path) -> None:
    assert not resume_through_stub(f"unix:{tmp_path}/none", 0.1, sleep=lambda _seconds: None)


def test_memory_of_the_process_and_of_the_stub_agree(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as target:
        opened = open_memory(target, machine.process.pid)
        assert isinstance(opened.memory, ProcessMemory), opened.fallback_reason
        stub = StubMemory.open(target)
        assert list(opened.memory.ram())[-1][1] == 0x200_0000
        assert opened.memory.ram() == stub.ram()
        assert opened.memory.read(0xF_0000, 0x8_0000) == stub.read(0xF_0000, 0x8_0000)
        requests = [(RESET_VECTOR, 16), (0x200_0000, 1), (0x1FF_FFFF, 2), (0x10_0000, 300_000), (5, 0)]
        answers = opened.memory.read_many(requests)
        assert answers == stub.read_many(requests)
        assert [None if answer is None else len(answer) for answer in answers] == [16, None, None, 300_000, 0]
        opened.memory.close()


def test_memory_of_another_process_is_not_taken_for_the_guests(start: Start) -> None:
    machine = start()
    with Target.open(machine.gdb) as target:
        opened = open_memory(target, os.getpid())
        assert isinstance(opened.memory, StubMemory)
        assert opened.fallback_reason
        assert "not known" in open_memory(target, None).fallback_reason


def test_qmp_tells_what_the_machine_is_and_its_events(start: Start) -> None:
    machine = start("-smp", "2")
    with Qmp.open(machine.qmp) as qmp:
        assert (qmp.architecture(), qmp.is_kvm(), qmp.vcpu_count(), qmp.status()) == ("x86_64", False, 2, "running")
        assert qmp.version()[0].isdigit()
        assert qmp.pid == machine.process.pid
        qmp.execute("system_reset")
        assert [event.name for event in _events(qmp)] == ["RESET"]
        with pytest.raises(StubError, match="refuses nonesuch"):
            qmp.execute("nonesuch")
        with pytest.raises(TransportError, match="another client"):
            Qmp.open(machine.qmp, timeout_s=0.3)
    with pytest.raises(TransportError, match="no QMP socket"):
        Qmp.open(f"{machine.directory}/nonesuch")


def test_a_stub_is_opened_and_closed_through_qmp(start: Start) -> None:
    machine = start(stub=False)
    with Qmp.open(machine.qmp) as qmp:
        assert qmp.find_gdbstub() is None
        with pytest.raises(StubError, match="cannot open a gdb stub"):
            qmp.open_gdbstub(f"{machine.directory}/nonesuch/gdb")
        qmp.open_gdbstub(f"{machine.directory}/gdb")
        assert qmp.find_gdbstub() == machine.gdb
        with Target.open(machine.gdb) as target:
            target.resume()
        assert qmp.status() == "running"
        qmp.close_gdbstub()
        assert qmp.find_gdbstub() is None
        assert not Path(machine.gdb.removeprefix("unix:")).exists()


def _events(qmp: Qmp) -> list[QmpEvent]:
    for _ in range(10_000):
        if events := qmp.poll_events():
            return events
    return []


def test_a_session_opens_a_stub_where_there_is_none_and_takes_it_away(start: Start) -> None:
    machine = start(stub=False)
    with Session(resolve_target(qmp=machine.qmp)) as session:
        session.target.resume()
        assert session.target.capture(FixedPlanner()).trips == 1
        assert (session.accelerator, session.architecture.name, session.vcpus) == ("tcg", "x86_64", (0,))
        assert (session.pid, session.was_running, session.memory_reason) == (machine.process.pid, True, "")
        assert session.poll_events() == []
        directory = Path(session.target.address.removeprefix("unix:")).parent
        assert directory.is_dir()
    assert not directory.exists()
    with Qmp.open(machine.qmp) as qmp:
        assert qmp.find_gdbstub() is None
        assert qmp.status() == "running"


def test_a_session_without_qmp_asks_the_stub(start: Start) -> None:
    machine = start()
    # Somebody else holds QMP, as libvirt does.
    with Qmp.open(machine.qmp), Session(resolve_target(connect=machine.gdb)) as session:
        session.target.resume()
        assert (session.accelerator, session.pid, session.was_running) == ("tcg", machine.process.pid, None)
        assert session.qemu_version[0].isdigit()
        assert session.memory_reason == ""
    assert machine.status() == "running"


def test_a_session_that_fails_while_it_opens_leaves_the_guest_running(start: Start) -> None:
    machine = start(stub=False)
    with pytest.raises(UnsupportedTargetError, match="no vCPU 7"):
        Session(resolve_target(qmp=machine.qmp), vcpus=[7])
    with Qmp.open(machine.qmp) as qmp:
        assert (qmp.status(), qmp.find_gdbstub()) == ("running", None)


def test_a_session_leaves_a_paused_guest_paused_unless_told(start: Start) -> None:
    machine = start("-S")
    with Session(resolve_target(pid=machine.process.pid)) as session:
        assert session.was_running is False
        session.target.capture(FixedPlanner(), resume=False)
    assert machine.status() == "prelaunch"
    with Session(resolve_target(pid=machine.process.pid), resume_at_exit=True):
        pass
    assert machine.status() == "running"


def test_a_session_whose_guest_powers_off_closes_without_waiting_for_it(start: Start) -> None:
    machine = start()
    others = {child.pid for child in psutil.Process().children()}
    with Session(resolve_target(pid=machine.process.pid)) as session:
        session.target.resume()
        (guard,) = (child for child in psutil.Process().children() if child.pid not in others)
        kill(machine.process.pid)
        with pytest.raises(TransportError, match="powered off or QEMU ended"):
            session.target.capture(FixedPlanner())
    # Dismissed, not called: there is nothing left to resume.
    assert not guard.is_running()


SESSION_CHILD = """
import os, signal, sys
from sampler.discovery import resolve_target
from sampler.session import Session
session = Session(resolve_target(qmp=sys.argv[1]))
print(session.target.address.removeprefix("unix:"), flush=True)
sys.stdin.readline()
"""


def test_kill_9_of_a_session_takes_its_stub_away(start: Start) -> None:
    machine = start(stub=False)
    with subprocess.Popen(
        [sys.executable, "-c", SESSION_CHILD, machine.qmp], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as child:
        assert child.stdout is not None
        directory = Path(child.stdout.readline().strip()).parent
        guards = psutil.Process(child.pid).children()
        assert len(guards) == 1
        child.kill()
    _wait(guards[0])
    assert not directory.exists()
    with Qmp.open(machine.qmp) as qmp:
        assert (qmp.status(), qmp.find_gdbstub()) == ("running", None)


def test_discovery_finds_the_sockets_of_a_process(start: Start) -> None:
    machine = start()
    found = resolve_target(pid=machine.process.pid)
    assert (found.gdb, found.qmp, found.pid) == (machine.gdb, f"unix:{machine.qmp}", machine.process.pid)
    assert found.process is not None
    assert (found.process.architecture, found.process.accelerator) == ("x86_64", "tcg")
    assert resolve_target(connect=machine.gdb).pid == machine.process.pid
    assert resolve_target(qmp=machine.qmp).gdb == machine.gdb
