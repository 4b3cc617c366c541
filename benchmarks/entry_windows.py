"""Exceptions: what one has interrupted, as guestprof tells it of a halt in entry code, against what the guest returns to.

The guest is halted at random moments; where that is in entry code and the stack goes on with what was interrupted, a breakpoint is
set there. When the guest comes to it, in kernel mode the stack must be the one that was told, frame by frame; in user mode the
registers that a function must keep. Others may come to that place before (another process, the exception's own handler): so it is
waited for a few times. This disturbs the guest, which is why it is no part of guestprof.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from random import Random

from benchmarks._live import LiveGuest, live_guest
from recording.errors import GuestprofError
from recording.model import StackEnd
from tests.qemu.guests import MACHINES
from unwind.capture import Capture
from unwind.outside import Unwound

_ARRIVALS = 50
_PATIENCE_S = 1.0


def is_met(live: LiveGuest, told: Unwound) -> bool:
    """Whether the guest comes to what was interrupted, and finds there what was told."""
    arch, user = live.session.architecture, told.user_registers
    frames = told.callchain.frames[1:]
    # Behind a system call, or an instruction that the kernel has done itself, the program goes on with the next one.
    places = (
        [frames[0].pc] if frames else [] if user is None else [user[arch.pc], user[arch.pc] + arch.user_abis[-1].system_call_size]
    )
    for arrival in range(_ARRIVALS):
        if arrival:
            live.step()
        live.run_to(*places, timeout_s=_PATIENCE_S)
        (capture,) = live.captures()
        if frames:
            now = live.unwinder.unwind(capture).callchain
            if now.frames == frames and now.end is told.callchain.end:
                return True
        elif user is not None and _has_kept(live, capture, user):
            return True
    return False


def _has_interrupted(live: LiveGuest, told: Unwound) -> bool:
    """Whether the innermost frame is one of an exception."""
    frames = told.callchain.frames
    if len(frames) == 1:
        return told.callchain.end is StackEnd.USER_ENTRY
    code = live.session.architecture.kernel_code
    return frames[1].lookup_pc == frames[1].pc and live.name(frames[1].pc) not in code.return_labels | code.task_roots


def _has_kept(live: LiveGuest, capture: Capture, user: Mapping[str, int]) -> bool:
    arch = live.session.architecture
    abi = arch.user_abis[-1]
    names = [name for name in (abi.sp, *abi.callee_saved) if name in user]
    return arch.is_user(capture.registers) and all(capture.registers[name] == user[name] for name in names)


def measure(live: LiveGuest, halts: int, rng: Random) -> tuple[Counter[str], list[list[str]]]:
    """Verdicts, and the functions of the stacks that were not met again."""
    arch = live.session.architecture
    verdicts: Counter[str] = Counter()
    missed: list[list[str]] = []
    while verdicts["met"] + verdicts["not met"] < halts:
        live.run(rng.uniform(0.001, 0.010))
        (capture,) = live.captures()
        if arch.is_user(capture.registers):
            continue
        told = live.unwinder.unwind(capture)
        chain = told.callchain
        verdicts["kernel stacks"] += 1
        if chain.end is StackEnd.ENTRY_WINDOW:
            verdicts["entry windows"] += 1
        if not chain.end.is_proper or not _has_interrupted(live, told):
            continue
        try:
            verdict = "met" if is_met(live, told) else "not met"
        except GuestprofError:
            verdict = "nothing came"
        verdicts[verdict] += 1
        verdicts[f"{verdict}, {'kernel' if len(chain.frames) > 1 else 'user'}"] += 1
        if verdict != "met":
            missed.append([live.name(frame.pc) for frame in chain.frames])
    return verdicts, missed


def main() -> int:
    """Measure and print."""
    machines = {machine.name: machine for machine in MACHINES}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--halts", type=int, default=200, help="exceptions of each architecture (default: 200)")
    parser.add_argument("--architecture", action="append", choices=list(machines), help="only this one (may be repeated)")
    parser.add_argument("--suite", help="of the kernel (default: the newest that has one)")
    parser.add_argument("--single", action="store_true", help="one instruction per translation block")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    options = parser.parse_args()
    rng = Random(options.seed)
    try:
        for name in options.architecture or machines:
            with live_guest(machines[name], options.suite or machines[name].suites[-1]) as live:
                if options.single:
                    live.guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
                verdicts, missed = measure(live, options.halts, rng)
                print(f"{name} {live.kernel.release}: {json.dumps(dict(verdicts))}", *missed, sep="\n  ", flush=True)
    except GuestprofError as error:
        print(f"entry_windows: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
