"""Which modules cost a boot how much: ``module_costs.py RECORDING [MILLISECONDS]`` names those whose start took at least so long.

A module's start is its initcall with all that this calls; beside it stands what its code takes in all, and who loaded it when.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(path: str, least_ms: float) -> None:
    """Print the modules, what took longest first."""
    command = ["guestprof", "timeline", path, "--show", "modules", "-f", "json"]
    timeline = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    costly = []
    for module in timeline["modules"]:
        start_ms = (module["init"] or {}).get("weight_ns", 0) / 1e6
        if start_ms >= least_ms:
            costly.append((start_ms, (module["seen"] or {}).get("weight_ns", 0) / 1e6, module["loaded_ns"], module["name"]))
    for start_ms, all_ms, loaded_ns, name in sorted(costly, key=lambda row: -row[0]):
        loaded = "?" if loaded_ns is None else f"{loaded_ns / 1e9:.3f}"
        print(f"{name}: start {start_ms:.0f} ms, in all {all_ms:.0f} ms, loaded at {loaded} s")
    if not costly:
        print(f"no module's start took {least_ms:g} ms or more")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
