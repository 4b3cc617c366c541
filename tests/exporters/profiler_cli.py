"""The Firefox Profiler itself, as the command line of its npm package: a file becomes what it understood of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

_JS = Path(__file__).resolve().parent.parent / "js"
_PROGRAM = _JS / "node_modules" / "@firefox-devtools" / "profiler-cli" / "dist" / "profiler-cli.js"
_ATTEMPTS = 40

needs_profiler_cli = pytest.mark.skipif(
    shutil.which("node") is None or not _PROGRAM.is_file(),
    reason="needs node and profiler-cli: install the packages nodejs and npm, then run 'npm install' in tests/js",
)


class Viewer:
    """A profile that the profiler has loaded, in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._environment = {**os.environ, "PROFILER_CLI_SESSION_DIR": str(directory)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command, as it ended."""
        return subprocess.run(
            ["node", str(_PROGRAM), *words], env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )

    def load(self, file: Path) -> None:
        """On a busy machine its process is not ready in the half second that it gives itself: then it is ended, and made again."""
        for _ in range(_ATTEMPTS):
            done = self.run("load", str(file))
            if done.returncode == 0:
                return
            late = re.search(r"still be running as pid (\d+)", done.stderr)
            assert late is not None, done.stderr[-500:]
            with suppress(ProcessLookupError):
                os.kill(int(late[1]), signal.SIGTERM)
            time.sleep(0.2)
        raise AssertionError(f"profiler-cli never became ready: {done.stderr[-500:]}")

    def ask(self, *words: str) -> dict[str, Any]:
        """The answer of a command, as JSON."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr[-500:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def threads(self) -> list[dict[str, Any]]:
        """All threads in the order of the file."""
        return sorted(self.ask("thread", "list")["threads"], key=lambda thread: int(thread["threadIndex"]))

    def functions(self, thread: int) -> dict[tuple[str, str], tuple[int, int]]:
        """Self and total samples of each function of a thread, by module and name."""
        rows = self.ask("thread", "functions", "--thread", f"t-{thread}", "--include-idle")["functions"]
        found = {}
        for row in rows:
            module = row["nameWithLibrary"].removesuffix(row["name"]).removesuffix("!")
            found[module, row["name"]] = (row["selfSamples"], row["totalSamples"])
        assert len(found) == len(rows)
        return found


@contextmanager
def viewing(file: Path) -> Iterator[Viewer]:
    """A file, loaded for as long as it is looked at."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp", ignore_cleanup_errors=True) as directory:
        viewer = Viewer(Path(directory))
        try:
            viewer.load(file)
            yield viewer
        finally:
            viewer.run("stop", "--all")
