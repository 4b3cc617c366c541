"""What can be said of QEMU's start without QEMU."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from sampler.launch import listens


def test_a_socket_that_is_there_may_not_listen_yet() -> None:
    # The path of a unix socket is short (unix(7): 108 bytes).
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
        path = Path(directory) / "qmp"
        assert not listens(path)
        server.bind(str(path))
        assert not listens(path)
        server.listen()
        assert listens(path)
