"""Registers of a vCPU that stands at an exception vector → those that also tell what it has interrupted (``unwind/hidden.py``).

The human monitor is asked through the stub, or the vCPU runs on to a breakpoint, alone, while the others stand still: it executes
what it would have executed next, with interrupts disabled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from sampler.rsp.codec import encode_packet
from sampler.rsp.registers import RegisterFile, RegisterLayout
from sampler.stub import GuestStoppedError, Stub, decode_read, encode_read
from unwind.arch import Architecture
from unwind.hidden import EntryRun, Hidden, MonitorRegisters

_SIGTRAP = 5


def with_hidden(layout: RegisterLayout, hidden: Hidden, size: int) -> RegisterLayout:
    """The layout of replies of ``size`` bytes with the monitor's registers behind them."""
    if not isinstance(hidden, MonitorRegisters):
        return layout
    return layout.with_registers([(0, name, bytes_) for name, bytes_ in hidden.registers if name not in layout.index], size)


class HiddenRegisters:
    """Learns them through one stub. The guest must be halted.

    threads: by vCPU, the stub's name of it. read_registers: a vCPU's registers now, behind packets that are answered with "OK".
    """

    def __init__(
        self,
        stub: Stub,
        architecture: Architecture,
        threads: Sequence[bytes],
        read_registers: Callable[[int, Sequence[bytes]], RegisterFile],
    ) -> None:
        self._stub = stub
        self._pc = architecture.pc
        self._threads = threads
        self._read_registers = read_registers
        self._hidden = architecture.hidden
        self._pattern = re.compile(self._hidden.pattern) if isinstance(self._hidden, MonitorRegisters) else None
        self._landings: dict[int, tuple[int, ...]] = {}
        self._inserted: list[int] = []
        self._trips = 0

    def show_all(self, registers: dict[int, RegisterFile], breakpoint_: int | None) -> int:
        """Put registers with what was hidden in the place of those of vCPUs that need it; the number of round trips that it took.

        breakpoint_: an address at which the guest is to stop for another reason. Raises GuestStoppedError where a vCPU came to it,
        or somebody else paused the guest.
        """
        self._trips = 0
        for vcpu, file in registers.items():
            shown = self._show(vcpu, file, breakpoint_)
            if shown is not None:
                registers[vcpu] = shown
        return self._trips

    def _show(self, vcpu: int, registers: RegisterFile, breakpoint_: int | None) -> RegisterFile | None:
        match self._hidden:
            case MonitorRegisters() as monitor if monitor.is_needed(registers):
                return self._ask(monitor, vcpu, registers)
            case EntryRun() as run:
                landings = self._find_landings(run, vcpu, registers)
                return self._run(vcpu, registers[self._pc], landings, breakpoint_) if landings else None
        return None

    def _ask(self, monitor: MonitorRegisters, vcpu: int, registers: RegisterFile) -> RegisterFile | None:
        self._trips += 1
        output = self._stub.ask_monitor([command.format(vcpu=vcpu) for command in monitor.commands])
        found = None if self._pattern is None else self._pattern.search(output)
        if found is None:
            # Another QEMU than those that were tried.
            self._hidden = None
            return None
        return registers.with_values({name: int(found[name], 16) for name, _size in monitor.registers})

    def _find_landings(self, run: EntryRun, vcpu: int, registers: Mapping[str, int]) -> tuple[int, ...]:
        """Found once for each pc: the code of vectors does not change."""
        pc = registers[self._pc]
        known = self._landings.get(pc)
        if known is None:

            def read(address: int, size: int) -> bytes | None:
                self._trips += 1
                packets = encode_packet(b"Hg" + self._threads[vcpu]) + encode_read(address, size)
                return decode_read(self._stub.exchange(packets, 2)[1], size)

            known = run.landings(registers, read)
            if known:
                self._landings[pc] = known
        return known

    def _run(self, vcpu: int, pc: int, landings: tuple[int, ...], breakpoint_: int | None) -> RegisterFile | None:
        """Let one vCPU run to one of a few addresses; its registers there, but for the pc, which is still that of before.

        Where it does not come to any in time, it is halted where it is.
        """
        stub = self._stub
        self._inserted = [address for address in landings if address != breakpoint_]
        self._trips += 1
        replies = stub.exchange(b"".join(encode_packet(b"Z1,%x,4" % address) for address in self._inserted), len(self._inserted))
        if any(reply != b"OK" for reply in replies):
            # The accelerator has none, or too few.
            self._hidden = None
            self.remove_breakpoints()
            return None
        stub.run_alone(self._threads[vcpu])
        self._trips += 2
        registers = self._read_registers(vcpu, self._removals())
        self._inserted = []
        if registers[self._pc] == breakpoint_:
            raise GuestStoppedError(stub.address, _SIGTRAP)
        return registers.with_values({self._pc: pc}) if registers[self._pc] in landings else registers

    def _removals(self) -> list[bytes]:
        return [encode_packet(b"z1,%x,4" % address) for address in self._inserted]

    def remove_breakpoints(self) -> None:
        """Take away what a run has set that broke off; nothing happens where there are none. The guest must be halted."""
        removals = self._removals()
        if removals:
            self._stub.send(b"".join(removals))
            self._stub.collect(len(removals))
        self._inserted = []
