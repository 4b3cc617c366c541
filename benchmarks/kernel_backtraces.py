"""Kernel backtraces: guestprof's callchain at a breakpoint against the one that the kernel itself prints there (sysrq "l").

For architectures whose stacks gdb cannot walk by DWARF. The guest writes to /proc/sysrq-trigger in several ways; each time it is
stopped at the handler's first instruction, unwound, and let go on to print its own backtrace.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._live import LiveGuest, live_guest
from guestprof.initramfs import Entry
from recording.errors import GuestprofError
from recording.model import Space
from tests.qemu.guests import MACHINES, PC

_RESULTS = Path(__file__).parent / "results" / "kernel_backtraces.json"
_HANDLER = "sysrq_handle_showallcpus"
_ANNOUNCED = "Show backtrace of all active CPUs"
_MARK = "guestprof: ready"
_PRINT_TIMEOUT_S = 30.0
_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t tmpfs tmp /tmp
echo l >/tmp/l
echo 8 >/proc/sys/kernel/printk
echo "{_MARK}"
while :; do
    sleep 2; echo l >/proc/sysrq-trigger
    sleep 2; dd if=/tmp/l of=/proc/sysrq-trigger bs=1 count=1 2>/dev/null
    sleep 2; cat /tmp/l | tee /proc/sysrq-trigger >/dev/null
    sleep 2; cp /tmp/l /proc/sysrq-trigger
done
"""
_FRAME = re.compile(r"(\?\s+)?\b([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+")


@dataclass(slots=True)
class Counts:
    """equal: backtraces of which every function that the kernel is certain of is guestprof's, in the same order."""

    architecture: str
    kernel: str
    compared: int = 0
    equal: int = 0
    different: list[dict[str, list[str]]] = field(default_factory=list)


def measure(live: LiveGuest, counts: Counts, stops: int) -> None:
    """Stop at the handler, unwind, compare with what is printed then. Raises GuestprofError."""
    handler = live.kernel.symbols.find(_HANDLER)
    if handler is None:
        raise GuestprofError(f"the kernel {counts.kernel} has no {_HANDLER} (CONFIG_MAGIC_SYSRQ); choose another one")
    for _stop in range(stops):
        live.run_to(handler.address)
        printed = len(live.guest.console_text())
        (capture,) = live.captures()
        frames = live.unwinder.unwind(capture).callchain.frames
        ours = [live.name(frame.lookup_pc) for frame in frames if frame.space is Space.KERNEL]
        live.step()
        live.run(0)
        theirs = printed_frames(live, printed)
        counts.compared += 1
        if theirs and theirs == ours[1 : 1 + len(theirs)] and len(ours) - 1 - len(theirs) <= 1:
            counts.equal += 1
        else:
            counts.different.append({"guestprof": ours, "kernel": theirs})


def printed_frames(live: LiveGuest, start: int) -> list[str]:
    """The functions behind the handler in the backtrace that the console shows from an offset on."""
    give_up = time.monotonic() + _PRINT_TIMEOUT_S
    before: list[str] = []
    while time.monotonic() < give_up:
        time.sleep(0.5)
        text = live.guest.console_text()[start:].partition(_ANNOUNCED)[2].partition(_ANNOUNCED)[0]
        names = [name for doubt, name in _FRAME.findall(text) if not doubt]
        first = next((index for index, name in enumerate(names) if name.startswith("__handle_sysrq")), None)
        if first is not None and names == before:
            return names[first:]
        before = names
    return []


def main() -> int:
    """Measure, print, and keep the result."""
    machines = {machine.name: machine for machine in (PC, *MACHINES)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--stops", type=int, default=8, help="backtraces of each architecture (default: 8)")
    parser.add_argument("--architecture", action="append", choices=list(machines), help="only this one (may be repeated)")
    options = parser.parse_args()
    found: list[Counts] = []
    try:
        for name in options.architecture or machines:
            init = Entry("init", 0o100755, _INIT.encode())
            with live_guest(machines[name], machines[name].suites[-1], files=[init], mark=_MARK) as live:
                found.append(Counts(name, live.kernel.release))
                measure(live, found[-1], options.stops)
            print(
                f"{name} {found[-1].kernel}: {found[-1].equal} of {found[-1].compared} equal {found[-1].different[:1]}", flush=True
            )
    except GuestprofError as error:
        print(f"kernel_backtraces: {error}", file=sys.stderr)
        return 1
    if not options.architecture:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python -m benchmarks.kernel_backtraces {' '.join(sys.argv[1:])}".strip(),
            "kernels": [
                {
                    "architecture": each.architecture,
                    "kernel": each.kernel,
                    "compared": each.compared,
                    "equal": each.equal,
                    "different": each.different,
                }
                for each in found
            ],
        }
        _RESULTS.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
