"""Between gdb and the stub: gdb asks, the stub answers, and no packet that writes or ends anything passes.

gdb connects to a socket of ours, so the stub's own connection stays in our hands: whatever becomes of gdb, the guest can be resumed
at once, and when we die both connections end and the guard does it. What gdb may send is listed here (gdb manual, appendix E
"Packets"); its breakpoints (it has some of its own, for shared libraries and JIT compilers) are acknowledged and never set.
"""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

from recording.errors import TransportError
from sampler.rsp.codec import MAX_PACKET, encode_packet
from sampler.transport import Connection

_UNIT = re.compile(rb"[+\-\x03]+|\$([^#]*)#..", re.DOTALL)
_PASSED = re.compile(
    rb"[?gmpxHTcCsSD]"  # state, registers, memory, threads; run, step, detach
    rb"|vCont|vCtrlC\Z|vMustReplyEmpty\Z"
    rb"|q"  # questions; qRcmd is a monitor command, which only a user's --gdb-command gives
    rb"|Q(?:PassSignals|ProgramSignals|ThreadEvents|CatchSyscalls):"
)
_BREAKPOINT = (b"Z", b"z")
_WRITES = (b"G", b"M")
"""gdb takes an empty answer to these for an old stub and tries others; an error is final."""
_RECEIVE_SIZE = 1 << 16
_SEND_TIMEOUT_S = 1.0


class Relay:
    """Owns the socket that gdb connects to."""

    def __init__(self, path: Path) -> None:
        """Raises TransportError where there can be no socket."""
        self.path = path
        self.refused: list[bytes] = []
        """Beginnings of the packets that did not pass."""
        self._stub: Connection | None = None
        self._buffer = b""
        self._gdb: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(path))
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise TransportError(f"cannot make a socket for gdb at {path} ({error}); check TMPDIR") from error

    def connect(self, stub: Connection) -> None:
        """To be called before gdb connects."""
        self._stub = stub

    def sources(self) -> list[socket.socket | Connection]:
        """What to wait for."""
        return [self._listener] if self._gdb is None or self._stub is None else [self._gdb, self._stub]

    def serve(self, ready: object) -> None:
        """Pass on what has come. Raises TransportError where the stub is gone."""
        gdb, stub = self._gdb, self._stub
        if gdb is None:
            self._gdb = self._listener.accept()[0]
            self._gdb.settimeout(_SEND_TIMEOUT_S)
        elif stub is not None and ready is stub:
            # A gdb that has ended, or that hangs, is noticed where its answer is waited for.
            with contextlib.suppress(OSError):
                gdb.sendall(stub.receive_waiting())
        elif stub is not None:
            self._from_gdb(gdb, stub)

    def _from_gdb(self, gdb: socket.socket, stub: Connection) -> None:
        try:
            data = gdb.recv(_RECEIVE_SIZE)
        except OSError:
            data = b""
        if not data:
            gdb.close()
            self._gdb = None
            self._buffer = b""
            return
        passed, answers = self._sort(data)
        if answers:
            with contextlib.suppress(OSError):
                gdb.sendall(answers)
        if passed:
            stub.send(passed)

    def _sort(self, data: bytes) -> tuple[bytes, bytes]:
        """What of gdb's bytes goes to the stub, and what gdb is told instead for the rest."""
        buffer = self._buffer + data
        passed, answers = bytearray(), bytearray()
        position = 0
        while position < len(buffer):
            unit = _UNIT.match(buffer, position)
            if unit is None:
                if buffer[position : position + 1] == b"$" and len(buffer) - position < MAX_PACKET:
                    break
                position += 1
                continue
            position = unit.end()
            payload = unit[1]
            if payload is None or _PASSED.match(payload) is not None:
                passed += unit[0]
            else:
                answers += b"+" + encode_packet(self._answer(payload))
        self._buffer = buffer[position:]
        return bytes(passed), bytes(answers)

    def _answer(self, payload: bytes) -> bytes:
        if payload.startswith(_BREAKPOINT):
            return b"OK"
        self.refused.append(payload[:20])
        return b"E01" if payload.startswith(_WRITES) else b""

    def close(self) -> None:
        """Close gdb's side; the stub's connection stays as it is."""
        self._listener.close()
        if self._gdb is not None:
            self._gdb.close()
            self._gdb = None
        with contextlib.suppress(OSError):
            self.path.unlink()
