"""armhf programs: user stacks, as guestprof tells them, against the calls that the program has made so far.

Debian's programs run in QEMU's user mode emulation, one instruction after the other at the word of this benchmark, which judges:
an instruction that leaves its successor's address in the link register and goes elsewhere was a call, and the call has returned
when execution is back there with the stack pointer of then. From the program's entry point on nothing is missed. At random moments
guestprof's unwinder gets the registers and the memory. This needs qemu-arm (Debian's package qemu-user).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from guest.elf.file import ElfFile, open_elf
from guest.elf.rows import UserRows
from guest.elf.symbols import read_symbols
from guest.user.contents import BytesContents
from guestprof.debian import fetch_package
from recording.errors import GuestprofError
from recording.model import UserEnd
from recording.symbols import SymbolTable
from unwind.arch.armhf import ARMHF
from unwind.checked_rows import CheckedCodeRows
from unwind.user import Region, UserUnwinder, UserWalk

_RESULTS = Path(__file__).parent / "results" / "arm_programs.json"
_ABI = ARMHF.user_abis[0]
_BASE = 1 << 32
"""Where QEMU puts the program's address 0."""
_NAMES = (*(f"r{number}" for number in range(13)), "sp", "lr", "pc")
_CPSR = 328
"""Digits in front of it in the reply to ``g``: 16 words, 8 registers of 12 bytes, and one word that no processor has any more."""
_THUMB = 1 << 5
_SHOWN = 8
_MAX_WRONG = 40
_START_TIMEOUT_S, _POLL_S = 20.0, 0.02
_SUITES = ("bookworm", "trixie")
_LIBRARIES = (
    *("libc6", "libtinfo6", "libstdc\\+\\+6", "libgcc-s1", "libexpat1", "zlib1g", "liblzma5", "libselinux1", "libpcre2-8-0"),
    *("libacl1", "libattr1", "libgmp10", "libssl3|libssl3t64", "libzstd1"),
)
_PACKAGES = ("bash", "busybox-static", "python3\\.1[13]-minimal", "xz-utils", "ninja-build", "coreutils", "grep", "openssl")
_SCRIPT = "f() { local i; for i in 1 2 3; do echo $((i * $1)) ${2//a/b} $(g $i); done; }; g() { printf '%s' $1; }; f 7 banana"
_TRAP = "trap 'echo $((1 + 2))' USR1; for i in 1 2 3 4 5 6; do kill -USR1 $$; done"
_PYTHON = "import sys; print(sorted([str(n ** 3) for n in range(99)], key=lambda s: s[::-1])[:3], sys.version)"
_PROGRAMS = (
    ("bash", "-c", _SCRIPT),
    ("bash", "-c", _TRAP),
    (
        "busybox",
        "awk",
        'BEGIN { for (i = 0; i < 99; i++) s = s sprintf("%d %x,", i * i, i); print s; gsub(/1+/, "<&>", s); print s }',
    ),
    ("busybox", "sha256sum", "/etc/passwd"),
    ("python3", "-S", "-E", "-c", _PYTHON),
    ("xz", "-9", "--stdout", "/etc/passwd"),
    ("ninja", "-C", "/nonexistent"),
    ("sort", "-n", "/etc/passwd"),
    ("grep", "-E", "(ro+t|[a-d]x?){2,}.*:", "/etc/passwd"),
    ("openssl", "dgst", "-sha3-256", "/etc/passwd"),
)


@dataclass(slots=True)
class Counts:
    """verdicts: of stacks. wrong: some that differ, as ours and the calls that were made."""

    suite: str
    program: str
    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, object]] = field(default_factory=list)


class Process:
    """A program that QEMU's user mode emulation runs, instruction by instruction."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._socket = connection
        self._buffer = b""
        self._acknowledgement = b""
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        self._pid = pid

    def close(self) -> None:
        """Leave it alone."""
        os.close(self._memory)

    def request(self, packet: bytes) -> bytes:
        """Send one, get the reply. Raises EOFError when the program has ended."""
        self._socket.sendall(b"%s$%s#%02x" % (self._acknowledgement, packet, sum(packet) & 0xFF))
        self._acknowledgement = b"+"
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start)
            if 0 <= start < end <= len(self._buffer) - 3:
                reply = self._buffer[start + 1 : end]
                self._buffer = self._buffer[end + 3 :]
                return reply
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._buffer += data

    def step(self, command: bytes = b"s") -> int:
        """Execute one instruction; the signal that is due, 0 for none. Raises EOFError at the end."""
        reply = self.request(command)
        if reply[:1] in (b"W", b"X"):
            raise EOFError
        signal = int(reply[1:3], 16)
        return 0 if signal == 5 else signal

    def registers(self) -> dict[str, int]:
        """All of them."""
        reply = self.request(b"g")
        words = [int.from_bytes(bytes.fromhex(reply[at : at + 8].decode()), "little") for at in (*range(0, 128, 8), _CPSR)]
        return dict(zip((*_NAMES, "cpsr"), words, strict=True))

    def read(self, address: int, size: int) -> bytes | None:
        """Memory of the program."""
        try:
            data = os.pread(self._memory, size, _BASE + address)
        except OSError:
            return None
        return data if len(data) == size else None

    def mappings(self) -> Iterator[tuple[int, int, int, str]]:
        """(start, end, offset, file) of what is mapped of files."""
        for line in Path(f"/proc/{self._pid}/maps").read_text("utf-8").splitlines():
            parts = line.split(maxsplit=5)
            low, high = (int(part, 16) for part in parts[0].split("-"))
            if len(parts) == 6 and _BASE <= low < 2 * _BASE and parts[5].startswith("/"):
                yield low - _BASE, high - _BASE, int(parts[2], 16), parts[5]


class Code:
    """What a process has mapped, as ``unwind.user.UserCode``."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._regions: list[tuple[Region, SymbolTable]] = []
        self._files: dict[str, tuple[ElfFile, SymbolTable]] = {}
        self.biases: list[int] = []
        """By the image of a frame."""

    def entry(self, name: str) -> int:
        """Where the program begins, whose file has a name that begins so."""
        self._find(0)
        found = (path for path in self._files if path.rpartition("/")[2].startswith(name))
        elf = self._files[next(found)][0]
        return next(region.entry + region.bias for region, _symbols in self._regions if region.entry and elf.entry == region.entry)

    def _find(self, address: int) -> tuple[Region, SymbolTable] | None:
        for _again in range(2):
            for known in self._regions:
                if known[0].start <= address < known[0].end:
                    return known
            self._regions = list(self._read())
        return None

    def find_region(self, address: int) -> Region | None:
        """The mapping at an address."""
        known = self._find(address)
        return None if known is None else known[0]

    def _read(self) -> Iterator[tuple[Region, SymbolTable]]:
        for start, end, offset, path in self._process.mappings():
            contents = Path(path).read_bytes()
            if not contents.startswith(b"\x7fELF"):
                continue
            if path not in self._files:
                elf = open_elf(BytesContents(contents), is_final=True)
                assert elf is not None
                steps = read_symbols(elf)
                while True:
                    try:
                        next(steps)
                    except StopIteration as done:
                        self._files[path] = elf, done.value.table
                        break
            elf, symbols = self._files[path]
            bias = elf.bias(start, offset, is_executable=True)
            if bias is not None and any(
                part.is_executable and start < part.address + bias + part.file_size for part in elf.segments
            ):
                self.biases.append(bias)
                rows = UserRows(elf, ARMHF.user_abis)
                yield (
                    Region(start, end, bias, len(self.biases) - 1, rows, elf.entry, None, CheckedCodeRows(elf.read, _ABI)),
                    symbols,
                )

    def name(self, address: int) -> str:
        """The function at an address."""
        known = self._find(address)
        if known is None:
            return f"{address:#x}"
        found = known[1].find_at(address - known[0].bias)
        where = f"{address - known[0].bias:#x}"
        return where if found is None or not found.name else f"{found.name}+{address - known[0].bias - found.address:#x} ({where})"


def measure(process: Process, code: Code, counts: Counts, seconds: float, rng: Random) -> None:
    """Step through the program, and compare at random moments."""
    unwinder = UserUnwinder(ARMHF)
    calls: list[tuple[int, int]] = []
    give_up = time.monotonic() + seconds
    registers = process.registers()
    due, wait = 0, 1
    while time.monotonic() < give_up:
        wait -= 1
        if not wait:
            wait = rng.randrange(1, 300)
            known = dict(registers)
            walk = unwinder.unwind(known, process.read, code, None)
            judge(walk, [registers["pc"], *(address for address, _sp in reversed(calls))], code, counts)
        before = registers
        try:
            due = process.step(b"S%02x" % due if due else b"s")
            registers = process.registers()
        except EOFError:
            return
        pc, sp = registers["pc"], registers["sp"]
        while calls and sp > calls[-1][1]:
            calls.pop()
        if calls and (pc, sp) == calls[-1]:
            calls.pop()
            continue
        after = following(process, before)
        link = registers["lr"] & ~1
        if pc != after and link == after:
            calls.append((link, sp))
        elif sp < before["sp"] - 160 and process.read(link, 2) is not None and is_handler(process, registers, before):
            calls += [(before["pc"], before["sp"]), (link, sp)]


def is_handler(process: Process, registers: dict[str, int], before: dict[str, int]) -> bool:
    """Whether a signal handler has just been called: the kernel saves the registers of before above its stack pointer."""
    saved = process.read(registers["sp"], 160 + 64)
    pc = before["pc"].to_bytes(4, "little")
    return saved is not None and pc in (saved[32 + 60 : 32 + 64], saved[160 + 60 : 160 + 64])


def following(process: Process, registers: dict[str, int]) -> int:
    """The address behind the instruction at the pc."""
    pc = registers["pc"]
    half = process.read(pc, 2) or b"\0\0"
    return pc + (2 if registers["cpsr"] & _THUMB and half[1] >> 3 < 0b11101 else 4)


def judge(walk: UserWalk, addresses: Sequence[int], code: Code, counts: Counts) -> None:
    """Compare a stack with the addresses that its frames must have."""
    own = [frame.pc + (0 if frame.image is None else code.biases[frame.image]) for frame in walk.frames]
    if own == list(addresses):
        verdict = "whole" if walk.end is UserEnd.THREAD_START else f"all frames, then {walk.end.value}"
    elif own == list(addresses[: len(own)]) and walk.end is not UserEnd.THREAD_START:
        verdict = f"short: {walk.end.value}"
    else:
        verdict = "wrong"
    counts.verdicts[verdict] += 1
    if verdict != "whole" and len(counts.wrong) < _MAX_WRONG:
        names = [[code.name(each) for each in chain[:_SHOWN]] for chain in (own, addresses)]
        counts.wrong.append({"verdict": verdict, "guestprof": names[0], "calls": names[1]})


def make_root(suite: str, directory: Path) -> Path:
    """Debian's programs and libraries as they are installed. Raises MissingDependencyError."""
    for name in ("bin", "lib", "sbin"):
        (directory / "usr" / name).mkdir(parents=True)
        (directory / name).symlink_to(f"usr/{name}")
    for name in (*_LIBRARIES, *_PACKAGES):
        shutil.copytree(fetch_package(suite, "armhf", name), directory, symlinks=True, dirs_exist_ok=True)
    return directory


@contextmanager
def started(root: Path, program: Sequence[str]) -> Iterator[Process]:
    """A program that stands at its first instruction, in the dynamic loader if it has one."""
    path = next(iter(sorted((root / "usr/bin").glob(f"{program[0]}*"), key=lambda path: (len(path.name), path.name))))
    stub = root / "stub"
    command = ["qemu-arm", "-B", f"{_BASE:#x}", "-L", str(root), "-g", str(stub), "-0", program[0], str(path), *program[1:]]
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + _START_TIMEOUT_S
        while not stub.exists():
            if qemu.poll() is not None or time.monotonic() > give_up:
                raise GuestprofError(f"{' '.join(command)} did not start (status {qemu.poll()})")
            time.sleep(_POLL_S)
        with socket.socket(socket.AF_UNIX) as connection:
            while connection.connect_ex(str(stub)):
                time.sleep(_POLL_S)
            process = Process(connection, qemu.pid)
            try:
                yield process
            finally:
                process.close()
    finally:
        qemu.kill()
        qemu.wait()
        stub.unlink(missing_ok=True)


def run(root: Path, counts: Counts, program: Sequence[str], seconds: float, rng: Random) -> None:
    """Measure one program from its entry point on."""
    with started(root, program) as process:
        code = Code(process)
        process.request(b"qSupported")
        entry = code.entry(program[0])
        process.request(b"Z0,%x,2" % entry)
        try:
            process.step(b"c")
        except EOFError as error:
            raise GuestprofError(f"{program[0]} ended in the dynamic loader: a package is missing from _LIBRARIES") from error
        process.request(b"z0,%x,2" % entry)
        measure(process, code, counts, seconds, rng)


def main() -> int:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each program, unless it ends before (default: 60)")
    parser.add_argument("--suite", action="append", choices=_SUITES, help="only this one (may be repeated)")
    parser.add_argument("--program", action="append", help="only those of this name (may be repeated)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--all", action="store_true", help="show all stacks that are not whole")
    options = parser.parse_args()
    found: list[Counts] = []
    rng = Random(options.seed)
    try:
        for suite in options.suite or _SUITES:
            with tempfile.TemporaryDirectory(prefix="gp-bench-") as directory:
                root = make_root(suite, Path(directory))
                for program in _PROGRAMS:
                    if options.program is None or program[0] in options.program:
                        found.append(Counts(suite, " ".join(program)[:40]))
                        run(root, found[-1], program, options.seconds, rng)
                        print(f"{suite} {found[-1].program}: {dict(found[-1].verdicts)}", flush=True)
                        for each in found[-1].wrong if options.all else ():
                            print(json.dumps(each, indent=1))
    except GuestprofError as error:
        print(f"arm_programs: {error}", file=sys.stderr)
        return 1
    total = sum((counts.verdicts for counts in found), Counter())
    print(f"all: {dict(total)}, {total['whole'] / max(1, total.total()):.2%} whole")
    if not (options.suite or options.program):
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python -m benchmarks.arm_programs {' '.join(sys.argv[1:])}".strip(),
            "programs": [
                {"suite": each.suite, "program": each.program, "verdicts": dict(each.verdicts), "not_whole": each.wrong}
                for each in found
            ],
        }
        _RESULTS.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
