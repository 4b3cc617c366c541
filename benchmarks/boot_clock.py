"""Boots by guestprof, by printk's stamps and by ``systemd-analyze``: the same durations by each, and how exact guestprof's are.

    python -m benchmarks.boot_clock [--kernel 6.1] [--frequency 200]

Stock kernels boot the suite's Debian 12 root file system (tests/qemu/rootfs.py) under TCG, recorded from power-on. A unit that is
added to a copy of it prints what ``systemd-analyze`` says on the console once systemd calls the boot finished. The tables go into
docs/boot-clock.md.

What guestprof knows of a moment lies between two times by the guest's clock: the halt that showed it first and the one before; of a
line of the console, the look at it and the one before that. A difference from what the guest says itself is within that error, or
it is not, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from guestprof.debian import fetch_kernel
from recording.errors import GuestprofError
from recording.guest_clock import GuestClocks
from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from recording.stamps import stamp_of
from recording.timeline import Timeline, timeline_of
from recording.units import Unit, start_by_guest
from tests.qemu.debian_guest import DebianOptions, qemu_command
from tests.qemu.rootfs import root_image

_DOCUMENT = Path(__file__).parent.parent / "docs" / "boot-clock.md"
_BEGIN, _END = "<!-- python -m benchmarks.boot_clock -->", "<!-- end -->"
_SUITES = {"6.1": "bookworm", "6.12": "trixie"}
_MARK = "guestprof: analyzed"
_UNIT = f"""[Unit]
Description=What systemd says of the boot
[Service]
Type=simple
StandardOutput=tty
TTYPath=/dev/console
ExecStart=/bin/sh -c 'until systemd-analyze time; do sleep 0.2; done; systemd-analyze blame --no-pager | head -n 20; echo "{_MARK}"'
"""
_INTERVAL_NS = 4_000_000
"""Of the timekeeper: how much earlier than it is told the monotonic clock may be."""
_UNITS = "/etc/systemd/system"
_SYSTEMD = "/usr/lib/systemd/systemd"
_TIME = re.compile(r"(?:(\d+)min )?(?:(\d+(?:\.\d+)?)(us|ms|s))")
_FACTORS = {"us": 1e3, "ms": 1e6, "s": 1e9}
_STARTUP = re.compile(r"Startup finished in (.*) \(kernel\) \+ (.*) \(userspace\)")
_REACHED = re.compile(r"multi-user\.target reached after (.*) in userspace")
_BLAME = re.compile(r"\s*((?:\d+min )?\d+(?:\.\d+)?(?:us|ms|s)) (\S+\.\w+)\s*$")
_STAMPED = {
    "security_init": "LSM: ",
    "netlbl_init": "NetLabel: Initializing",
    "dquot_init": "VFS: Disk quotas",
    "pnpacpi_init": "pnp: PnP ACPI init",
    "system_trusted_keyring_init": "Initialise system trusted keyrings",
    "workingset_init": "workingset: timestamp_bits",
    "serial8250_init": "Serial: 8250/16550 driver",
    "mark_rodata_ro": "Write protecting the kernel read-only data",
    "run_init_process": "Run /init as init process",
}
"""Functions of the kernel, and the lines that they print when they begin."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that was seen at ``seen_ns`` of the guest's clock, and came between the other two; time_ns: running time."""

    earliest_ns: int
    seen_ns: int
    latest_ns: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Row:
    """A duration as the guest tells it, and as guestprof does, with what it may be at least and at most. All in nanoseconds."""

    what: str
    guest_ns: int
    ours_ns: int
    least_ns: int
    most_ns: int
    running_ns: int

    @property
    def is_within(self) -> bool:
        """Whether guestprof's error explains the difference."""
        return self.least_ns <= self.guest_ns <= self.most_ns

    def line(self) -> str:
        """Of a table in Markdown."""
        error = max(self.most_ns - self.ours_ns, self.ours_ns - self.least_ns)
        seconds = [f"{value / 1e9:.3f} s" for value in (self.guest_ns, self.ours_ns)]
        differs = f"{(self.ours_ns - self.guest_ns) / 1e6:+.1f} ms"
        within = "yes" if self.is_within else "**no**"
        cells = self.what, *seconds, differs, f"± {error / 1e6:.1f} ms", within, f"{self.running_ns / 1e9:.3f} s"
        return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure, print, and write the tables into the document. Exit status 1 where a difference is not explained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--frequency", type=float, default=200, help="halts a second (default: 200)")
    parser.add_argument("--kernel", action="append", choices=list(_SUITES), help="only this one (may be repeated)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the recordings there")
    options = parser.parse_args()
    lines: list[str] = []
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="gp-bench-") as name:
            directory = Path(name)
            image = image_with_unit(directory)
            for kernel in options.kernel or _SUITES:
                path = (options.keep or directory) / f"{kernel}.guestprof"
                console = record(kernel, image, directory, path, options.frequency)
                more, text = tables(kernel, path, console)
                rows += more
                lines += ["", *text]
                print("\n".join(text), flush=True)
    except (GuestprofError, subprocess.CalledProcessError) as error:
        print(f"boot_clock: {error}", file=sys.stderr)
        return 1
    if options.kernel is None:
        text_of = _DOCUMENT.read_text("utf-8")
        head, _, rest = text_of.partition(_BEGIN)
        _old, _, tail = rest.partition(_END)
        command = f"python -m benchmarks.boot_clock {' '.join(sys.argv[1:])}".strip()
        made = f"{datetime.now(UTC):%Y-%m-%d}, `{command}`."
        _DOCUMENT.write_text(f"{head}{_BEGIN}\n\n{made}\n" + "\n".join(lines) + f"\n\n{_END}{tail}", "utf-8")
    return 0 if all(row.is_within for row in rows) else 1


def image_with_unit(directory: Path) -> Path:
    """A copy of the suite's image with the unit, and without its workload. Raises GuestprofError, CalledProcessError."""
    raw, image, unit = directory / "image.raw", directory / "image.qcow2", directory / "analyze.service"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(root_image()), str(raw)], check=True)
    unit.write_text(_UNIT, "utf-8")
    wants = f"{_UNITS}/multi-user.target.wants"
    commands = directory / "commands"
    commands.write_text(
        f"write {unit} {_UNITS}/analyze.service\nsymlink {wants}/analyze.service {_UNITS}/analyze.service\n"
        f"rm {wants}/workload.service\n",
        "utf-8",
    )
    subprocess.run(["debugfs", "-w", "-f", str(commands), str(raw)], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(image)], check=True)
    return image


def record(kernel: str, image: Path, directory: Path, path: Path, frequency: float) -> str:
    """Boot and record one guest; what it wrote on its console. Raises CalledProcessError."""
    suite = _SUITES[kernel]
    console = directory / f"console-{kernel}"
    words = "loglevel=7 systemd.show_status=1"
    guest = qemu_command(DebianOptions(fetch_kernel(suite), suite, image, append=words), directory, console)
    options = ["-q", "--force", "-F", str(frequency), "-d", "120", "--until-console", _MARK, "-o", str(path)]
    subprocess.run([sys.executable, "-m", "guestprof", "boot", *options, "--", *guest], check=True, env=dict(os.environ))
    return console.read_text("utf-8", "replace")


def tables(kernel: str, path: Path, console: str) -> tuple[list[Row], list[str]]:
    """The rows, and the tables in Markdown. Raises GuestprofError where the guest did not say what is compared."""
    with Recording.open(path) as recording:
        profile = Profile(recording)
        timeline = timeline_of(profile)
        quality = profile.quality()
        own, halts = own_code(profile), profile.halt_times()
    clocks = timeline.clock.clocks
    rows = [*stamped(timeline, clocks), *analyzed(timeline, clocks, console, own, halts)]
    keeper = timeline.clock.agreement
    late = (
        "" if keeper is None else f"; {keeper.lines} stamped lines came {keeper.late_ns / 1e6:.1f} ms after their stamps (median)"
    )
    text = [
        f"Linux {kernel}: {quality.achieved_hz:.0f} halts a second, guest halted {quality.halted_share:.0%} of the time{late}.",
        "",
        "| duration | by the guest | by guestprof | difference | error | within | running time |",
        "|---|---|---|---|---|---|---|",
        *(row.line() for row in rows),
        "",
        *blame(timeline, clocks, console),
    ]
    return rows, text


def own_code(profile: Profile) -> tuple[int, int | None]:
    """Guest running time of the first halt with systemd's own code in a stack, and of the last of init before it was systemd.

    Between them, while its pages come from the disk, nothing of it may be on a vCPU. Raises GuestprofError.
    """
    before: int | None = None
    for seen in profile.sightings():
        modules = {function.module for function in seen.walk.stack.functions}
        if _SYSTEMD in modules:
            return seen.time_ns, before
        if seen.origin.process.pid == 1 and seen.origin.process.name != "systemd":
            before = seen.time_ns
    raise GuestprofError("no sample shows systemd's own code; record for longer")


def moment(clocks: GuestClocks, time_ns: int, after_ns: int | None) -> Moment:
    """Something that was seen first at a halt, and not yet in the one before. Raises GuestprofError."""
    clock = clocks.clock_at(time_ns)
    seen = None if clock is None else clock.at(time_ns)
    if clock is None or seen is None:
        raise GuestprofError("the guest's clock was not read")
    earlier_ns = time_ns if after_ns is None else after_ns
    before = clock.at(earlier_ns)
    earliest = (seen if before is None else before) - clock.margin_at(earlier_ns)
    return Moment(earliest, seen, seen + clock.margin_at(time_ns), time_ns)


def row(what: str, guest_ns: int, zero: Moment, end: Moment, slack_ns: int = 0) -> Row:
    """A duration between two moments. slack_ns: what the guest's own figure is exact to."""
    ours = end.seen_ns - zero.seen_ns
    least, most = end.earliest_ns - zero.latest_ns - slack_ns, end.latest_ns - zero.earliest_ns + slack_ns
    return Row(what, guest_ns, ours, least, most, end.time_ns - zero.time_ns)


def stamped(timeline: Timeline, clocks: GuestClocks) -> Iterator[Row]:
    """From the clock's start to the first sight of each function, by the stamps of the lines that they print."""
    for seen in timeline.functions:
        words = _STAMPED.get(seen.function.name) if seen.function.kind is FrameKind.KERNEL else None
        stamps = (stamp_of(line.text) for line in timeline.console if words is not None and words in line.text)
        stamp_ns = next(filter(None, stamps), None)
        if stamp_ns is not None:
            began = moment(clocks, seen.seen.first_ns, seen.seen.after_ns)
            yield row(f"the clock's start to `{seen.function.name}`", stamp_ns, zero_of(clocks), began)


def zero_of(clocks: GuestClocks) -> Moment:
    """Where the first boot's clock began, by guest running time."""
    clock = clocks.clocks[0]
    return Moment(0, 0, 0, next((time_ns for time_ns in clock.times_ns if clock.at(time_ns) is not None), 0))


def analyzed(
    timeline: Timeline, clocks: GuestClocks, console: str, own: tuple[int, int | None], halts: Sequence[int]
) -> Iterator[Row]:
    """What ``systemd-analyze`` says, by the monotonic clock and exact to a millisecond. Raises GuestprofError."""
    startup, reached = _STARTUP.search(console), _REACHED.search(console)
    if startup is None or reached is None:
        raise GuestprofError(f"systemd-analyze said nothing: {console[-300:]!r}")
    ahead_ns = next(iter(clocks.ahead.values()), 0)
    began = moment(clocks, *own)
    earliest, seen, latest = (shown + ahead_ns for shown in (began.earliest_ns, began.seen_ns, began.latest_ns))
    kernel = Moment(earliest, seen, latest, began.time_ns)
    yield row("`systemd-analyze`: kernel", _ns(startup[1]), zero_of(clocks), kernel, _INTERVAL_NS)
    target = next((each for each in timeline.units if each.name == "multi-user.target"), None)
    if target is None or target.started_ns is None:
        raise GuestprofError("the console does not say when multi-user.target was reached")
    before = max(0, bisect_right(halts, target.started_ns) - 2)
    end = moment(clocks, target.started_ns, halts[before])
    yield row("`systemd-analyze`: userspace, up to `multi-user.target`", _ns(reached[1]), began, end, 1_000_000)


def blame(timeline: Timeline, clocks: GuestClocks, console: str) -> list[str]:
    """Units by ``systemd-analyze blame`` and by guestprof."""
    units: dict[str, Unit] = {unit.name: unit for unit in timeline.units}
    found = [match for line in console.splitlines() if (match := _BLAME.match(line))]
    lines = ["| unit | `systemd-analyze blame` | start by guestprof | time used |", "|---|---|---|---|"]
    for match in found[:8]:
        unit = units.get(match[2])
        took = None if unit is None else start_by_guest(unit, clocks)
        used = None if unit is None or unit.seen is None else unit.seen.weight_ns
        lines.append(f"| `{match[2]}` | {_ns(match[1]) / 1e6:.0f} ms | {_cell(took)} | {_cell(used)} |")
    return lines


def _cell(value_ns: int | None) -> str:
    return "-" if value_ns is None else f"{value_ns / 1e6:.0f} ms"


def _ns(text: str) -> int:
    """``1min 2.345s``."""
    parts = _TIME.findall(text)
    return round(sum(float(minutes or 0) * 60e9 + float(number) * _FACTORS[unit] for minutes, number, unit in parts))


if __name__ == "__main__":
    sys.exit(main())
