"""A QEMU command line becomes a running QEMU that stands before its guest's first instruction, with private sockets of ours."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from recording.errors import GuestprofError, MissingDependencyError, TransportError
from sampler.command_line import own_command, serial_file
from sampler.guard import Guard

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02
_TAIL_BYTES = 2000
_SOCKETS, _LISTENING = Path("/proc/net/unix"), "00010000"
"""The kernel's table of unix sockets; its flags of one that listens (``__SO_ACCEPTCON``)."""


class LaunchedQemu:
    """A QEMU started by us with ``-S``: its gdb stub and QMP socket lie in a private directory, its output goes to files there.

    The files, not pipes, keep QEMU independent of us: whatever becomes of the profiler, the guest is not held up.
    """

    def __init__(self, arguments: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start ``arguments`` (a QEMU binary and its own options).

        Raises MissingDependencyError where the binary is not there, TransportError where QEMU ends before its sockets are up.
        """
        if not arguments:
            raise GuestprofError("no QEMU command line was given; put it after '--', for example: -- qemu-system-x86_64 -m 1G …")
        binary = shutil.which(arguments[0])
        if binary is None:
            raise MissingDependencyError(f"{arguments[0]} is not installed; install QEMU (Debian: apt-get install qemu-system-x86)")
        self._clock = clock
        self.directory = make_private_directory()
        self.gdb_path = self.directory / "gdb"
        self.qmp_path = self.directory / "qmp"
        command = own_command(arguments)
        self.notes = command.notes
        """What is different from the command line that was given, a sentence each."""
        console = serial_file(arguments)
        self.console_path = self.directory / "stdout" if console is None else Path(console)
        self._error_path = self.directory / "stderr"
        self._keep = False
        # Should we be killed before a session has a guard of its own, QEMU would wait before its first instruction for ever.
        self._guard = Guard(f"unix:{self.gdb_path}", qmp=str(self.qmp_path))
        self._process = self._start([binary, *command.arguments[1:]])
        try:
            self._await_sockets()
        except BaseException:
            self.close()
            raise

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """QEMU, which waits before the guest's first instruction, with sockets of ours."""
        stub = ["-chardev", f"socket,id=guestprof-gdb,path={self.gdb_path},server=on,wait=off", "-gdb", "chardev:guestprof-gdb"]
        qmp = ["-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
        others = {child.pid for child in psutil.Process().children()}
        try:
            with (self.directory / "stdout").open("wb") as out, self._error_path.open("wb") as err:
                return subprocess.Popen(
                    [*command, "-S", *stub, *qmp], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
        except BaseException:
            # A signal may come when there is a process already and nobody knows it yet.
            started = [child for child in psutil.Process().children() if child.pid not in others]
            for child in started:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            psutil.wait_procs(started, _STOP_TIMEOUT_S)
            self.dismiss_guard()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether QEMU is gone."""
        return self._process.poll() is not None

    def _await_sockets(self) -> None:
        give_up = self._clock() + _START_TIMEOUT_S
        while not (listens(self.gdb_path) and listens(self.qmp_path)):
            if self.has_ended:
                raise TransportError(f"QEMU ended at once (status {self._process.returncode}): {self.error_text()}")
            if self._clock() > give_up:
                raise TransportError(f"QEMU opened no gdb stub within {_START_TIMEOUT_S:.0f} s; check its options")
            time.sleep(_POLL_S)

    def error_text(self) -> str:
        """The last that QEMU wrote to its standard error, on one line."""
        data = self._error_path.read_bytes()[-_TAIL_BYTES:]
        return " / ".join(data.decode("utf-8", "replace").split("\n")).strip(" /") or "it printed nothing"

    def keep_running(self) -> None:
        """Leave QEMU and its sockets alone when this object is closed."""
        self._keep = True

    def dismiss_guard(self) -> None:
        """Somebody else sees to it from now on that the guest runs even if we are killed."""
        self._guard.goodbye()

    def close(self) -> None:
        """End QEMU and remove its directory, unless it was asked to be kept."""
        if self._keep and not self.has_ended:
            # If nobody dismissed it, the guest may still stand before its first instruction.
            self._guard.call()
            return
        if not self.has_ended:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.dismiss_guard()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def listens(path: Path) -> bool:
    """Whether somebody listens at a unix socket; its file is there an instant earlier (proc(5), ``/proc/net/unix``)."""
    if not path.exists():
        return False
    try:
        rows = _SOCKETS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return True
    return any(row.endswith(f" {path}") and row.split()[3] == _LISTENING for row in rows)


def make_private_directory() -> Path:
    """An empty directory that nobody else can enter. Raises TransportError where none can be made."""
    try:
        return Path(tempfile.mkdtemp(prefix="guestprof-"))
    except OSError as error:
        raise TransportError(
            f"cannot make a temporary directory for QEMU's sockets ({error.strerror}); make room, or set TMPDIR"
        ) from error
