"""Halts by gdb become samples: the loop of the gdb engine. See ``sampler.recorder`` for that of our own."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from recording.errors import GuestprofError, TransportError
from recording.milestones import MARK
from recording.model import Event, Halt, Sample
from recording.sources import ImageSources
from recording.store import RecordingWriter
from sampler.gdb.frames import GdbStack, parse_stack
from sampler.gdb.process import GdbFailedError
from sampler.gdb.session import GdbSession
from sampler.gdb.target import ToldHalt
from sampler.recorder import Outcome, Progress, RecorderOptions
from sampler.schedule import Schedule
from sampler.stub import GuestStoppedError

_MAX_SLEEP_NS = 20_000_000
_MAX_KNOWN_ANSWERS = 20_000


class GdbRecorder:
    """One recording by gdb. Everything happens in ``run``, on one thread."""

    def __init__(
        self,
        session: GdbSession,
        writer: RecordingWriter,
        options: RecorderOptions,
        *,
        rng: Random,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._session = session
        self._target = session.target
        self._images = session.images
        self._writer = writer
        self._options = options
        self._rng = rng
        self._clock = clock
        self._known: dict[tuple[str, str], GdbStack] = {}
        self._written = 0
        self._symbols_due_ns = 0
        self._last_running_ns: dict[int, int] = {}
        self._halts = self._samples = self._halted_ns = 0
        self._host_time_ns = self._running_time_ns = 0
        self._boot = 0
        self._reached = ""
        self.start_ns = clock()
        self._schedule = Schedule(options.frequency_hz, self.start_ns, rng)
        self._ended_ns: int | None = None

    problem = None
    """No kernel is looked for."""

    def progress(self) -> Progress:
        """Where the recording stands."""
        return Progress(
            self._host_time_ns, self._halts, self._samples, self._halted_ns, self._schedule.late, self._schedule.missed, None
        )

    def note_reset(self) -> None:
        """QEMU says that the guest was reset."""
        self.add_event("guest-reset", "the guest was reset")

    def running_ns(self) -> int:
        """Guest running time since the recording's start: now, or when the recording ended."""
        if self._ended_ns is not None or not self._halts:
            return self._ended_ns or 0
        return max(self._running_time_ns, self._clock() - self.start_ns - self._halted_ns)

    def add_event(self, kind: str, text: str, time_ns: int | None = None) -> None:
        """Keep something that happened at a time by ``running_ns``, or now."""
        self._writer.add_event(Event(self.running_ns() if time_ns is None else time_ns, kind, text))

    def run(self, watch: Callable[[Progress], str | None]) -> Outcome:
        """Record until the duration is over, the function is reached, ``watch`` returns a reason to stop, or guest or gdb are gone.

        What gdb, the guest or the stub do ends the recording with an Outcome that says so; what the recording file does is raised.
        """
        error: GuestprofError | None = None
        reason = ""
        # The guest stands still until now, and gdb reads what it needs for the first stack.
        try:
            self._target.resume()
            self.start_ns = self._clock()
            self._schedule = Schedule(self._options.frequency_hz, self.start_ns, self._rng)
            while not reason:
                reason = self._turn(watch)
        except GuestStoppedError as stopped:
            reason = str(stopped)
            error = None if stopped.is_shutdown and self._samples else stopped
        except TransportError as gone:
            reason = str(gone)
            error = None if self._samples else gone
        except GdbFailedError as failed:
            error, reason = failed, str(failed)
        except GuestprofError as broken:
            error, reason = broken, str(broken)
        self._ended_ns = self.running_ns()
        if self._reached:
            self.add_event(MARK, self._options.until_symbol or "")
        self._write_images()
        self.add_event("end", reason)
        self._writer.commit()
        return Outcome(self.progress(), reason, error, is_explained=bool(self._images.images))

    def sources(self) -> dict[int, ImageSources]:
        """The source lines that gdb told, by the images' numbers, to be put into the recording when it is closed."""
        return {image.index: ImageSources(image.lines) for image in self._images.images[: self._written] if image.lines}

    def _turn(self, watch: Callable[[Progress], str | None]) -> str:
        now = self._clock()
        duration_s = self._options.duration_s
        if duration_s is not None and now - self.start_ns >= duration_s * 1e9:
            return f"{duration_s:g} s are over"
        if now >= self._schedule.deadline_ns:
            self._take(now)
            if self._clock() >= self._symbols_due_ns:
                self._write_images()
            self._writer.commit_if_due()
            return self._reached or watch(self.progress()) or ""
        wait_ns = max(0, min(_MAX_SLEEP_NS, self._schedule.deadline_ns - now))
        self._session.gdb.serve(wait_ns / 1e9)
        self._target.check_still_running()
        return watch(self.progress()) or ""

    def _take(self, now_ns: int) -> None:
        lateness_ns = self._schedule.advance(now_ns)
        told = self._target.capture()
        self._host_time_ns = told.asked_at_ns - self.start_ns
        self._running_time_ns = max(self._running_time_ns, self._host_time_ns - self._halted_ns)
        self._halted_ns += told.halted_ns
        halt = self._writer.add_halt(Halt(self._host_time_ns, self._running_time_ns, told.halted_ns, lateness_ns))
        self._halts += 1
        stacks = self._stacks(told)
        self._images.learn(stacks)
        for each, stack in zip(told.stacks, stacks, strict=True):
            weight_ns = self._running_time_ns - self._last_running_ns.get(each.vcpu, 0)
            self._last_running_ns[each.vcpu] = self._running_time_ns
            self._writer.add_sample(Sample(halt, each.vcpu, self._boot, weight_ns, self._images.callchain(stack)))
            self._samples += 1
            self._look_for_end(stack)

    def _stacks(self, told: ToldHalt) -> list[GdbStack]:
        """Taken apart; what was seen before, by gdb's words."""
        stacks = []
        for each in told.stacks:
            # Without the token, which is another each time.
            key = each.frames.result.line.lstrip("0123456789"), "".join(record.line for record in each.last.streams)
            stack = self._known.get(key)
            if stack is None:
                stack = parse_stack(each, self._session.roots, guesses=self._options.scan_stacks)
                if len(self._known) < _MAX_KNOWN_ANSWERS:
                    self._known[key] = stack
            stacks.append(stack)
        return stacks

    def _look_for_end(self, stack: GdbStack) -> None:
        name = self._options.until_symbol
        if name is not None and any(line.name == name for each in stack.activations for line in each.lines):
            self._reached = f"{name} was reached"

    def _write_images(self) -> None:
        """Names of functions that were seen since the last time, so that a recording that breaks off has them."""
        for image in self._images.images[self._written :]:
            self._writer.add_image(image.to_image(self._boot, None))
            self._written += 1
        for image in self._images.images:
            if image.is_changed:
                self._writer.update_image(image.index, symbols=image.symbols())
                image.is_changed = False
        self._symbols_due_ns = self._clock() + 1_000_000_000
