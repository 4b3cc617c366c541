"""Halts become samples: the single-threaded loop that halts the guest on time and does everything else in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from guest.kernel import Kernel
from recording.errors import BadImageError, GuestMemoryError, GuestprofError, StubError, TransportError, UnsupportedTargetError
from recording.milestones import MARK
from recording.model import Event, Halt, StackEnd
from recording.store import RecordingWriter
from recording.timeline import NO_CLOCK
from sampler.backlog import Backlog
from sampler.gaps import GapWatch
from sampler.knowledge import Knowledge, KnowledgeEvents, Sources
from sampler.raw import RawKeeper
from sampler.samples import Made, Pending
from sampler.schedule import Schedule
from sampler.stub import GuestStoppedError
from sampler.target import Target
from sampler.tracker import KernelTracker
from sampler.until import Until
from sampler.user_stacks import USER_STACK_SIZE

_MAX_SLEEP_NS = 20_000_000
_FINISH_NS = 10_000_000_000
_PREPARE_NS = 10_000_000_000
_SHOWING_NS = 200_000_000
"""How long halts are waited for that show a kernel: at first all vCPUs may run firmware beneath it."""
_TELLING_NS = 1_000_000_000
"""How long tasks and modules are looked for in a kernel that was found: while they are searched, the guest starts and ends some."""
_MAX_WALKS = 3
_COMM_SIZE = 15
"""Bytes of a task's name at most (TASK_COMM_LEN, without its NUL)."""
_SHORT_STEP_NS = 200_000
_FINISH_FILES_NS = 30_000_000_000
_MAX_STARVING_NS = 20_000_000
"""The search for the kernel gets a turn at least this often."""


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """``frequency_hz`` halts a second for ``duration_s`` (None: until stopped); ``raw`` keeps the captures themselves;

    ``until_symbol`` ends the recording when that kernel function is reached, ``until_process`` when a sample shows a process (or
    thread) of that name. user_stack_size: bytes of a user stack that are copied
    at most, 0 for no user stacks. prepare: the guest runs a kernel already: learn it before the first sample.
    scan_stacks: guess the callers where a kernel stack cannot be walked on (``unwind/scan.py``).
    kernel_build_id: of the only kernel that is to be recorded, in hex; None for any.
    """

    frequency_hz: float = 100.0
    duration_s: float | None = None
    raw: bool = False
    until_symbol: str | None = None
    until_process: str | None = None
    user_stack_size: int = USER_STACK_SIZE
    prepare: bool = False
    scan_stacks: bool = False
    kernel_build_id: str | None = None


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
    is_explained: whether a kernel was found at any time, or code of the user's files was seen to run.
    """

    progress: Progress
    reason: str
    error: GuestprofError | None
    is_explained: bool


class Recorder:
    """One recording. Everything happens in ``run``, on one thread."""

    def __init__(
        self,
        target: Target,
        sources: Sources,
        writer: RecordingWriter,
        options: RecorderOptions,
        *,
        rng: Random,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._target = target
        self._writer = writer
        self._options = options
        self._clock = clock
        self._sleep = sleep
        events = KnowledgeEvents(self._kernel_found, self._kernel_changed, self._kernel_gone)
        self._guest = Knowledge(
            target.architecture, sources, writer, events, self.add_event, options.user_stack_size, scan_stacks=options.scan_stacks
        )
        self._tracker = self._guest.tracker
        self._raw = RawKeeper(writer, self._guest.files) if options.raw else None
        self._backlog = Backlog()
        self._gaps = GapWatch(self.add_event, round(1e9 / options.frequency_hz))
        self._last_running_ns: dict[int, int] = {}
        self._halts = self._samples = 0
        self._halted_ns = 0
        self._extra_halted_ns = target.extra_halted_ns
        self._host_time_ns = self._running_time_ns = 0
        self._start_ns = clock()
        self._rng = rng
        self._schedule = Schedule(options.frequency_hz, self._start_ns, rng)
        self._stepped_ns = self._start_ns
        self._until = Until(options.until_symbol, target)
        self._reached = self._mark = ""
        self._found_kernel = self._has_clock = False
        self._ended_ns: int | None = None

    @property
    def tracker(self) -> KernelTracker:
        """What is known of the guest's kernel."""
        return self._tracker

    @property
    def problem(self) -> str | None:
        """Why no kernel was found, or not all of it was understood."""
        return self._tracker.problem

    @property
    def start_ns(self) -> int:
        """When the recording's time began, by the clock: known once the first halt was taken."""
        return self._start_ns

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
        self._gaps.note("the guest was reset")
        self._tracker.lose("the guest was reset")

    def running_ns(self) -> int:
        """Guest running time since the recording's start: now, or when the recording ended."""
        if self._ended_ns is not None or not self._halts:
            return self._ended_ns or 0
        return max(self._running_time_ns, self._clock() - self._start_ns - self._halted_total_ns())

    def add_event(self, kind: str, text: str, time_ns: int | None = None) -> None:
        """Keep something that happened at a time by ``running_ns``, or now."""
        self._writer.add_event(Event(self.running_ns() if time_ns is None else time_ns, kind, text))

    def run(self, watch: Callable[[Progress], str | None]) -> Outcome:
        """Record until the duration is over, the symbol is reached, ``watch`` returns a reason to stop, or the guest is gone.

        ``watch`` is called between samples, some fifty times a second or more. What the guest or the stub does ends the recording
        with an Outcome that says so; what the recording file does (disk full) is raised.
        """
        error: GuestprofError | None = None
        reason = ""
        try:
            self._until.look_in_files(self._guest.files)
            if self._options.prepare:
                reason = self._prepare(watch)
            while not reason:
                reason = self._turn(watch)
            self._finish_search()
        except GuestStoppedError as stopped:
            reason = str(stopped)
            if stopped.is_breakpoint and self._until.is_known:
                reason = self._reach(self._until.name, "{} was reached")
            elif not stopped.is_shutdown or not self._samples:
                error = stopped
        except TransportError as gone:
            reason = str(gone)
            error = None if self._samples else gone
        except (StubError, GuestMemoryError, BadImageError, UnsupportedTargetError) as broken:
            error, reason = broken, str(broken)
        if error is None and not self._found_kernel and self._guest.explains:
            error = self._until.missed()
        self._ended_ns = self.running_ns()
        if self._mark:
            self.add_event(MARK, self._mark)
        self._backlog.kernel_known()
        self._drain()
        self._finish_files()
        while self._raw is not None and self._raw.step():
            pass
        if self._found_kernel and not self._has_clock:
            self.add_event(NO_CLOCK, "the guest's own clock was not found in its kernel's memory, so its time is unknown")
        self.add_event("end", reason)
        self._writer.commit()
        return Outcome(self.progress(), reason, error, self._found_kernel or self._guest.explains)

    def _prepare(self, watch: Callable[[Progress], str | None]) -> str:
        """Learn the kernel that runs already, so that the first sample has its task and stacks. Returns why to stop, or nothing.

        The recording's time begins when this is done.
        """
        shown_by_ns = self._clock() + _SHOWING_NS
        give_up_ns = told_by_ns = self._clock() + _PREPARE_NS
        reason, is_seen = None, False
        while reason is None and self._clock() < give_up_ns:
            state = self._target.capture(self._guest.planner)
            if not self._guest.see(state, self._clock()):
                break
            is_seen = is_seen or self._tracker.has_work or any(map(self._target.architecture.shows_image, state.registers))
            while reason is None and self._tracker.has_work and self._clock() < give_up_ns:
                self._tracker.step()
                reason = watch(self.progress())
            is_learnt = self._clock() > shown_by_ns if self._tracker.kernel is None else self._tracker.is_learnt
            if is_seen and (is_learnt or self._clock() > told_by_ns):
                break
            told_by_ns = min(told_by_ns, self._clock() + _TELLING_NS)
            self._sleep(_SHORT_STEP_NS / 1e9)
        self._start_ns = self._stepped_ns = self._clock()
        self._extra_halted_ns = self._target.extra_halted_ns
        self._schedule = Schedule(self._options.frequency_hz, self._start_ns, self._rng)
        return reason or ""

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
        if self._tracker.has_new_modules:
            # Stacks may go through code that was loaded since, so this comes before walking them.
            self._stepped_ns = now
            self._tracker.step()
            return ""
        if self._backlog:
            self._walk_next()
            return self._reached
        if self._tracker.has_work:
            self._stepped_ns = now
            self._tracker.step()
            return ""
        if self._guest.boot_code is not None and self._guest.boot_code.has_work:
            self._guest.boot_code.step()
            return ""
        if self._read_some() or (self._raw is not None and self._raw.step()):
            return ""
        self._sleep(min(_MAX_SLEEP_NS, max(0, self._schedule.deadline_ns - self._clock())) / 1e9)
        return watch(self.progress()) or ""

    def _is_behind(self, now_ns: int) -> bool:
        """Whether what was taken must be dealt with before more is taken (the deadlines that pass meanwhile count as missed)."""
        if self._backlog.is_late(now_ns):
            return True
        return self._tracker.has_work and now_ns - self._stepped_ns > _MAX_STARVING_NS

    def _halted_total_ns(self) -> int:
        return self._halted_ns + self._target.extra_halted_ns - self._extra_halted_ns

    def _take(self, now_ns: int) -> None:
        lateness_ns = self._schedule.advance(now_ns)
        before_ns = self._running_time_ns
        state = self._target.capture(self._guest.planner)
        self._host_time_ns = state.asked_at_ns - self._start_ns
        self._running_time_ns = max(self._running_time_ns, self._host_time_ns - self._halted_total_ns())
        self._halted_ns += state.halted_ns
        if self._halts:
            self._gaps.see(self._running_time_ns, self._running_time_ns - before_ns, lateness_ns, state.halted_ns)
        halt = self._writer.add_halt(Halt(self._host_time_ns, self._running_time_ns, state.halted_ns, lateness_ns))
        reading = self._guest.planner.clock(state, halt, self._tracker.boot)
        if reading is not None:
            self._has_clock = True
            self._writer.add_clock(reading)
        self._halts += 1
        self._guest.see(state, now_ns)
        for capture in self._guest.planner.captures(state):
            weight_ns = self._running_time_ns - self._last_running_ns.get(capture.vcpu, 0)
            self._last_running_ns[capture.vcpu] = self._running_time_ns
            pending = Pending(halt, self._tracker.boot, weight_ns, self._running_time_ns, now_ns, capture)
            self._backlog.add(self._guest.note(pending))
            self._samples += 1

    def _walk_next(self) -> None:
        """Write a sample. What is not known yet (the kernel, a file) is left out, and the sample written again once it is."""
        item = self._backlog.pop()
        if isinstance(item, Made):
            made = self._guest.maker.with_user(item)
        else:
            made = self._guest.maker.make(item)
            self._note_walk(item, made)
        if made.unread and self._guest.spaces is not None and self._guest.spaces.may_learn(made.unread):
            self._backlog.wait_for_files(made)
        self._writer.add_sample(made.sample)

    def _note_walk(self, pending: Pending, made: Made) -> None:
        """What follows from the first walk of a capture."""
        chain = made.sample.callchain
        if chain.end is StackEnd.BAD_RETURN_ADDRESS:
            self._tracker.want_refresh()
        place = pending.boot_place
        is_nameless = place is not None and place.image is None and self._tracker.kernel is None
        if chain.end is StackEnd.NO_KERNEL or is_nameless:
            self._backlog.wait_for_kernel(pending)
        elif pending.walks < _MAX_WALKS and self._came_too_early(made):
            self._backlog.wait_for_kernel(replace(pending, walks=pending.walks + 1))
        if self._until.is_reached(chain):
            self._reach(self._until.name, "{} was reached")
        task, name = made.sample.task, self._options.until_process
        if task is not None and name is not None and name[:_COMM_SIZE] in (task.comm, task.process):
            self._reach(name, "process {} runs")
        if self._raw is not None:
            self._raw.add(pending.halt, pending.capture)

    def _reach(self, name: str | None, reason: str) -> str:
        """What the recording was to go on until has come; gives the reason to stop."""
        self._mark = name or ""
        self._reached = reason.format(name)
        return self._reached

    def _came_too_early(self, made: Made) -> bool:
        """Whether a sample may get better: by the kernel's types, a module that was loaded just before, code that was patched."""
        chain, kernel = made.sample.callchain, self._tracker.kernel
        if kernel is None or chain.end is StackEnd.BAD_RETURN_ADDRESS:
            return kernel is not None
        if chain.end is StackEnd.NO_UNWIND_INFO:
            low, high = kernel.architecture.kernel_code.module_area
            return low <= chain.frames[-1].lookup_pc < high
        return made.sample.task is None and kernel.structs is None and kernel.structs_problem is None

    def _drain(self) -> None:
        while self._backlog:
            self._walk_next()

    def _read_some(self) -> bool:
        """Read a few milliseconds' worth of the files that user stacks go through; whether there was anything to read."""
        if self._guest.spaces is None or not self._guest.spaces.has_work:
            return False
        began_ns = self._clock()
        for image in self._guest.spaces.step():
            self._backlog.file_known(image)
        if self._clock() - began_ns < _SHORT_STEP_NS:
            # It waits for another process to read the guest's storage.
            self._sleep(_SHORT_STEP_NS / 1e9)
        return True

    def _finish_files(self) -> None:
        """What user stacks still wait for is read now."""
        spaces = self._guest.spaces
        if spaces is None:
            return
        give_up_ns = self._clock() + _FINISH_FILES_NS
        # The guest may be gone, and with it the memory that is read through its stub.
        with contextlib.suppress(TransportError, StubError):
            spaces.finish()
            while self._clock() < give_up_ns and self._read_some():
                self._drain()
        self._drain()
        spaces.tell_problems()

    def _kernel_found(self, kernel: Kernel) -> None:
        self._found_kernel = True
        wanted = self._options.kernel_build_id
        if wanted is not None and kernel.build_id not in {None, wanted}:
            raise UnsupportedTargetError(
                f"the guest runs Linux {kernel.release} of build {kernel.build_id}, --vmlinux is of build {wanted}; "
                "name the file of the same build (or give --any-build)"
            )
        for key, value in (
            ("kernel_release", kernel.release),
            ("kernel_banner", kernel.banner),
            ("kernel_build_id", kernel.build_id),
        ):
            self._writer.set_meta(key, value)
        self._until.look_in_kernel(kernel)

    def _kernel_changed(self, kernel: Kernel) -> None:
        if kernel.structs is not None or kernel.structs_problem is not None:
            self._backlog.kernel_known()
        if self._raw is not None:
            self._raw.kernel_changed(kernel, self._tracker.boot)

    def _kernel_gone(self, _why: str) -> None:
        self._drain()
        if self._raw is not None:
            self._raw.kernel_gone()
        self._backlog.kernel_gone()
