"""What exporting a large recording costs: time and memory of each format, for 1 million samples of 50,000 distinct stacks.

    python -m benchmarks.exporters [--samples N] [--stacks N] [--format NAME]...

The recording is made up: 4 vCPUs, 200 threads of 60 processes, kernel and user stacks of 5 to 40 frames out of a call graph of
8,000 functions, some stacks far more often than others, a thread running a few samples at a time. Differential folded stacks are of
two recordings with half of the samples each, and as many stacks. What is measured is the command ``guestprof export`` or ``diff``
in a process of its own, from its start to its end, and that process' peak of resident memory. It is one thread that hardly waits,
so on a machine with nothing else to do its CPU time is the time that it takes; the limits are on that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from exporters.registry import EXPORT_FORMATS
from recording.model import Callchain, Context, Frame, FrameKind, Halt, Image, Sample, Space, StackEnd, SystemCall, Task, UserEnd
from recording.store import RecordingWriter
from recording.symbols import SymbolTable

RESULT = Path(__file__).parent / "results" / "exporters.json"
MOST_S, MOST_MB = 10.0, 500.0
MOST_FILE_MB = {"html": 15.0}
"""What browsers still open at once; other formats are for programs, which have no such limit."""
_VCPUS = 4
_PERIOD_NS = 1_000_000
_KERNEL = 0xFFFF_FFFF_8100_0000
_FUNCTIONS, _FILES, _FILE_FUNCTIONS = 4000, 20, 200
_CALLEES = 6
_SIZE = 256
_LEAST_FRAMES, _MOST_FRAMES = 5, 40
_PER_FORM = {"speedscope": ("--per=process",), "firefox": ("--per=process",)}


class Workload:
    """A made-up guest: its call graph, the stacks that occur, and the threads that have them."""

    def __init__(self, stacks: int, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._frames: dict[tuple[int | None, int], Frame] = {}
        self.tasks = [
            Task(1000 + index, 1000 + index % 60, f"thread-{index}", f"process-{index % 60}", index % 10 == 0)
            for index in range(200)
        ]
        self.stacks: list[list[tuple[Callchain, Context]]] = [[] for _ in self.tasks]
        self._known: set[tuple[Frame, ...]] = set()
        made = 0
        while made < stacks:
            index = self._rng.randrange(len(self.tasks))
            found = self._walk(self.tasks[index])
            if found is not None:
                self.stacks[index].append(found)
                made += 1
        self.stacks = [known or self.stacks[0] for known in self.stacks]

    def _frame(self, file: int | None, function: int) -> Frame:
        known = self._frames.get((file, function))
        if known is None:
            pc = (_KERNEL if file is None else 0x1000) + _SIZE * function + 32
            space = Space.KERNEL if file is None else Space.USER
            known = self._frames[file, function] = Frame(pc, pc - 1, space, image=file)
        return known

    def _walk(self, task: Task) -> tuple[Callchain, Context] | None:
        """A stack that there has not been yet, by calls that each function may make."""
        rng = self._rng
        depth = rng.randint(_LEAST_FRAMES, _MOST_FRAMES)
        in_kernel = depth if task.is_kernel_thread else rng.randint(0, depth - 1)
        frames: list[Frame] = []
        function = task.tgid * 7 % _FILE_FUNCTIONS
        for position in range(depth - in_kernel):
            file = (task.tgid + position // 6) % _FILES
            frames.append(self._frame(file, function))
            function = (function * 31 + rng.randrange(_CALLEES) * 17 + 1) % _FILE_FUNCTIONS
        function = task.tgid * 13 % 100
        for _ in range(in_kernel):
            frames.append(self._frame(None, function))
            function = (function * 31 + rng.randrange(_CALLEES) * 17 + 1) % _FUNCTIONS
        chain = tuple(reversed(frames))
        if chain in self._known:
            return None
        self._known.add(chain)
        if task.is_kernel_thread:
            return Callchain(chain, StackEnd.TASK_ROOT), Context.KERNEL_THREAD
        end = StackEnd.USER_ENTRY if in_kernel else StackEnd.USER_MODE
        return Callchain(chain, end, UserEnd.THREAD_START), Context.SYSTEM_CALL if in_kernel else Context.USER

    def images(self) -> Iterator[Image]:
        """User files first, by whose numbers frames know them."""
        for file in range(_FILES):
            symbols = [(0x1000 + _SIZE * index, "t", f"file_{file}_function_{index}") for index in range(_FILE_FUNCTIONS)]
            name = f"/usr/lib/x86_64-linux-gnu/libsomething-{file}.so.1"
            yield Image(name, FrameKind.USER, 0, f"{file:040x}", (), SymbolTable.from_symbols(symbols))
        symbols = [(_KERNEL + _SIZE * index, "t", f"kernel_function_{index}") for index in range(_FUNCTIONS)]
        ranges = ((_KERNEL, _KERNEL + _SIZE * _FUNCTIONS),)
        yield Image("vmlinux", FrameKind.KERNEL, 0, "ab" * 20, ranges, SymbolTable.from_symbols(symbols))

    def samples(self, count: int, rng: random.Random) -> Iterator[tuple[int, int, Task, Callchain, Context]]:
        """(halt, vCPU, ...) in time order: every stack at least once if there is room, then the frequent ones more often."""
        waiting = [(index, stack) for index, stacks in enumerate(self.stacks) for stack in stacks]
        rng.shuffle(waiting)
        running = [0] * _VCPUS
        for number in range(count):
            halt, vcpu = divmod(number, _VCPUS)
            if number % max(1, count // max(1, len(waiting))) == 0 and waiting:
                index, (chain, context) = waiting.pop()
            else:
                if rng.random() < 0.2:
                    running[vcpu] = rng.randrange(len(self.tasks))
                index = running[vcpu]
                stacks = self.stacks[index]
                chain, context = stacks[int(len(stacks) * rng.random() ** 3)]
            yield halt, vcpu, self.tasks[index], chain, context


def write_recording(path: Path, samples: int, stacks: int, seed: int = 1) -> int:
    """A recording of that many samples; gives how many distinct stacks it has. seed: of how often each was seen."""
    workload = Workload(stacks)
    call = SystemCall("64", 0, "read")
    seen = set()
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for key, value in {"requested_hz": 1000, "architecture": "x86_64", "accelerator": "tcg", "vcpus": _VCPUS}.items():
            writer.set_meta(key, value)
        last = -1
        for halt, vcpu, task, chain, context in workload.samples(samples, random.Random(seed)):
            if halt != last:
                time_ns = (halt + 1) * _PERIOD_NS
                writer.add_halt(Halt(time_ns + halt * 50_000, time_ns, 50_000, 1000))
                last = halt
                if halt % 10_000 == 0:
                    writer.commit()
            seen.add(id(chain))
            called = call if context is Context.SYSTEM_CALL else None
            writer.add_sample(Sample(halt, vcpu, 0, _PERIOD_NS, chain, task, context, called))
        for image in workload.images():
            writer.add_image(image)
    return len(seen)


def measured(output: Path, words: tuple[str, ...]) -> dict[str, float]:
    """Of a command: seconds of CPU time and of the clock, peak of resident memory in MB, and the file's MB."""
    command = [sys.executable, "-m", "guestprof", *words, "-o", str(output), "--force"]
    began = time.monotonic()
    quiet = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
    _, status, used = os.wait4(child, 0)
    took_s = time.monotonic() - began
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "elapsed_s": round(took_s, 1),
        "peak_mb": round(used.ru_maxrss * 1024 / 1e6),
        "file_mb": round(output.stat().st_size / 1e6, 1),
    }


def main() -> None:
    """Make the recording, export it in each format, print and keep a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--stacks", type=int, default=50_000)
    differences = ["diff folded"]
    parser.add_argument("--format", action="append", choices=[*EXPORT_FORMATS, *differences], dest="formats")
    options = parser.parse_args()
    formats = options.formats or [*EXPORT_FORMATS, *differences]
    with tempfile.TemporaryDirectory() as scratch:
        whole, before, after = (Path(scratch) / f"{name}.guestprof" for name in ("whole", "before", "after"))
        print(f"{options.samples:,} samples of {write_recording(whole, options.samples, options.stacks):,} stacks")
        if not EXPORT_FORMATS.keys() >= set(formats):
            write_recording(before, options.samples // 2, options.stacks)
            write_recording(after, options.samples // 2, options.stacks, seed=2)
        rows = {}
        print(f"{'format':<26} {'CPU s':>6} {'clock s':>8} {'peak MB':>8} {'file MB':>8}")
        for name in formats:
            for more in ((), _PER_FORM[name]) if name in _PER_FORM else ((),):
                label = " ".join([name, *more])
                is_one = name in EXPORT_FORMATS
                words = ("export", str(whole)) if is_one else ("diff", str(before), str(after))
                row = rows[label] = measured(Path(scratch) / "out", (*words, "-f", name.removeprefix("diff "), *more))
                most_file_mb = MOST_FILE_MB.get(name, float("inf"))
                fits = row["cpu_s"] < MOST_S and row["peak_mb"] < MOST_MB and row["file_mb"] < most_file_mb
                late = "" if fits else f"   more than {MOST_S:.0f} s, {MOST_MB:.0f} MB or a file of {most_file_mb:.0f} MB"
                figures = f"{row['cpu_s']:>6} {row['elapsed_s']:>8} {row['peak_mb']:>8} {row['file_mb']:>8}"
                print(f"{label:<26} {figures}{late}", flush=True)
    counts = {"samples": options.samples, "stacks": options.stacks}
    kept = json.loads(RESULT.read_text("utf-8")) if options.formats is not None else {**counts, "formats": {}}
    if counts.items() <= kept.items():
        kept["formats"].update(rows)
        RESULT.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
