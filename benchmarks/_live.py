"""A running guest of the benchmarks whose kernel guestprof has found: halted at random, stepped, stopped at breakpoints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from guest.cache import KernelCache
from guest.host_files import HostFiles
from guest.kernel import Kernel
from guestprof.debian import fetch_kernel
from guestprof.initramfs import WORKLOAD_MARK, Entry, build_initramfs, find_busybox, pack_newc
from guestprof.symbolizing import open_host_kernel
from recording.errors import BadImageError, GuestprofError
from sampler.discovery import resolve_target
from sampler.planner import HaltPlanner
from sampler.rsp.codec import encode_packet
from sampler.rsp.registers import RegisterFile
from sampler.session import Session
from sampler.tracker import KernelTracker, TrackerEvents
from tests.qemu.guests import Guest, GuestOptions, Machine
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder

NO_FILES = HostFiles()
_BOOT_TIMEOUT_S = 240.0
_FIND_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class LiveGuest:
    """A guest that stands still between its methods."""

    guest: Guest
    session: Session
    planner: HaltPlanner
    tracker: KernelTracker
    _plain: list[tuple[Kernel, KernelUnwinder]] = field(default_factory=list)

    @property
    def kernel(self) -> Kernel:
        """Its kernel."""
        assert self.tracker.kernel is not None
        return self.tracker.kernel

    @property
    def unwinder(self) -> KernelUnwinder:
        """Of its kernel."""
        assert self.tracker.unwinder is not None
        return self.tracker.unwinder

    def plain_unwinder(self) -> KernelUnwinder:
        """One that knows no debug information."""
        if not self._plain or self._plain[0][0] is not self.kernel:
            code = replace(self.kernel, debug=None).code_map()
            settled = self.kernel.is_settled
            unwinder = KernelUnwinder(self.session.architecture, code, code, code, self.kernel.init_text, is_settled=settled)
            self._plain[:] = [(self.kernel, unwinder)]
        return self._plain[0][1]

    def run(self, seconds: float) -> None:
        """Let it run."""
        self.session.target.resume()
        time.sleep(seconds)

    def captures(self) -> Sequence[Capture]:
        """Of all vCPUs. It stands still afterwards."""
        state = self.session.target.capture(self.planner, resume=False)
        self.tracker.see(state.vcpus, state.registers, time.monotonic_ns())
        while self.tracker.has_work:
            self.tracker.step()
        return self.planner.captures(state)

    def step(self) -> RegisterFile:
        """One instruction of vCPU 0; its registers behind it. QEMU delivers no interrupt meanwhile."""
        self._go(b"s")
        target = self.session.target
        return RegisterFile(target.layout, target._stub.request(b"g"))  # noqa: SLF001

    def name(self, address: int) -> str:
        """The kernel's function at an address."""
        symbol = self.kernel.symbols.find_at(address)
        return symbol.name if symbol else f"{address:#x}"

    def word(self, address: int) -> int:
        """A pointer of the kernel's memory, 0 where it cannot be read."""
        data = self.kernel.space.read_many([(address, self.session.architecture.pointer_size)])[0]
        return 0 if data is None else int.from_bytes(data, self.session.architecture.byteorder)

    def run_to(self, *addresses: int, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Run until a vCPU comes to one of some addresses. Raises GuestprofError where none does in time."""
        target = self.session.target
        target.halt()
        for address in addresses:
            target._stub.request(b"Z0,%x,4" % address)  # noqa: SLF001
        try:
            self._go(b"c", timeout_s)
        finally:
            for address in addresses:
                target._stub.request(b"z0,%x,4" % address)  # noqa: SLF001

    def _go(self, command: bytes, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        stub = self.session.target._stub  # noqa: SLF001
        stub.stops.clear()
        stub.send(encode_packet(command))
        give_up = time.monotonic() + timeout_s
        while not stub.stops:
            stub.take_waiting()
            if time.monotonic() > give_up:
                stub.interrupt()
                raise GuestprofError(f"the guest did not stop within {timeout_s:.0f} s")
        stub.stops.clear()


def initramfs_with(machine: Machine, entries: Sequence[Entry]) -> bytes:
    """The demo's initramfs for a machine with more files, or others of the same names. Raises MissingDependencyError."""
    archive = build_initramfs(find_busybox(machine.name, suite=machine.programs))
    # The kernel unpacks one archive behind the other, aligned to 4 bytes; later files replace earlier ones.
    return archive + bytes(-len(archive) % 4) + pack_newc(entries)


@contextmanager
def live_guest(
    machine: Machine,
    suite: str,
    *,
    files: Sequence[Entry] = (),
    mark: str = WORKLOAD_MARK,
    vcpus: int = 1,
    host: HostFiles = NO_FILES,
) -> Iterator[LiveGuest]:
    """Boot a stock kernel with the demo's workload, or files with an /init of its own that prints ``mark``.

    host: debug files by which its stacks are unwound, too. Raises GuestprofError.
    """
    image = fetch_kernel(suite, machine.name)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp-bench-")))
        initramfs = directory / "initramfs.gz"
        initramfs.write_bytes(initramfs_with(machine, files))
        guest = stack.enter_context(Guest(GuestOptions(image, initramfs, vcpus=vcpus, machine=machine)))
        guest.wait_for(mark, _BOOT_TIMEOUT_S)
        session = stack.enter_context(Session(resolve_target(guest.target, qmp=str(guest.qmp))))
        planner = HaltPlanner(session.architecture, session.memory)
        events = TrackerEvents(planner.set_kernel, planner.set_kernel, lambda _why: planner.set_kernel(None))
        finder = None if host.is_empty else open_host_kernel(host, may_fetch=False)
        tracker = KernelTracker(session.memory, session.architecture, KernelCache.of_user(), events, host=finder)
        live = LiveGuest(guest, session, planner, tracker)
        give_up = time.monotonic() + _FIND_TIMEOUT_S
        while tracker.kernel is None or not tracker.kernel.is_settled:
            if time.monotonic() > give_up:
                raise BadImageError(f"the guest's kernel was not found within {_FIND_TIMEOUT_S:.0f} s: {tracker.problem}")
            live.captures()
            live.run(0.05)
        live.captures()
        yield live
