"""The examples, run as their users run them, on a real guest."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import StartGuest
from tests.qemu.command import report_of

pytestmark = pytest.mark.qemu

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def test_examples(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("bookworm")
    programs = tmp_path / "bin"
    programs.mkdir()
    # The program as it is installed, whether or not the virtual environment is active.
    (programs / "guestprof").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m guestprof "$@"\n', "utf-8")
    (programs / "guestprof").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    table = run(EXAMPLES / "profile_running_guest.sh", guest.target, "4")
    assert "do_syscall_64" in table
    assert (tmp_path / "guest.svg").read_text("utf-8").startswith("<svg")
    assert (tmp_path / "guest.speedscope.json").stat().st_size > 1000

    lines = run(sys.executable, EXAMPLES / "first_seen.py", tmp_path / "guest.guestprof").splitlines()
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    assert any(line.split()[-1] == "do_syscall_64" for line in lines)

    with sqlite3.connect(f"file:{tmp_path / 'guest.guestprof'}?mode=ro", uri=True) as connection:
        rows = connection.execute((EXAMPLES / "stack_ends.sql").read_text("utf-8")).fetchall()
    assert {end: count for end, count, _seconds in rows} == report_of(tmp_path / "guest.guestprof")["quality"]["ends"]
