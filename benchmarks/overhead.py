"""What sampling costs: time halted per sample against the barest loop that could do the same, and the profiler's share of a core.

    python -m benchmarks.overhead [--samples N] [--seconds S]

Both figures are ratios within one run, on a stock kernel under TCG with one vCPU and the demo's workload.

1. Halted per sample. *bare*: a loop on a raw socket that sends ^C and ``g``, waits, sends one read of 2 KiB at the stack pointer
   and ``c``, and waits; no checks, no parsing. *ours*: ``Target.capture`` with the planner of a real recording, the kernel known:
   the registers, the interrupt stack's link and the live part of the kernel stack. The two take turns in blocks, on one guest.
   Part of it: reading the guest's own clocks (``sampler.clock``).
2. CPU time of ``guestprof record -F 100`` (user and system, all of it: attaching, unwinding, writing) over its running time.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest.cache import KernelCache
from guest.timekeeper import Timekeeper
from guestprof.debian import fetch_kernel
from guestprof.initramfs import WORKLOAD_MARK, build_initramfs, find_busybox
from sampler.clock import ClockPlanner
from sampler.console import Console
from sampler.discovery import TargetAddress
from sampler.launch import LaunchedQemu
from sampler.planner import HaltPlanner
from sampler.session import Session
from sampler.tracker import KernelTracker, TrackerEvents

RESULT = Path(__file__).parent / "results" / "overhead.json"
_BLOCK = 200
_GAP_S = 0.004
_READ_BYTES = 2048
_RSP_DIGITS = slice(16 * 7, 16 * 8)
_WARM_UP = 20


@contextmanager
def guest(suite: str) -> Iterator[LaunchedQemu]:
    """A stock kernel with the demo's workload, running."""
    with tempfile.TemporaryDirectory() as scratch:
        initramfs = Path(scratch) / "initramfs"
        initramfs.write_bytes(build_initramfs(find_busybox()))
        command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "512", "-nodefaults", "-display", "none"),
            *("-serial", "stdio", "-kernel", str(fetch_kernel(suite)), "-initrd", str(initramfs), "-append", "console=ttyS0"),
        ]
        with LaunchedQemu(command) as qemu:
            with Session(TargetAddress(f"unix:{qemu.gdb_path}", str(qemu.qmp_path), qemu.pid), resume_at_exit=True) as session:
                session.target.resume()
            console = Console(qemu.console_path)
            while not any(WORKLOAD_MARK in line for line in console.read()[0]):
                time.sleep(0.2)
            time.sleep(2)
            yield qemu


class _Replies:
    """Counts the packets that come back, nothing else: a packet ends with # and two digits."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def take(self, packets: int) -> bytes:
        data = b""
        while data.count(b"#") < packets or len(data) < data.rfind(b"#") + 3:
            data += self._socket.recv(1 << 16)
        return data

    def close(self) -> None:
        self._socket.close()


def _packet(payload: bytes) -> bytes:
    return b"$%s#%02x" % (payload, sum(payload) & 255)


def bare_loop(path: Path, count: int) -> list[int]:
    """Nanoseconds from ^C to the last byte of the 2 KiB, ``count`` times."""
    stub = _Replies(path)
    stub.take(1)
    stub.send(b"+" + _packet(b"qSupported"))
    stub.take(1)
    stub.send(_packet(b"c"))
    times = []
    for _ in range(count):
        time.sleep(_GAP_S)
        start = time.monotonic_ns()
        stub.send(b"\x03" + _packet(b"g"))
        registers = stub.take(2).rsplit(b"$", 1)[1]
        address = int.from_bytes(bytes.fromhex(registers[_RSP_DIGITS].decode()), "little")
        stub.send(_packet(b"m%x,%x" % (address & ~0xFFF, _READ_BYTES)) + _packet(b"c"))
        stub.take(1)
        times.append(time.monotonic_ns() - start)
    stub.send(b"\x03" + _packet(b"D;1"))
    stub.take(2)
    stub.close()
    return times


def our_loop(qemu: LaunchedQemu, count: int) -> tuple[list[int], list[int]]:
    """Nanoseconds halted per capture, and of reading the clocks in a halt, ``count`` times each."""
    address = TargetAddress(f"unix:{qemu.gdb_path}", str(qemu.qmp_path), qemu.pid)
    with Session(address, resume_at_exit=True) as session:
        planner = HaltPlanner(session.architecture, session.memory)
        clock = ClockPlanner(session.architecture, session.memory, can_peek=True)
        clocks: list[int] = []
        found: list[Timekeeper] = []

        def set_timekeeper(keeper: Timekeeper) -> None:
            found.append(keeper)
            planner.set_timekeeper(keeper)

        gone = lambda _why: planner.set_kernel(None)  # noqa: E731
        events = TrackerEvents(planner.set_kernel, planner.set_kernel, gone, clock=set_timekeeper)
        tracker = KernelTracker(session.memory, session.architecture, KernelCache.of_user(), events)
        times: list[int] = []
        while len(times) < count + _WARM_UP:
            time.sleep(_GAP_S)
            state = session.target.capture(planner)
            tracker.see(state.vcpus, state.registers, time.monotonic_ns())
            while tracker.has_work:
                tracker.step()
            if tracker.kernel is not None and found:
                times.append(state.halted_ns)
                clock.set_kernel(tracker.kernel)
                clock.set_timekeeper(found[-1])
                began = time.monotonic_ns()
                clock.begin()
                clock.peek()
                clocks.append(time.monotonic_ns() - began)
    return times[_WARM_UP:], clocks[_WARM_UP:]


def cpu_share(qemu: LaunchedQemu, seconds: float) -> dict[str, float]:
    """CPU time of a recording at 100 Hz over its duration, and the rate that it reached."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "a.guestprof"
        command = [sys.executable, "-m", "guestprof"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, "record", "--connect", f"unix:{qemu.gdb_path}", "-F", "100", "-d", str(seconds), "-o", str(file), "-q"],
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = subprocess.run([*command, "report", str(file), "-f", "json"], check=True, capture_output=True)
        quality = json.loads(report.stdout)["quality"]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_share": used / seconds,
        "achieved_hz": quality["achieved_hz"],
        "halted_share": quality["halted_share"],
        "complete_share": quality["complete_share"],
    }


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--samples", type=int, default=2000, help="captures of each kind (default: 2000)")
    parser.add_argument("--seconds", type=float, default=30, help="length of the recording (default: 30)")
    parser.add_argument("--suite", default="bookworm", help="Debian suite of the kernel (default: bookworm)")
    options = parser.parse_args()
    bare: list[int] = []
    ours: list[int] = []
    clocks: list[int] = []
    with guest(options.suite) as qemu:
        while len(ours) < options.samples:
            bare += bare_loop(qemu.gdb_path, _BLOCK)
            halted, reading = our_loop(qemu, _BLOCK)
            ours += halted
            clocks += reading
        result = {
            "samples": len(ours),
            "bare_p50_us": statistics.median(bare) / 1e3,
            "ours_p50_us": statistics.median(ours) / 1e3,
            "clocks_p50_us": statistics.median(clocks) / 1e3,
            "halted_ratio": statistics.median(ours) / statistics.median(bare),
            **cpu_share(qemu, options.seconds),
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"halted per sample, p50: bare loop {result['bare_p50_us']:.0f} µs, guestprof {result['ours_p50_us']:.0f} µs,")
    print(f"  of it the guest's clocks {result['clocks_p50_us']:.0f} µs")
    print(f"  ratio {result['halted_ratio']:.2f} (goal: at most 1.5), {result['samples']} samples each")
    print(f"record -F 100: {result['cpu_share']:.1%} of a core (goal: below 15 %), {result['achieved_hz']:.1f} Hz achieved")
    print(f"  guest halted {result['halted_share']:.1%} of the time, {result['complete_share']:.2%} of the kernel stacks whole")


if __name__ == "__main__":
    main()
