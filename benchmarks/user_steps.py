"""User stacks of architectures whose programs have unwind data for few functions, against where their functions really return to.

Debian's own programs run under QEMU's user-mode emulation, which is stepped instruction by instruction through its gdb stub. Each
call and each return is seen, so that the true stack is known at every step. At random steps guestprof walks the stack by the
registers, the memory and the programs' files, and the two are compared frame by frame.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Self

from guest.elf.file import ElfFile, open_elf
from guest.elf.function_starts import FunctionStarts
from guest.elf.rows import UserRows
from guest.user.contents import BytesContents
from guestprof.debian import fetch_package
from recording.errors import GuestprofError, MissingDependencyError
from recording.model import UserEnd
from sampler.rsp.codec import PacketReader, encode_packet
from unwind.arch import Architecture
from unwind.arch.i386 import I386
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mipsel import MIPSEL
from unwind.code_rows import CodeRows
from unwind.instructions import Instruction
from unwind.rules import Row
from unwind.user import Region, UserUnwinder
from unwind.user_abi import UserAbi

_RESULTS = Path(__file__).parent / "results" / "user_steps.json"
_SUITE = "bookworm"
_GUEST_BASE = 0x10_0000_0000
"""Where QEMU puts the program's address 0, so that the process' own map tells where its files are."""
_GUEST_END = 1 << 40
_TIMEOUT_S = 60.0
_PAUSE = 32
"""Steps between two halts, on average."""
_PACKAGES = (
    *("libc6", "bash", "bash-static", "busybox-static", "dash", "perl-base", "python3.11-minimal", "coreutils", "gawk"),
    *("libtinfo6", "libcrypt1", "libselinux1", "libpcre2-8-0", "libgmp10", "zlib1g", "libexpat1", "libgcc-s1", "libmpfr6"),
    *("libreadline8", "libsigsegv2"),
)
_SCRIPT = "f() { local i=0; while [ $i -lt 9 ]; do i=$((i+1)); case $i in 3) echo ${x/b/c};; esac; done; }; x=abc; f; trap f USR1; "
_SIGNAL = "kill -USR1 $$; g=$(f); f | f; echo $g"
PROGRAMS: tuple[tuple[str, ...], ...] = (
    ("bin/bash-static", "-c", _SCRIPT + _SIGNAL),
    ("bin/bash", "-c", _SCRIPT + _SIGNAL),
    ("bin/dash", "-c", "f() { i=$(($1+1)); [ $i -gt 5 ] || f $i; }; f 0; trap 'f 0' USR1; kill -USR1 $$; echo *"),
    ("bin/busybox", "sh", "-c", "f() { i=$(($1+1)); [ $i -gt 5 ] || f $i; }; f 0; echo * | sort"),
    ("bin/busybox", "awk", 'BEGIN { for (i = 0; i < 40; i++) s = s sprintf("%d,%f", i * i, i / 7); gsub(/1+/, "x", s); print s }'),
    ("usr/bin/perl", "-e", 'sub f { $_[0] ? f($_[0] - 1) : join(",", sort { $b <=> $a } 1..20) } print f(5) =~ s/1\\d/x/gr;'),
    ("usr/bin/python3.11", "-S", "-c", "print(sorted(str(i ** 9) for i in range(20)))"),
    ("bin/ls", "-lR", "/proc/self/"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture: QEMU's program, the registers of its stub's ``g``, whether calls push their return addresses."""

    architecture: Architecture
    qemu: str
    registers: tuple[tuple[str, int], ...]
    pushes: bool

    @property
    def abi(self) -> UserAbi:
        """Of its programs."""
        return self.architecture.user_abis[-1]


_I386_REGISTERS = tuple((name, 4) for name in "eax ecx edx ebx esp ebp esi edi eip".split())
TARGETS = (
    Target(MIPSEL, "qemu-mipsel", MIPSEL.fixed_registers[:38], pushes=False),
    Target(MIPS64EL, "qemu-mips64el", MIPS64EL.fixed_registers[:38], pushes=False),
    Target(I386, "qemu-i386", _I386_REGISTERS, pushes=True),
)


class Program:
    """A program under user-mode emulation, which stands still between the methods."""

    def __init__(self, target: Target, root: Path, command: Sequence[str], directory: Path) -> None:
        """Started, and halted before its first instruction."""
        self._target = target
        path = directory / "gdb"
        arguments = ["-B", f"{_GUEST_BASE:#x}", "-singlestep", "-L", str(root), "-g", str(path)]
        environment = {"PATH": "/bin:/usr/bin", "LC_ALL": "C"}
        self._output = (directory / "output").open("wb")
        self._process = subprocess.Popen(
            [target.qemu, *arguments, str(root / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environment,
            cwd=directory,
        )
        self._socket = _connect(path)
        self._reader = PacketReader()
        self._acknowledgement = b""
        self._request(b"?")
        self._memory = os.open(f"/proc/{self._process.pid}/mem", os.O_RDONLY)

    def close(self) -> None:
        """End it, by its process id."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        os.close(self._memory)
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _answer(self) -> bytes:
        while (packet := self._reader.next_packet()) is None:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("QEMU has ended")
            self._reader.feed(data)
        return packet

    def _request(self, payload: bytes) -> bytes:
        # User-mode emulation reads the acknowledgement of its last answer by itself, before it reads the next packet.
        self._socket.sendall(self._acknowledgement + encode_packet(payload))
        self._acknowledgement = b"+"
        return self._answer()

    def registers(self) -> dict[str, int]:
        """As they are."""
        return self._parse(self._request(b"g"))

    def _parse(self, answer: bytes) -> dict[str, int]:
        data, found, position = bytes.fromhex(answer.decode()), {}, 0
        for name, size in self._target.registers:
            found[name] = int.from_bytes(data[position : position + size], self._target.architecture.byteorder)
            position += size
        return found

    def run_to(self, address: int) -> None:
        """Up to an address."""
        for request in (b"Z0,%x,4", b"c", b"z0,%x,4"):
            self._request(request % address if b"%" in request else request)

    def step(self) -> tuple[dict[str, int], int | None] | None:
        """One instruction: the registers behind it, and where a signal has interrupted it. None where the program has ended."""
        try:
            stop, interrupted = self._request(b"s"), None
            while stop[:1] == b"T" and not stop.startswith(b"T05"):
                # A signal is about to be delivered: the step is still to come.
                interrupted = self.registers()[self._target.abi.pc]
                stop = self._request(b"vCont;S%b" % stop[1:3])
            return None if stop[:1] in (b"W", b"X") else (self._parse(self._request(b"g")), interrupted)
        except ConnectionError:
            return None

    def read(self, address: int, size: int) -> bytes | None:
        """Its memory."""
        try:
            data = os.pread(self._memory, size, _GUEST_BASE + address)
        except OSError:
            return None
        return data if len(data) == size else None

    def mappings(self) -> list[tuple[int, int, int, str]]:
        """(start, end, offset, path) of each piece of a file, and of executable memory of none, whose path is ""."""
        found = []
        for line in Path(f"/proc/{self._process.pid}/maps").read_text("utf-8").splitlines():
            place, mode, offset, _device, _inode, *path = line.split(maxsplit=5)
            low, high = (int(part, 16) - _GUEST_BASE for part in place.split("-"))
            if low >= 0 and (path or "r" in mode) and high < _GUEST_END:
                found.append((low, high, int(offset, 16), path[0] if path and path[0].startswith("/") else ""))
        return found


def _connect(path: Path) -> socket.socket:
    give_up = time.monotonic() + _TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > give_up:
                raise GuestprofError("QEMU's user-mode emulation opened no gdb stub") from None
            time.sleep(0.02)
            continue
        connection.settimeout(_TIMEOUT_S)
        return connection


class _Code:
    """Rows out of code."""

    def __init__(
        self,
        read: Callable[[int, int], bytes | None],
        architecture: Architecture,
        starts: Callable[[int], Sequence[int]] = lambda _address: (),
    ) -> None:
        abi = architecture.user_abis[-1]
        self._code = CodeRows(read, abi, starts) if abi.decode is not None else None

    def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
        """See ``unwind.user.UserCodeRows``."""
        return () if self._code is None else self._code.find_rows(address, interrupted=interrupted)

    def find_call(self, address: int) -> Instruction | None:
        """See ``unwind.user.UserCodeRows``."""
        return None if self._code is None else self._code.find_call(address)


class _File(_Code):
    """Rows of a file, and out of its code."""

    def __init__(self, elf: ElfFile, architecture: Architecture) -> None:
        super().__init__(elf.read, architecture, FunctionStarts(elf).before)
        self.elf = elf
        self.rows = UserRows(elf, architecture.user_abis)


class Code:
    """The program's mappings, as ``UserUnwinder`` wants them."""

    def __init__(self, program: Program, architecture: Architecture) -> None:
        self._program, self._architecture = program, architecture
        self._files: dict[str, _File | None] = {}
        self._regions: list[Region] = []
        self._paths: dict[int, str] = {}
        self._memory = _Code(program.read, architecture)

    def refresh(self) -> None:
        """Libraries may have been loaded."""
        self._regions = []
        for start, end, offset, path in self._program.mappings():
            if not path:
                self._regions.append(Region(start, end, code=self._memory))
                continue
            if path not in self._files:
                data = Path(path).read_bytes()
                elf = open_elf(BytesContents(data), is_final=True) if data[:4] == b"\x7fELF" else None
                self._files[path] = None if elf is None else _File(elf, self._architecture)
            file = self._files[path]
            bias = None if file is None else file.elf.bias(start, offset, is_executable=True)
            if file is not None and bias is not None:
                index = list(self._files).index(path)
                self._paths[index] = path
                self._regions.append(Region(start, end, bias, index, file.rows, file.elf.entry, file))

    def find_region(self, address: int) -> Region | None:
        """See ``unwind.user.UserCode``."""
        return next((region for region in self._regions if region.start <= address < region.end), None)

    def entry(self, path: str) -> int:
        """Where a program begins."""
        region = next(region for region in self._regions if region.image is not None and self._paths[region.image] == path)
        assert region.entry is not None
        return region.entry + region.bias

    def place(self, address: int) -> str:
        """File and link-time address."""
        region = self.find_region(address)
        if region is None or region.image is None:
            return f"{address:#x}"
        return f"{Path(self._paths[region.image]).name}+{address - region.bias:#x}"


class Truth:
    """A program that is stepped, and its calls that have not returned: (return address, stack pointer before the call), outermost

    first.
    """

    def __init__(self, target: Target, program: Program, registers: dict[str, int]) -> None:
        self.target = target
        self.registers = registers
        self.calls: list[tuple[int, int]] = []
        self.signals = 0
        self._program = program
        self._calling: tuple[int, int] | None = None
        self._texts: dict[int, bytes] = {}

    def step(self) -> bool:
        """One instruction; False where the program has ended."""
        abi, before = self.target.abi, self.registers
        address, sp_before = before[abi.pc], before[abi.sp]
        text = self._texts.get(address)
        if text is None:
            text = self._texts[address] = self._program.read(address, 8) or bytes(8)
        stepped = self._program.step()
        if stepped is None:
            return False
        now, interrupted = stepped
        self.registers = now
        pc, sp = now[abi.pc], now[abi.sp]
        if interrupted is not None:
            return_address = now.get(abi.registers[abi.return_column], 0)
            if self.target.pushes:
                return_address = int.from_bytes(self._program.read(sp, abi.pointer_size) or b"", "little")
            # QEMU does the interrupted instruction together with the return to it.
            self.calls += [(interrupted, sp_before - 1), (return_address, sp + (abi.pointer_size if self.target.pushes else 0))]
            self._calling = None
            self.signals += 1
            return True
        if self._calling is not None:
            # The delay slot of the call is done. What was called from here before was left by longjmp.
            while self.calls and self.calls[-1][1] <= self._calling[1]:
                self.calls.pop()
            self.calls.append(self._calling)
            self._calling = None
        if self.target.pushes:
            size = _x86_call_size(text)
            if size and sp == sp_before - abi.pointer_size and pc != address + size:
                self.calls.append((address + size, sp_before))
                return True
        elif self.target.architecture.kernel_code.follows_call(text) and not _is_lazy_stub(text):
            self._calling = (address + 8, sp_before)
            return True
        while self.calls and (self.calls[-1] == (pc, sp) or self.calls[-1][1] < sp):
            self.calls.pop()
        return True


def _is_lazy_stub(code: bytes) -> bool:
    """``jalr t9`` with something about t8 in its slot: it does not come back, since the caller's return address is in t7."""
    call, slot = (int.from_bytes(code[at : at + 4], "little") for at in (0, 4))
    return call == 0x0320_F809 and slot >> 16 & 31 == 24 and slot >> 26 in (0x09, 0x0D, 0x19)


@dataclass(slots=True)
class Counts:
    """Verdicts on the stacks of one program, and those that were not equal."""

    program: str
    verdicts: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    signals: int = 0
    wrong: list[dict[str, object]] = field(default_factory=list)


def measure(target: Target, root: Path, command: Sequence[str], steps: int, rng: Random, directory: Path) -> Counts:
    """Step a program from its entry point on; compare at random steps."""
    counts = Counts(" ".join(command)[:40])
    abi, unwinder = target.abi, UserUnwinder(target.architecture)
    with Program(target, root, command, directory) as program:
        code = Code(program, target.architecture)
        code.refresh()
        following = rng.randrange(_PAUSE)
        program.run_to(code.entry(str(root / command[0])))
        code.refresh()
        truth = Truth(target, program, program.registers())
        for number in range(steps):
            if not truth.step():
                break
            if number == following:
                following += rng.randrange(1, 2 * _PAUSE)
                if code.find_region(truth.registers[abi.pc]) is None:
                    code.refresh()
                _compare(unwinder, program, code, truth, counts)
        counts.signals = truth.signals
    return counts


def _x86_call_size(code: bytes) -> int:
    """Bytes of a call instruction, 0 for others (Intel SDM volume 2, CALL, ModR/M)."""
    if code[:1] == b"\xe8":
        return 5
    if code[:1] != b"\xff" or code[1] >> 3 & 7 != 2:
        return 0
    mode, rm = code[1] >> 6, code[1] & 7
    if mode == 3:
        return 2
    index = 1 if rm == 4 else 0
    if mode == 0:
        return 6 if rm == 5 else 2 + index + (4 if index and code[2] & 7 == 5 else 0)
    return 2 + index + (1 if mode == 1 else 4)


def _compare(unwinder: UserUnwinder, program: Program, code: Code, truth: Truth, counts: Counts) -> None:
    abi, registers = truth.target.abi, truth.registers
    walk = unwinder.unwind(registers, program.read, code)
    biases = {region.image: region.bias for region in code._regions}  # noqa: SLF001
    ours = [frame.pc + (0 if frame.image is None else biases[frame.image]) for frame in walk.frames]
    theirs = [registers[abi.pc], *(address for address, _sp in reversed(truth.calls))]
    is_whole = walk.end is UserEnd.THREAD_START
    if ours == theirs:
        verdict = "equal" if is_whole else "equal, but for its end"
    elif not is_whole and theirs[: len(ours)] == ours:
        verdict = "ends early"
    else:
        verdict = "different"
    counts.verdicts[verdict] += 1
    counts.frames += len(ours) if verdict == "equal" else 0
    if verdict != "equal" and len(counts.wrong) < 400:
        shown = {"ours": [code.place(pc) for pc in ours], "true": [code.place(pc) for pc in theirs]}
        counts.wrong.append({"verdict": verdict, "end": str(walk.end), **shown})


def unpack_root(architecture: str, directory: Path) -> Path:
    """A root with the programs and their libraries. Raises MissingDependencyError."""
    root = directory / f"root-{architecture}"
    root.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        package = fetch_package(_SUITE, architecture, name)
        subprocess.run(["cp", "-a", f"{package}/.", str(root)], check=True)
    loader = root / "lib64" / "ld.so.1"
    if loader.is_symlink() and not loader.exists():
        loader.unlink()  # it is absolute
        loader.symlink_to(next(root.glob("lib/*/ld.so.1")))
    return root


def main() -> int:
    """Measure, print, and keep the result: ``python -m benchmarks.user_steps``."""
    names = [target.architecture.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.user_steps", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="instructions of each program (default: 100000)")
    parser.add_argument("--architecture", action="append", choices=names, help="only this one (may be repeated)")
    parser.add_argument("--program", type=int, action="append", help="only the program of that number (may be repeated)")
    parser.add_argument("--seed", type=int, default=1, help="of the random steps")
    parser.add_argument("--details", type=Path, help="write the stacks that are not equal to this file")
    options = parser.parse_args()
    rng = Random(options.seed)
    results = []
    with tempfile.TemporaryDirectory(prefix="gp-steps-") as name:
        directory = Path(name)
        try:
            for target in TARGETS:
                if options.architecture and target.architecture.name not in options.architecture:
                    continue
                if shutil.which(target.qemu) is None:
                    raise MissingDependencyError(f"this benchmark needs {target.qemu}, which is not installed (Debian: qemu-user)")
                root = unpack_root(target.architecture.name, directory)
                for number, command in enumerate(PROGRAMS):
                    if options.program is not None and number not in options.program:
                        continue
                    with tempfile.TemporaryDirectory(prefix="gp-steps-") as place:
                        counts = measure(target, root, command, options.steps, rng, Path(place))
                    figures = f"{dict(counts.verdicts)}, {counts.frames} frames, {counts.signals} signals"
                    print(f"{target.architecture.name} {counts.program}: {figures}", flush=True)
                    results.append((target.architecture.name, counts))
        except GuestprofError as error:
            print(f"user_steps: {error}", file=sys.stderr)
            return 1
    if options.details is not None:
        lines = [
            json.dumps({"architecture": arch, "program": counts.program, **each})
            for arch, counts in results
            for each in counts.wrong
        ]
        options.details.write_text("\n".join(lines) + "\n", "utf-8")
    if not options.architecture and options.program is None:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python -m benchmarks.user_steps {' '.join(sys.argv[1:])}".strip(),
            "programs": [
                {"architecture": arch, "program": counts.program, "verdicts": dict(counts.verdicts), "frames": counts.frames}
                for arch, counts in results
            ],
        }
        _RESULTS.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
