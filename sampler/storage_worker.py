"""The process that reads the guest's storage: requests on standard input → answers on standard output, in order.

``python -m sampler.storage_worker``. It is a process of its own because what it does may take long, and because disks are hostile:
a damaged file system can make a library loop or fill memory. So each job has a limit of processor time, the process one of memory,
and the recorder goes on sampling meanwhile. A request and an answer are a line of JSON each; an answer to ``read`` is followed by
its bytes. It ends when its input does, that is with the profiler, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from guest.storage.device import BlockDevice
from guest.storage.files import FoundFile, StorageMiss, WantedFile
from guest.storage.host import Share
from guest.storage.images import ImageFile, open_image
from guest.storage.storage import Disk, Sources, Storage
from recording.errors import GuestprofError, StorageError
from sampler.nbd import NbdDevice

JOB_LIMIT_S = 30
"""Processor time of one job."""
MAX_ANSWER = 1 << 20
"""Bytes of one answer to ``read``."""
_MEMORY_LIMIT = 4 << 30
_NICENESS = 5


class _Disk:
    """A disk that is read through QEMU as long as there is one, from its image file afterwards (or from the beginning)."""

    def __init__(self, name: str, openers: list[Callable[[], BlockDevice]]) -> None:
        self._name = name
        self._openers = list(openers)
        self._device = self._next(None)
        self.size = self._device.size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError."""
        while True:
            try:
                return self._device.read(offset, size)
            except StorageError as error:
                self._device = self._next(error)

    def _next(self, error: StorageError | None) -> BlockDevice:
        if not self._openers:
            raise error or StorageError(f"disk {self._name} is in no file of this host")
        try:
            return self._openers.pop(0)()
        except StorageError as problem:
            return self._next(problem)


class Worker:
    """Answers requests; see ``sampler/storage.py`` for who asks."""

    def __init__(self) -> None:
        self._storage = Storage(Sources())
        self._files: dict[int, FoundFile] = {}
        self._count = 0

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer to a request, and the bytes behind it."""
        for number in request.get("release", ()):
            self._files.pop(number, None)
        jobs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "open": self._open,
            "find": self._find,
            "symbols": self._symbols,
        }
        if request["job"] == "read":
            data = self._read(request)
            return {"size": -1 if data is None else len(data)}, data or b""
        return jobs[request["job"]](request), b""

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        self._storage = Storage(
            Sources(
                disks=[_make_disk(disk) for disk in request["disks"]],
                initrds=request["initrds"],
                shares=[Share(**share) for share in request["shares"]],
                sysroots=request["sysroots"],
                symbol_dirs=request["symbol_dirs"],
                missing=request["missing"],
            )
        )
        return {}

    def _find(self, request: dict[str, Any]) -> dict[str, Any]:
        asked = request["file"]
        wanted = WantedFile(**{**asked, "uuid": bytes.fromhex(asked["uuid"]) or None})
        found = self._storage.find_file(wanted)
        return {"miss": found.reason} if isinstance(found, StorageMiss) else self._keep(found)

    def _symbols(self, request: dict[str, Any]) -> dict[str, Any]:
        found = self._storage.find_symbol_files(bytes.fromhex(request["build_id"]), request["path"])
        return {"files": [self._keep(each) for each in found]}

    def _keep(self, found: FoundFile) -> dict[str, Any]:
        self._count += 1
        self._files[self._count] = found
        return {"file": self._count, "size": found.contents.size, "origin": found.origin}

    def _read(self, request: dict[str, Any]) -> bytes | None:
        found = self._files.get(request["file"])
        if found is None or not 0 <= request["size"] <= MAX_ANSWER:
            return None
        return found.contents.read(request["offset"], request["size"])


def _make_disk(described: dict[str, Any]) -> Disk:
    openers: list[Callable[[], BlockDevice]] = []
    if described["nbd"]:
        path, export = described["nbd"]
        openers.append(lambda: NbdDevice(path, export))
    if described["image"]:
        image = _make_image(described["image"])
        openers.append(lambda: open_image(image))
    return Disk(described["name"], lambda: _Disk(described["name"], openers))


def _make_image(described: dict[str, Any]) -> ImageFile:
    below = described["backing"]
    return ImageFile(described["path"], described["format"], _make_image(below) if below else None)


def serve(requests: BinaryIO, answers: BinaryIO, *, limit: Callable[[], None] = lambda: None) -> None:
    """Answer requests until there are no more. limit: called before each."""
    worker = Worker()
    for line in requests:
        limit()
        try:
            answer, data = worker.answer(json.loads(line))
        except (GuestprofError, MemoryError, RecursionError) as error:
            answer, data = {"miss": f"{error or type(error).__name__}", "files": [], "size": -1}, b""
        answers.write(json.dumps(answer).encode() + b"\n" + data)
        answers.flush()


def _limit_job() -> None:
    # Past it the kernel ends the process (SIGXCPU); the profiler starts another.
    end = math.ceil(time.process_time()) + JOB_LIMIT_S
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> int:
    """The worker process."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Whatever a library prints must not come between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, answers, limit=_limit_job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
