"""The recorder's end of the pipe to ``sampler/storage_worker.py``: requests out, answers in; a file that it has open."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recording.errors import StorageError

_PAUSE_S = 0.001
"""How long a poll waits for an answer: the recorder would else turn in circles while the worker needs the processor."""
_MAX_LINE = 1 << 22
_MAX_DATA = 1 << 20
_READ_SIZE = 1 << 18
_READ_TIMEOUT_S = 5.0
_AHEAD = 1 << 17
"""From this size on, reading is expected to go on behind a piece."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the worker said. data: the bytes of a ``read``, None where they cannot be had."""

    head: dict[str, Any]
    data: bytes | None


class Link:
    """One worker process. Raises StorageError when it has ended, or says what makes no sense."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the worker; does not wait for it."""
        self._clock = clock
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sampler.storage_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the profiler, which ends the worker when it is done with it.
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                cwd="/",
            )
        except OSError as error:
            raise StorageError(f"the process that reads the guest's storage cannot be started: {error.strerror}") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise StorageError("the process that reads the guest's storage has no pipes")
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._buffer = bytearray()
        self._waiting: deque[int] = deque()
        self._arrived: dict[int, Answer] = {}
        self._forgotten: set[int] = set()
        self._released: list[int] = []
        self._count = 0
        self.is_closed = False

    @property
    def pid(self) -> int:
        """The worker's process."""
        return self._process.pid

    def send(self, request: dict[str, Any]) -> int:
        """Ask for something; a ticket for its answer."""
        released, self._released = self._released, []
        try:
            # A request is short, and only a few are on their way: the pipe always has room for it.
            self._requests.write(json.dumps({**request, "release": released}).encode() + b"\n")
            self._requests.flush()
        except (OSError, ValueError) as error:
            raise StorageError("the process that reads the guest's storage has ended") from error
        self._count += 1
        self._waiting.append(self._count)
        return self._count

    def release(self, number: int) -> None:
        """Nobody needs a file any more; the worker hears of it with the next request."""
        self._released.append(number)

    def poll(self, ticket: int, pause_s: float = _PAUSE_S) -> bool:
        """Whether the answer is there; takes in what has arrived, and waits a moment if that is nothing."""
        if ticket not in self._arrived and self._is_readable(pause_s):
            self._receive()
        return ticket in self._arrived

    def collect(self, ticket: int) -> Answer:
        """The answer that is there."""
        return self._arrived.pop(ticket)

    def wait(self, ticket: int, timeout_s: float) -> Answer:
        """The answer, when it comes."""
        deadline = self._clock() + timeout_s
        while not self.poll(ticket, _PAUSE_S * 10):
            if self._clock() > deadline:
                raise StorageError("the guest's storage did not answer in time")
        return self.collect(ticket)

    def _is_readable(self, pause_s: float) -> bool:
        try:
            return bool(select.select([self._answers], [], [], pause_s)[0])
        except (OSError, ValueError) as error:
            raise StorageError("the process that reads the guest's storage has ended") from error

    def _receive(self) -> None:
        data = os.read(self._answers.fileno(), _READ_SIZE)
        if not data:
            raise StorageError("the process that reads the guest's storage has ended: a file system on it may be damaged")
        self._buffer += data
        while self._take_answer():
            pass

    def _take_answer(self) -> bool:
        """Move one whole answer from the buffer to its ticket."""
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > _MAX_LINE:
                raise StorageError("the process that reads the guest's storage answers nonsense")
            return False
        head = json.loads(self._buffer[:end])
        size = head.get("size", -1) if "file" not in head else -1
        if size > _MAX_DATA or not self._waiting:
            raise StorageError("the process that reads the guest's storage answers nonsense")
        length = max(size, 0)
        if len(self._buffer) < end + 1 + length:
            return False
        data = bytes(self._buffer[end + 1 : end + 1 + length]) if size >= 0 else None
        del self._buffer[: end + 1 + length]
        ticket = self._waiting.popleft()
        if ticket in self._forgotten:
            self._forgotten.discard(ticket)
        else:
            self._arrived[ticket] = Answer(head, data)
        return True

    def forget(self, ticket: int) -> None:
        """The answer is not wanted any more."""
        if self._arrived.pop(ticket, None) is None:
            self._forgotten.add(ticket)

    def close(self) -> None:
        """End the worker; never raises. A second call does nothing."""
        self.is_closed = True
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        # It may be in the middle of a long job, and holds nothing that must be put in order.
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)


class StoredFile:
    """A file of the guest's storage. origin: where it was found, for the report ("ext4 on virtio0 partition 1")."""

    def __init__(self, link: Link, number: int, size: int, origin: str) -> None:
        self._link = link
        self._number = number
        self._ahead: tuple[int, int, int] | None = None
        self.size = size
        self.origin = origin

    def read(self, offset: int, size: int) -> bytes | None:
        """Exactly these bytes; None where they cannot be read. Waits for them: ask for no more than 256 KiB in one step."""
        if not 0 <= offset <= offset + size <= self.size:
            return None
        pieces = []
        for start in range(offset, offset + size, _MAX_DATA):
            piece = self._read_piece(start, min(_MAX_DATA, offset + size - start))
            if piece is None:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    def _read_piece(self, offset: int, size: int) -> bytes | None:
        ticket = self._take_ahead(offset, size) or self._request(offset, size)
        data = None if ticket is None else self._wait(ticket)
        end = offset + size
        if data is not None and size >= _AHEAD and end < self.size:
            # A large piece: the one behind it will be asked for in the next step, so the worker can read it meanwhile.
            following = min(size, self.size - end)
            ticket = self._request(end, following)
            self._ahead = None if ticket is None else (end, following, ticket)
        return None if data is None or len(data) < size else data[:size]

    def _request(self, offset: int, size: int) -> int | None:
        try:
            return self._link.send({"job": "read", "file": self._number, "offset": offset, "size": size})
        except StorageError:
            self._link.close()
            return None

    def _wait(self, ticket: int) -> bytes | None:
        try:
            return self._link.wait(ticket, _READ_TIMEOUT_S).data
        except StorageError:
            # A late answer must not be taken for another one; the next file starts a worker of its own.
            self._link.close()
            return None

    def _take_ahead(self, offset: int, size: int) -> int | None:
        """The ticket of what was asked for ahead, if it is what is wanted now; else it is dropped."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        if ahead[0] == offset and size <= ahead[1]:
            return ahead[2]
        self._link.forget(ahead[2])
        return None

    def __del__(self) -> None:
        self._take_ahead(-1, 0)
        self._link.release(self._number)
