"""The QMP connection, with a server of a few lines instead of QEMU."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from guestprof.signals import Terminated
from recording.errors import TransportError
from sampler.qmp import Qmp

_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


class _Server(threading.Thread):
    """Answers one connection; after the answer to ``query-status`` it sends our own process a signal."""

    def __init__(self, path: Path, number: signal.Signals) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._number = number
        self._delay = 0

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        connection, _peer = self._listener.accept()
        with connection:
            connection.sendall(json.dumps(_GREETING).encode() + b"\n")
            # A request at a time, without an end of line.
            while data := connection.recv(4096):
                request = json.loads(data)
                answer = {"return": {"status": "running"}} | {key: request[key] for key in ("id",) if key in request}
                connection.sendall(json.dumps(answer).encode() + b"\n")
                if request["execute"] == "query-status":
                    # The client is at work on the answer, each time elsewhere.
                    for _ in range(self._delay):
                        pass
                    self._delay += 40
                    os.kill(os.getpid(), self._number)

    def close(self) -> None:
        self._listener.close()
        self.join(5)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(request.param, terminate)
    yield request.param
    signal.signal(request.param, before)


def ask_and_await_signal(qmp: Qmp) -> None:
    """The signal may come just after the answer."""
    qmp.status()
    time.sleep(5)


def test_a_signal_amid_a_call_leaves_the_connection_whole(tmp_path: Path, number: signal.Signals) -> None:
    server = _Server(tmp_path / "qmp", number)
    server.start()
    with Qmp.open(str(tmp_path / "qmp")) as qmp:
        for _ in range(200):
            with pytest.raises(Terminated):
                ask_and_await_signal(qmp)
            assert qmp.execute("anything") == {"status": "running"}
            assert qmp.poll_events() == []
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    server.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="qmp"):
        Qmp.open(str(tmp_path / "qmp"))
