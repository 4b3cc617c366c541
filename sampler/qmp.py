"""QEMU's machine protocol (QMP), synchronously: what the machine is, its human monitor, a gdb stub on demand, its events.

The package ``qemu.qmp`` is asynchronous; its client runs in a loop of our own that turns only while a call is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError

from recording.errors import StubError, TransportError
from sampler.transport import peer_pid

T = TypeVar("T")
_EVENTS = ("RESET", "SHUTDOWN", "POWERDOWN", "GUEST_PANICKED")
"""What is listened to: a listener of qemu.qmp keeps all that it ever heard."""
_OWN_EVENTS = (b'"event": "STOP"}', b'"event": "RESUME"}')
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOP_TURNS = 8
"""A message takes a few turns of the loop from the socket to the queue."""


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """An event of the machine: its name, and seconds since 1970 by QEMU's clock."""

    name: str
    time_s: float


class _Client(QMPClient):
    """The library's client without the events that every halt of ours causes: reading and logging them took a third of our CPU."""

    async def _do_recv(self) -> Message:
        """The hook of the library's AsyncProtocol that reads one message."""
        while True:
            line = await self._readline()
            if not line.rstrip().endswith(_OWN_EVENTS):
                return Message(line, eager=True)


class Qmp:
    """A QMP connection; QEMU serves one at a time. Raises TransportError when it breaks, StubError when QEMU refuses a command."""

    def __init__(self, client: QMPClient, loop: asyncio.AbstractEventLoop, address: str, pid: int | None, timeout_s: float) -> None:
        self._client = client
        self._loop = loop
        self._timeout_s = timeout_s
        self.address = address
        self.pid = pid
        """The process that opened the socket (libvirt opens it for QEMU), or None where the kernel cannot tell."""

    @classmethod
    def open(cls, address: str, timeout_s: float = 3.0) -> Self:
        """Connect to a socket's path (``unix:`` may stand before it) or HOST:PORT."""
        client = _Client("guestprof")
        client.events.names.update(_EVENTS)
        loop = asyncio.new_event_loop()
        connected: socket.socket | None = None
        try:
            connected = _connect(address, timeout_s)
            pid = peer_pid(connected)
            _run(loop, client.connect(connected), timeout_s)
        except BaseException as error:
            with contextlib.suppress(QMPError, OSError, TimeoutError, EOFError):
                _run(loop, client.disconnect(), timeout_s)
            if connected is not None:
                connected.close()
            loop.close()
            if isinstance(error, (QMPError, OSError, TimeoutError)):
                raise TransportError(_explain(error, address)) from error
            raise
        return cls(client, loop, address, pid, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; never raises."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(QMPError, OSError, TimeoutError, EOFError):
            self._run(self._client.disconnect())
        self._loop.close()

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  (JSON of QEMU's own making)
        """The value that a command returns."""
        try:
            return self._run(self._client.execute(command, arguments or None))
        except ExecuteError as error:
            raise StubError(f"{self.address}: QEMU refuses {command}: {error}") from error
        except (QMPError, OSError, TimeoutError, EOFError) as error:
            raise TransportError(
                f"{self.address}: the QMP connection broke during {command} ({error or type(error).__name__}):"
                " the guest was powered off or QEMU ended"
            ) from error

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return _run(self._loop, work, self._timeout_s)

    def monitor(self, command: str) -> str:
        """Output of a human monitor command, with plain newlines."""
        return str(self.execute("human-monitor-command", **{"command-line": command})).replace("\r\n", "\n")

    def status(self) -> str:
        """``query-status``: running, paused, prelaunch, shutdown, ..."""
        return str(self.execute("query-status")["status"])

    def is_kvm(self) -> bool:
        """Whether KVM runs the guest."""
        return bool(self.execute("query-kvm")["enabled"])

    def architecture(self) -> str:
        """``query-target``: QEMU's name of the architecture."""
        return str(self.execute("query-target")["arch"])

    def version(self) -> str:
        """QEMU's version, with the distribution's package in parentheses."""
        answer = self.execute("query-version")
        numbers = answer["qemu"]
        package = str(answer.get("package", "")).strip().strip("()")
        version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
        return f"{version} ({package})" if package else version

    def vcpu_count(self) -> int:
        """``query-cpus-fast``: how many vCPUs there are now."""
        return len(self.execute("query-cpus-fast"))

    def resume(self) -> None:
        """``cont``."""
        self.execute("cont")

    def find_gdbstub(self) -> str | None:
        """Address of the gdb stub that this QEMU already has, or None."""
        for device in self.execute("query-chardev"):
            if device.get("label") == "gdb":
                return parse_chardev_name(str(device.get("filename", "")))
        return None

    def open_gdbstub(self, path: str) -> None:
        """Open a gdb stub on a unix socket (QEMU makes the file); raises StubError if QEMU cannot."""
        device = "unix:" + path.replace(",", ",,") + ",server=on,wait=off"
        answer = self.monitor(f'gdbserver "{device}"')
        if "Waiting for gdb connection" in answer:
            return
        reason = " ".join(answer.split())
        raise StubError(
            f"{self.address}: QEMU cannot open a gdb stub at {path}: {reason}; start QEMU with -s, or give its monitor"
            " the command gdbserver tcp:127.0.0.1:1234 and use --connect 127.0.0.1:1234"
        )

    def close_gdbstub(self) -> None:
        """Take the gdb stub away; the guest stays as it is."""
        self.monitor("gdbserver none")

    def start_nbd_server(self, path: str) -> None:
        """Let QEMU serve its disks on a unix socket; raises StubError if it does already, or may not make the socket."""
        self.execute("nbd-server-start", addr={"type": "unix", "data": {"path": path}})

    def export_ids(self) -> list[str]:
        """The block exports that there are, of whoever."""
        return [str(export["id"]) for export in self.execute("query-block-exports")]

    def add_export(self, identifier: str, node: str) -> None:
        """Export a block node on the NBD server under that name, to be read only."""
        settings = {"type": "nbd", "id": identifier, "node-name": node, "name": identifier, "writable": False}
        self.execute("block-export-add", **settings)

    def close_exports(self, prefix: str) -> None:
        """Take away the exports whose id begins so, and the NBD server if it serves nobody else's."""
        for identifier in self.export_ids():
            if identifier.startswith(prefix):
                with contextlib.suppress(StubError):
                    self.execute("block-export-del", id=identifier, mode="hard")
        # QEMU may take a moment to take one away; stopping the server waits for that.
        if all(identifier.startswith(prefix) for identifier in self.export_ids()):
            with contextlib.suppress(StubError):
                self.execute("nbd-server-stop")

    def poll_events(self) -> list[QmpEvent]:
        """Events of the machine since the last call, without waiting. Call it every second: QEMU queues what is not read."""

        async def turn() -> None:
            for _ in range(_LOOP_TURNS):
                await asyncio.sleep(0)

        self._run(turn())
        found = []
        for message in self._client.events.clear():
            name = str(message.get("event"))
            stamp = cast("dict[str, int]", message.get("timestamp") or {})
            found.append(QmpEvent(name, stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6))
        return found


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What the work returns, or TimeoutError. Signals that come meanwhile wait until it is over: an exception that one raises in
    the middle of a turn stops the loop with its callbacks half done, and the next call would stop at once.
    """

    async def within() -> T:
        async with asyncio.timeout(timeout_s):
            return await work

    try:
        with _later_signals():
            return loop.run_until_complete(within())
    finally:
        work.close()


@contextlib.contextmanager
def _later_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # Raises what a signal raises that came just before.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _connect(address: str, timeout_s: float) -> socket.socket:
    where = socket_address(address)
    if not isinstance(where, str):
        connected = socket.create_connection(where, timeout_s)
    else:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout_s)
            connected.connect(where)
        except OSError:
            connected.close()
            raise
    connected.setblocking(False)
    return connected


def socket_address(address: str) -> str | tuple[str, int]:
    """The path of a unix socket, or (host, port)."""
    host, colon, port = address.removeprefix("tcp:").rpartition(":")
    if colon and port.isdecimal() and "/" not in address and not address.startswith("unix:"):
        return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
    return address.removeprefix("unix:")


_CHARDEV_NAME = re.compile(r"(?:disconnected:)?(unix:[^,]+|tcp:(?:\[[^]]*\]|[^:,]*):\d+)")


def parse_chardev_name(name: str) -> str | None:
    """``disconnected:tcp:0.0.0.0:1234,server=on`` → ``127.0.0.1:1234``; None where there is no address to connect to."""
    found = _CHARDEV_NAME.match(name)
    if found is None:
        return None
    if found[1].startswith("unix:"):
        return found[1]
    host, _, port = found[1].removeprefix("tcp:").rpartition(":")
    return f"{'127.0.0.1' if host in ('', '0.0.0.0') else '[::1]' if host in ('[::]', '::') else host}:{port}"  # noqa: S104


def _explain(error: Exception, address: str) -> str:
    cause: BaseException | None = error.exc if isinstance(error, ConnectError) else error
    if isinstance(cause, TimeoutError):
        return (
            f"QMP at {address} accepts the connection but does not greet: another client (libvirt?) holds this socket and QEMU"
            " serves one at a time; give a second -qmp socket, or --connect to a stub opened with virsh qemu-monitor-command --hmp"
        )
    if isinstance(cause, FileNotFoundError):
        return f"there is no QMP socket {address}; check the path, or that QEMU with that -qmp option still runs"
    if isinstance(cause, ConnectionRefusedError):
        return f"nothing listens at the QMP socket {address}; QEMU has ended"
    if isinstance(cause, PermissionError):
        return f"no permission to connect to the QMP socket {address}; run guestprof as the user who runs QEMU, or as root"
    return f"{address} is no QMP socket ({cause or type(cause).__name__}); give the path of QEMU's -qmp option"
