"""Source lines and inlined functions of kernel frames, against gdb; and what it takes to read them out of a kernel's file.

Recordings of guests are looked at (``guestprof boot`` or ``record``); of the addresses that their kernel frames have, a random
sample is named by guestprof and by gdb, with the ``vmlinux`` of the kernel's -dbg package. A frame is equal where all
functions that are inlined there, the function itself, and the file and line of each are. Then symbolizing is timed with an
empty cache and again.

Run: ``python -m benchmarks.inlined RECORDING VMLINUX [RECORDING VMLINUX ...]``
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guest.elf.inlined import SourceFrame
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guest.symbolize import source_frames
from recording.errors import GuestprofError
from recording.model import FrameKind
from recording.reader import Recording
from recording.sources import used_addresses

_RESULTS = Path(__file__).parent / "results" / "inlined.json"
_SHOWN = 10


def main() -> int:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="RECORDING VMLINUX")
    parser.add_argument("--frames", type=int, default=1000, help="frames of each recording that are compared (default: 1000)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if len(options.files) % 2:
        parser.error("give a vmlinux for each recording")
    rows: list[dict[str, Any]] = []
    try:
        for recording, vmlinux in zip(options.files[::2], options.files[1::2], strict=True):
            rows.append({**compare(recording, vmlinux, options.frames, options.seed), **times(recording, vmlinux)})
            print(json.dumps(rows[-1], indent=1), flush=True)
    except GuestprofError as error:
        print(f"inlined: {error}", file=sys.stderr)
        return 1
    _RESULTS.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return 0


def compare(path: Path, vmlinux: Path, count: int, seed: int) -> dict[str, Any]:
    """How many frames agree. Raises GuestprofError."""
    with Recording.open(path) as recording, tempfile.TemporaryDirectory(prefix="gp-bench-") as directory:
        images = recording.images()
        finder = HostFinder(HostFiles(vmlinux), SourceCache(None))
        number, addresses = next(
            (number, addresses)
            for number, addresses in used_addresses(recording).items()
            if images[number].kind is FrameKind.KERNEL
        )
        match = finder.find(images[number], print)
        assert match is not None
        with match.file as file:
            placed = sorted(place for address in addresses if (place := match.placement.to_file(address)) is not None)
            chosen = random.Random(seed).sample(placed, min(count, len(placed)))
            ours = source_frames(file, chosen, SourceCache(None))
        theirs = ask_gdb(vmlinux, chosen, Path(directory))
        release = recording.meta.get("kernel_release")
    different = [
        (address, ours.get(address, ()), answer)
        for address, answer in zip(chosen, theirs, strict=True)
        if not is_equal(ours.get(address, ()), answer)
    ]
    for address, mine, answer in different[:_SHOWN]:
        print(f"{address:#x}\n  guestprof {mine}\n  gdb       {answer}", file=sys.stderr)
    return {
        "kernel": release,
        "frames": len(chosen),
        "of_distinct": len(placed),
        "with_inlined": sum(len(frames) > 1 for frames in ours.values()),
        "equal": len(chosen) - len(different),
    }


def ask_gdb(vmlinux: Path, addresses: Sequence[int], directory: Path) -> list[list[tuple[str | None, str | None, int]]]:
    """What gdb says of each address."""
    (directory / "addresses").write_text(json.dumps(list(addresses)))
    environment = {**os.environ, "BENCH_ADDRESSES": str(directory / "addresses"), "BENCH_ANSWERS": str(directory / "answers")}
    script = Path(__file__).with_name("_gdb_lines.py")
    subprocess.run(["gdb", "-nx", "-quiet", "-batch", "-x", str(script), str(vmlinux)], check=True, env=environment)
    return [[tuple(row) for row in rows] for rows in json.loads((directory / "answers").read_text("utf-8"))]


def is_equal(ours: Sequence[SourceFrame], theirs: Sequence[tuple[str | None, str | None, int]]) -> bool:
    """Gdb gives paths from the directory that the compiler ran in, and 0 for no line."""
    if len(ours) != len(theirs):
        return not ours and theirs[0][1] is None
    for frame, (name, path, line) in zip(ours, theirs, strict=True):
        own, other = posixpath.normpath(frame.path or ""), posixpath.normpath(path or "")
        if frame.name != name or (frame.line or 0) != line or not (own == other or own.endswith("/" + other.removeprefix("./"))):
            return False
    return True


def times(path: Path, vmlinux: Path) -> dict[str, Any]:
    """Seconds and megabytes of ``guestprof symbolize``: without a cache, and again."""
    found: dict[str, Any] = {"vmlinux_mb": round(vmlinux.stat().st_size / 1e6)}
    with tempfile.TemporaryDirectory(prefix="gp-bench-") as directory:
        copy = Path(directory) / "recording"
        shutil.copyfile(path, copy)
        environment = {**os.environ, "XDG_CACHE_HOME": directory}
        for name in ("cold", "warm"):
            start = time.monotonic()
            command = [sys.executable, "-m", "guestprof", "symbolize", "-q", str(copy), "--vmlinux", str(vmlinux)]
            _, status, usage = os.wait4(subprocess.Popen(command, env=environment).pid, 0)
            assert status == 0
            found[f"{name}_s"] = round(time.monotonic() - start, 2)
            found[f"{name}_cpu_s"] = round(usage.ru_utime + usage.ru_stime, 2)
            found[f"{name}_mb"] = round(usage.ru_maxrss / 1024)
    return found


if __name__ == "__main__":
    sys.exit(main())
