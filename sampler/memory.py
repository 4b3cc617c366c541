"""Guest physical memory, read from QEMU's own memory while the guest runs, or else through the stub in short halts.

Both learn from the monitor's ``info mtree -f`` where RAM lies. QEMU's own memory (``/proc/PID/mem``) costs the guest nothing;
``gpa2hva`` tells where QEMU has mapped each range.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from guest.memory import PhysicalMemory
from recording.errors import GuestMemoryError, GuestprofError
from sampler.target import Target

DEFAULT_MAX_HALT_S = 0.002
_FIRST_SLICE = 64 * 1024
_SLICES = (4096, 256 * 1024)
"""Bytes read through the stub in one halt, at least and at most."""
_CAUTION = 0.75
"""Share of the longest halt that a slice is made for: halts vary."""
_MAX_RANGES = 4096
_MAX_READ = 1 << 30
_PROBE_SIZE = 4096
_LINE = re.compile(r"^ {1,8}([0-9a-f]{16,32})-([0-9a-f]{16,32}) \(prio -?\d+, ([a-z/-]+)\)", re.IGNORECASE)
_READABLE = {"ram", "nv-ram", "rom", "romd", "ramd"}
_HOST_ADDRESS = re.compile(r"Host virtual address for 0x[0-9a-f]+ .*is (0x[0-9a-f]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """[start, end) of guest physical addresses; ``is_ram`` tells RAM from ROM."""

    start: int
    end: int
    is_ram: bool


def parse_memory_tree(text: str) -> list[MemoryRange]:
    """RAM and ROM of the address space "memory", ascending, from ``info mtree -f``; raises GuestMemoryError if there is none."""
    ranges: list[MemoryRange] = []
    in_memory = False
    for line in text.splitlines():
        if line.startswith("FlatView"):
            if ranges:
                break
            in_memory = False
        elif line.lstrip().startswith('AS "memory"'):
            in_memory = True
        elif in_memory and (found := _LINE.match(line)) is not None and found[3].lower() in _READABLE:
            ranges.append(MemoryRange(int(found[1], 16), int(found[2], 16) + 1, found[3].lower() in ("ram", "nv-ram")))
            if len(ranges) > _MAX_RANGES:
                raise GuestMemoryError(
                    f"QEMU lists more than {_MAX_RANGES} pieces of guest memory; report the output of info mtree -f"
                )
    if not any(piece.is_ram for piece in ranges):
        raise GuestMemoryError("QEMU's info mtree -f shows no RAM of the guest; give --qmp, or check that the monitor answers")
    return sorted(ranges, key=lambda piece: piece.start)


def parse_host_address(text: str) -> int:
    """Address in QEMU's memory from ``gpa2hva``'s answer; raises GuestMemoryError for another answer."""
    found = _HOST_ADDRESS.search(text)
    if found is None:
        raise GuestMemoryError(f"QEMU does not tell where it keeps the guest's memory: {' '.join(text.split())[:100]!r}")
    return int(found[1], 16)


def _ram(ranges: Sequence[MemoryRange]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for piece in ranges:
        if not piece.is_ram:
            continue
        if joined and joined[-1][1] == piece.start:
            joined[-1] = (joined[-1][0], piece.end)
        else:
            joined.append((piece.start, piece.end))
    return joined


class _Ranges:
    """Finds the range of an address."""

    def __init__(self, ranges: Sequence[MemoryRange]) -> None:
        self.ranges = list(ranges)
        self._starts = [piece.start for piece in self.ranges]

    def pieces(self, address: int, size: int) -> list[tuple[int, int, int]]:
        """(index of the range, address, size) of each part; raises GuestMemoryError where there is neither RAM nor ROM."""
        if not 0 <= size <= _MAX_READ or address < 0:
            raise GuestMemoryError(f"refused to read {size} bytes at guest physical {address:#x}")
        parts = []
        while size:
            index = bisect.bisect_right(self._starts, address) - 1
            if index < 0 or address >= self.ranges[index].end:
                raise GuestMemoryError(f"guest physical {address:#x} is no memory")
            length = min(size, self.ranges[index].end - address)
            parts.append((index, address, length))
            address += length
            size -= length
        return parts


class ProcessMemory:
    """The guest's memory in QEMU's process; works while the guest runs, which may then change it under the reader."""

    def __init__(self, pid: int, ranges: Sequence[MemoryRange], host_addresses: Sequence[int], path: Path | None = None) -> None:
        """``host_addresses``: where each range begins in QEMU's memory. Raises OSError if the process must not be read."""
        self._use(ranges, host_addresses)
        self._file = os.open(path or Path(f"/proc/{pid}/mem"), os.O_RDONLY | os.O_CLOEXEC)

    def _use(self, ranges: Sequence[MemoryRange], host_addresses: Sequence[int]) -> None:
        self._ranges = _Ranges(ranges)
        self._host = list(host_addresses)
        self._ram = _ram(ranges)

    @classmethod
    def open(cls, pid: int, monitor: Callable[[str], str]) -> Self:
        """Ask the monitor where the guest's memory is; raises GuestMemoryError or OSError."""
        return cls(pid, *_ask_ranges(monitor))

    def refresh(self, monitor: Callable[[str], str]) -> bool:
        """Ask anew where the guest's memory is, and say whether that has changed. Raises as ``open``; then all is as before."""
        before = self._ranges.ranges
        self._use(*_ask_ranges(monitor))
        return self._ranges.ranges != before

    def rom(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each piece of ROM, ascending."""
        return tuple((piece.start, piece.end) for piece in self._ranges.ranges if not piece.is_ram)

    def ram(self) -> Sequence[tuple[int, int]]:
        """[start, end) of each piece of RAM, ascending."""
        return self._ram

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises GuestMemoryError."""
        pieces = [self._read_host(index, start, length) for index, start, length in self._ranges.pieces(address, size)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_host(self, index: int, address: int, size: int) -> bytes:
        where = self._host[index] + address - self._ranges.ranges[index].start
        data = b""
        try:
            while len(data) < size:
                piece = os.pread(self._file, size - len(data), where + len(data))
                if not piece:
                    raise GuestMemoryError(f"QEMU's memory cannot be read at {where:#x}: QEMU has ended")
                data = data + piece if data else piece
        except (OSError, OverflowError) as error:
            raise GuestMemoryError(f"guest physical {address:#x} cannot be read from QEMU's process: {error}") from error
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """One answer to each (address, size), None where it cannot be read."""
        found: list[bytes | None] = []
        for address, size in requests:
            try:
                found.append(self.read(address, size))
            except GuestMemoryError:
                found.append(None)
        return found

    def close(self) -> None:
        """Close the process's memory."""
        with contextlib.suppress(OSError):
            os.close(self._file)


def _ask_ranges(monitor: Callable[[str], str]) -> tuple[list[MemoryRange], list[int]]:
    """The pieces of guest memory, and where QEMU has each."""
    ranges = parse_memory_tree(monitor("info mtree -f"))
    return ranges, [parse_host_address(monitor(f"gpa2hva {piece.start:#x}")) for piece in ranges]


class StubMemory:
    """The guest's memory through the stub. Each read halts the guest, in slices that ``max_halt_s`` bounds.

    How long earlier ones took tells how long one may be; ``target.extra_halted_ns`` counts the time.
    """

    def __init__(self, target: Target, ranges: Sequence[MemoryRange], max_halt_s: float = DEFAULT_MAX_HALT_S) -> None:
        self._target = target
        self._max_halt_ns = max_halt_s * 1e9
        self._slice = _FIRST_SLICE
        self._ranges = _Ranges(ranges)
        self._ram = _ram(ranges)

    @classmethod
    def open(cls, target: Target, monitor: Callable[[str], str] | None = None, max_halt_s: float = DEFAULT_MAX_HALT_S) -> Self:
        """Ask the monitor (by default through the stub) where RAM is; raises GuestMemoryError."""
        return cls(target, parse_memory_tree((monitor or target.monitor)("info mtree -f")), max_halt_s)

    @property
    def halted_ns(self) -> int:
        """How long the guest has been halted outside of samples so far."""
        return self._target.extra_halted_ns

    def ram(self) -> Sequence[tuple[int, int]]:
        """[start, end) of each piece of RAM, ascending."""
        return self._ram

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises GuestMemoryError."""
        # The stub reads holes as zero, so what is no memory must be refused here.
        pieces = []
        for _index, start, length in self._ranges.pieces(address, size):
            offset = 0
            while offset < length:
                part = self._read_slice([(start + offset, min(self._slice, length - offset))])[0]
                if part is None:
                    raise GuestMemoryError(f"the stub cannot read guest physical {start + offset:#x}")
                pieces.append(part)
                offset += len(part)
        return b"".join(pieces)

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """One answer to each (address, size), None where it cannot be read; as many as fit into a slice share a halt."""
        found: list[bytes | None] = [None] * len(requests)
        batch: list[tuple[int, int, int]] = []
        total = 0
        for number, (address, size) in enumerate(requests):
            with contextlib.suppress(GuestMemoryError):
                self._ranges.pieces(address, size)
                if size > self._slice:
                    found[number] = self.read(address, size)
                    continue
                batch.append((number, address, size))
                total += max(size, 64)
            if total >= self._slice:
                self._read_batch(batch, found)
                batch, total = [], 0
        self._read_batch(batch, found)
        return found

    def _read_batch(self, batch: Sequence[tuple[int, int, int]], found: list[bytes | None]) -> None:
        if batch:
            answers = self._read_slice([(address, size) for _number, address, size in batch])
            for (number, _address, _size), answer in zip(batch, answers, strict=True):
                found[number] = answer

    def _read_slice(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """One halt's reads; the next slice is made smaller or larger by how long it took."""
        before_ns = self._target.extra_halted_ns
        answers = self._target.read_physical(requests)
        took_ns = self._target.extra_halted_ns - before_ns
        size = sum(size for _address, size in requests)
        if took_ns > self._max_halt_ns or (took_ns and size >= self._slice):
            low, high = _SLICES
            self._slice = int(min(high, max(low, size * _CAUTION * self._max_halt_ns / took_ns)))
        return answers

    def close(self) -> None:
        """Nothing to close: the target is its owner's."""


@dataclass(frozen=True, slots=True)
class OpenedMemory:
    """A reader, and why it is not QEMU's own memory ("" if it is)."""

    memory: ProcessMemory | StubMemory
    fallback_reason: str

    def as_physical(self) -> PhysicalMemory:
        """The reader under the name that the guest package knows."""
        return self.memory


def open_memory(
    target: Target, pid: int | None, monitor: Callable[[str], str] | None = None, max_halt_s: float = DEFAULT_MAX_HALT_S
) -> OpenedMemory:
    """The best reader there is: QEMU's own memory if its process is known, may be read, and shows what the stub shows.

    monitor: runs human monitor commands (QMP's); through the stub by default, which halts the guest meanwhile.
    max_halt_s: how long a read through the stub may halt the guest.
    """
    ask = monitor or target.monitor
    if pid is None:
        reason = "QEMU's process is not known (is it on another machine or in another container?)"
    else:
        try:
            memory = ProcessMemory.open(pid, ask)
        except PermissionError:
            reason = (
                f"no permission to read the memory of QEMU's process {pid}; run guestprof as root, or as QEMU's user with"
                " kernel.yama.ptrace_scope=0"
            )
        except (GuestprofError, OSError) as error:
            reason = str(error)
        else:
            if _agrees(memory, target):
                return OpenedMemory(memory, "")
            memory.close()
            reason = f"the memory of process {pid} is not that of this guest"
    return OpenedMemory(StubMemory.open(target, monitor, max_halt_s), reason)


def _agrees(memory: ProcessMemory, target: Target) -> bool:
    """Whether a few pages read the same both ways while the guest stands still: a wrong process must not pass for the guest."""
    if not target.has_physical_reads:
        return True
    start, end = max(memory.ram(), key=lambda piece: piece[1] - piece[0])
    step = max(_PROBE_SIZE, (end - start) // 16 & -_PROBE_SIZE)
    requests = [(address, min(_PROBE_SIZE, end - address)) for address in range(start, end, step)]
    with target.halted():
        return target.read_physical(requests) == memory.read_many(requests)
