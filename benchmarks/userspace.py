"""Userspace: a Debian guest profiled from power-on, with nothing given but the running QEMU; how much of each stack is there.

Each of the four stock kernels boots the same Debian 12 root file system (tests/qemu/rootfs.py) under TCG and runs a fixed workload;
once with files of the guest's disk and initrd read, and once from memory alone (``--no-storage``). Every recording starts with
empty caches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guestprof.debian import fetch_kernel
from recording.errors import GuestprofError
from recording.model import FrameKind, StackEnd
from recording.profile import Profile
from recording.reader import Recording
from tests.qemu.debian_guest import DebianOptions, qemu_command
from tests.qemu.rootfs import root_image

_RESULTS = Path(__file__).parent / "results" / "userspace.json"
_SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
_COLUMNS = (
    ("kernel", "kernel"),
    ("storage", "storage"),
    ("samples", "samples"),
    ("achieved_hz", "Hz"),
    ("halted_share", "halted"),
    ("task_share", "task"),
    ("module_frames_named", "modules"),
    ("complete_share", "kernel st."),
    ("user_complete_share", "user st."),
    ("user_mode_whole", "in user m."),
    ("behind_kernel_whole", "behind k."),
    ("rounds", "rounds"),
)


def main() -> int:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60, help="length of each recording, from power-on (default: 60)")
    parser.add_argument("--frequency", type=float, default=200, help="halts a second (default: 200)")
    parser.add_argument("--kernel", action="append", choices=list(_SUITES), help="only this one (may be repeated)")
    parser.add_argument("--vcpus", type=int, default=1, help="virtual processors (default: 1)")
    parser.add_argument(
        "--module", action="append", default=[], metavar="NAME", help="one more for the initramfs to load (may be repeated)"
    )
    parser.add_argument("--partitioned", action="store_true", help="the file system in a partition instead of on the whole disk")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the recordings there")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        image = root_image(partitioned=options.partitioned)
        for kernel in options.kernel or _SUITES:
            for storage in (True, False):
                rows.append(measure(kernel, image, options, storage=storage))
                print(table(rows[-1:], heading=len(rows) == 1), flush=True)
                print(f"    lost: {lost(rows[-1])}", flush=True)
    except GuestprofError as error:
        print(f"userspace: {error}", file=sys.stderr)
        return 1
    if options.kernel is None:
        result = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "qemu": qemu_version(),
            "command": f"python -m benchmarks.userspace {' '.join(sys.argv[1:])}".strip(),
            "seconds": options.seconds,
            "vcpus": options.vcpus,
            "boots": rows,
        }
        _RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        print(f"written to {_RESULTS}")
    return 0


def measure(kernel: str, image: Path, options: argparse.Namespace, *, storage: bool) -> dict[str, Any]:
    """Boot and record one guest. Raises GuestprofError."""
    suite = _SUITES[kernel]
    with tempfile.TemporaryDirectory(prefix="gp-bench-") as name:
        directory = Path(name)
        console, path = directory / "console", directory / "boot.guestprof"
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            path = options.keep / f"{kernel}-{'storage' if storage else 'memory'}.guestprof"
        guest = DebianOptions(fetch_kernel(suite), suite, image, vcpus=options.vcpus, modules=tuple(options.module))
        command = [
            sys.executable,
            "-m",
            "guestprof",
            "boot",
            "-q",
            "--force",
            "-F",
            str(options.frequency),
            "-d",
            str(options.seconds),
        ]
        command += ["-o", str(path), *([] if storage else ["--no-storage"]), "--", *qemu_command(guest, directory, console)]
        began = time.monotonic()
        # What earlier recordings have kept of files would be neither memory nor storage.
        cold = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}
        subprocess.run(command, check=True, env=cold)
        took_s = time.monotonic() - began
        with Recording.open(path) as recording:
            figures = figures_of(Profile(recording))
        text = console.read_text("utf-8", "replace")
        return {
            "kernel": kernel,
            "storage": storage,
            "image": guest.kernel.name if guest.kernel.name != "vmlinuz" else guest.kernel.parent.name,
            "took_s": round(took_s, 1),
            "rounds": text.count("guestprof: round"),
            **figures,
        }


def figures_of(profile: Profile) -> dict[str, Any]:
    """What the issue asks for, and where user stacks were lost."""
    quality = profile.quality()
    ends: dict[bool, Counter[bool]] = {True: Counter(), False: Counter()}
    programs: dict[str, Counter[bool]] = {}
    modules: Counter[str] = Counter()
    frames: Counter[bool] = Counter()
    for count in profile.counts:
        for function in count.stack.functions:
            if function.kind in {FrameKind.MODULE, FrameKind.UNKNOWN}:
                frames[function.kind is FrameKind.MODULE and not function.name.startswith("0x")] += count.samples
                modules[function.module] += count.samples
        end = count.stack.user_end
        if end is not None and end.is_stack:
            ends[count.stack.end is StackEnd.USER_MODE][end.is_proper] += count.samples
            programs.setdefault(count.origin.process.name, Counter())[end.is_proper] += count.samples
    return {
        "samples": quality.samples,
        "achieved_hz": quality.achieved_hz,
        "late": quality.late,
        "halted_share": quality.halted_share,
        "halted_p50_us": None if quality.halted_p50_ns is None else quality.halted_p50_ns / 1e3,
        "halted_p99_us": None if quality.halted_p99_ns is None else quality.halted_p99_ns / 1e3,
        "task_share": quality.task_share,
        "complete_share": quality.complete_share,
        "user_complete_share": quality.user_complete_share,
        "user_stacks": sum(count.total() for count in ends.values()),
        "user_mode_whole": _share(ends[True]),
        "behind_kernel_whole": _share(ends[False]),
        "module_frames": frames.total(),
        "module_frames_named": _share(frames),
        "modules": dict(modules.most_common()),
        "ends": {end.value: count for end, count in quality.ends.items()},
        "user_ends": {end.value: count for end, count in quality.user_ends.items()},
        "programs": {name: {"stacks": count.total(), "whole": count[True]} for name, count in sorted(programs.items())},
        "unreadable_files": profile.unreadable_files(),
    }


def lost(row: Mapping[str, Any]) -> str:
    """Which programs' user stacks are not whole, and why."""
    programs = {name: count["stacks"] - count["whole"] for name, count in row["programs"].items()}
    worst = sorted(((missing, name) for name, missing in programs.items() if missing), reverse=True)[:8]
    reasons = ", ".join(f"{end} {count}" for end, count in row["user_ends"].items())
    return f"{', '.join(f'{name} {missing}' for missing, name in worst) or 'none'} ({reasons})"


def table(rows: list[dict[str, Any]], *, heading: bool = True) -> str:
    """A line a boot."""
    lines = ["  ".join(f"{title:>10}" for _, title in _COLUMNS)] if heading else []
    lines += ["  ".join(f"{_cell(key, row[key]):>10}" for key, _ in _COLUMNS) for row in rows]
    return "\n".join(lines)


def qemu_version() -> str:
    """QEMU's own words."""
    return subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _share(count: Counter[bool]) -> float | None:
    return count[True] / count.total() if count else None


def _cell(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "disk" if value else "memory"
    if isinstance(value, float):
        return f"{value:.1f}" if key == "achieved_hz" else f"{value:.2%}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
