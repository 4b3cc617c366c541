"""A gdb process and the relay to the stub: commands in, answers and events out. Nothing here waits longer than it has to.

All commands of a step go to gdb in one write; an answer is complete with the prompt behind its result. While gdb is waited for, its
packets are passed on, so all of it needs one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from recording.errors import GuestprofError, MissingDependencyError
from sampler.gdb.mi import Kind, MiReader, Record

_RECEIVE_SIZE = 1 << 16
_TAIL_BYTES = 600
_END_TIMEOUT_S = 2.0
_MAX_EVENTS = 10_000

_ARGUMENTS = (
    # No file of the user's, of the system's or beside the program is read or run: only what --gdb-command says.
    *("-nx", "-quiet", "--interpreter=mi2"),
    *("-iex", "set auto-load off"),
    *("-iex", "set confirm off"),
)


class GdbFailedError(GuestprofError):
    """gdb ended, or did not answer in time."""


class GdbCommandError(GuestprofError):
    """gdb refused a command."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What gdb said to a command. streams: what it printed for people meanwhile, as records."""

    command: str
    result: Record
    streams: tuple[Record, ...]

    @property
    def is_error(self) -> bool:
        """Whether gdb refused the command."""
        return self.result.message == "error"

    def console(self) -> str:
        """What the command printed."""
        return "".join(record.text() for record in self.streams if record.kind is Kind.CONSOLE)

    def require(self) -> Self:
        """The answer itself. Raises GdbCommandError with gdb's own words where it is an error."""
        if self.is_error:
            message = str(self.result.results().get("msg", "no reason given")).strip()
            raise GdbCommandError(f"gdb refuses {self.command!r}: {message}")
        return self


class Link(Protocol):
    """What gdb is connected to, served while gdb is waited for: ``sampler.gdb.relay.Relay``."""

    def sources(self) -> Sequence[HasFileno]:
        """What to wait for."""

    def serve(self, ready: object) -> None:
        """One of these can be read from."""


class HasFileno(Protocol):
    """A socket, or what has one."""

    def fileno(self) -> int:
        """For ``select``."""


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long gdb is waited for. deadline: by the clock. what: it is to give."""

    deadline: float
    allowed_s: float
    what: str


class Gdb:
    """A gdb that runs under the machine interface. Ends when the ``with`` block ends.

    events: what gdb told of the target since somebody took it out, oldest first. relay: to the stub, once there is one.
    """

    def __init__(self, program: str, *, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """timeout_s: for each answer. Raises MissingDependencyError where there is no such program, or GdbFailedError."""
        self.program = program
        self.timeout_s = timeout_s
        self.events: deque[Record] = deque(maxlen=_MAX_EVENTS)
        self.relay: Link | None = None
        self._clock = clock
        self._reader = MiReader()
        self._token = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        environment = {**os.environ, "LC_ALL": "C"}
        # A halt must not wait for a server of debug files.
        environment.pop("DEBUGINFOD_URLS", None)
        try:
            # In a session of its own: the terminal's Ctrl-C is for us.
            self._process = subprocess.Popen(
                [program, *_ARGUMENTS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            self._errors.close()
            raise MissingDependencyError(
                f"{program} cannot be started ({error.strerror}); install gdb (Debian: apt-get install gdb-multiarch), or name"
                " another one with --gdb"
            ) from error
        try:
            self._wait_for_prompt()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _wait_for_prompt(self) -> None:
        patience = self._patience("its start")
        while (record := self._next(patience)).kind is not Kind.PROMPT:
            self._note(record)

    def run(self, commands: Sequence[str], *, timeout_s: float | None = None) -> list[Answer]:
        """The answers to some commands, which go out at once. Raises GdbFailedError where they do not come in time."""
        first = self._token + 1
        self._token += len(commands)
        self._send("".join(f"{first + number}{command}\n" for number, command in enumerate(commands)))
        answers = []
        for number, command in enumerate(commands):
            answers.append(self._answer(first + number, command, self._patience(f"its answer to {command!r}", timeout_s)))
        return answers

    def ask(self, command: str, *, timeout_s: float | None = None) -> Answer:
        """The answer to one command. Raises GdbCommandError where it is an error, GdbFailedError where none comes."""
        return self.run([command], timeout_s=timeout_s)[0].require()

    def _answer(self, token: int, command: str, patience: _Patience) -> Answer:
        result: Record | None = None
        streams: list[Record] = []
        while True:
            record = self._next(patience)
            if record.kind is Kind.PROMPT:
                # Others end what was printed for an event.
                if result is not None:
                    return Answer(command, result, tuple(streams))
            elif record.kind is Kind.RESULT:
                if record.token == token:
                    result = record
            elif record.kind in {Kind.CONSOLE, Kind.LOG}:
                streams.append(record)
            else:
                self._note(record)

    def await_event(self, message: str) -> Record:
        """The next event of that name; what came before it is dropped. Raises GdbFailedError where it does not come in time."""
        patience = self._patience(f"the target to have {message}")
        while True:
            while self.events:
                record = self.events.popleft()
                if record.message == message:
                    return record
            self._note(self._next(patience))

    def serve(self, duration_s: float) -> None:
        """Pass packets on and keep events for a while. Returns early when one has come."""
        deadline = self._clock() + duration_s
        while not self.events:
            record = self._reader.next_record()
            if record is not None:
                self._note(record)
            elif not self._wait(deadline):
                return

    def _note(self, record: Record) -> None:
        if record.kind in {Kind.EXEC, Kind.NOTIFY}:
            self.events.append(record)

    def _patience(self, what: str, timeout_s: float | None = None) -> _Patience:
        allowed_s = self.timeout_s if timeout_s is None else timeout_s
        return _Patience(self._clock() + allowed_s, allowed_s, what)

    def _next(self, patience: _Patience) -> Record:
        """The next record. Raises GdbFailedError where none comes in time, or others without end."""
        while True:
            record = self._reader.next_record()
            if record is not None and self._clock() < patience.deadline:
                return record
            if not self._wait(patience.deadline):
                waited = f"{self.program} hangs: {patience.allowed_s:g} s were not enough for {patience.what}"
                raise GdbFailedError(f"{waited}; give it longer with --gdb-timeout, or another gdb with --gdb{self._printed()}")

    def _wait(self, deadline: float) -> bool:
        """Pass on packets until gdb may have printed something. False when the deadline is over."""
        remaining_s = deadline - self._clock()
        if remaining_s <= 0:
            return False
        output = self._process.stdout
        if output is None or output.closed:
            raise self._ended()
        sources = [output, *(self.relay.sources() if self.relay else ())]
        ready = select.select(sources, [], [], remaining_s)[0]
        if output in ready:
            data = os.read(output.fileno(), _RECEIVE_SIZE)
            if not data:
                raise self._ended()
            self._reader.feed(data)
        for source in ready:
            if source is not output and self.relay is not None:
                self.relay.serve(source)
        return bool(ready)

    def _send(self, text: str) -> None:
        pipe = self._process.stdin
        try:
            if pipe is None or pipe.closed:
                raise self._ended()
            pipe.write(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise self._ended() from error

    def _ended(self) -> GdbFailedError:
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_END_TIMEOUT_S)
        how = "closed its output" if status is None else f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
        return GdbFailedError(f"{self.program} {how}; the guest runs on{self._printed()}")

    def _printed(self) -> str:
        """The end of what gdb wrote for people."""
        with contextlib.suppress(OSError, ValueError):
            size = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, size - _TAIL_BYTES))
            text = " ".join(self._errors.read().decode("utf-8", "replace").split())
            return f" (it printed: {text!r})" if text else ""
        return ""

    def close(self) -> None:
        """End gdb, by its process id. It is not asked to: it would end some targets with itself."""
        self.relay = None
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
