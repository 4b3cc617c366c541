"""Accuracy on architectures other than x86-64: kernel callchains against those of gdb-multiarch by the kernel's own DWARF.

As ``benchmarks/accuracy.py`` does it for x86-64: stock Debian kernels with their ``-dbg`` packages, random halts of the demo's
mixed workload, the same halted vCPU walked by both: by what the guest's memory tells alone, and with ``--vmlinux`` and
``--symbol-dir``. See docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import IO, Any

from benchmarks._gdb import PAGE, Gdb, ReadPage
from benchmarks._kernels import KERNELS, KernelEntry, ReadWord
from benchmarks._live import LiveGuest, live_guest
from benchmarks._modules import loaded_modules, module_workload, with_modules
from benchmarks._vmlinux import Vmlinux, read_vmlinux
from benchmarks.accuracy import debug_files, find_vmlinux, page_reader, slide
from guestprof.debian import fetch_kernel
from recording.errors import GuestprofError
from recording.model import Callchain, StackEnd
from tests.qemu.guests import MACHINES, Machine
from unwind.arch import Registers
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder

_RESULTS = Path(__file__).parent / "results" / "accuracy_elsewhere.json"
_MAX_CONTEXTS = 8


@dataclass(slots=True)
class Counts:
    """What was counted on one kernel. modules: [start, end) of their code. verdicts: of stacks in kernel mode.

    has_files: by debug files, too. in_modules: of those in which guestprof has frames of modules.
    """

    architecture: str
    kernel: str
    vcpus: int
    has_files: bool
    modules: tuple[tuple[int, int], ...] = ()
    halts: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    in_modules: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    lost_in: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Truth:
    """gdb's chain, leaf first. lost: "" where it goes to the end, else the last function and gdb's own reason.

    helped: how often gdb was set on again behind assembler code.
    """

    pcs: tuple[int, ...]
    lost: str
    helped: int


class TruthFinder:
    """Asks one gdb about one running kernel."""

    def __init__(self, gdb: Gdb, entry: KernelEntry, vmlinux: Vmlinux, offset: int) -> None:
        """``offset``: run-time addresses minus those of vmlinux."""
        self._gdb = gdb
        self._entry = entry
        self._vmlinux = vmlinux
        self._offset = offset
        low, high = (vmlinux.symbols.find(name) if name else None for name in entry.entry_text)
        self._entry_text = (low.address + offset, high.address + offset) if low and high else (0, 0)

    def name(self, address: int) -> str:
        """The function at an address."""
        symbol = self._vmlinux.symbols.find_at(address - self._offset)
        return symbol.name if symbol else hex(address)

    def _is_entry(self, address: int) -> bool:
        return self._entry_text[0] <= address < self._entry_text[1] or self.name(address).startswith(
            self._entry.functions or ("\0",)
        )

    def _is_root(self, pc: int, lookup_pc: int) -> bool:
        symbol = self._vmlinux.symbols.find_at(pc - self._offset)
        # A new task returns to the very start of its first code; the byte before belongs to another function.
        starts = symbol is not None and symbol.address + self._offset == pc and symbol.name in self._entry.roots
        return starts or self.name(lookup_pc) in self._entry.roots

    def find(self, registers: Registers, read_page: ReadPage) -> Truth | None:
        """Walk a halted vCPU in kernel mode; None where it stands in entry code, or in a copy of that
        outside of the image, of which gdb knows nothing.
        """
        layout = self._entry.layout
        pc = registers[self._entry.pc]
        if self._is_entry(pc) or not self._vmlinux.range_starts[0] <= pc - self._offset < self._vmlinux.range_ends[-1]:
            return None

        def read_word(address: int) -> int | None:
            page = read_page(address - address % PAGE) if address % 8 == 0 else None
            data = page[address % PAGE : address % PAGE + 8] if page else None
            return None if data is None else int.from_bytes(data, layout.byteorder)

        pcs: list[int] = []
        current: Mapping[str, int] | None = registers
        is_call = False
        helped = 0
        why = ""
        while current is not None and helped < _MAX_CONTEXTS:
            walk = self._gdb.walk(layout.encode(current), read_page)
            kept: Mapping[str, int] = current
            if not walk.frames:
                pcs.append(current[self._entry.pc])
            current, why = None, walk.stop
            for index, frame in enumerate(walk.frames):
                lookup_pc = frame.pc - 1 if index or is_call else frame.pc
                pcs.append(frame.pc)
                if len(pcs) > 1 and self._is_root(frame.pc, lookup_pc):
                    return Truth(tuple(pcs), "", helped)
                kept = dict(zip(layout.kept, frame.registers, strict=True))
                is_call = self.name(lookup_pc).startswith(self._entry.switch[0])
                if is_call:
                    current = _known(self._entry.switch[1](kept, read_word))
                elif self._is_entry(lookup_pc):
                    current = self._interrupted(kept, read_word)
                    if current is not None and self._is_user(current):
                        return Truth(tuple(pcs), "", helped)
                else:
                    continue
                why = "no registers"
                break
            else:
                if self._entry.undefined and self._entry.undefined in walk.stop:
                    current, is_call = _known(self._entry.switch[1](kept, read_word)), True
            helped += 1
        return Truth(tuple(pcs), f"{self.name(pcs[-1] - 1)}: {why}", helped)

    def _interrupted(self, kept: Mapping[str, int], read_word: ReadWord) -> Mapping[str, int] | None:
        """The registers that entry code has saved, by its frame's."""
        place = self._entry.saved(kept, read_word)
        return None if place is None else _known({name: read_word(place + at) for name, at in self._entry.places.items()})

    def _is_user(self, saved: Mapping[str, int]) -> bool:
        name, mask, value = self._entry.mode
        return saved[name] & mask == value


def _known(values: Mapping[str, int | None]) -> dict[str, int] | None:
    """None where one of them is not known."""
    found = {name: value for name, value in values.items() if value is not None}
    return found if len(found) == len(values) else None


def measure(machine: Machine, suite: str, halts: int, rng: Random, details: IO[str]) -> tuple[Counts, Counts]:
    """Boot a suite's kernel and compare, without and with its debug information. Raises GuestprofError."""
    image = fetch_kernel(suite, machine.name, tell=_tell)
    vmlinux = read_vmlinux(find_vmlinux(suite, machine.name, image.name.partition("-")[2]))
    entry = KERNELS[machine.name]
    host = debug_files(suite, machine.name)
    with live_guest(machine, suite, files=module_workload(machine, suite), vcpus=machine.vcpus, host=host) as live:
        offset = slide(live.kernel, vmlinux)
        modules = loaded_modules(live.guest.console_text(), vmlinux)
        _tell(f"{machine.name}, Linux {live.kernel.release}: gdb reads {vmlinux.path.name}, moved by {offset:#x}")
        places = tuple(place for module in modules for place in module.sections.values())
        without, with_files = (Counts(machine.name, live.kernel.release, machine.vcpus, each, places) for each in (False, True))
        both = without, with_files
        files = [f"symbol-file -o {offset:#x} {vmlinux.path}", *(module.gdb_command for module in modules)]
        with Gdb(files, entry.layout) as gdb:
            finder = TruthFinder(gdb, entry, with_modules(vmlinux, modules, offset), offset)
            for _halt in range(halts):
                live.run(rng.uniform(0.001, 0.020))
                captures = live.captures()
                unwinders = live.plain_unwinder(), live.unwinder
                for counts in both:
                    counts.halts += 1
                for capture in captures:
                    if not live.session.architecture.is_user(capture.registers):
                        compare(live, finder, capture, zip(both, unwinders, strict=True), details)
    return both


def compare(
    live: LiveGuest, finder: TruthFinder, capture: Capture, sides: Iterable[tuple[Counts, KernelUnwinder]], details: IO[str]
) -> None:
    """Unwind one vCPU of the halted guest by each unwinder and by gdb, and count what came of it."""
    truth, is_asked = None, False
    for counts, unwinder in sides:
        chain = unwinder.unwind(capture).callchain
        if not chain.end.is_kernel:
            continue
        # Where an exception was just taken, the frame behind the first one is the code that it has interrupted.
        has_taken = len(chain.frames) > 1 and chain.frames[1].lookup_pc == chain.frames[1].pc
        is_entry = chain.end is StackEnd.ENTRY_WINDOW or has_taken
        if not is_entry and not is_asked:
            truth, is_asked = finder.find(capture.registers, page_reader(live.session.target, capture.vcpu)), True
        verdict = count(counts, chain, None if is_entry else truth)
        if truth is not None and not is_entry and verdict not in ("equal", "equal, helped"):
            details.write(json.dumps(describe(counts, finder, chain, truth, verdict, capture.registers)) + "\n")


def count(counts: Counts, chain: Callchain, truth: Truth | None) -> str:
    """The verdict on a stack, counted. truth: None where the vCPU stands in entry code."""
    ours = tuple(frame.pc for frame in chain.frames)
    if truth is None:
        verdict = "in entry code"
    elif truth.lost:
        counts.lost_in[truth.lost] += 1
        whole = len(truth.pcs) - 1
        verdict = "gdb lost, equal up to there" if ours[:whole] == truth.pcs[:whole] else "gdb lost, and differs before"
    elif ours == truth.pcs:
        counts.frames += len(ours)
        verdict = "equal, helped" if truth.helped else "equal"
    else:
        verdict = "different"
    counts.verdicts[verdict] += 1
    if any(start <= frame.lookup_pc < end for frame in chain.frames for start, end in counts.modules):
        counts.in_modules[verdict] += 1
    return verdict


def describe(
    counts: Counts, finder: TruthFinder, chain: Callchain, truth: Truth, verdict: str, registers: Registers
) -> dict[str, Any]:
    """A stack that is not equal, with what is needed to judge it."""
    return {
        "kernel": counts.kernel,
        "architecture": counts.architecture,
        "debug_files": counts.has_files,
        "verdict": verdict,
        "end": chain.end,
        "lost": truth.lost,
        "ours": [f"{frame.pc:#x} {finder.name(frame.lookup_pc)}" for frame in chain.frames],
        "gdb": [f"{pc:#x} {finder.name(pc - bool(index))}" for index, pc in enumerate(truth.pcs)],
        "registers": {name: f"{value:#x}" for name, value in registers.items()},
    }


def compared(counts: Counts) -> tuple[int, int]:
    """(equal, all) of the stacks in which gdb got to the end."""
    equal = counts.verdicts["equal"] + counts.verdicts["equal, helped"]
    return equal, equal + counts.verdicts["different"]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run from the repository; exit status 1 if it cannot run or less than 98 % of a kernel's stacks are equal."""
    machines = {machine.name: machine for machine in MACHINES if machine.name in KERNELS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--halts", type=int, default=500, help="random halts of each kernel (default: 500)")
    parser.add_argument("--architecture", action="append", choices=list(machines), help="only this one (may be repeated)")
    parser.add_argument("--suite", action="append", help="only this one's kernels (may be repeated)")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    parser.add_argument("--details", type=Path, default=Path(tempfile.gettempdir()) / "guestprof-accuracy-elsewhere.jsonl")
    parser.add_argument("-o", "--output", type=Path, help="where to write the result (default: beside the others, of all kernels)")
    options = parser.parse_args()
    rng = Random(options.seed)
    found: list[Counts] = []
    try:
        with options.details.open("w") as details:
            for name in options.architecture or machines:
                for suite in options.suite or machines[name].suites:
                    for counts in measure(machines[name], suite, options.halts, rng, details):
                        found.append(counts)
                        equal, total = compared(counts)
                        share = f"{equal / total:.2%}" if total else "-"
                        what = f"{name} {counts.kernel}, {'with debug files' if counts.has_files else 'memory alone'}"
                        print(f"{what}: equal {equal} of {total} ({share}); {dict(counts.verdicts)}", flush=True)
                        print(f"  of them through modules: {dict(counts.in_modules)}", flush=True)
    except GuestprofError as error:
        print(f"accuracy_elsewhere: {error}", file=sys.stderr)
        return 1
    print(f"stacks that differ or that gdb does not finish: {options.details}")
    output = options.output or (None if options.architecture or options.suite else _RESULTS)
    if output is not None:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python -m benchmarks.accuracy_elsewhere {' '.join(sys.argv[1:])}".strip(),
            "kernels": [
                {
                    "architecture": each.architecture,
                    "kernel": each.kernel,
                    "vcpus": each.vcpus,
                    "debug_files": each.has_files,
                    "halts": each.halts,
                    "verdicts": dict(each.verdicts),
                    "through_modules": dict(each.in_modules),
                    "frames_in_equal_stacks": each.frames,
                    "lost_in": dict(each.lost_in),
                }
                for each in found
            ],
        }
        output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0 if all(equal >= 0.98 * total for equal, total in map(compared, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
