"""Source lines and inlined functions of kernel frames, against gdb and addr2line -i; and what it takes to read them.

Recordings of guests are looked at (``guestprof boot`` or ``record``); of the addresses that their kernel frames have, a random
sample is named by guestprof, gdb and binutils' addr2line, with the ``vmlinux`` of the kernel's -dbg package. A frame is equal
where all functions that are inlined there, the function itself, and the file and line of each are. Then symbolizing is timed
with an empty cache and again.

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
_Chain = Sequence[tuple[str | None, str | None, int]]
"""What another program says of an address, innermost first: function, path, line (0 where it knows none)."""


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
        others = ask_addr2line(vmlinux, chosen)
        release = recording.meta.get("kernel_release")
    different = [
        (address, ours.get(address, ()), answer)
        for address, answer in zip(chosen, theirs, strict=True)
        if not is_equal(ours.get(address, ()), answer)
    ]
    for address, mine, answer in different[:_SHOWN]:
        print(f"{address:#x}\n  guestprof {mine}\n  gdb       {answer}", file=sys.stderr)
    pairs = [(ours.get(address, ()), answer) for address, answer in zip(chosen, others, strict=True)]
    chains = [pair for pair in pairs if has_equal_functions(*pair)]
    return {
        "kernel": release,
        "frames": len(chosen),
        "of_distinct": len(placed),
        "with_inlined": sum(len(frames) > 1 for frames in ours.values()),
        "equal": len(chosen) - len(different),
        "addr2line_equal_functions": len(chains),
        "addr2line_equal_callers": sum(has_equal_lines(mine[1:], other[1:]) for mine, other in chains),
        "addr2line_equal": sum(has_equal_lines(mine, other) for mine, other in chains),
    }


def ask_gdb(vmlinux: Path, addresses: Sequence[int], directory: Path) -> list[list[tuple[str | None, str | None, int]]]:
    """What gdb says of each address."""
    (directory / "addresses").write_text(json.dumps(list(addresses)))
    environment = {**os.environ, "BENCH_ADDRESSES": str(directory / "addresses"), "BENCH_ANSWERS": str(directory / "answers")}
    script = Path(__file__).with_name("_gdb_lines.py")
    subprocess.run(["gdb", "-nx", "-quiet", "-batch", "-x", str(script), str(vmlinux)], check=True, env=environment)
    return [[tuple(row) for row in rows] for rows in json.loads((directory / "answers").read_text("utf-8"))]


def ask_addr2line(vmlinux: Path, addresses: Sequence[int]) -> list[list[tuple[str | None, str | None, int]]]:
    """What addr2line -i says of each address."""
    command = ["addr2line", "-a", "-f", "-i", "-e", str(vmlinux)]
    text = "".join(f"{address:#x}\n" for address in addresses)
    lines = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    found: list[list[tuple[str | None, str | None, int]]] = []
    rest = iter(lines)
    for line in rest:
        if line.startswith("0x"):
            found.append([])
            continue
        path, _, number = next(rest).partition(" ")[0].rpartition(":")
        known = number.isdecimal() and path != "??"
        found[-1].append((None if line == "??" else line, path if known else None, int(number) if known else 0))
    return found


def has_equal_functions(ours: Sequence[SourceFrame], theirs: _Chain) -> bool:
    """Whether the functions at an address are the same. Where DWARF names none (assembler), addr2line takes a symbol's name."""
    if not ours:
        return theirs[0][1] is None
    return len(ours) == len(theirs) and all(mine.name in (None, name) for mine, (name, *_) in zip(ours, theirs, strict=True))


def is_equal(ours: Sequence[SourceFrame], theirs: _Chain) -> bool:
    """Gdb gives paths from the directory that the compiler ran in, and 0 for no line."""
    if len(ours) != len(theirs):
        return not ours and theirs[0][1] is None
    return all(frame.name == name for frame, (name, *_) in zip(ours, theirs, strict=True)) and has_equal_lines(ours, theirs)


def has_equal_lines(ours: Sequence[SourceFrame], theirs: _Chain) -> bool:
    """Whether file and line of each function are the same."""
    for frame, (_name, path, line) in zip(ours, theirs, strict=False):
        own, other = posixpath.normpath(frame.path or ""), posixpath.normpath(path or "")
        if (frame.line or 0) != line or not (own == other or own.endswith("/" + other.removeprefix("./"))):
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
