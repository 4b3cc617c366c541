"""Which of the kernel's initcalls took how long, level by level: ``initcalls.py RECORDING [ROWS]``.

``initcall_debug`` on the kernel's command line tells this too, but slows the boot by what it prints; this asks a recording.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(path: str, rows: int) -> None:
    """Print a table of each level, what took most first."""
    command = ["guestprof", "timeline", path, "--show", "initcalls", "-f", "json"]
    timeline = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    levels: dict[str, list[dict[str, object]]] = {}
    for row in timeline["initcalls"]:
        levels.setdefault(row["level"] or "of no known level", []).append(row)
    for level, found in levels.items():
        found.sort(key=lambda row: -int(str(row["weight_ns"])))
        total_ms = sum(int(str(row["weight_ns"])) for row in found) / 1e6
        print(f"{level}: {total_ms:.0f} ms in {len(found)} that were seen")
        for row in found[:rows]:
            print(f"  {int(str(row['weight_ns'])) / 1e6:8.1f} ms  {row['name']}  {row['module']}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)
