"""Leaf rule: the caller of the function in which a vCPU was halted, as guestprof tells it, against where that function returns to.

A halt may fall into a function that has not saved its return address yet, never does, or has restored it. So the guest is halted
at random moments, its stack unwound, and then stepped, instruction by instruction, until the function returns. This disturbs the
guest, which is why it is no part of guestprof.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from benchmarks._live import NO_FILES, LiveGuest, live_guest
from benchmarks.accuracy import debug_files
from recording.errors import GuestprofError
from recording.model import StackEnd
from recording.symbols import Symbol
from tests.qemu.guests import MACHINES, PC
from unwind.arch import Registers

_RESULTS = Path(__file__).parent / "results" / "leaf_rule.json"
_MAX_STEPS = 3000
_MAX_ENTRY_POINT = 8
"""Bytes from a function's start to where it may be jumped to (ELFv2: the local entry point)."""


@dataclass(slots=True)
class Counts:
    """verdicts: of halts in the kernel. plain: those without debug files, where such are used."""

    architecture: str
    kernel: str
    verdicts: Counter[str] = field(default_factory=Counter)
    plain: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, str]] = field(default_factory=list)


def find_return(live: LiveGuest, registers: Registers) -> int | None:
    """Step out of the function at the registers' PC: where it returns to. None where it does not within some thousand steps, or

    an exception comes in between.
    """
    arch, symbols = live.session.architecture, live.kernel.symbols
    abi = arch.user_abis[-1]
    link = abi.registers[abi.return_column] if abi.registers[abi.return_column] != abi.pc else ""
    code = arch.kernel_code
    function = symbols.find_at(registers[arch.pc])
    if function is None:
        return None
    # Return addresses of calls that were made since, and the stack pointers there.
    calls: list[tuple[int, int]] = []
    before: Registers = registers
    for _step in range(_MAX_STEPS):
        now = live.step()
        pc, sp = now[arch.pc], now[arch.sp]
        if not live.kernel.text.contains(pc):
            return None
        if calls:
            if (pc, sp) == calls[-1]:
                calls.pop()
        elif not _is_in(function, pc):
            return_to = now[link] if link else live.word(sp)
            is_call = _is_in(function, return_to - 1) and (bool(link) or sp == before[arch.sp] - arch.pointer_size)
            target = symbols.find_at(pc)
            before_pc = live.kernel.text.read(pc - code.call_size, code.call_size)
            is_return = before_pc is not None and code.follows_call(before_pc)
            if is_call:
                calls.append((return_to, before[arch.sp]))
            elif target is not None and pc - target.address <= _MAX_ENTRY_POINT and pc != return_to and not is_return:
                function = target
            else:
                return pc
        before = now
    return None


def _is_in(function: Symbol, address: int) -> bool:
    return function.address <= address < function.address + function.size


def measure(live: LiveGuest, counts: Counts, halts: int, rng: Random) -> None:
    """Halt, unwind, step out, compare; where there are debug files, without and with them."""
    arch = live.session.architecture
    count = 0
    while count < halts:
        live.run(rng.uniform(0.001, 0.020))
        (capture,) = live.captures()
        if arch.is_user(capture.registers):
            continue
        chain = live.unwinder.unwind(capture).callchain
        if not chain.end.is_kernel or chain.end is StackEnd.ENTRY_WINDOW or len(chain.frames) < 2:
            continue
        leaf, caller = chain.frames[:2]
        function = live.kernel.symbols.find_at(leaf.pc)
        if function is None or caller.lookup_pc == caller.pc or _is_in(function, caller.pc):
            # An exception was just taken; or a recursion, whose returns look like jumps.
            continue
        expected = caller.pc
        found = find_return(live, capture.registers)
        count += 1
        verdict = _verdict(found, expected)
        counts.verdicts[verdict] += 1
        if live.kernel.debug is not None:
            plain = live.plain_unwinder().unwind(capture).callchain.frames
            counts.plain[_verdict(found, plain[1].pc if len(plain) > 1 else 0)] += 1
        if verdict == "different" and found is not None:
            places = {"halted": chain.frames[0].pc, "told": expected, "returned_to": found}
            counts.wrong.append({name: _place(live, address) for name, address in places.items()})


def _verdict(found: int | None, expected: int) -> str:
    return "not finished" if found is None else "equal" if found == expected else "different"


def _place(live: LiveGuest, address: int) -> str:
    symbol = live.kernel.symbols.find_at(address)
    return f"{symbol.name}+{address - symbol.address:#x}" if symbol else f"{address:#x}"


def main() -> int:
    """Measure, print, and keep the result."""
    machines = {machine.name: machine for machine in (PC, *MACHINES)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--halts", type=int, default=150, help="halts in the kernel of each architecture (default: 150)")
    parser.add_argument("--architecture", action="append", choices=list(machines), help="only this one (may be repeated)")
    parser.add_argument("--debug-files", action="store_true", help="unwind by the kernel's debug files, too")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    options = parser.parse_args()
    rng = Random(options.seed)
    found: list[Counts] = []
    try:
        for name in options.architecture or machines:
            suite = machines[name].suites[-1]
            with live_guest(machines[name], suite, host=debug_files(suite, name) if options.debug_files else NO_FILES) as live:
                found.append(Counts(name, live.kernel.release))
                live.guest.execute("human-monitor-command", **{"command-line": "singlestep on"})
                measure(live, found[-1], options.halts, rng)
            print(f"{name} {found[-1].kernel}: {dict(found[-1].verdicts)} {found[-1].wrong}", flush=True)
            if found[-1].plain:
                print(f"  without debug files: {dict(found[-1].plain)}", flush=True)
    except GuestprofError as error:
        print(f"leaf_rule: {error}", file=sys.stderr)
        return 1
    if not options.architecture and not options.debug_files:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python -m benchmarks.leaf_rule {' '.join(sys.argv[1:])}".strip(),
            "kernels": [
                {"architecture": each.architecture, "kernel": each.kernel, "verdicts": dict(each.verdicts), "different": each.wrong}
                for each in found
            ],
        }
        _RESULTS.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
