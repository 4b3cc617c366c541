"""What KVM does to samples and what samples do to a guest under KVM: a guest that keeps its own account tells.

The guest (``tests/guests/bare`` with TIMER) works in ring 3, is interrupted by the PIT a thousand times a second, and rests in hlt
now and then. It counts loops, ticks, ticks that came too close to the last, and the TSC's counts in ticks and in rests. Printed for
each kind of irqchip and rate: the shares that guestprof tells, beside those of the guest's account without a profiler.

    python -m benchmarks.kvm_traps [--seconds 4] [--accelerator kvm]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from recording.profile import Profile
from recording.reader import Recording
from sampler.qmp import Qmp
from tests.qemu.bare_guests import X86_64_RING3, BareGuest, build

RATES = (100, 500)
IRQCHIPS = ("on", "split", "off")
_LOOPS, _ACCOUNT = 3, 7
_LEAVES = ("leaf_five", "leaf_three", "leaf_two")


@dataclass(frozen=True, slots=True)
class Account:
    """What the guest has counted: loops by leaf, and the members of ``account`` in ``timer.h``. at_ns: host time."""

    loops: tuple[int, ...]
    account: tuple[int, ...]
    at_ns: int


@dataclass(frozen=True, slots=True)
class Course:
    """Between two accounts, shares of 1: of loops by leaf, of the TSC's counts in ticks and in rests; ticks a second of host time,
    the share of ticks that came within half a period of the last one, and the TSC's counts a second of host time.
    """

    leaves: tuple[float, ...]
    in_ticks: float
    in_rests: float
    ticks_hz: float
    close: float
    tsc_hz: float


class Monitor:
    """Reads the account out of a running guest."""

    def __init__(self, qmp: Path, kernel: Path) -> None:
        symbols = subprocess.run(["nm", str(kernel)], capture_output=True, text=True, check=True).stdout
        self._address = {name: int(address, 16) for address, _kind, name in (line.split() for line in symbols.splitlines())}
        self._qmp = Qmp.open(str(qmp))

    def _words(self, name: str, count: int) -> tuple[int, ...]:
        text = self._qmp.monitor(f"xp /{count}gx {self._address[name]:#x}")
        return tuple(int(word, 16) for word in re.findall(r"(?<=[: ])0x([0-9a-f]{16})", text))[:count]

    def account(self) -> Account:
        """Now."""
        return Account(self._words("loops", _LOOPS), self._words("account", _ACCOUNT), time.monotonic_ns())

    def close(self) -> None:
        """Let others use QMP."""
        self._qmp.close()


def between(before: Account, after: Account) -> Course:
    """What happened. The TSC is that of the last ticks, so that it is known to a period."""
    loops = [new - old for old, new in zip(before.loops, after.loops, strict=True)]
    _started, ticks, close, tsc, in_ticks, _rests, in_rests = (
        new - old for old, new in zip(before.account, after.account, strict=True)
    )
    seconds = (after.at_ns - before.at_ns) / 1e9
    return Course(
        tuple(each / sum(loops) for each in loops) if sum(loops) else (),
        in_ticks / tsc,
        in_rests / tsc,
        ticks / seconds,
        close / ticks,
        tsc / seconds,
    )


def shares_of(path: Path) -> tuple[tuple[float, ...], float, float, float | None, float, int]:
    """Of a recording: leaves among them, ticks, rests (idle), share halted, share whole, samples."""
    with Recording.open(path) as opened:
        profile = Profile(opened)
        quality = profile.quality()
        counts = profile.counts
    named = [({function.name for function in count.stack.functions}, count) for count in counts]
    total = sum(count.samples for count in counts)
    leaves = [sum(count.samples for names, count in named if name in names and "tick_entry" not in names) for name in _LEAVES]
    ticks = sum(count.samples for names, count in named if "tick_entry" in names)
    idle = sum(count.samples for _names, count in named if count.stack.idle)
    shares = tuple(each / max(1, sum(leaves)) for each in leaves)
    return shares, ticks / total, idle / total, quality.halted_share, quality.complete_share or 0.0, total


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--accelerator", default="kvm")
    parser.add_argument("--work", type=int, default=50, help="rounds between two rests; some hypervisors end a guest that rests")
    options = parser.parse_args()
    machine = replace(X86_64_RING3, flags=(*X86_64_RING3.flags, "-DTIMER", f"-DWORK={options.work}"))
    with tempfile.TemporaryDirectory(prefix="gp-kvm-") as name:
        directory = Path(name)
        kernel = build(machine, directory / "timer.elf")
        print(
            "irqchip  rate  leaves 5:3:2 %          ticks %      idle %       ticks/s  close %  TSC/s   halted %  whole %  samples"
        )
        for irqchip in IRQCHIPS if options.accelerator == "kvm" else ("-",):
            accelerator = options.accelerator + (f",kernel-irqchip={irqchip}" if irqchip != "-" else "")
            extra = ("-accel", accelerator, "-cpu", "qemu64", "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off")
            with BareGuest(machine, kernel, *extra) as guest:
                monitor = Monitor(directory / "qmp", kernel)
                before = monitor.account()
                time.sleep(options.seconds)
                alone = between(before, monitor.account())
                show(irqchip, 0, alone, alone.leaves, alone.in_ticks, alone.in_rests, "")
                for rate in RATES:
                    path = directory / f"{irqchip}-{rate}.guestprof"
                    command = [sys.executable, "-m", "guestprof", "record", "--connect", guest.target, "--elf", str(kernel)]
                    command += ["-F", str(rate), "-d", str(options.seconds), "-o", str(path)]
                    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                        assert process.stderr is not None
                        process.stderr.readline()  # it says that it begins
                        before = monitor.account()
                        time.sleep(options.seconds * 0.9)
                        course = between(before, monitor.account())
                    leaves, ticks, idle, halted, whole, samples = shares_of(path)
                    show(irqchip, rate, course, leaves, ticks, idle, f"{100 * (halted or 0):8.1f}  {100 * whole:7.2f}  {samples:7}")
                monitor.close()


def show(irqchip: str, rate: int, course: Course, leaves: tuple[float, ...], ticks: float, idle: float, rest: str) -> None:
    """A line of the table: shares by the samples (by the guest's account)."""
    told = "  ".join(f"{100 * each:4.1f}" for each in leaves)
    print(
        f"{irqchip:7} {rate:5}  {told}  {100 * ticks:5.1f} ({100 * course.in_ticks:4.1f})  {100 * idle:5.1f} "
        f"({100 * course.in_rests:4.1f})  {course.ticks_hz:7.0f}  {100 * course.close:7.1f}  {course.tsc_hz / 1e9:5.3f}G  {rest}",
        flush=True,
    )


if __name__ == "__main__":
    main()
