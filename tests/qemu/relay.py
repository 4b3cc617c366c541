"""A TCP port that leads to a guest's gdb stub: the guest looks as if it ran on another machine."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class Relay:
    """Serves one client after the other on 127.0.0.1, as the stub does. ``address`` is what --connect takes."""

    def __init__(self, stub: Path) -> None:
        self._stub = stub
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _peer = self._server.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stub = socket.socket(socket.AF_UNIX)
                stub.connect(str(self._stub))
                threading.Thread(target=_forward, args=(client, stub), daemon=True).start()
                _forward(stub, client)
                stub.close()
                client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source ends, then end the sink's input too."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
