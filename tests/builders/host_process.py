"""A stopped child of this process: its threads as gdb walks them, and as guestprof does out of the same memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.builders.unwind_tables import TableOfFile
from unwind.arch.x86_64 import X86_64
from unwind.user import Region, UserUnwinder, UserWalk

_SCRIPT = """
import json
import gdb

wide = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip cs".split()
narrow = {"eax": "rax", "ebx": "rbx", "ecx": "rcx", "edx": "rdx", "esi": "rsi", "edi": "rdi", "ebp": "rbp", "esp": "rsp",
          "eip": "rip", "cs": "cs"}
threads = []
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame = gdb.newest_frame()
    names = narrow if frame.architecture().name() == "i386" else {name: name for name in wide}
    registers = {ours: int(frame.read_register(name)) & 0xFFFFFFFFFFFFFFFF for name, ours in names.items()}
    pcs = []
    while frame is not None and len(pcs) < 600:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            pcs.append(frame.pc())
        frame = frame.older()
    threads.append([registers, pcs])
print("THREADS " + json.dumps(threads))
"""


@dataclass(frozen=True, slots=True)
class Thread:
    """Registers of a thread, and the pcs of gdb's backtrace, leaf first."""

    registers: dict[str, int]
    pcs: list[int]


class HostProcess:
    """A child process that is stopped while it is looked at."""

    def __init__(self, pid: int, tables: dict[str, TableOfFile] | None = None) -> None:
        """``tables``: kept between processes."""
        self._pid = pid
        self._tables = {} if tables is None else tables
        self.regions: list[Region] = []
        self.stack_top = 0

    def stop(self) -> None:
        """Stop it and read its mappings."""
        os.kill(self._pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self.stack_top = int(Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[25])
        self.regions = []
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            where, access, offset, _device, _inode, *path = line.split(None, 5)
            if "x" not in access:
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            self.regions.append(self._region(start, end, int(offset, 16), path[0] if path else ""))

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def read(self, address: int, size: int) -> bytes | None:
        """Its memory."""
        try:
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(address)
                data = memory.read(size)
        except (OSError, OverflowError):
            return None
        return data if len(data) == size else None

    def find_region(self, address: int) -> Region | None:
        """As ``UserCode`` has it."""
        return next((region for region in self.regions if region.start <= address < region.end), None)

    def threads(self) -> list[Thread]:
        """What gdb says."""
        command = [
            "gdb",
            "-q",
            "-nx",
            "-batch",
            "-p",
            str(self._pid),
            "-iex",
            "set auto-load off",
            "-iex",
            "set debuginfod enabled off",
        ]
        command += [
            "-ex",
            "set backtrace past-main on",
            "-ex",
            "set backtrace past-entry on",
            "-ex",
            f"python {_one_line(_SCRIPT)}",
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        line = next((line for line in text.stdout.splitlines() if line.startswith("THREADS ")), None)
        assert line is not None, text.stderr
        return [Thread(registers, pcs) for registers, pcs in json.loads(line.removeprefix("THREADS "))]

    def walk(self, registers: dict[str, int]) -> UserWalk:
        """What guestprof says."""
        return UserUnwinder(X86_64).unwind(registers, self.read, self, self.stack_top)

    def pcs(self, walk: UserWalk) -> list[int]:
        """Run-time addresses of a walk's frames."""
        biases = {region.image: region.bias for region in self.regions}
        return [frame.pc + (0 if frame.image is None else biases[frame.image]) & 0xFFFF_FFFF_FFFF_FFFF for frame in walk.frames]

    def _region(self, start: int, end: int, offset: int, path: str) -> Region:
        if path == "[vdso]":
            key, data = f"{path} of {self._pid}", self.read(start, end - start)
        else:
            key, data = path, Path(path).read_bytes() if path not in self._tables and Path(path).exists() else None
        if data is not None:
            self._tables[key] = TableOfFile(data)
        if key not in self._tables:
            return Region(start, end)
        table = self._tables[key]
        bias = next(
            (start - offset + at - address for address, at, size in table.segments if at // 4096 * 4096 <= offset < at + size), 0
        )
        return Region(start, end, bias, list(self._tables).index(key), table.shared_table)


def _one_line(script: str) -> str:
    return f"exec({script!r})"
