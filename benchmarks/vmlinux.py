"""What ``--vmlinux`` and ``--symbol-dir`` add on kernels that do not describe themselves: tasks, modules and user stacks.

Stock Debian kernels without BTF, with an overlay module at work; each is recorded from memory alone, with the kernel's file of
its ``-dbg`` package, and with that package's directory. Run: ``python -m benchmarks.vmlinux`` (fetches some 200 MB for each).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.architectures import record, working_guest
from guestprof.debian import fetch_kernel, fetch_package
from recording.errors import GuestprofError
from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from tests.qemu.guests import ARMHF, I386, MACHINES, Machine

_MACHINES = {machine.name: machine for machine in MACHINES}
_WITHOUT_BTF = (ARMHF.name, I386.name)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=10, help="length of each recording (default: 10)")
    parser.add_argument("--frequency", type=float, default=200, help="halts a second (default: 200)")
    parser.add_argument("--architecture", action="append", choices=list(_MACHINES), help="this one (may be repeated)")
    parser.add_argument("--suite", default="bookworm", help="whose kernel (default: bookworm)")
    options = parser.parse_args()
    try:
        for name in options.architecture or _WITHOUT_BTF:
            for row in measure(_MACHINES[name], options.suite, options.seconds, options.frequency):
                print(json.dumps(row), flush=True)
    except GuestprofError as error:
        print(f"vmlinux: {error}", file=sys.stderr)
        return 1
    return 0


def measure(machine: Machine, suite: str, seconds: float, frequency: float) -> list[dict[str, Any]]:
    """Boot a guest, record it in all ways. Raises GuestprofError."""
    vmlinux = vmlinux_of(fetch_kernel(suite, machine.name), suite, machine.name)
    rows: list[dict[str, Any]] = []
    with working_guest(machine, suite) as (guest, directory):
        named, directory_of = ["--vmlinux", str(vmlinux)], ["--symbol-dir", str(vmlinux.parents[1])]
        for words, more in (("memory alone", []), ("--vmlinux", named), ("--symbol-dir", directory_of)):
            figures = record(guest, directory / f"{len(rows)}.guestprof", seconds, frequency, more)
            rows.append({"architecture": machine.name, "by": words, **figures, **modules_of(directory / f"{len(rows)}.guestprof")})
    return rows


def modules_of(path: Path) -> dict[str, Any]:
    """Names and build IDs of modules, samples with a frame in one that no symbol names, and what is told to stay unknown."""
    with Recording.open(path) as recording:
        profile = Profile(recording)
        nameless = sum(
            count.samples
            for count in profile.counts
            if any(function.kind is FrameKind.MODULE and function.name.startswith("0x") for function in count.stack.functions)
        )
        modules = {image.name: image.build_id for image in profile.images if image.kind is FrameKind.MODULE}
        return {"modules": modules, "samples_in_modules_without_name": nameless, "unknown": profile.unknown()}


def vmlinux_of(kernel: Path, suite: str, architecture: str) -> Path:
    """The kernel's file of its ``-dbg`` package. Raises MissingDependencyError."""
    release = kernel.name.partition("-")[2]
    package = fetch_package(suite, architecture, re.escape(f"linux-image-{release}-dbg"))
    return package / "usr/lib/debug/boot" / f"vmlinux-{release}"


if __name__ == "__main__":
    sys.exit(main())
