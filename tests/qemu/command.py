"""Runs the guestprof program as a user does: a process of its own, its exit status and what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_TIMEOUT_S = 180.0
_ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = _ROOT / "examples"


def start_guestprof(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start it; the caller waits for it or ends it."""
    command = [sys.executable, "-m", "guestprof", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def guestprof(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which must have that exit status."""
    command = [sys.executable, "-m", "guestprof", *map(str, arguments)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    assert result.returncode == status, f"exit status {result.returncode}: {result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def report_of(recording: Path, *options: str) -> dict[str, Any]:
    """The JSON report of a recording."""
    report: dict[str, Any] = json.loads(guestprof("report", recording, "-f", "json", *options).stdout)
    return report


def run_example(name: str, *arguments: str | Path, cwd: Path, programs: Path | None = None, **environment: str) -> str:
    """What one of ``examples/`` prints, run as its users run it. programs: a directory of programs that it finds before others."""
    with tempfile.TemporaryDirectory() as directory:
        # The program as it is installed, whether or not the virtual environment is active.
        program = Path(directory) / "guestprof"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m guestprof "$@"\n', "utf-8")
        program.chmod(0o755)
        path = os.pathsep.join([directory, *([str(programs)] if programs else []), os.environ["PATH"]])
        variables = {**os.environ, "PATH": path, "PYTHONPATH": str(_ROOT), **environment}
        command = [*([sys.executable] if name.endswith(".py") else []), EXAMPLES / name, *arguments]
        result = subprocess.run(
            command,
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout
