"""A gdb stub → the guest behind it: halt, copy registers and memory of the wanted vCPUs, resume; two round trips a halt.

Trip 1 is ``^C``, registers and the reads whose addresses are known beforehand; trip 2 is what the planner derives from them,
with the resume behind it. Everything is guest virtual, translated by the vCPU that is named, except ``read_physical``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Self

from recording.errors import GuestMemoryError, GuestprofError, StubError, TransportError, UnsupportedTargetError
from sampler.halt import Batch, HaltedState, Planner, Read
from sampler.hidden import HiddenRegisters, with_hidden
from sampler.rsp.codec import encode_packet
from sampler.rsp.registers import RegisterFile, choose_architecture, layout_of, parse_target_description, system_registers_of
from sampler.stub import (
    CONTINUE,
    DETACH_PROCESS,
    INTERRUPT,
    PHYSICAL_MODE,
    VIRTUAL_MODE,
    GuestStoppedError,
    Stub,
    decode_read,
    encode_read,
    split_reads,
)
from sampler.transport import Connection

__all__ = ["HaltedState", "Planner", "Read", "Target"]

_REGISTERS = encode_packet(b"g")
_PIPELINE_DEPTH = 64
_MAX_READ = 1 << 20


class _Run(Enum):
    RUNNING = auto()
    HALTED = auto()
    OUT_OF_STEP = auto()
    """A conversation broke off: replies are under way that nobody waits for."""
    GONE = auto()


class Target:
    """A guest under a connected stub. Halted when it is made; leaving the context lets the guest run.

    resume_at_exit: False leaves a guest paused that was paused before.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        vcpus: Sequence[int] | None = None,
        architecture_hint: str | None = None,
        resume_at_exit: bool = True,
        timeout_s: float = 5.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clock = clock
        self._halted_since = clock()
        self._state = _Run.HALTED
        self._selected: int | None = None
        self._breakpoint: int | None = None
        self._wanted: Sequence[Read] = ()
        self._hidden: HiddenRegisters | None = None
        self._detached: bool | None = None
        self._extra_halted_ns = 0
        self.resume_at_exit = resume_at_exit
        self._stub = Stub(connection, timeout_s, clock)
        try:
            self._open(vcpus, architecture_hint)
        except BaseException:
            self._recover()
            self.detach()
            raise

    def _open(self, vcpus: Sequence[int] | None, architecture_hint: str | None) -> None:
        stub = self._stub
        try:
            stub.handshake()
        except GuestprofError:
            # If this is a stub that is busy, it will serve this connection after it was closed, which halts the guest: the detach
            # waits there for it. No other byte may follow.
            with contextlib.suppress(TransportError):
                stub.send(DETACH_PROCESS)
            self._state = _Run.GONE
            raise
        description = parse_target_description(stub.read_file) if stub.has_description else None
        threads = stub.threads()
        self._select = [encode_packet(b"Hg" + thread) for thread in threads]
        self.vcpu_count = len(threads)
        self.vcpus = tuple(range(len(threads)) if vcpus is None else dict.fromkeys(vcpus))
        for vcpu in self.vcpus:
            if not 0 <= vcpu < len(threads):
                raise UnsupportedTargetError(f"there is no vCPU {vcpu}; the guest has {len(threads)}, counted from 0")
        stub.send(self._select[0] + _REGISTERS)
        selected, registers = stub.collect(2)
        if selected != b"OK" or len(registers) < 8:
            raise StubError(f"{stub.address} does not give the registers of vCPU 0 (it answers {registers[:20]!r}); check QEMU")
        self._selected = 0
        size = len(registers) // 2
        self.architecture = choose_architecture(description, architecture_hint, size)
        layout = layout_of(description, self.architecture, size)
        single = system_registers_of(description, self.architecture)
        self.layout = layout.with_registers(single, size) if single else layout
        if self.architecture.hidden is not None:
            size += sum(bytes_ for _number, _name, bytes_ in single)
            self.layout = with_hidden(self.layout, self.architecture.hidden, size)
            self._hidden = HiddenRegisters(stub, self.architecture, threads, self._read_registers)
        # Behind ``g``, which makes QEMU fetch them from the accelerator.
        self._system_registers = [(encode_packet(b"p%x" % number), bytes_) for number, _name, bytes_ in single]
        self._index = self.layout.index
        self._max_read = stub.packet_size // 2
        stub.stops.clear()

    @classmethod
    def open(
        cls,
        address: str,
        *,
        vcpus: Sequence[int] | None = None,
        architecture_hint: str | None = None,
        resume_at_exit: bool = True,
        timeout_s: float = 5.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> Self:
        """Connect to a stub; raises TransportError, StubError or UnsupportedTargetError and then leaves the guest running."""
        connection = Connection.open(address, timeout_s)
        return cls(
            connection,
            vcpus=vcpus,
            architecture_hint=architecture_hint,
            resume_at_exit=resume_at_exit,
            timeout_s=timeout_s,
            clock=clock,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.detach()

    @property
    def address(self) -> str:
        """Where the stub is."""
        return self._stub.address

    @property
    def is_halted(self) -> bool:
        """Whether the guest stands still because of us (or may, where a conversation broke off)."""
        return self._state in (_Run.HALTED, _Run.OUT_OF_STEP)

    @property
    def has_physical_reads(self) -> bool:
        """Whether ``read_physical`` works (QEMU 4.1 and later)."""
        return self._stub.has_physical_mode

    def peer_pid(self) -> int | None:
        """QEMU's process, where the kernel knows it (unix sockets)."""
        return self._stub.peer_pid()

    def capture(self, planner: Planner, *, resume: bool = True) -> HaltedState:
        """Halt, copy what the planner wants and resume (or stay halted).

        Whatever goes wrong, the guest runs again before the error is raised, except GuestStoppedError: the guest stands still
        because of somebody else and stays so.
        """
        batch = Batch()
        was_running = self._require_conversation()
        if was_running:
            batch = Batch(INTERRUPT)
            self._check_still_running()
        selected = self._selected
        for vcpu in self.vcpus:
            selected = self._add_select(batch, selected, vcpu)
            self._add_registers(batch, vcpu)
        selected = self._add_reads(batch, selected, planner.probes())
        self._rehearse(batch, selected)
        asked_at_ns = self._clock()
        try:
            state = self._capture(planner, batch, selected, asked_at_ns, was_running, resume)
        except GuestStoppedError as error:
            self._note_stopped(error)
            raise
        except BaseException:
            self._recover()
            raise
        if resume and not was_running:
            self._extra_halted_ns += asked_at_ns - self._halted_since
        elif was_running and not resume:
            self._halted_since = state.asked_at_ns + state.halted_ns
        return state

    @property
    def extra_halted_ns(self) -> int:
        """How long the guest was halted outside ``capture``, until now."""
        return self._extra_halted_ns + (self._clock() - self._halted_since if self._state is _Run.HALTED else 0)

    def _capture(
        self, planner: Planner, batch: Batch, selected: int | None, asked_at_ns: int, was_running: bool, resume: bool
    ) -> HaltedState:
        stub = self._stub
        registers: dict[int, RegisterFile] = {}
        reads: dict[Read, bytes | None] = {}
        self._state = _Run.OUT_OF_STEP
        trips = self._exchange(batch, registers, reads)
        if was_running:
            self._take_stop()
        if self._hidden is not None and (more_trips := self._hidden.show_all(registers, self._breakpoint)):
            trips, selected = trips + more_trips, None
        files = tuple(registers[vcpu] for vcpu in self.vcpus)
        while True:
            state = HaltedState(self.vcpus, files, reads, asked_at_ns, stub.received_ns - asked_at_ns, trips)
            wanted, last = planner.plan(state)
            batch = Batch()
            selected = self._add_reads(batch, selected, wanted)
            if last and resume:
                batch.packets.append(CONTINUE)
            self._wanted = wanted
            trips += self._exchange(batch, registers, reads)
            if last:
                break
        self._selected = selected
        self._state = _Run.RUNNING if resume else _Run.HALTED
        self.resume_at_exit = self.resume_at_exit or resume
        end_ns = stub.received_ns if batch.slots else self._clock()
        stub.verify()
        return HaltedState(self.vcpus, files, reads, asked_at_ns, end_ns - asked_at_ns, trips)

    def _exchange(self, batch: Batch, registers: dict[int, RegisterFile], reads: dict[Read, bytes | None]) -> int:
        """Send a batch, sort its replies into the dictionaries; the number of round trips."""
        if not batch.packets:
            return 0
        replies = self._stub.exchange(b"".join(batch.packets), len(batch.slots))
        batch.sort(replies, self._make_registers, registers, reads)
        return 1 if replies else 0

    def _read_registers(self, vcpu: int, packets: Sequence[bytes]) -> RegisterFile:
        """A vCPU's registers now, behind packets that are answered with "OK"."""
        batch = Batch()
        for packet in (*packets, self._select[vcpu]):
            batch.add(packet, None)
        self._add_registers(batch, vcpu)
        registers: dict[int, RegisterFile] = {}
        self._exchange(batch, registers, {})
        return registers[vcpu]

    def _add_registers(self, batch: Batch, vcpu: int) -> None:
        batch.add(_REGISTERS, vcpu)
        for packet, size in self._system_registers:
            batch.add(packet, vcpu, size)

    def _rehearse(self, batch: Batch, selected: int | None) -> None:
        """Do what the halt will do with the replies of the last one.

        After milliseconds of sleep, code and data have left the processor's caches; the first run of some hundred bytecodes costs
        several times the second one, and it had better not be paid for while the guest stands still.
        """
        replies = self._stub.rehearse()
        if len(replies) == len(batch.slots):
            # The last halt may have asked for something else.
            with contextlib.suppress(StubError):
                batch.sort(replies, self._make_registers, {}, {})
        self._add_reads(Batch(), selected, self._wanted)

    def _make_registers(self, reply: bytes) -> RegisterFile:
        file = RegisterFile(self.layout, reply, self._index)
        return file.reversed() if self.architecture.is_other_byteorder(file) else file

    def _add_select(self, batch: Batch, selected: int | None, vcpu: int) -> int:
        if vcpu != selected:
            if not 0 <= vcpu < self.vcpu_count:
                raise GuestMemoryError(f"memory of vCPU {vcpu} was asked for, but the guest has {self.vcpu_count}")
            batch.add(self._select[vcpu], None)
        return vcpu

    def _add_reads(self, batch: Batch, selected: int | None, reads: Sequence[Read]) -> int | None:
        """One thread change for each vCPU: QEMU translates a read by the vCPU that Hg chose."""
        if not reads:
            return selected
        ordered = reads if self.vcpu_count == 1 else sorted(reads, key=lambda read: read.vcpu)
        limit = self._max_read
        unique = list(dict.fromkeys(ordered))
        hidden = [read for read in unique if read.physical is not None]
        for read in unique:
            if not 0 < read.size <= _MAX_READ or not 0 <= read.address < 1 << 64:
                raise GuestMemoryError(
                    f"{read.size} bytes at {read.address:#x} were asked for; a read takes 1 to {_MAX_READ} bytes"
                )
            if read.physical is not None:
                continue
            selected = self._add_select(batch, selected, read.vcpu)
            if read.size <= limit:
                batch.add(encode_read(read.address, read.size), read, read.size)
            else:
                for address, size in split_reads([(read.address, read.size)], limit)[0]:
                    batch.add(encode_read(address, size), read, size)
        if hidden:
            # The mode goes on and off in one write, as in ``read_physical``.
            batch.add(PHYSICAL_MODE, None)
            for read in hidden:
                for address, size in split_reads([(read.physical or 0, read.size)], limit)[0]:
                    batch.add(encode_read(address, size), read, size)
            batch.add(VIRTUAL_MODE, None)
        return selected

    def _require_conversation(self) -> bool:
        """Whether the guest runs; raises if there is nobody to talk to."""
        if self._state is _Run.GONE:
            raise TransportError(f"{self.address}: the connection is closed")
        if self._state is _Run.OUT_OF_STEP:
            self._stub.interrupt()
            self._state = _Run.HALTED
            self._selected = None
        return self._state is _Run.RUNNING

    def _check_still_running(self) -> None:
        """Raises GuestStoppedError if the guest has stopped since we resumed it."""
        try:
            self._stub.take_waiting()
        except TransportError:
            self._state = _Run.GONE
            raise
        if self._stub.stops:
            error = GuestStoppedError(self.address, self._stub.stops[0].signal)
            # Acknowledged, so that a later ^C is not swallowed; QEMU waits for just this byte, so it cannot halt anything.
            self._stub.send(b"+")
            self._stub.stops.clear()
            self._note_stopped(error)
            raise error

    def _take_stop(self) -> None:
        """Raises GuestStoppedError unless our ^C is what stopped the guest."""
        stops = self._stub.stops[:]
        self._stub.stops.clear()
        if not stops:
            # Replies without a stop reply: the guest stood still before, and newer QEMUs keep that to themselves.
            raise GuestStoppedError(self.address, 2)
        if stops[0].signal != 2:
            raise GuestStoppedError(self.address, stops[0].signal)

    def _note_stopped(self, error: GuestStoppedError) -> None:
        self._state = _Run.HALTED
        self._selected = None
        self._halted_since = self._clock()
        if self._hidden is not None:
            self._hidden.remove_breakpoints()
        if error.is_paused:
            self.resume_at_exit = False
        elif error.is_breakpoint:
            self._remove_breakpoint()

    def set_breakpoint(self, address: int) -> None:
        """Stop the guest at a virtual address, by the processor's or QEMU's own means: guest memory is not touched.

        There is one at a time. ``capture`` and ``halt`` then raise GuestStoppedError (``is_breakpoint``); it is gone afterwards.
        Raises StubError if the accelerator has none.
        """
        with self.halted():
            self._remove_breakpoint()
            reply = self._stub.request(b"Z1,%x,1" % address)
            if reply != b"OK":
                raise StubError(
                    f"{self.address} sets no breakpoint at {address:#x} (it answers {reply[:20]!r}); the accelerator has none"
                )
            self._breakpoint = address

    def _remove_breakpoint(self) -> None:
        if self._breakpoint is not None:
            self._stub.request(b"z1,%x,1" % self._breakpoint)
            self._breakpoint = None

    def _recover(self) -> None:
        """After a broken conversation: in step again, the guest running."""
        self._selected = None
        if self._state is _Run.GONE:
            return
        try:
            self._stub.interrupt()
            self._state = _Run.HALTED
            if self._hidden is not None:
                self._hidden.remove_breakpoints()
            if self._stub.has_physical_mode:
                self._stub.request(b"Qqemu.PhyMemMode:0")
            if self.resume_at_exit:
                self._stub.send(CONTINUE)
                self._state = _Run.RUNNING
        except TransportError:
            self._state = _Run.GONE
        except StubError:
            self._state = _Run.OUT_OF_STEP

    def halt(self) -> None:
        """Halt the guest; nothing happens if it is halted. Raises GuestStoppedError if it stood still already."""
        if not self._require_conversation():
            return
        self._check_still_running()
        self._halted_since = self._clock()
        self._state = _Run.OUT_OF_STEP
        if not self._stub.interrupt():
            error = GuestStoppedError(self.address, 2)
            self._note_stopped(error)
            raise error
        self._state = _Run.HALTED

    def resume(self) -> None:
        """Let the guest run; nothing happens if it runs."""
        if self._require_conversation():
            return
        self._stub.send(CONTINUE)
        self._state = _Run.RUNNING
        self.resume_at_exit = True
        self._extra_halted_ns += self._clock() - self._halted_since

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """The guest stands still within the context and afterwards does what it did before."""
        was_running = self._require_conversation()
        if was_running:
            self.halt()
        try:
            yield
        except BaseException:
            if self._state is _Run.HALTED:
                self._state = _Run.OUT_OF_STEP
            if was_running:
                with contextlib.suppress(GuestprofError):
                    self.resume()
            raise
        if was_running:
            self.resume()

    def read_physical(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """(address, size) of guest physical memory → bytes, None where the stub refuses; holes read as zero.

        The guest is halted meanwhile. Raises StubError if the stub has no physical mode.
        """
        if not self._stub.has_physical_mode:
            raise StubError(
                f"{self.address} cannot read physical memory (QEMU before 4.1); give --qmp or --pid of a QEMU on this machine"
            )
        pieces = split_reads(requests, self._max_read)
        flat = [piece for piece_list in pieces for piece in piece_list]
        found: list[bytes | None] = []
        with self.halted():
            for start in range(0, len(flat), _PIPELINE_DEPTH):
                part = flat[start : start + _PIPELINE_DEPTH]
                # The mode goes on and off in one write: nothing that happens to us can leave it on.
                self._stub.send(b"".join([PHYSICAL_MODE, *(encode_read(*piece) for piece in part), VIRTUAL_MODE]))
                replies = self._stub.collect(len(part) + 2)[1:-1]
                found += [decode_read(reply, size) for (_address, size), reply in zip(part, replies, strict=True)]
        position = 0
        joined: list[bytes | None] = []
        for piece_list in pieces:
            own = found[position : position + len(piece_list)]
            position += len(piece_list)
            joined.append(None if None in own else b"".join(piece for piece in own if piece is not None))
        return joined

    def monitor(self, command: str) -> str:
        """Output of a human monitor command; the guest is halted meanwhile."""
        with self.halted():
            return self._stub.monitor(command)

    def detach(self) -> bool:
        """End the conversation, the guest running (or paused, if it was before us); whether that is certain. Never raises."""
        if self._detached is not None:
            return self._detached
        certain = False
        try:
            if self._state is not _Run.GONE:
                if self.resume_at_exit:
                    if self._state is not _Run.HALTED:
                        self._stub.interrupt()
                    # It also takes our breakpoint away.
                    self._stub.detach()
                else:
                    with self.halted():
                        self._remove_breakpoint()
                certain = True
        except GuestprofError:
            certain = False
            if self.resume_at_exit:
                # Should QEMU come back to life, it finds this behind what it has not read yet, and resumes.
                with contextlib.suppress(GuestprofError):
                    self._stub.send(DETACH_PROCESS)
        finally:
            self._state = _Run.GONE
            self._detached = certain
            self._stub.close()
        return certain
