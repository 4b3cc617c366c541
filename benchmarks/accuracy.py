"""Accuracy: kernel callchains as guestprof unwinds them, against those that gdb computes from the kernel's own DWARF.

Stock Debian kernels with their ``-dbg`` packages of the same build, under TCG with the demo's mixed workload. At random moments
the guest is halted; guestprof takes and unwinds its capture, then gdb walks the same halted vCPU. See docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import IO, Any

from benchmarks._gdb import PAGE, Gdb, ReadPage
from benchmarks._live import live_guest
from benchmarks._modules import loaded_modules, module_workload, with_modules
from benchmarks._tally import FINISHED, Tally, result, table
from benchmarks._truth import Truth, TruthFinder
from benchmarks._verdict import Verdict, compare_chains
from benchmarks._vmlinux import Vmlinux, read_vmlinux
from guest.host_files import HostFiles
from guest.kernel import Kernel
from guestprof.debian import fetch_kernel, fetch_package
from recording.errors import BadImageError, GuestprofError, MissingDependencyError
from recording.model import Callchain, StackEnd
from sampler.rsp.registers import RegisterFile
from sampler.target import HaltedState, Read, Target
from sampler.tracker import KernelTracker
from tests.qemu.guests import PC, QEMU
from unwind.capture import Capture

_RESULTS = Path(__file__).parent / "results" / "accuracy.json"
_VCPUS = 2


class _OnePage:
    """Reads one page of a guest that stands still."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def probes(self) -> Sequence[Read]:
        return (self._read,)

    def plan(self, _state: HaltedState) -> tuple[Sequence[Read], bool]:
        return (), True


def page_reader(target: Target, vcpu: int) -> ReadPage:
    """Reads pages of the halted guest as one vCPU sees them; each page once, as it cannot change before the guest goes on."""
    pages: dict[int, bytes | None] = {}

    def read_page(address: int) -> bytes | None:
        if address not in pages:
            read = Read(vcpu, address, PAGE)
            pages[address] = target.capture(_OnePage(read), resume=False).reads[read]
        return pages[address]

    return read_page


def measure(suite: str, halts: int, rng: Random, details: IO[str]) -> Tally:
    """Boot a suite's kernel and compare. Raises GuestprofError."""
    kernel_image = fetch_kernel(suite, tell=_tell)
    vmlinux = read_vmlinux(find_vmlinux(suite, PC.name, kernel_image.name.partition("-")[2]))
    with live_guest(PC, suite, files=module_workload(PC, suite), vcpus=_VCPUS) as live:
        offset = slide(live.kernel, vmlinux)
        modules = loaded_modules(live.guest.console_text(), vmlinux)
        tally = Tally(live.kernel.release, tuple(place for module in modules for place in module.sections.values()))
        _tell(f"Linux {tally.release}: gdb reads {vmlinux.path.name}, moved by {offset:#x}")
        with Gdb([f"symbol-file -o {offset:#x} {vmlinux.path}", *(module.gdb_command for module in modules)]) as gdb:
            finder = TruthFinder(gdb, with_modules(vmlinux, modules, offset), offset)
            for halt in range(halts):
                live.run(rng.uniform(0.001, 0.020))
                tally.halts += 1
                for capture in live.captures():
                    tally.states += 1
                    if not live.session.architecture.is_user(capture.registers):
                        compare(live.session.target, live.tracker, finder, capture, tally, details)
                if sys.stderr.isatty() and halt % 20 == 0:
                    print(f"\r{halt + 1}/{halts}", end="", file=sys.stderr, flush=True)
    return tally


def compare(target: Target, tracker: KernelTracker, finder: TruthFinder, capture: Capture, tally: Tally, details: IO[str]) -> None:
    """Unwind one vCPU of the halted guest both ways, and count what came of it."""
    assert tracker.unwinder is not None
    assert isinstance(capture.registers, RegisterFile)
    chain = tracker.unwinder.unwind(capture).callchain
    if chain.end is StackEnd.BAD_RETURN_ADDRESS:
        tracker.want_refresh()
    truth = finder.find(capture.registers.raw, page_reader(target, capture.vcpu))
    comparison = compare_chains(chain, truth)
    tally.add(chain, truth, comparison)
    if comparison.verdict is not Verdict.EQUAL:
        details.write(json.dumps(describe(tally.release, tracker, capture, chain, truth, comparison.verdict)) + "\n")


def describe(
    release: str, tracker: KernelTracker, capture: Capture, chain: Callchain, truth: Truth, verdict: Verdict
) -> dict[str, Any]:
    """A stack that is not equal, with all that is needed to judge it."""
    assert tracker.kernel is not None
    symbols = tracker.kernel.symbols
    ours = []
    for frame in chain.frames:
        symbol = symbols.find_at(frame.lookup_pc)
        name = f"{symbol.name}+{frame.pc - symbol.address:#x}" if symbol else ""
        ours.append([f"{frame.pc:#x}", name, "guess" if frame.guess else ""])
    return {
        "kernel": release,
        "vcpu": capture.vcpu,
        "verdict": verdict,
        "reach": truth.reach,
        "where": truth.where,
        "traps": truth.traps,
        "switches": truth.switches,
        "end": chain.end,
        "ours": ours,
        "gdb": [[f"{f.pc:#x}", f.name, "dwarf" if f.has_dwarf else "no dwarf", f.is_entry, f.on_switch] for f in truth.frames],
        "registers": {name: f"{value:#x}" for name, value in capture.registers.items()},
        "memory": [[f"{address:#x}", data.hex()] for address, data in capture.memory],
    }


def find_vmlinux(suite: str, architecture: str, release: str) -> Path:
    """The file with DWARF of the ``-dbg`` package of a kernel release."""
    package = fetch_package(suite, architecture, re.escape(f"linux-image-{release}-dbg"), tell=_tell)
    found = next(package.glob(f"usr/lib/debug/**/vmlinux-{release}"), None)
    if found is None:
        raise MissingDependencyError(f"package {package.name} holds no vmlinux; delete {package} and run this again")
    return found


def debug_files(suite: str, architecture: str) -> HostFiles:
    """What a user would give of that package: vmlinux, and the directory with the modules' files."""
    vmlinux = find_vmlinux(suite, architecture, fetch_kernel(suite, architecture).name.partition("-")[2])
    return HostFiles(vmlinux, (next(each for each in vmlinux.parents if each.name == "debug"),))


def slide(kernel: Kernel, vmlinux: Vmlinux) -> int:
    """By how much KASLR has moved the kernel. Raises BadImageError where vmlinux is of another build."""
    # A kernel without CONFIG_KALLSYMS_ALL does not say where its notes are; the package's name has its release.
    if kernel.build_id not in (None, vmlinux.build_id):
        raise BadImageError(
            f"the guest runs build {kernel.build_id}, {vmlinux.path} is {vmlinux.build_id}: the archive has published a newer "
            "version between the two packages; delete both from guestprof's package cache and run this again"
        )
    running, linked = kernel.symbols.find("_stext"), vmlinux.symbols.find("_stext")
    assert running is not None
    assert linked is not None
    return running.address - linked.address


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _version(program: str) -> str:
    if shutil.which(program) is None:
        raise MissingDependencyError(
            f"this benchmark needs {program}, which is not installed (Debian: apt install gdb qemu-system-x86)"
        )
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main() -> int:
    """Run from the repository: ``python -m benchmarks.accuracy``; exit status 1 if it cannot run or less than 99 % are equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--halts", type=int, default=1100, help="random halts of each kernel (default: 1100)")
    parser.add_argument("--suite", action="append", help="Debian suite whose kernel to run (default: bookworm and trixie)")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    parser.add_argument("--details", type=Path, default=Path(tempfile.gettempdir()) / "guestprof-accuracy.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=_RESULTS, help="where to write the result")
    options = parser.parse_args()
    try:
        programs = {name: _version(name) for name in (QEMU, "gdb")}
        start_s = time.monotonic()
        rng = Random(options.seed)
        with options.details.open("w") as details:
            tallies = [measure(suite, options.halts, rng, details) for suite in options.suite or ("bookworm", "trixie")]
    except GuestprofError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    for tally in tallies:
        print(f"\nLinux {tally.release}")
        for name, value in table(tally):
            print(f"  {name:<108}{value:>16}")
    print(f"\nstacks that differ or that gdb does not finish: {options.details}")
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.accuracy --halts {options.halts} --seed {options.seed}",
        "programs": programs,
        "guest": f"TCG, {_VCPUS} vCPUs, KASLR and mitigations as shipped, the demo's mixed workload, overlay and loop at work",
        "duration_s": round(time.monotonic() - start_s),
        "kernels": [result(tally) for tally in tallies],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    equal, total = (sum(t.of(FINISHED, verdict) for t in tallies) for verdict in (Verdict.EQUAL, None))
    return 0 if equal >= 0.99 * total else 1


if __name__ == "__main__":
    sys.exit(main())
