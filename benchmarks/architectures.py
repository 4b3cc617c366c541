"""Architectures: how much of each stack is there on stock kernels of every architecture, and what a sample costs the guest.

Each kernel boots under TCG with the demo's mixed workload and is recorded twice: as QEMU runs by default, and with one instruction
per translation block, which lets halts fall on every instruction (by default TCG halts between its blocks only). The table goes
into docs/architectures.md.
"""

from __future__ import annotations

import argparse
import json
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._live import initramfs_with
from guestprof.debian import fetch_kernel, fetch_package
from guestprof.initramfs import INIT, WORKLOAD_MARK, Entry
from recording.errors import GuestprofError
from recording.model import FrameKind, StackEnd
from recording.profile import Profile
from recording.reader import Recording
from tests.qemu.guests import MACHINES, PC, QEMU, Guest, GuestOptions, Machine
from tests.qemu.kernel_modules import find_modules, module_entries

_ROOT = Path(__file__).parent
_RESULTS = _ROOT / "results" / "architectures.json"
_DOCUMENT = _ROOT.parent / "docs" / "architectures.md"
_BEGIN, _END = "<!-- python -m benchmarks.architectures -->", "<!-- end -->"
_BOOT_TIMEOUT_S = 240.0
_FILE = stat.S_IFREG | 0o755
_INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
while read -r file; do insmod "$file"; done </modules/list
mkdir /layers /merged
mount -t tmpfs layers /layers
mkdir /layers/upper /layers/work
mount -t overlay -o lowerdir=/bin,upperdir=/layers/upper,workdir=/layers/work overlay /merged
(while :; do find /merged >/dev/null; cp /merged/busybox /merged/copy; rm /merged/copy; done) &
(while :; do /bash -c 'for ((i = 0; i < 20000; i++)); do text=${i//1/one}; done; ls=$(< /demo)'; done) >/dev/null 2>&1 &
exec /bin/busybox sh /demo
"""
"""The demo's first process with a module at work beside it, and a program with unwind data (busybox has little of it)."""
_COLUMNS = (
    ("architecture", "architecture"),
    ("kernel", "kernel"),
    ("vcpus", "vCPUs"),
    ("kernel_stacks", "kernel stacks"),
    ("complete_share", "whole or entry"),
    ("entry_share", "in entry windows"),
    ("single_stacks", "one instruction a block: stacks"),
    ("single_complete_share", "whole or entry"),
    ("single_entry_share", "in entry windows"),
    ("task_share", "tasks"),
    ("user_complete_share", "user stacks whole"),
    ("user_bash_whole", "of bash (static)"),
    ("module_frames_named", "frames in modules named"),
    ("halted_p50_us", "halted per sample (p50)"),
)


def main() -> int:
    """Measure, print, and keep the result."""
    names = [machine.name for machine in (PC, *MACHINES)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=10, help="length of each recording (default: 10)")
    parser.add_argument("--frequency", type=float, default=200, help="halts a second (default: 200)")
    parser.add_argument("--architecture", action="append", choices=names, help="only this one (may be repeated)")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        for machine in (PC, *MACHINES):
            if options.architecture is not None and machine.name not in options.architecture:
                continue
            for suite in machine.suites:
                rows.append(measure(machine, suite, options.seconds, options.frequency))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    except GuestprofError as error:
        print(f"architectures: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(rows)))
    command = f"python -m benchmarks.architectures {' '.join(sys.argv[1:])}".strip()
    head = f"{datetime.now(UTC):%Y-%m-%d}, `{command}`, {version(QEMU)}, {options.seconds:g} s at {options.frequency:g} Hz each."
    kept: dict[str, Any] = {"measured": [head], "guests": rows}
    if options.architecture is not None:
        kept = replaced(json.loads(_RESULTS.read_text("utf-8")), rows, head)
    _RESULTS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    write_table([*kept["measured"], "", *table(kept["guests"])])
    return 0


def replaced(kept: dict[str, Any], rows: Sequence[dict[str, Any]], head: str) -> dict[str, Any]:
    """An earlier result with some rows of now in their places."""
    new = {(row["architecture"], row["kernel"]): row for row in rows}
    guests = [new.get((row["architecture"], row["kernel"]), row) for row in kept["guests"]]
    names = ", ".join(f"{architecture} {kernel.partition('-')[0]}" for architecture, kernel in new)
    return {"measured": [*kept["measured"], f"Later, {names}: {head}"], "guests": guests}


def measure(machine: Machine, suite: str, seconds: float, frequency: float) -> dict[str, Any]:
    """Boot and record one guest. Raises GuestprofError."""
    with working_guest(machine, suite) as (guest, directory):
        usual = record(guest, directory / "usual.guestprof", seconds, frequency)
        guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
        single = record(guest, directory / "single.guestprof", seconds, frequency)
    return {
        "architecture": machine.name,
        "vcpus": machine.vcpus,
        **usual,
        **{f"single_{name.removeprefix('kernel_')}": single[name] for name in ("kernel_stacks", "complete_share", "entry_share")},
        "single_ends": single["ends"],
    }


@contextmanager
def working_guest(machine: Machine, suite: str) -> Iterator[tuple[Guest, Path]]:
    """A guest at work, and a directory for its recordings. Raises GuestprofError."""
    kernel = fetch_kernel(suite, machine.name)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp-bench-")))
        initramfs = directory / "initramfs.gz"
        more = [*module_entries(find_modules(kernel, suite, ("overlay",))), Entry("demo", _FILE, INIT.encode())]
        more.append(Entry("bash", _FILE, find_bash(machine, suite)))
        initramfs.write_bytes(initramfs_with(machine, [*more, Entry("init", _FILE, _INIT)]))
        guest = stack.enter_context(Guest(GuestOptions(kernel, initramfs, vcpus=machine.vcpus, machine=machine)))
        guest.wait_for(WORKLOAD_MARK, _BOOT_TIMEOUT_S)
        yield guest, directory


def find_bash(machine: Machine, suite: str) -> bytes:
    """A statically linked bash for a machine. Raises MissingDependencyError."""
    package = fetch_package(machine.programs or suite, machine.name, "bash-static")
    return next(path for path in (package / "bin/bash-static", package / "usr/bin/bash-static") if path.is_file()).read_bytes()


def record(guest: Guest, path: Path, seconds: float, frequency: float, options: Sequence[str] = ()) -> dict[str, Any]:
    """Record a running guest; the figures. options: more of ``guestprof record``'s."""
    command = [sys.executable, "-m", "guestprof", "record", "-q", "--connect", guest.target]
    subprocess.run([*command, "-F", str(frequency), "-d", str(seconds), "-o", str(path), *options], check=True)
    with Recording.open(path) as recording:
        profile = Profile(recording)
        return {"kernel": str(recording.meta["kernel_release"]), **figures_of(profile)}


def figures_of(profile: Profile) -> dict[str, Any]:
    """What the table shows, and how the stacks ended."""
    quality = profile.quality()
    bash = {True: 0, False: 0}
    modules = {True: 0, False: 0}
    for count in profile.counts:
        for function in count.stack.functions:
            # Exception vectors, where entry windows are, have no names either; a stack of user mode may have no frame at all.
            is_walked = count.stack.end.is_kernel and count.stack.end is not StackEnd.ENTRY_WINDOW
            if is_walked and function.kind in (FrameKind.MODULE, FrameKind.UNKNOWN):
                modules[function.kind is FrameKind.MODULE and not function.name.startswith("0x")] += count.samples
        end = count.stack.user_end
        if end is not None and end.is_stack and count.origin.process.name == "bash":
            bash[end.is_proper] += count.samples
    return {
        "kernel_stacks": sum(count for end, count in quality.ends.items() if end.is_kernel),
        "complete_share": quality.complete_share,
        "entry_share": quality.entry_share,
        "task_share": quality.task_share,
        "user_complete_share": quality.user_complete_share,
        "user_bash_whole": bash[True] / sum(bash.values()) if any(bash.values()) else None,
        "module_frames_named": modules[True] / sum(modules.values()) if any(modules.values()) else None,
        "halted_share": quality.halted_share,
        "halted_p50_us": None if quality.halted_p50_ns is None else quality.halted_p50_ns / 1e3,
        "ends": {end.value: count for end, count in quality.ends.items()},
        "user_ends": {end.value: count for end, count in quality.user_ends.items()},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a guest."""
    lines = ["| " + " | ".join(title for _key, title in _COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    return lines + ["| " + " | ".join(_cell(key, row[key]) for key, _title in _COLUMNS) + " |" for row in rows]


def write_table(lines: Sequence[str]) -> None:
    """Put it where the document has it."""
    text = _DOCUMENT.read_text("utf-8")
    head, _, rest = text.partition(_BEGIN)
    _old, _, tail = rest.partition(_END)
    _DOCUMENT.write_text(f"{head}{_BEGIN}\n\n" + "\n".join(lines) + f"\n\n{_END}{tail}", "utf-8")


def version(program: str) -> str:
    """A program's own words."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key.endswith("_us"):
        return f"{float(str(value)):.0f} µs"
    return f"{value:.2%}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
