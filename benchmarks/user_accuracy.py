"""Accuracy of user stacks: those that guestprof unwinds, against those that gdb computes on the same halted guest.

A Debian guest runs one source built in every way that users build theirs (tests/guests/build.py: position independent or not,
static, with frame pointers and no tables, stripped, C++ with exceptions, 32 bits), with signals, threads, big frames and system
calls. At random moments it is halted; guestprof takes its capture and walks the user stacks, in user mode and behind the kernel,
then a gdb with the program's files walks the same. See docs/userspace.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

from benchmarks._gdb import PAGE, ReadPage
from benchmarks._user_truth import VDSO, GuestFiles, Layout, UserGdbs, executable_segments, find_layout, read_vdso
from benchmarks.accuracy import page_reader
from guest.kernel import Kernel
from guest.paging import FreshSpace
from guest.tasks import TaskWords
from guest.user.mappings import MappingReader
from guestprof.debian import fetch_kernel
from recording.errors import BadImageError, GuestMemoryError, GuestprofError, MissingDependencyError
from recording.model import Callchain, Image, Space, UserEnd
from recording.symbols import SymbolTable
from sampler.discovery import resolve_target
from sampler.halt import HaltedState
from sampler.knowledge import Caches, Knowledge, KnowledgeEvents, Sources
from sampler.samples import Made, Pending
from sampler.session import FileSources, Session
from sampler.user_stacks import USER_STACK_SIZE
from tests.guests.build import USER_TRUTH, build_programs
from tests.qemu.debian_guest import TASK_TRUTH, DebianOptions, start_debian
from tests.qemu.guests import QEMU
from tests.qemu.rootfs import PROGRAMS_DIRECTORY, root_image
from unwind.capture import Capture

_RESULTS = Path(__file__).parent / "results" / "user_accuracy.json"
_VCPUS = 2
_DIRECTORY = f"/{PROGRAMS_DIRECTORY}/"
_READY = "truth: 1 end"
_NO_TABLES = "-fno-asynchronous-unwind-tables"
_FIND_TIMEOUT_S = 120.0
_WALK_TIMEOUT_S = 60.0
_PAUSE_S = 0.0005


class Verdict(StrEnum):
    """What a comparison came to.

    GDB_INVENTS: ld.so's entry code has no row that ends a stack, and gdb takes argc for a return address; in the child of clone3,
    what the parent keeps there.
    """

    EQUAL = "equal"
    GDB_INVENTS = "gdb goes on behind the thread's start, to an address that is no code"
    GDB_GOES_ON = "gdb goes on behind the thread's start"
    GDB_STOPS = "gdb stops before the thread's start"
    TRUNCATED = "guestprof's stack is right as far as it goes, but ends early"
    DIFFERENT = "guestprof's stack is another one"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One user stack. where: "user" or "kernel", that the halt found the thread in. ours, gdb: (pc, name), leaf first."""

    program: str
    where: str
    verdict: Verdict
    is_whole: bool
    end: str
    stop: str
    ours: tuple[tuple[int, str], ...]
    gdb: tuple[tuple[int, str], ...]

    def as_json(self) -> dict[str, Any]:
        """All that is needed to judge it."""
        chains = {"ours": self.ours, "gdb": self.gdb}
        shown = {key: [[f"{pc:#x}", name] for pc, name in chain] for key, chain in chains.items()}
        return {"program": self.program, "where": self.where, "verdict": self.verdict, "end": self.end, "stop": self.stop, **shown}


class Images:
    """Images by their index, see ``sampler.userspace.ImageStore``."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.symbols: list[SymbolTable | None] = []

    def add_image(self, image: Image) -> int:
        """Keep an image; its index."""
        self.names.append(image.name)
        self.symbols.append(image.symbols)
        return len(self.names) - 1

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        """Complete an image that was added before."""
        del build_id
        self.names[index] = name or self.names[index]
        self.symbols[index] = symbols


class Comparer:
    """Compares the vCPUs of one guest, halt by halt."""

    def __init__(self, session: Session, gdbs: UserGdbs, files: GuestFiles) -> None:
        self._session = session
        self._gdbs = gdbs
        self._files = files
        self._images = Images()
        events = KnowledgeEvents(lambda _kernel: None, lambda _kernel: None, lambda _why: None)
        sources = Sources(session.memory, Caches.of_user(), session.files)
        self._guest = Knowledge(session.architecture, sources, self._images, events, lambda _kind, _text: None, USER_STACK_SIZE)

    def find_kernel(self) -> None:
        """Let guestprof find the kernel and its types. Raises BadImageError."""
        give_up = time.monotonic() + _FIND_TIMEOUT_S
        tracker = self._guest.tracker
        while tracker.kernel is None or tracker.kernel.structs is None:
            if time.monotonic() > give_up:
                raise BadImageError(f"the guest's kernel was not found within {_FIND_TIMEOUT_S:.0f} s: {tracker.problem}")
            state = self._session.target.capture(self._guest.planner)
            self._see(state)
            time.sleep(0.02)
        self._files.add(VDSO, read_vdso(tracker.kernel))

    def _see(self, state: HaltedState) -> None:
        tracker = self._guest.tracker
        tracker.see(state.vcpus, state.registers, time.monotonic_ns())
        while tracker.has_work:
            tracker.step()

    def halt(self) -> list[Comparison]:
        """Halt the guest, which stays halted; compare every vCPU that runs one of the programs."""
        guest = self._guest
        state = self._session.target.capture(guest.planner, resume=False)
        found = []
        for capture in guest.planner.captures(state):
            words = guest.planner.find_task(capture)
            kernel = guest.tracker.kernel
            if words is None or not words.mm or kernel is None or kernel.structs is None:
                continue
            made = guest.maker.make(guest.maker.note(Pending(0, 0, 0, 0, time.monotonic_ns(), capture), words))
            if made.saved is None or made.sample.task is None:
                continue
            read_page = self._page_reader(capture, words, kernel)
            try:
                mappings = MappingReader(kernel.space, kernel.symbols, kernel.structs).read(words.mm).mappings
                layout = find_layout(mappings, _DIRECTORY, self._files)
            except GuestMemoryError:
                continue
            if layout is not None:
                found.append(self._compare(made, capture, layout, read_page))
        self._see(state)
        return found

    def _page_reader(self, capture: Capture, words: TaskWords, kernel: Kernel) -> ReadPage:
        """Reads the task's memory as its vCPU sees it, or by its own tables where, amid a switch, the vCPU has another process'."""
        tasks, paging, space = self._guest.maker.tasks, self._session.architecture.paging, kernel.space
        assert tasks is not None
        where = tasks.page_table_address(words)
        assert where is not None
        table = space.translate(int.from_bytes(space.read(where, 8), "little"))
        if table is None or table == paging.roots(capture.registers)[-1] or self._session.architecture.is_user(capture.registers):
            return page_reader(self._session.target, capture.vcpu)
        own = FreshSpace(self._session.memory, space.tables, table)
        return lambda address: own.read(address, PAGE)

    def _compare(self, made: Made, capture: Capture, layout: Layout, read_page: ReadPage) -> Comparison:
        made = self._walked_whole(made)
        assert made.saved is not None
        is_user = self._session.architecture.is_user(capture.registers)
        registers = dict(capture.registers.items()) if is_user else dict(made.saved)
        theirs, stop = self._gdbs.walk(layout, registers, read_page)
        chain = made.sample.callchain
        ours = self._addresses(chain, layout)
        end = chain.user_end
        is_whole = end is not None and end.is_proper
        verdict = compare(tuple(pc for pc, _name in ours), tuple(pc for pc, _name in theirs), is_whole=is_whole)
        process = made.pending.process
        if (
            verdict is Verdict.GDB_GOES_ON
            and not isinstance(process, UserEnd)
            and not process.find_region(theirs[len(ours)][0] - 1)
        ):
            verdict = Verdict.GDB_INVENTS
        where = "user" if is_user else "kernel"
        return Comparison(layout.program, where, verdict, is_whole, str(end), stop, ours, tuple(theirs))

    def _walked_whole(self, made: Made) -> Made:
        """With all files read that its user stack goes through."""
        spaces, give_up = self._guest.spaces, time.monotonic() + _WALK_TIMEOUT_S
        assert spaces is not None
        while time.monotonic() < give_up:
            made = self._guest.maker.with_user(made)
            if not spaces.has_work:
                break
            while spaces.has_work and time.monotonic() < give_up:
                if not spaces.step():
                    time.sleep(_PAUSE_S)
        return made

    def _addresses(self, chain: Callchain, layout: Layout) -> tuple[tuple[int, str], ...]:
        """The user frames' run-time addresses, by this benchmark's own account of where files are; and guestprof's names."""
        found = []
        for frame in chain.frames:
            if frame.space is Space.USER:
                name = "" if frame.image is None else self._images.names[frame.image]
                table = None if frame.image is None else self._images.symbols[frame.image]
                symbol = table.find_at(frame.lookup_pc) if table is not None else None
                found.append((frame.pc + layout.biases.get(name, 0), "" if symbol is None else symbol.name))
        return tuple(found)


def compare(ours: tuple[int, ...], theirs: tuple[int, ...], *, is_whole: bool) -> Verdict:
    """Compare return addresses frame by frame."""
    if ours == theirs:
        return Verdict.EQUAL if is_whole else Verdict.TRUNCATED
    if is_whole and theirs[: len(ours)] == ours:
        return Verdict.GDB_GOES_ON
    if is_whole and ours[: len(theirs)] == theirs:
        return Verdict.GDB_STOPS
    return Verdict.TRUNCATED if not is_whole and theirs[: len(ours)] == ours else Verdict.DIFFERENT


def add_tables(files: GuestFiles, directory: Path) -> None:
    """Without tables gdb is lost where its guesses about prologues do not fit: it gets them from a build for debugging.

    The guest's own file has none. Raises BadImageError where the two differ in their code.
    """
    for program in USER_TRUTH:
        if _NO_TABLES in program.flags:
            build_programs(directory, (replace(program, flags=(*program.flags, "-g")),))
            made = (directory / program.name).read_bytes()
            if executable_segments(made) != executable_segments(files.copy(_DIRECTORY + program.name).read_bytes()):
                raise BadImageError(f"{program.name} was built by another compiler than that on the disk image; delete the image")
            files.add(_DIRECTORY + program.name, made)


def measure(kernel: Path, suite: str, image: Path, halts: int, rng: Random, note: Callable[[Comparison], None]) -> int:
    """Boot, and compare at so many halts that find one of the programs running; the number of all halts. Raises GuestprofError."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp-bench-")))
        arguments = tuple(f"{_DIRECTORY}{program.name}" for program in USER_TRUTH)
        options = DebianOptions(kernel, suite, image, vcpus=_VCPUS, program=TASK_TRUTH, arguments=arguments)
        guest = stack.enter_context(start_debian(options, directory))
        files = GuestFiles(image, directory)
        add_tables(files, directory)
        guest.wait_for(_READY)
        address = resolve_target(guest.target, qmp=str(guest.qmp))
        session = stack.enter_context(Session(address, sources=FileSources()))
        comparer = Comparer(session, stack.enter_context(UserGdbs(files, directory)), files)
        comparer.find_kernel()
        all_halts = useful = 0
        while useful < halts and all_halts < 20 * halts:
            session.target.resume()
            time.sleep(rng.uniform(0.001, 0.020))
            found = comparer.halt()
            all_halts += 1
            useful += bool(found)
            for comparison in found:
                note(comparison)
        return all_halts


def _version(program: str) -> str:
    if shutil.which(program) is None:
        raise MissingDependencyError(f"this benchmark needs {program}, which is not installed (Debian: gdb, qemu-system-x86)")
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def table(comparisons: list[Comparison]) -> list[str]:
    """A line for each program and place, and one for all."""
    lines = [f"{'program':<16}{'halted in':<12}{'stacks':>8}{'whole':>10}{'equal':>10}{'frames':>9}  otherwise"]
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for each in comparisons:
        groups.setdefault((each.program, each.where), []).append(each)
    for (program, where), group in [*sorted(groups.items()), (("all", ""), comparisons)]:
        verdicts = Counter(each.verdict for each in group)
        others = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common() if verdict is not Verdict.EQUAL)
        whole, equal = sum(each.is_whole for each in group) / len(group), verdicts[Verdict.EQUAL] / len(group)
        frames = sum(len(each.ours) for each in group if each.verdict is Verdict.EQUAL)
        lines.append(f"{program:<16}{where:<12}{len(group):>8}{whole:>10.2%}{equal:>10.2%}{frames:>9}  {others}".rstrip())
    return lines


def main() -> int:
    """Run from the repository: ``python -m benchmarks.user_accuracy``; exit status 1 if less than 99 % agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.user_accuracy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--halts", type=int, default=500, help="random halts that find one of the programs (default: 500)")
    parser.add_argument("--suite", default="bookworm", help="Debian suite whose kernel to run (default: bookworm)")
    parser.add_argument("--seed", type=int, default=1, help="of the random times between halts")
    parser.add_argument("--details", type=Path, default=Path(tempfile.gettempdir()) / "guestprof-user-accuracy.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=_RESULTS, help="where to write the result")
    options = parser.parse_args()
    comparisons: list[Comparison] = []
    try:
        programs = {name: _version(name) for name in (QEMU, "gdb")}
        start_s = time.monotonic()
        kernel = fetch_kernel(options.suite)
        halts = measure(kernel, options.suite, root_image(), options.halts, Random(options.seed), comparisons.append)
    except GuestprofError as error:
        print(f"user_accuracy: {error}", file=sys.stderr)
        return 1
    lines = table(comparisons)
    print("\n".join(lines))
    with options.details.open("w", encoding="utf-8") as details:
        for each in comparisons:
            if each.verdict is not Verdict.EQUAL:
                details.write(json.dumps(each.as_json()) + "\n")
    print(f"\nstacks that are not equal: {options.details}")
    verdicts = Counter(each.verdict for each in comparisons)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.user_accuracy --halts {options.halts} --seed {options.seed}",
        "programs": programs,
        "kernel": kernel.name,
        "duration_s": round(time.monotonic() - start_s),
        "halts": halts,
        "stacks": len(comparisons),
        "verdicts": {verdict.value: count for verdict, count in verdicts.most_common()},
        "table": lines,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    good = verdicts[Verdict.EQUAL] + verdicts[Verdict.GDB_INVENTS]
    return 0 if good >= 0.99 * len(comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
