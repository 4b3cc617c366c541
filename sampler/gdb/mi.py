"""Bytes that gdb prints → records of its machine interface (gdb manual, "GDB/MI Output Syntax"). No process, no clock.

A line is one record; ``(gdb)`` ends what was printed for a command. Taking a record apart is put off until its results are asked
for: that costs a millisecond for a deep stack, and the guest stands still while gdb is listened to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pygdbmi import gdbmiparser

from recording.errors import GuestprofError

_MAX_LINE = 1 << 24
_MAX_NESTING = 64
_LINE = re.compile(r"(?P<token>[0-9]{1,18})?(?P<kind>[\^*+=])(?P<message>[a-z][a-z0-9-]*)(?P<results>,.*)?", re.DOTALL)
_STREAM = re.compile(r'(?P<kind>[~@&])"(?:[^"\\]|\\.)*"')
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[^"\[\]{}]+')
_PAIRS = {"]": "[", "}": "{"}


class GdbProtocolError(GuestprofError):
    """gdb printed what is no record of its machine interface."""


class Kind(Enum):
    """What a line is."""

    RESULT = "^"
    EXEC = "*"
    """The target runs or has stopped."""
    STATUS = "+"
    NOTIFY = "="
    CONSOLE = "~"
    TARGET = "@"
    LOG = "&"
    PROMPT = "(gdb)"
    OTHER = ""
    """What gdb, or something it started, printed outside of the interface."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line. message: ``done``, ``error``, ``stopped`` ...; token: of the command that is answered; line: without its end."""

    kind: Kind
    line: str
    token: int | None = None
    message: str = ""

    def results(self) -> dict[str, Any]:
        """What the record holds: strings, lists and dictionaries. Raises GdbProtocolError where that is damaged."""
        _require_sound(self.line)
        found = self._parsed()
        return found if isinstance(found, dict) else {}

    def text(self) -> str:
        """Of a stream record, what was printed; any other line as it is. Raises GdbProtocolError where that is damaged."""
        return str(self._parsed()) if self.kind in _STREAMS else self.line

    def _parsed(self) -> object:
        try:
            return gdbmiparser.parse_response(self.line)["payload"]
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise _damaged(self.line) from error


_STREAMS = (Kind.CONSOLE, Kind.TARGET, Kind.LOG)


class MiReader:
    """Bytes as they arrive → records, in order."""

    def __init__(self, max_line: int = _MAX_LINE) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._max_line = max_line

    def feed(self, data: bytes) -> None:
        """Add bytes from gdb's standard output."""
        self._buffer += data

    def next_record(self) -> Record | None:
        """The next whole line; None until more bytes are fed. Raises GdbProtocolError for a line without end."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > self._max_line:
                raise GdbProtocolError(
                    f"gdb printed {self._searched} bytes without an end of line; check the program given to --gdb"
                )
            return None
        # gdb escapes what is not ASCII in strings of the interface; what it prints beside them may be of any encoding.
        line = self._buffer[:end].rstrip(b"\r").decode("utf-8", "replace")
        del self._buffer[: end + 1]
        self._searched = 0
        return _record(line)


def _record(line: str) -> Record:
    if line.rstrip() == "(gdb)":
        return Record(Kind.PROMPT, line)
    if (stream := _STREAM.fullmatch(line)) is not None:
        return Record(Kind(stream["kind"]), line)
    found = _LINE.fullmatch(line)
    if found is None:
        return Record(Kind.OTHER, line)
    return Record(Kind(found["kind"]), line, int(found["token"]) if found["token"] else None, found["message"])


def _require_sound(line: str) -> None:
    """Every bracket has its partner and every string its end: pygdbmi does not come back from an array that never ends."""
    opened: list[str] = []
    position = 0
    while position < len(line):
        piece = _PIECE.match(line, position)
        if piece is None:
            raise _damaged(line)
        first = line[position]
        if first in "[{":
            opened.append(first)
            if len(opened) > _MAX_NESTING:
                raise _damaged(line)
        elif first in _PAIRS and (not opened or opened.pop() != _PAIRS[first]):
            raise _damaged(line)
        position = piece.end()
    if opened:
        raise _damaged(line)


def _damaged(line: str) -> GdbProtocolError:
    return GdbProtocolError(f"gdb printed a damaged record ({line[:60]!r}); check the program given to --gdb")


def quote(text: str) -> str:
    """A string as commands of the interface take it. Raises GuestprofError for what would be a second line."""
    if any(ord(character) < 0x20 for character in text):
        raise GuestprofError(f"{text!r} cannot be given to gdb: it holds a control character")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
