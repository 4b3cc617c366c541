"""A guard process: when the profiler dies without a goodbye in the middle of a halt, the guest still goes on.

``python -m sampler.guard ADDRESS [--qmp PATH] [--opened] [--exports SOCKET] [--remove DIR]`` reads its standard input, a pipe from
the profiler. A byte is the goodbye. The end of the pipe without it means that the profiler was killed: then the guard connects to
the stub, which detaches and so resumes, takes the stub away if the profiler had opened it, closes the disks that QEMU exports for
the profiler if it had got that far (then the NBD server's socket is there), and removes its directory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from recording.errors import GuestprofError, StubError, TransportError
from sampler.rsp.codec import PacketReader
from sampler.stub import DETACH, DETACH_PROCESS, VIRTUAL_MODE
from sampler.transport import Connection

_PATIENCE_S = 10.0
_RETRY_S = 0.05
_GONE_S = 1.0
_GOODBYE = b"."
EXPORT_PREFIX = "guestprof-"
"""How the ids of our block exports begin."""


class Guard:
    """The profiler's side: start it before the guest can be halted, say goodbye when the guest is known to run."""

    def __init__(
        self, address: str, *, qmp: str | None = None, opened: bool = False, exports: Path | None = None, remove: Path | None = None
    ) -> None:
        """opened: the stub was opened through ``qmp`` and is to be closed. remove: directory to remove afterwards.

        exports: where QEMU's NBD server will listen if disks are exported; nobody else may make a file there.
        """
        command = [sys.executable, "-m", "sampler.guard", address]
        command += ["--qmp", qmp] if qmp else []
        command += ["--opened"] if opened else []
        command += ["--exports", str(exports)] if exports else []
        command += ["--remove", str(remove)] if remove else []
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd="/",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        self.goodbye()

    @property
    def pid(self) -> int:
        """The guard's process."""
        return self._process.pid

    def goodbye(self) -> None:
        """The guest runs: end the guard. Never raises."""
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        with contextlib.suppress(OSError):
            pipe.write(_GOODBYE)
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)

    def call(self) -> None:
        """The guest may stand still and we cannot help it: let the guard act, as if we had died. Does not wait; never raises."""
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(OSError):
                pipe.close()


def resume_through_stub(
    address: str, patience_s: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Connect and detach, so that the guest runs; tries until ``patience_s`` is over. Whether the stub confirmed it.

    A dead client's socket can still be open for an instant; QEMU then serves this connection as soon as it notices.
    """
    began = clock()
    deadline = began + patience_s
    while True:
        remaining = deadline - clock()
        if remaining <= 0:
            return False
        try:
            connection = Connection.open(address, remaining)
        except TransportError as error:
            if isinstance(error.__cause__, (ConnectionRefusedError, FileNotFoundError)) and clock() > began + _GONE_S:
                # A busy stub keeps listening; nothing listens any more where QEMU has ended.
                return False
            sleep(_RETRY_S)
            continue
        try:
            return _detach(connection, remaining)
        except TransportError:
            sleep(_RETRY_S)
        except StubError:
            return False
        finally:
            connection.close()


def _detach(connection: Connection, timeout_s: float) -> bool:
    """Send the detach and wait for its answer; the bytes stay with QEMU if it is busy, so even a late one resumes the guest."""
    connection.set_timeout(timeout_s)
    connection.send(VIRTUAL_MODE + DETACH_PROCESS)
    reader = PacketReader()
    replies: list[bytes] = []
    for packet in (b"", DETACH):
        if packet:
            connection.send(packet)
        expected = len(replies) + (1 if packet else 2)
        while len(replies) < expected:
            payload = reader.next_packet()
            if payload is None:
                try:
                    reader.feed(connection.receive())
                except TimeoutError:
                    return False
            elif payload[:1] not in (b"T", b"S"):
                replies.append(payload)
        if replies[-1] == b"OK":
            return True
    return False


def clean_up(
    address: str,
    qmp: str | None,
    *,
    opened: bool,
    remove: Path | None,
    exports: Path | None = None,
    patience_s: float = _PATIENCE_S,
) -> bool:
    """What the guard does after the profiler's death; whether the guest is known to run."""
    resumed = resume_through_stub(address, patience_s)
    # QEMU removes the socket when its NBD server stops: where there is none, the server is not ours.
    exported = exports is not None and exports.exists()
    if qmp is not None and (opened or exported or not resumed):
        # Here and not above: qemu.qmp takes longer to load than a guard may take to start and to end.
        from sampler.qmp import Qmp  # noqa: PLC0415

        with contextlib.suppress(GuestprofError), Qmp.open(qmp) as machine:
            if opened:
                with contextlib.suppress(StubError):
                    machine.close_gdbstub()
            if exported:
                with contextlib.suppress(StubError):
                    machine.close_exports(EXPORT_PREFIX)
            if not resumed and machine.status() == "paused":
                machine.resume()
            resumed = machine.status() == "running"
    if remove is not None:
        shutil.rmtree(remove, ignore_errors=True)
    return resumed


def main(arguments: Sequence[str] | None = None) -> int:
    """The guard process."""
    # The profiler's group gets Ctrl-C and the terminal's end; the guard must outlive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m sampler.guard", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--qmp")
    parser.add_argument("--opened", action="store_true")
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--remove", type=Path)
    options = parser.parse_args(arguments)
    if os.read(sys.stdin.fileno(), 1) == _GOODBYE:
        return 0
    done = clean_up(options.address, options.qmp, opened=options.opened, exports=options.exports, remove=options.remove)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
