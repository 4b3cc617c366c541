"""speedscope itself, under jsdom: a file becomes what it understood of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_JS = Path(__file__).resolve().parent.parent / "js"
SCHEMA = _JS / "node_modules" / "speedscope" / "dist" / "release" / "file-format-schema.json"

needs_speedscope = pytest.mark.skipif(
    shutil.which("node") is None or not SCHEMA.is_file(),
    reason="needs node and speedscope: install the packages nodejs and npm, then run 'npm install' in tests/js",
)


def imported(path: Path) -> dict[str, Any]:
    """What speedscope understood of a file."""
    done = subprocess.run(
        ["node", str(_JS / "speedscope_import.mjs"), str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
