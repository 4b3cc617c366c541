"""What becomes of the console while a boot is recorded."""

from __future__ import annotations

import re
from pathlib import Path

from guestprof.console_watch import ConsoleWatch
from sampler.console import Console

MS = 1_000_000


class Kept:
    """Keeps events as the recorder does, by a clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.events: list[tuple[str, str, int | None]] = []

    def running_ns(self) -> int:
        return self.now_ms * MS

    def add_event(self, kind: str, text: str, time_ns: int | None = None) -> None:
        self.events.append((kind, text, None if time_ns is None else time_ns // MS))


class Screen:
    """A console that is written to, and the watch that looks at it."""

    def __init__(self, path: Path, pattern: str | None = None) -> None:
        self.path = path
        self.kept = Kept()
        self._watch = ConsoleWatch(Console(path), None if pattern is None else re.compile(pattern))

    def at(self, now_ms: int, written: bytes = b"") -> str | None:
        with self.path.open("ab") as file:
            file.write(written)
        self.kept.now_ms = now_ms
        return self._watch(self.kept)


def test_lines_are_kept_with_the_time_at_which_they_were_whole(tmp_path: Path) -> None:
    screen = Screen(tmp_path / "console")
    screen.at(10, b"[    0.0] Linux\r\n[  ")
    screen.at(20, b"  0.1] x\r\n\r\n")
    screen.at(30)
    assert screen.kept.events == [("console", "[    0.0] Linux", 10), ("console", "[    0.1] x", 20)]


def test_a_prompt_is_kept_with_the_time_at_which_it_grew_last(tmp_path: Path) -> None:
    screen = Screen(tmp_path / "console")
    screen.at(10, b"log")
    screen.at(20, b"in: ")
    screen.at(200)
    assert screen.kept.events == []
    screen.at(300)
    screen.at(600)
    assert screen.kept.events == [("console", "login: ", 20)]
    screen.at(700, b"root\n")
    assert screen.kept.events[1:] == [("console", "login: root", 700)]


def test_a_pattern_ends_the_recording_by_a_line_or_by_a_prompt(tmp_path: Path) -> None:
    screen = Screen(tmp_path / "a", "panic|login:")
    assert screen.at(10, b"Linux\n") is None
    assert screen.at(20, b"Kernel panic - not syncing\n") == "the console says 'Kernel panic - not syncing'"
    screen = Screen(tmp_path / "b", ".*")
    assert screen.at(0) is None
    screen = Screen(tmp_path / "b", "panic|login:")
    assert screen.at(10, b"host login: ") == "the console says 'host login:'"
    assert screen.kept.events == [("console", "host login: ", 10), ("mark", "console:panic|login:", 10)]
    assert screen.at(20) == "the console says 'host login:'"
    assert len(screen.kept.events) == 2


def test_a_console_that_is_not_there_or_is_no_text(tmp_path: Path) -> None:
    watch = ConsoleWatch(Console(tmp_path / "nowhere" / "console"), None)
    kept = Kept()
    assert watch(kept) is None
    assert kept.events == []
    screen = Screen(tmp_path / "console", "never")
    screen.at(10, b"\xff\x00\x1b[2J" + b"x" * 5000 + b"\n")
    (event,) = screen.kept.events
    assert event[1].startswith("\ufffd\x00\x1b[2Jx")
    assert len(event[1]) == 2000


def test_a_console_that_never_stops_is_cut(tmp_path: Path) -> None:
    screen = Screen(tmp_path / "console", "9999999")
    screen.at(10, b"".join(b"%d\n" % number for number in range(100_005)))
    screen.at(20, b"more\n")
    assert len(screen.kept.events) == 100_001
    assert screen.kept.events[-1] == ("console-cut", "the console has more than 100,000 lines; the others are not kept", None)
    assert screen.at(30, b"9999999\n") == "the console says '9999999'"
