"""Halts become samples: the single-threaded loop that halts the guest on time and does everything else in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from guest.cache import KernelCache
from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from recording.errors import BadImageError, GuestMemoryError, GuestprofError, StubError, TransportError, UnsupportedTargetError
from recording.model import Event, FrameKind, Halt, Image, Sample, StackEnd, UnwindData
from recording.store import RecordingWriter
from sampler.rsp.registers import RegisterFile
from sampler.schedule import Schedule
from sampler.stacks import StackPlanner, captures
from sampler.stub import GuestStoppedError
from sampler.target import Target
from sampler.tracker import KernelTracker, TrackerEvents
from unwind.capture import Capture
from unwind.kernel import unwind_capture

_MAX_SLEEP_NS = 20_000_000
_FINISH_NS = 10_000_000_000
_MAX_LAG_NS = 100_000_000
"""Captures wait for unwinding no longer than this, whatever rate was asked for: a killed profiler loses what waits."""
_MAX_STARVING_NS = 20_000_000
"""The search for the kernel gets a turn at least this often."""
_MAX_WAITING_BYTES = 256 << 20
"""Captures from before the kernel was found are kept for unwinding up to this; later ones keep their address alone."""


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """``frequency_hz`` halts a second for ``duration_s`` (None: until stopped); ``raw`` keeps the captures themselves;

    ``until_symbol`` ends the recording when that kernel function is reached.
    """

    frequency_hz: float = 100.0
    duration_s: float | None = None
    raw: bool = False
    until_symbol: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a recording stands, for those who watch it. Times in nanoseconds."""

    host_time_ns: int
    halts: int
    samples: int
    halted_ns: int
    late: int
    missed: int
    kernel: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a recording ended; whatever happened, all is recorded up to there.

    error: what went wrong, None where it came to its end: the planned one, or the guest's.
    found_kernel: whether a kernel was found at any time.
    """

    progress: Progress
    reason: str
    error: GuestprofError | None
    found_kernel: bool


@dataclass(frozen=True, slots=True)
class _Pending:
    """A capture that is not unwound yet."""

    halt: int
    boot: int
    weight_ns: int
    taken_ns: int
    capture: Capture


class Recorder:
    """One recording. Everything happens in ``run``, on one thread."""

    def __init__(
        self,
        target: Target,
        memory: PhysicalMemory,
        writer: RecordingWriter,
        options: RecorderOptions,
        *,
        cache: KernelCache,
        rng: Random,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._target = target
        self._writer = writer
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._planner = StackPlanner(target.architecture, memory)
        events = TrackerEvents(self._kernel_found, self._kernel_refreshed, self._kernel_gone)
        self._tracker = KernelTracker(memory, target.architecture, cache, events)
        self._queue: deque[_Pending] = deque()
        self._again: deque[_Pending] = deque()
        self._waiting: list[_Pending] = []
        self._waiting_bytes = 0
        self._last_running_ns: dict[int, int] = {}
        self._halts = self._samples = 0
        self._halted_ns = 0
        self._extra_halted_ns = target.extra_halted_ns
        self._host_time_ns = self._running_time_ns = 0
        self._start_ns = clock()
        self._schedule = Schedule(options.frequency_hz, self._start_ns, rng)
        self._stepped_ns = self._start_ns
        self._until: tuple[int, int] | None = None
        self._reached = False
        self._found_kernel = False
        self._unwind_data: UnwindData | None = None
        self._unwinder_id = -1
        self._storing: deque[Iterator[None]] = deque()
        if options.raw:
            writer.set_meta("raw", value=True)

    @property
    def tracker(self) -> KernelTracker:
        """What is known of the guest's kernel."""
        return self._tracker

    def progress(self) -> Progress:
        """Where the recording stands."""
        kernel = self._tracker.kernel
        return Progress(
            self._host_time_ns,
            self._halts,
            self._samples,
            self._halted_total_ns(),
            self._schedule.late,
            self._schedule.missed,
            None if kernel is None else kernel.release,
        )

    def note_reset(self) -> None:
        """QEMU says that the guest was reset."""
        self._drain()
        self._tracker.lose("the guest was reset")

    def add_event(self, kind: str, text: str) -> None:
        """Keep something that happened now."""
        self._writer.add_event(Event(self._running_time_ns, kind, text))

    def run(self, watch: Callable[[Progress], str | None]) -> Outcome:
        """Record until the duration is over, the symbol is reached, ``watch`` returns a reason to stop, or the guest is gone.

        ``watch`` is called between samples, some fifty times a second or more. What the guest or the stub does ends the recording
        with an Outcome that says so; what the recording file does (disk full) is raised.
        """
        error: GuestprofError | None = None
        reason = ""
        try:
            while not reason:
                reason = self._turn(watch)
            self._finish_search()
        except GuestStoppedError as stopped:
            reason = str(stopped)
            if stopped.is_breakpoint and self._until is not None:
                reason = f"{self._options.until_symbol} was reached"
            elif not stopped.is_shutdown or not self._samples:
                error = stopped
        except TransportError as gone:
            reason = str(gone)
            error = None if self._samples else gone
        except (StubError, GuestMemoryError, BadImageError, UnsupportedTargetError) as broken:
            error, reason = broken, str(broken)
        self._drain()
        while self._store_some():
            pass
        self.add_event("end", reason)
        self._writer.commit()
        return Outcome(self.progress(), reason, error, self._found_kernel)

    def _finish_search(self) -> None:
        """A recording that ends while its kernel is being read still gets its names."""
        give_up_ns = self._clock() + _FINISH_NS
        while self._tracker.has_work and self._tracker.kernel is None and self._clock() < give_up_ns:
            self._tracker.step()

    def _turn(self, watch: Callable[[Progress], str | None]) -> str:
        """One turn of the loop: the most urgent thing there is to do. Returns why to stop, or nothing."""
        now = self._clock()
        duration_s = self._options.duration_s
        if duration_s is not None and now - self._start_ns >= duration_s * 1e9:
            return f"{duration_s:g} s are over"
        if now >= self._schedule.deadline_ns and not self._is_behind(now):
            self._take(now)
            self._writer.commit_if_due()
            return watch(self.progress()) or ""
        if self._queue or self._again:
            self._unwind((self._queue or self._again).popleft())
            return f"{self._options.until_symbol} was reached" if self._reached else ""
        if self._tracker.has_work:
            self._stepped_ns = now
            self._tracker.step()
            return ""
        if self._store_some():
            return ""
        self._sleep(min(_MAX_SLEEP_NS, max(0, self._schedule.deadline_ns - self._clock())) / 1e9)
        return watch(self.progress()) or ""

    def _is_behind(self, now_ns: int) -> bool:
        """Whether what was taken must be dealt with before more is taken (the deadlines that pass meanwhile count as missed)."""
        if self._queue and now_ns - self._queue[0].taken_ns > _MAX_LAG_NS:
            return True
        return self._tracker.has_work and now_ns - self._stepped_ns > _MAX_STARVING_NS

    def _halted_total_ns(self) -> int:
        return self._halted_ns + self._target.extra_halted_ns - self._extra_halted_ns

    def _take(self, now_ns: int) -> None:
        lateness_ns = self._schedule.advance(now_ns)
        state = self._target.capture(self._planner)
        self._host_time_ns = state.asked_at_ns - self._start_ns
        self._running_time_ns = max(self._running_time_ns, self._host_time_ns - self._halted_total_ns())
        self._halted_ns += state.halted_ns
        halt = self._writer.add_halt(Halt(self._host_time_ns, self._running_time_ns, state.halted_ns, lateness_ns))
        self._halts += 1
        self._tracker.see(state.vcpus, state.registers, now_ns)
        for capture in captures(state):
            weight_ns = self._running_time_ns - self._last_running_ns.get(capture.vcpu, 0)
            self._last_running_ns[capture.vcpu] = self._running_time_ns
            self._queue.append(_Pending(halt, self._tracker.boot, weight_ns, now_ns, capture))
            self._samples += 1

    def _unwind(self, pending: _Pending) -> None:
        """Write a sample. Before the kernel is known it is written by its address, and again, unwound, once the kernel is found."""
        capture = pending.capture
        chain = unwind_capture(self._target.architecture, self._tracker.unwinder, capture)
        if chain.end is StackEnd.BAD_RETURN_ADDRESS:
            self._tracker.want_refresh()
        if chain.end is StackEnd.NO_KERNEL and self._waiting_bytes < _MAX_WAITING_BYTES:
            self._waiting.append(pending)
            self._waiting_bytes += sum(len(data) for _address, data in capture.memory)
        if self._until is not None and any(self._until[0] <= frame.lookup_pc < self._until[1] for frame in chain.frames):
            self._reached = True
        self._writer.add_sample(Sample(pending.halt, capture.vcpu, pending.boot, pending.weight_ns, chain))
        if self._options.raw and isinstance(capture.registers, RegisterFile):
            known = self._unwinder_id if self._unwind_data is not None else None
            self._writer.add_capture(pending.halt, capture.vcpu, capture.registers.raw, capture.memory, known)

    def _drain(self) -> None:
        while self._queue or self._again:
            self._unwind((self._queue or self._again).popleft())

    def _kernel_found(self, kernel: Kernel) -> None:
        self._found_kernel = True
        self._writer.add_image(kernel_image(kernel, self._tracker.boot))
        for key, value in (
            ("kernel_release", kernel.release),
            ("kernel_banner", kernel.banner),
            ("kernel_build_id", kernel.build_id),
        ):
            self._writer.set_meta(key, value)
        self.add_event("kernel-found", f"Linux {kernel.release} was found by {kernel.found_by}")
        if kernel.orc is None:
            self.add_event(
                "no-unwind-table",
                f"frame pointers are followed instead of ORC: {kernel.orc_problem or 'the kernel has no ORC table'}",
            )
        self._kernel_refreshed(kernel)
        self._again.extend(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._set_until(kernel)

    def _kernel_refreshed(self, kernel: Kernel) -> None:
        self._planner.set_kernel(kernel)
        if not self._options.raw:
            return
        data = unwind_data(kernel, self._tracker.boot)
        if data != self._unwind_data:
            self._unwind_data = data
            self._unwinder_id += 1
            self._storing.append(self._writer.add_unwinder(self._unwinder_id, data))

    def _store_some(self) -> bool:
        """Write a few milliseconds' worth of what ``--raw`` keeps of the kernel; whether there was anything to write."""
        while self._storing:
            if next(self._storing[0], "done") != "done":
                return True
            self._storing.popleft()
        return False

    def _kernel_gone(self, why: str) -> None:
        self._drain()
        self._unwind_data = None
        self._planner.set_kernel(None)
        self._waiting.clear()
        self._waiting_bytes = 0
        self.add_event("kernel-gone", why)

    def _set_until(self, kernel: Kernel) -> None:
        """Stop at the symbol: by a breakpoint, which is exact, and by what the samples see."""
        name = self._options.until_symbol
        if name is None:
            return
        symbol = kernel.symbols.find(name)
        if symbol is None:
            raise StubError(f"Linux {kernel.release} has no function {name}; check the name given to --until-symbol")
        self._until = (symbol.address, symbol.address + symbol.size)
        self._target.set_breakpoint(symbol.address)


def kernel_image(kernel: Kernel, boot: int) -> Image:
    """A kernel as an image with names; its boot code belongs to it also when that was freed."""
    is_there = kernel.text.contains(kernel.init_text[0])
    ranges = kernel.text.ranges if is_there else (*kernel.text.ranges, kernel.init_text)
    return Image("vmlinux", FrameKind.KERNEL, boot, kernel.build_id, ranges, kernel.symbols.text_only())


def unwind_data(kernel: Kernel, boot: int) -> UnwindData:
    """What a kernel's stacks are unwound with, as values that a recording keeps."""
    orc = None if kernel.orc is None else kernel.orc.to_data()
    return UnwindData(boot, kernel.is_settled, kernel.init_text, kernel.text.pieces, orc)
