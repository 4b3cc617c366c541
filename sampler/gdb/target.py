"""A gdb that is connected → halts of the guest with the stack of every vCPU, in gdb's words.

A halt is three steps: interrupt, all questions at once, continue. What gdb answered is taken apart when the guest runs again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recording.errors import StubError, UnsupportedTargetError
from sampler.gdb.mi import Record
from sampler.gdb.process import Answer, Gdb
from sampler.stub import GuestStoppedError

DEPTH_LIMIT = 256
"""Frames of a stack that gdb is asked for."""
_MAX_THREADS = 4096
_SIGNALS = {"SIGINT": 2, "SIGQUIT": 3, "SIGTRAP": 5, "SIGABRT": 6, "SIGALRM": 14, "SIGSTOP": 17, "SIGXCPU": 24}
"""gdb's numbers, by which QEMU tells why a guest has stopped (``sampler.stub.GuestStoppedError``)."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class ToldStack:
    """What gdb said of one vCPU in a halt: its frames, and what it printed of the last one (and why there is no other)."""

    vcpu: int
    frames: Answer
    last: Answer


@dataclass(frozen=True, slots=True)
class ToldHalt:
    """One halt. asked_at_ns: when the halt was asked for; halted_ns: from then until gdb had let the guest go on."""

    asked_at_ns: int
    halted_ns: int
    stacks: tuple[ToldStack, ...]


class GdbTarget:
    """A guest behind gdb. Halted when it is made.

    vcpus: those that are sampled. resume_at_exit: False leaves a guest paused that was paused before, or by somebody else.
    is_running: as far as gdb knows.
    """

    def __init__(
        self,
        gdb: Gdb,
        address: str,
        *,
        vcpus: Sequence[int] | None = None,
        resume_at_exit: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Raises UnsupportedTargetError where a vCPU is asked for that is not there."""
        self.gdb = gdb
        self.address = address
        self.resume_at_exit = resume_at_exit
        self.is_running = False
        self._clock = clock
        self._threads = self._find_threads()
        self.vcpus = tuple(range(len(self._threads)) if vcpus is None else dict.fromkeys(vcpus))
        for vcpu in self.vcpus:
            if not 0 <= vcpu < len(self._threads):
                raise UnsupportedTargetError(f"there is no vCPU {vcpu}; the guest has {len(self._threads)}, counted from 0")

    def _find_threads(self) -> list[str]:
        """The ids that gdb has of the stub's threads, each a vCPU, in the stub's order."""
        threads = self.gdb.ask("-thread-info").result.results().get("threads")
        found = [thread for thread in threads if isinstance(thread, dict)] if isinstance(threads, list) else []
        ids = [(_natural(str(thread.get("target-id", ""))), str(thread.get("id", ""))) for thread in found]
        if not ids or len(ids) > _MAX_THREADS or not all(identifier.isdecimal() for _, identifier in ids):
            raise StubError(f"gdb sees {len(ids)} vCPUs at {self.address}; check that this is the stub of a guest")
        return [identifier for _, identifier in sorted(ids)]

    def capture(self, *, resume: bool = True) -> ToldHalt:
        """Halt, ask for all stacks and resume (or stay halted).

        Raises GuestStoppedError where the guest stands still because of somebody else, GdbFailedError or GdbCommandError.
        """
        asked_at_ns = self._clock()
        if self.is_running:
            self._halt()
        last = DEPTH_LIMIT - 1
        commands = [
            command
            for vcpu in self.vcpus
            for command in (
                f"-stack-list-frames --thread {self._threads[vcpu]} 0 {last}",
                f'-interpreter-exec --thread {self._threads[vcpu]} console "backtrace -1"',
            )
        ]
        answers = self.gdb.run(commands)
        if resume:
            self.resume()
        halted_ns = self._clock() - asked_at_ns
        stacks = [ToldStack(vcpu, *answers[2 * index : 2 * index + 2]) for index, vcpu in enumerate(self.vcpus)]
        return ToldHalt(asked_at_ns, halted_ns, tuple(stacks))

    def resume(self) -> None:
        """Let the guest run; nothing happens if it runs."""
        if not self.is_running:
            self.gdb.events.clear()
            self.gdb.ask("-exec-continue")
            self.is_running = True
            self.resume_at_exit = True

    def _halt(self) -> None:
        self.check_still_running()
        self.gdb.ask("-exec-interrupt")
        self._take_stop(self.gdb.await_event("stopped"), wanted=True)

    def check_still_running(self) -> None:
        """Raises GuestStoppedError if the guest has stopped since it was resumed."""
        while self.gdb.events:
            record = self.gdb.events.popleft()
            if record.message == "stopped":
                self._take_stop(record, wanted=False)

    def _take_stop(self, record: Record, *, wanted: bool) -> None:
        self.is_running = False
        results = record.results()
        signal = _SIGNALS.get(str(results.get("signal-name", "")), 0)
        if wanted and (signal == _SIGNALS["SIGINT"] or results.get("signal-name") in {None, "0"}):
            return
        error = GuestStoppedError(self.address, signal)
        if error.is_paused:
            self.resume_at_exit = False
        raise error

    def detach(self, timeout_s: float) -> None:
        """Have gdb let the guest go; it runs afterwards. Raises what keeps gdb from it."""
        if self.is_running:
            self._halt()
        self.gdb.ask("-target-detach", timeout_s=timeout_s)
        self.is_running = True


def _natural(text: str) -> list[int]:
    """``Thread 1.10 (CPU#9 [running])`` behind ``Thread 1.9 ...``."""
    return [int(number) for number in _NUMBER.findall(text)[:8]]
