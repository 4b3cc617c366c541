"""SIGINT and SIGTERM become a request to stop while something is being recorded, and an exception everywhere else."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self


class Terminated(SystemExit):
    """SIGTERM came. A SystemExit: what catches errors does not catch it."""


class StopSignals:
    """Turns the signals into ``requested`` within its context; a second signal of a kind interrupts at once."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._old: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self.requested = signal.Signals(number)


def raise_on_sigterm() -> None:
    """From now on SIGTERM unwinds the program as Ctrl-C does, so that every context is left properly."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
