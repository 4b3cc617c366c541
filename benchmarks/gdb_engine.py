"""The gdb engine: what rate it reaches and how long its halts are, beside guestprof's own engine on the same running guests.

The guests: a bare-metal program on x86-64 with two vCPUs, Debian's kernel with its DWARF at the demo's mixed workload, and an AVR
that only gdb can unwind. The table goes into docs/gdb-engine.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._live import initramfs_with
from benchmarks.accuracy import find_vmlinux
from guestprof.debian import fetch_kernel
from guestprof.initramfs import WORKLOAD_MARK
from recording.errors import GuestprofError
from recording.profile import Profile
from recording.reader import Recording
from tests.qemu.avr_guest import AvrGuest
from tests.qemu.avr_guest import build as build_avr
from tests.qemu.bare_guests import X86_64, BareGuest
from tests.qemu.bare_guests import build as build_bare
from tests.qemu.guests import PC, Guest, GuestOptions

_ROOT = Path(__file__).parent
_RESULTS = _ROOT / "results" / "gdb_engine.json"
_DOCUMENT = _ROOT.parent / "docs" / "gdb-engine.md"
_BEGIN, _END = "<!-- python -m benchmarks.gdb_engine -->", "<!-- end -->"
_SUITE = "bookworm"
_RATES = (100, 1000)
_COLUMNS = (
    "guest",
    "engine",
    "asked for",
    "reached",
    "halt, median",
    "99 of 100 below",
    "guest halted",
    "stacks whole",
    "frames a stack",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A guest that runs. own: the options of the own engine, None where it cannot be used; by_gdb: those of gdb."""

    name: str
    target: str
    own: tuple[str, ...] | None
    by_gdb: tuple[str, ...]


@contextmanager
def bare_guest(directory: Path) -> Iterator[Case]:
    """A program of a few functions, with DWARF."""
    kernel = build_bare(X86_64, directory / "work.elf", flags=("-g",))
    with BareGuest(X86_64, kernel, "-smp", "2") as guest:
        yield Case("bare metal, x86-64, 2 vCPUs", guest.target, ("--elf", str(kernel)), ("--elf", str(kernel)))


@contextmanager
def linux_guest(directory: Path) -> Iterator[Case]:
    """Debian's kernel where its file says it is, so that gdb can use the file."""
    image = fetch_kernel(_SUITE)
    vmlinux = find_vmlinux(_SUITE, PC.name, image.name.partition("-")[2])
    initramfs = directory / "initramfs.gz"
    initramfs.write_bytes(initramfs_with(PC, []))
    with Guest(GuestOptions(image, initramfs, append="nokaslr")) as guest:
        guest.wait_for(WORKLOAD_MARK)
        release = image.name.partition("-")[2]
        yield Case(f"Linux {release}, 1 vCPU", guest.target, ("--no-user",), ("--vmlinux", str(vmlinux)))


@contextmanager
def avr_guest(directory: Path) -> Iterator[Case]:
    """A microcontroller."""
    program = build_avr(directory)
    with AvrGuest(program) as guest:
        yield Case("bare metal, AVR", guest.target, None, ("--gdb", "avr-gdb", "--elf", str(program)))


def measure(case: Case, engine: str, options: Sequence[str], rate: int, seconds: float, directory: Path) -> dict[str, Any]:
    """One recording. Raises subprocess.CalledProcessError where guestprof fails."""
    path = directory / "recording"
    own = ["record", "--connect", case.target, "--engine", engine, *options]
    subprocess.run(
        [sys.executable, "-m", "guestprof", *own, "-F", str(rate), "-d", str(seconds), "-o", str(path), "--force", "-q"], check=True
    )
    with Recording.open(path) as recording:
        profile = Profile(recording)
        quality = profile.quality()
        frames = [len(sample.callchain.frames) for sample in recording.samples()]
    return {
        "guest": case.name,
        "engine": engine,
        "requested_hz": rate,
        "achieved_hz": quality.achieved_hz,
        "halted_p50_us": (quality.halted_p50_ns or 0) / 1e3,
        "halted_p99_us": (quality.halted_p99_ns or 0) / 1e3,
        "halted_share": quality.halted_share,
        "complete_share": quality.complete_share,
        "frames": sum(frames) / len(frames),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a recording."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for row in rows:
        cells = [row["guest"], row["engine"], f"{row['requested_hz']} Hz", f"{row['achieved_hz']:.0f} Hz"]
        cells += [f"{row['halted_p50_us'] / 1e3:.2f} ms", f"{row['halted_p99_us'] / 1e3:.2f} ms", f"{row['halted_share']:.0%}"]
        cells += [f"{row['complete_share']:.1%}", f"{row['frames']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_table(lines: Sequence[str]) -> None:
    """Put it where the document has it."""
    text = _DOCUMENT.read_text("utf-8")
    head, _, rest = text.partition(_BEGIN)
    _old, _, tail = rest.partition(_END)
    _DOCUMENT.write_text(f"{head}{_BEGIN}\n\n" + "\n".join(lines) + f"\n\n{_END}{tail}", "utf-8")


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each recording")
    options = parser.parse_args()
    rows = []
    try:
        for make in (bare_guest, linux_guest, avr_guest):
            with ExitStack() as stack:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp-bench-")))
                case = stack.enter_context(make(directory))
                for rate in _RATES:
                    if case.own is not None:
                        rows.append(measure(case, "own", case.own, rate, options.seconds, directory))
                    rows.append(measure(case, "gdb", case.by_gdb, rate, options.seconds, directory))
    except GuestprofError as error:
        print(error, file=sys.stderr)
        return 1
    lines = table(rows)
    print("\n".join(lines))
    _RESULTS.write_text(json.dumps({"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows}, indent=1) + "\n")
    write_table(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
