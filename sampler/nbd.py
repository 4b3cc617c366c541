"""An NBD export (of QEMU or qemu-nbd) → a block device that can be read, and only read.

The protocol is the NBD project's doc/proto.md: fixed newstyle negotiation with NBD_OPT_GO, simple replies. There is no maintained
client for it on PyPI (libnbd's bindings come with the C library), and of the protocol one command is needed. The messages are made
and read by functions without a socket; ``NbdDevice`` is the only one that has one. All that the server sends is bounded.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from recording.errors import StorageError

_GREETING = struct.Struct(">8s8sH")
_INIT_MAGIC = b"NBDMAGIC"
_OPTION_MAGIC = b"IHAVEOPT"
_FIXED_NEWSTYLE = 1
_NO_ZEROES = 2
_OPT_GO = 7
_OPTION_REPLY = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REP_ACK = 1
_REP_INFO = 3
_REP_ERROR = 1 << 31
_INFO_EXPORT = 0
_MAX_OPTION_REPLY = 1 << 16
_MAX_OPTION_REPLIES = 64
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_CMD_READ = 0
_CMD_DISC = 2
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_MAX_SIZE = 1 << 63
MAX_REQUEST = 1 << 18
"""Bytes of one read: QEMU's main loop serves it, and the guest's own disk should not have to wait for us."""
_MAX_WAITING = 4
"""Requests on their way at a time."""

Receive = Callable[[int], bytes]
"""Exactly so many bytes from the server."""


@dataclass(frozen=True, slots=True)
class Export:
    """What the server says of an export. size: in bytes."""

    size: int
    flags: int


def encode_hello(greeting: bytes, name: str) -> bytes:
    """The client's answer to the greeting (18 bytes): its flags, and NBD_OPT_GO for an export. Raises StorageError."""
    magic, version, flags = _GREETING.unpack(greeting)
    if magic != _INIT_MAGIC or version != _OPTION_MAGIC or not flags & _FIXED_NEWSTYLE:
        raise StorageError("the other end of the socket is no NBD server of the fixed newstyle kind")
    data = name.encode()
    option = struct.pack(">I", len(data)) + data + struct.pack(">H", 0)
    return (
        struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES))
        + _OPTION_MAGIC
        + struct.pack(">II", _OPT_GO, len(option))
        + option
    )


def read_export(receive: Receive, name: str) -> Export:
    """The server's replies to NBD_OPT_GO, up to the one that begins the transmission. Raises StorageError."""
    export = None
    for _ in range(_MAX_OPTION_REPLIES):
        magic, option, kind, length = _OPTION_REPLY.unpack(receive(_OPTION_REPLY.size))
        if magic != _OPTION_REPLY_MAGIC or option != _OPT_GO or length > _MAX_OPTION_REPLY:
            raise StorageError("the NBD server breaks the protocol in its negotiation")
        data = receive(length)
        if kind & _REP_ERROR:
            said = data[:200].decode("utf-8", "replace") or f"error {kind & ~_REP_ERROR}"
            raise StorageError(f"the NBD server refuses the export {name}: {said}")
        if kind == _REP_ACK:
            if export is None:
                raise StorageError("the NBD server does not say how large its export is")
            return export
        if kind == _REP_INFO and data[:2] == _INFO_EXPORT.to_bytes(2, "big"):
            if len(data) != 12:
                raise StorageError("the NBD server breaks the protocol in its negotiation")
            size, flags = struct.unpack(">QH", data[2:])
            if size >= _MAX_SIZE:
                raise StorageError(f"the NBD server says that its export has {size} bytes")
            export = Export(size, flags)
    raise StorageError("the NBD server does not end its negotiation")


def encode_read(cookie: int, offset: int, size: int) -> bytes:
    """NBD_CMD_READ."""
    return _REQUEST.pack(_REQUEST_MAGIC, 0, _CMD_READ, cookie, offset, size)


def encode_disconnect() -> bytes:
    """NBD_CMD_DISC."""
    return _REQUEST.pack(_REQUEST_MAGIC, 0, _CMD_DISC, 0, 0, 0)


def parse_reply(header: bytes) -> tuple[int, int]:
    """A simple reply's error (0: none) and cookie. Raises StorageError."""
    magic, error, cookie = _REPLY.unpack(header)
    if magic != _REPLY_MAGIC:
        raise StorageError("the NBD server breaks the protocol")
    return error, cookie


class NbdDevice:
    """An export on a unix socket. After a StorageError that is not about one place of the disk, it is closed."""

    def __init__(self, path: str, name: str, timeout_s: float = 5.0) -> None:
        """Raises StorageError."""
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(path)
            self._socket.sendall(encode_hello(self._receive(_GREETING.size), name))
            self.size = read_export(self._receive, name).size
        except OSError as error:
            self._socket.close()
            raise StorageError(f"cannot reach the NBD server at {path}: {error}") from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises StorageError."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise StorageError(f"refused to read {size} bytes at {offset:#x} of {self._name}, which has {self.size} bytes")
        pieces: dict[int, bytes] = {}
        waiting: dict[int, int] = {}
        asked = 0
        try:
            while asked < size or waiting:
                while asked < size and len(waiting) < _MAX_WAITING:
                    length = min(MAX_REQUEST, size - asked)
                    self._socket.sendall(encode_read(asked, offset + asked, length))
                    waiting[asked] = length
                    asked += length
                error, cookie = parse_reply(self._receive(_REPLY.size))
                if cookie not in waiting:
                    raise StorageError("the NBD server answers what was not asked")
                length = waiting.pop(cookie)
                if error:
                    raise StorageError(f"{self._name} cannot be read at {offset + cookie:#x}: the NBD server reports error {error}")
                pieces[cookie] = self._receive(length)
        except OSError as problem:
            self._socket.close()
            raise StorageError(f"the NBD server of {self._name} does not answer: {problem}") from problem
        except BaseException:
            # Answers may still be on their way: nobody could tell them from later ones.
            self._socket.close()
            raise
        return b"".join(pieces[cookie] for cookie in sorted(pieces))

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionResetError("it closed the connection")
            view = view[count:]
        return bytes(data)

    def close(self) -> None:
        """Say goodbye; never raises."""
        with contextlib.suppress(OSError):
            self._socket.sendall(encode_disconnect())
        self._socket.close()
