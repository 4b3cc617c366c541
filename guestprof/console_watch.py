"""The guest's console is looked at between samples: its lines become events, and one that matches ends the recording."""

from __future__ import annotations

import re
from typing import Protocol

from recording.milestones import MARK
from recording.profile import CONSOLE
from sampler.console import Console

_PROMPT_NS = 250_000_000
_MAX_LINES = 100_000


class EventKeeper(Protocol):
    """What keeps events: the recorder (``sampler.recorder.Recorder``)."""

    def running_ns(self) -> int:
        """Guest running time now."""

    def add_event(self, kind: str, text: str, time_ns: int | None = None) -> None:
        """Keep an event."""


class ConsoleWatch:
    """Keeps each console line as an event, and looks for a pattern in them.

    A line that nobody ends (a prompt) is kept when it has not grown for a while, with the time at which it was seen last to grow.
    """

    def __init__(self, console: Console, pattern: re.Pattern[str] | None) -> None:
        self._console = console
        self._pattern = pattern
        self._rest = ""
        self._rest_since_ns = 0
        self._is_told = False
        self._left = _MAX_LINES
        self._has_found = False

    def __call__(self, recorder: EventKeeper) -> str | None:
        """Why to stop, or None."""
        lines, rest = self._console.read()
        now_ns = recorder.running_ns()
        for line in lines:
            self._tell(recorder, line, now_ns)
        if lines or rest != self._rest:
            self._rest, self._rest_since_ns, self._is_told = rest, now_ns, False
        seen = [*lines, rest] if rest else lines
        found = next((line for line in seen if self._pattern is not None and self._pattern.search(line)), None)
        if not self._is_told and ((found is not None and found == rest) or now_ns - self._rest_since_ns > _PROMPT_NS):
            self._is_told = True
            self._tell(recorder, rest, self._rest_since_ns)
        if found is None or self._pattern is None:
            return None
        if not self._has_found:
            self._has_found = True
            recorder.add_event(MARK, f"{CONSOLE}:{self._pattern.pattern}", self._rest_since_ns if found == rest else now_ns)
        return f"the console says {found.strip()!r}"

    def _tell(self, recorder: EventKeeper, line: str, time_ns: int) -> None:
        if not line.strip() or not self._left:
            return
        self._left -= 1
        recorder.add_event(CONSOLE, line, time_ns)
        if not self._left:
            recorder.add_event("console-cut", f"the console has more than {_MAX_LINES:,} lines; the others are not kept")
