"""Accuracy: kernel callchains as guestprof unwinds them, against those of drgn, which has an unwinder of its own (ORC and DWARF).

Stock Debian kernels with their ``-dbg`` packages of the same build, under TCG with the demo's mixed workload. At random moments the
guest is halted; guestprof takes and unwinds its capture, then drgn walks the same halted vCPU: it gets the registers, the guest's
physical memory and the kernel's own VMCOREINFO note, and translates addresses by itself. See docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import IO, Any

from benchmarks._live import LiveGuest, live_guest
from benchmarks._modules import LoadedModule, is_in, loaded_modules, module_workload, with_modules
from benchmarks._vmlinux import Vmlinux, read_vmlinux
from benchmarks.accuracy import find_vmlinux, slide
from guest.memory import run_steps
from guest.paging import PAGE_SIZE
from guest.vmcoreinfo import scan_vmcoreinfo
from guestprof.debian import fetch_kernel
from recording.errors import GuestprofError, MissingDependencyError
from recording.model import StackEnd
from sampler.rsp.registers import RegisterFile
from tests.qemu.guests import ARM64, PC, Machine
from unwind.capture import Capture

_RESULTS = Path(__file__).parent / "results" / "accuracy_drgn.json"
_VCPUS = 2
_MACHINES = {"amd64": PC, "arm64": ARM64}
_LEAST_EQUAL = 0.99
_PT_REGS = {
    "amd64": {
        **{name: name for name in "r15 r14 r13 r12 r11 r10 r9 r8".split()},
        **{short: f"r{short}" for short in "bp bx ax cx dx si di ip sp".split()},
        "flags": "eflags",
        **{name: name for name in ("cs", "ss")},
    },
    "arm64": {"sp": "sp", "pc": "pc", "pstate": "cpsr"},
}
"""Members of ``struct pt_regs`` and gdb's names of the registers; arm64's x0 to x30 are in an array, ``regs``."""


@dataclass(slots=True)
class Tally:
    """What was counted on one kernel. verdicts: stacks. in_modules: those in which guestprof has frames of modules.

    ends: of stacks of ours that are not equal, with drgn's last function.
    """

    release: str
    halts: int = 0
    stacks: int = 0
    frames: int = 0
    module_frames: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    in_modules: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)

    @property
    def equal_share(self) -> float:
        """Of the stacks that drgn can walk."""
        return self.verdicts["equal"] / max(
            1, self.verdicts["equal"] + self.verdicts["different"] + self.verdicts["guestprof ends early"]
        )


class Drgn:
    """drgn's view of a guest that stands still whenever it is asked."""

    def __init__(self, machine: Machine, live: LiveGuest, vmlinux: Vmlinux, modules: Sequence[LoadedModule]) -> None:
        """Raises MissingDependencyError without drgn, GuestprofError where the guest has no VMCOREINFO note."""
        try:
            import drgn  # noqa: PLC0415  (no dependency of guestprof's)
        except ImportError as error:
            raise MissingDependencyError("this benchmark compares with drgn: pip install drgn") from error
        self._drgn = drgn
        self._machine = machine
        self.offset = slide(live.kernel, vmlinux)
        self.vmlinux = with_modules(vmlinux, modules, self.offset)
        self.modules = modules
        memory = live.session.memory
        architecture = {"amd64": drgn.Architecture.X86_64, "arm64": drgn.Architecture.AARCH64}[machine.name]
        self._program = drgn.Program(drgn.Platform(architecture))
        for start, end in memory.ram():
            self._program.add_memory_segment(
                start, end - start, lambda address, count, _offset, _physical: memory.read(address, count), physical=True
            )
        note = run_steps(scan_vmcoreinfo(memory, lambda note: bool(note.symbols)))
        if note is None:
            raise GuestprofError("the guest's memory holds no VMCOREINFO note, without which drgn cannot find its kernel")
        text = memory.read(note.physical, PAGE_SIZE).partition(b"\0")[0]
        self._program.set_linux_kernel_custom(text, is_live=True)
        self._program.load_debug_info([str(vmlinux.path), *(str(module.path) for module in modules)])

    def walk(self, registers: RegisterFile) -> list[tuple[int, str]]:
        """Program counters and functions, leaf first, without inlined frames."""
        values: dict[str, Any] = {member: registers[name] for member, name in _PT_REGS[self._machine.name].items()}
        if self._machine is ARM64:
            values["regs"] = [registers[f"x{number}"] for number in range(31)]
        pt_regs = self._drgn.Object(self._program, "struct pt_regs", value=values)
        try:
            trace = self._program.stack_trace(pt_regs)
        except (self._drgn.FaultError, LookupError, ValueError):
            return []
        return [(frame.pc, frame.name or "") for frame in trace if not frame.is_inline]


def measure(suite: str, machine: Machine, halts: int, rng: Random, details: IO[str]) -> Tally:
    """Boot a suite's kernel and compare. Raises GuestprofError."""
    vmlinux = read_vmlinux(find_vmlinux(suite, machine.name, fetch_kernel(suite, machine.name).name.partition("-")[2]))
    with live_guest(machine, suite, files=module_workload(machine, suite), vcpus=_VCPUS) as live:
        tally = Tally(live.kernel.release)
        modules = loaded_modules(live.guest.console_text(), vmlinux)
        print(f"Linux {tally.release}: drgn reads {vmlinux.path.name} and {len(modules)} modules", file=sys.stderr, flush=True)
        drgn = Drgn(machine, live, vmlinux, modules)
        for _ in range(halts):
            live.run(rng.uniform(0.001, 0.020))
            tally.halts += 1
            for capture in live.captures():
                if not live.session.architecture.is_user(capture.registers):
                    compare(live, drgn, capture, tally, details)
    return tally


def compare(live: LiveGuest, drgn: Drgn, capture: Capture, tally: Tally, details: IO[str]) -> None:
    """Unwind one vCPU of the halted guest both ways, and count what came of it."""
    assert isinstance(capture.registers, RegisterFile)
    chain = live.unwinder.unwind(capture).callchain
    ours, theirs = [frame.pc for frame in chain.frames], drgn.walk(capture.registers)
    tally.stacks += 1

    def knows(place: int) -> bool:
        return drgn.vmlinux.has_frame_information(ours[place] - (place > 0) - drgn.offset)

    of_modules = sum(is_in(drgn.modules, frame.lookup_pc) for frame in chain.frames)
    verdict = verdict_of(ours, [pc for pc, _name in theirs], knows, is_entry=chain.end is StackEnd.ENTRY_WINDOW)
    tally.verdicts[verdict] += 1
    if of_modules:
        tally.in_modules[verdict] += 1
    if verdict == "equal":
        tally.frames += len(ours)
        tally.module_frames += of_modules
        return
    tally.where[f"{verdict}: {theirs[-1][1] if theirs else '-'}"] += 1
    row = {
        "kernel": tally.release,
        "verdict": verdict,
        "end": chain.end,
        "ours": [f"{pc:#x} {live.name(pc - (index > 0))}" for index, pc in enumerate(ours)],
        "drgn": [f"{pc:#x} {name}" for pc, name in theirs],
    }
    details.write(json.dumps(row) + "\n")


def verdict_of(ours: Sequence[int], theirs: Sequence[int], knows: Callable[[int], bool], *, is_entry: bool) -> str:
    """What a comparison came to. drgn goes on behind entry code, into registers of user code, where a chain of ours has ended.

    knows: whether DWARF says how to unwind from a place in a chain of ours. Where it does not, drgn takes the frame pointer's word,
    and misses the callers of assembler code that has made no frame.
    """
    if is_entry or not theirs:
        return "not compared"
    if list(theirs[: len(ours)]) == list(ours):
        return "equal" if len(theirs) <= len(ours) + 1 else "guestprof ends early"
    if list(ours[: len(theirs)]) == list(theirs):
        return "not compared"
    first = next((place for place, (own, other) in enumerate(zip(ours, theirs, strict=False)) if own != other), 0)
    if first and theirs[first - 1] == theirs[first]:
        return "drgn goes round in a circle"
    return "drgn leaves out callers of code without DWARF" if _leaves_out(ours, theirs, knows) else "different"


def _leaves_out(ours: Sequence[int], theirs: Sequence[int], knows: Callable[[int], bool]) -> bool:
    """Whether ours is drgn's chain with frames more, all of them behind code without DWARF."""
    place = 0
    for index, pc in enumerate(ours):
        if place < len(theirs) and pc == theirs[place]:
            place += 1
        elif index == 0 or (knows(index - 1) and ours[index - 1] in theirs):
            return False
    return place >= len(theirs) - 1


def main() -> int:
    """Run from the repository: ``python -m benchmarks.accuracy_drgn``; exit status 1 where it cannot, or below 99 % equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy_drgn", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--halts", type=int, default=500, help="random halts of each kernel (default: 500)")
    parser.add_argument("--suite", action="append", help="Debian suite whose kernel to run (default: bookworm and trixie)")
    parser.add_argument("--machine", action="append", choices=list(_MACHINES), help="default: both")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    parser.add_argument("--details", type=Path, default=Path(tempfile.gettempdir()) / "guestprof-accuracy-drgn.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=_RESULTS, help="where to write the result")
    options = parser.parse_args()
    rng, start_s, tallies = Random(options.seed), time.monotonic(), []
    try:
        with options.details.open("w") as details:
            for name in options.machine or _MACHINES:
                for suite in options.suite or ("bookworm", "trixie"):
                    tally = measure(suite, _MACHINES[name], options.halts, rng, details)
                    tallies.append((name, tally))
                    print(f"{name} {tally.release}: {tally.halts} halts, {tally.stacks} kernel stacks, {dict(tally.verdicts)}")
                    print(f"  through modules: {dict(tally.in_modules)}, {tally.module_frames} frames in equal ones", flush=True)
    except GuestprofError as error:
        print(f"accuracy_drgn: {error}", file=sys.stderr)
        return 1
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.accuracy_drgn --halts {options.halts} --seed {options.seed}",
        "guest": f"TCG, {_VCPUS} vCPUs, KASLR and mitigations as shipped, the demo's mixed workload, overlay and loop at work",
        "duration_s": round(time.monotonic() - start_s),
        "kernels": [
            {
                "architecture": name,
                "kernel": tally.release,
                "halts": tally.halts,
                "kernel_stacks": tally.stacks,
                "frames_in_equal_stacks": tally.frames,
                "frames_of_modules_in_equal_stacks": tally.module_frames,
                "verdicts": dict(tally.verdicts.most_common()),
                "through_modules": dict(tally.in_modules.most_common()),
                "differences": dict(tally.where.most_common()),
            }
            for name, tally in tallies
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0 if all(tally.equal_share >= _LEAST_EQUAL for _name, tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
