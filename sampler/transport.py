"""An address → a connected stream to a gdb stub (TCP or unix socket), with errors that say what to do.

``HOST:PORT`` (also ``tcp:HOST:PORT``, ``[::1]:PORT``, ``:PORT``) or ``unix:PATH``.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Self

from recording.errors import TransportError

CLOSED = "QEMU closed the connection: the guest was powered off or QEMU ended"
_RECEIVE_SIZE = 1 << 16


def split_address(address: str) -> tuple[str, int] | str:
    """(host, port), or the path of a unix socket; raises TransportError for anything else."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path:
            return path
    else:
        host, colon, port = address.removeprefix("tcp:").rpartition(":")
        if colon and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 0x10000:
            return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
    raise TransportError(f"{address!r} is no address of a gdb stub; give HOST:PORT or unix:PATH")


class Connection:
    """A connected stream socket. ``address`` is what the user called it."""

    def __init__(self, connected: socket.socket, address: str, timeout_s: float = 5.0) -> None:
        self._socket = connected
        self.address = address
        self.set_timeout(timeout_s)

    @classmethod
    def open(cls, address: str, timeout_s: float = 5.0) -> Self:
        """Connect; raises TransportError with the remedy."""
        where = split_address(address)
        if isinstance(where, str):
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.settimeout(timeout_s)
            try:
                connected.connect(where)
            except OSError as error:
                connected.close()
                raise TransportError(_explain(error, address)) from error
        else:
            try:
                connected = socket.create_connection(where, timeout_s)
            except OSError as error:
                raise TransportError(_explain(error, address)) from error
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connected, address, timeout_s)

    def send(self, data: bytes) -> None:
        """Send all bytes; raises TransportError."""
        try:
            self._socket.sendall(data)
        except BlockingIOError as error:
            raise TransportError(f"{self.address} takes no more data: QEMU hangs; look at its process") from error
        except OSError as error:
            raise TransportError(f"{self.address}: {CLOSED}") from error

    def receive(self) -> bytes:
        """The next bytes; raises TransportError at the end of the stream and TimeoutError when none come in time."""
        try:
            data = self._socket.recv(_RECEIVE_SIZE)
        except BlockingIOError as error:
            raise TimeoutError from error
        except OSError as error:
            raise TransportError(f"{self.address}: {CLOSED}") from error
        if not data:
            raise TransportError(f"{self.address}: {CLOSED}")
        return data

    def receive_waiting(self) -> bytes:
        """The bytes that have already arrived, without waiting; raises TransportError at the end of the stream."""
        try:
            data = self._socket.recv(_RECEIVE_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise TransportError(f"{self.address}: {CLOSED}") from error
        if not data:
            raise TransportError(f"{self.address}: {CLOSED}")
        return data

    def set_timeout(self, seconds: float) -> None:
        """How long ``send`` and ``receive`` wait.

        The kernel counts (socket(7), SO_RCVTIMEO): Python's own timeouts cost a ``poll`` before every ``recv``, in the halt.
        """
        interval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)

    def peer_pid(self) -> int | None:
        """The process behind a unix socket, as the kernel says (SO_PEERCRED); None over TCP or from another PID namespace."""
        return peer_pid(self._socket)

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; never raises."""
        with contextlib.suppress(OSError):
            self._socket.close()


def peer_pid(connected: socket.socket) -> int | None:
    """The process that listens at the other end of a unix socket, or None where the kernel cannot tell."""
    if connected.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    with contextlib.suppress(OSError):
        pid, _uid, _gid = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid) or None
    return None


_NOBODY = "nothing listens at {}; start QEMU with -s (port 1234) or -gdb, or give --qmp to open a stub"
_NO_SOCKET = "there is no socket {}; check the path, or that QEMU with that -gdb or -chardev option still runs"
_BUSY = "{} is busy: another debugger holds the stub (QEMU serves one at a time) and more wait; close them"
_FORBIDDEN = "no permission to connect to {}; run guestprof as the user who runs QEMU, or as root"
_REMEDIES = {
    errno.ECONNREFUSED: _NOBODY,
    errno.ENOENT: _NO_SOCKET,
    errno.ENOTDIR: _NO_SOCKET,
    errno.EAGAIN: _BUSY,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EPROTOTYPE: "{} is no stream socket; give the socket of -gdb, not of another device",
}


def _explain(error: OSError, address: str) -> str:
    if isinstance(error, TimeoutError):
        return f"{address} does not answer; check the host name and the firewall"
    if isinstance(error, socket.gaierror):
        return f"{address}: the host name is not known ({error.strerror}); check its spelling"
    remedy = _REMEDIES.get(error.errno) if error.errno is not None else None
    return remedy.format(address) if remedy else f"cannot connect to {address}: {error.strerror or error}; check the address"
