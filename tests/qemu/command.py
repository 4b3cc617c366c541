"""Runs the guestprof program as a user does: a process of its own, its exit status and what it printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_TIMEOUT_S = 180.0


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
