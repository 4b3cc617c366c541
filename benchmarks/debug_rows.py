"""What debug files change in kernel stacks: the same captures unwound by the guest's memory alone, and with its kernel's files.

Stock Debian kernels under TCG with one instruction per translation block, so that halts fall on every instruction. Which of two
different stacks is true this cannot say: ``accuracy_elsewhere`` and ``leaf_rule --debug-files`` do. See docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from random import Random

from benchmarks._live import LiveGuest, live_guest
from benchmarks.accuracy import debug_files
from recording.errors import GuestprofError
from recording.model import Callchain
from tests.qemu.guests import MACHINES, PC

_SHOWN = 5


def measure(live: LiveGuest, halts: int, rng: Random) -> tuple[Counter[str], Counter[bool]]:
    """(stacks by what the files changed, frames by whether a file's row unwound them). Prints some that differ."""
    verdicts, frames = Counter[str](), Counter[bool]()
    for _halt in range(halts):
        live.run(rng.uniform(0.001, 0.020))
        captures = live.captures()
        debug = live.kernel.debug
        if debug is None:
            raise GuestprofError("the files are not of the guest's kernel; fetch both packages again")
        for capture in captures:
            if live.session.architecture.is_user(capture.registers):
                continue
            alone, helped = (each.unwind(capture).callchain for each in (live.plain_unwinder(), live.unwinder))
            if not helped.end.is_kernel:
                continue
            code = live.kernel.code_map()
            for frame in helped.frames:
                row = code.find_row(frame.lookup_pc)
                frames[row is not None and row.otherwise is not None] += 1
            verdict = compare(alone, helped)
            verdicts[verdict] += 1
            if verdict != "equal" and verdicts[verdict] <= _SHOWN:
                for name, chain in (("alone", alone), ("with files", helped)):
                    print(f"  {name}: {' '.join(live.name(frame.lookup_pc) for frame in chain.frames)}; {chain.end.value}")
    return verdicts, frames


def compare(alone: Callchain, helped: Callchain) -> str:
    """In words."""
    if (alone.frames, alone.end) == (helped.frames, helped.end):
        return "equal"
    first, second = ([frame.pc for frame in chain.frames] for chain in (alone, helped))
    if first == second[: len(first)]:
        return "goes on"
    return "ends earlier" if second == first[: len(second)] else "another one"


def main() -> int:
    """Measure and print."""
    machines = {machine.name: machine for machine in (PC, *MACHINES)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--halts", type=int, default=250, help="random halts of each kernel (default: 250)")
    parser.add_argument("--architecture", action="append", choices=list(machines), help="only this one (may be repeated)")
    parser.add_argument("--suite", action="append", help="only this one's kernels (may be repeated; default: the newest)")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    options = parser.parse_args()
    rng = Random(options.seed)
    try:
        for name in options.architecture or machines:
            for suite in options.suite or machines[name].suites[-1:]:
                with live_guest(machines[name], suite, vcpus=machines[name].vcpus, host=debug_files(suite, name)) as live:
                    live.guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
                    verdicts, frames = measure(live, options.halts, rng)
                    share = frames[True] / max(1, frames.total())
                    what = f"{name} {live.kernel.release}: {verdicts.total()} stacks, {dict(verdicts)}"
                    print(f"{what}; a file's row unwinds {share:.1%} of the frames", flush=True)
    except GuestprofError as error:
        print(f"debug_rows: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
