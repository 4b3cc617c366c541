"""What is written is what is read, whatever happens to the writer."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recording.errors import BadRecordingError, GuestprofError
from recording.model import (
    Callchain,
    ClockReading,
    Context,
    Event,
    Frame,
    FrameKind,
    Halt,
    Image,
    OrcData,
    RawCapture,
    Sample,
    Space,
    StackEnd,
    SystemCall,
    Task,
    UnwindData,
    UserEnd,
)
from recording.reader import Recording, Selection, StackTotal
from recording.store import RecordingWriter
from recording.symbols import SymbolTable

ROOT = Path(__file__).resolve().parent.parent.parent
KERNEL_PC = 0xFFFF_FFFF_8100_0010
HALTS = [Halt(0, 0, 400, 10), Halt(10_400, 10_000, 500, 20)]
LEAF = Frame(KERNEL_PC, KERNEL_PC)
CALLER = Frame(KERNEL_PC + 64, KERNEL_PC + 63, guess=True)
USER = Frame(0x7F00_0000_1000, 0x7F00_0000_1000, Space.USER)
IN_KERNEL = Callchain((LEAF, CALLER, USER), StackEnd.USER_ENTRY)
TRUNCATED = Callchain((LEAF, CALLER, USER), StackEnd.UNREADABLE_MEMORY)
NOTHING = Callchain((), StackEnd.NO_KERNEL)
UNWINDER = UnwindData(1, True, (KERNEL_PC, KERNEL_PC + 16), ((KERNEL_PC, b"code"), (KERNEL_PC + 0x1000, b"more")), None)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sample(halt: int, vcpu: int, callchain: Callchain, weight_ns: int = 10_000) -> Sample:
    return Sample(halt, vcpu, 0, weight_ns, callchain)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    symbols = SymbolTable.from_symbols([(KERNEL_PC - 16, "T", "start"), (KERNEL_PC + 48, "t", "caf\udce9")])
    kernel = Image("vmlinux", FrameKind.KERNEL, 0, "c0ffee", ((KERNEL_PC - 16, KERNEL_PC + 0x1000), (1, 2)), symbols)
    module = Image("bad\udcffname", FrameKind.MODULE, 1, None, (), None)
    with RecordingWriter(path, clock=Clock()) as writer:
        writer.set_meta("requested_hz", 99.5)
        writer.set_meta("command", ["guestprof", "record", "bytes\udcff"])
        writer.set_meta("requested_hz", 100)
        assert [writer.add_halt(halt) for halt in HALTS] == [0, 1]
        writer.add_clock(ClockReading(0, 0, 8_000_000, None))
        writer.add_clock(ClockReading(1, 1, None, 12_345_678))
        writer.add_sample(sample(1, 1, TRUNCATED))
        writer.add_sample(sample(1, 0, IN_KERNEL, 20_000))
        writer.add_sample(sample(0, 0, IN_KERNEL))
        writer.add_sample(sample(0, 1, NOTHING, 0))
        assert [writer.add_image(image) for image in (kernel, module)] == [0, 1]
        writer.add_event(Event(5, "kernel-found", "found Linux \udcff"))
        writer.add_capture(1, 0, b"\1\2\3", [(KERNEL_PC, b"stack"), (0, b"")])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.guestprof"]
    with Recording.open(path) as recording:
        assert recording.meta == {"requested_hz": 100, "command": ["guestprof", "record", "bytes\udcff"]}
        assert list(recording.halts()) == HALTS
        assert list(recording.clocks()) == [ClockReading(0, 0, 8_000_000, None), ClockReading(1, 1, None, 12_345_678)]
        assert list(recording.samples()) == [
            sample(0, 0, IN_KERNEL),
            sample(0, 1, NOTHING, 0),
            sample(1, 0, IN_KERNEL, 20_000),
            sample(1, 1, TRUNCATED),
        ]
        images = recording.images()
        assert [(i.name, i.kind, i.boot, i.build_id, i.ranges) for i in images] == [
            ("vmlinux", FrameKind.KERNEL, 0, "c0ffee", kernel.ranges),
            ("bad\\udcffname", FrameKind.MODULE, 1, None, ()),
        ]
        assert [symbol.name for symbol in images[0].symbols or ()] == ["start", "caf\udce9"]
        assert images[1].symbols is None
        assert recording.events() == [Event(5, "kernel-found", "found Linux \\udcff")]
        assert list(recording.captures()) == [RawCapture(1, 0, b"\1\2\3", ((KERNEL_PC, b"stack"), (0, b"")))]


def test_tasks_contexts_and_user_stacks_come_back_and_are_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    in_file = Frame(0x1040, 0x103F, Space.USER, image=1, start=0xFFFF_FFFF_FFFF_1000)
    chains = [Callchain((LEAF, in_file), StackEnd.USER_ENTRY, end) for end in (None, UserEnd.THREAD_START, UserEnd.NOT_MAPPED)]
    chains.append(Callchain((LEAF, replace(in_file, image=0)), StackEnd.USER_ENTRY, UserEnd.THREAD_START))
    shell, renamed = Task(7, 7, "sh", "sh", False, "/user.slice"), Task(7, 7, "python3", "python3", False, "/user.slice")
    thread, worker = Task(8, 7, "caf\udce9", "python3", False), Task(2, 2, "kthreadd", "kthreadd", True)
    read, unnamed = SystemCall("64", 0, "read"), SystemCall("32", 999, None)
    samples = [
        Sample(0, 0, 0, 1, chains[0], shell, Context.SYSTEM_CALL, read),
        Sample(0, 1, 0, 1, chains[1], renamed, Context.HARD_IRQ, unnamed),
        Sample(0, 2, 0, 1, chains[2], thread, Context.USER),
        Sample(0, 3, 0, 1, chains[3], worker, Context.KERNEL_THREAD),
        Sample(1, 0, 0, 1, chains[0], shell, Context.SYSTEM_CALL, SystemCall("64", 0, "read")),
        Sample(1, 1, 0, 1, NOTHING),
    ]
    with RecordingWriter(path, clock=Clock()) as writer:
        for halt in HALTS:
            writer.add_halt(halt)
        for each in samples:
            writer.add_sample(each)
    stored_thread = replace(thread, comm="caf\\udce9")
    with Recording.open(path) as recording:
        assert list(recording.samples()) == [*samples[:2], replace(samples[2], task=stored_thread), *samples[3:]]
        assert list(recording.tasks().values()) == [shell, renamed, stored_thread, worker]
        assert list(recording.system_calls().values()) == [read, unnamed]
        assert list(recording.contexts().values()) == list(Context)
        first = next(iter(recording.stack_totals(Selection())))
        assert (first.callchain, first.samples, first.task, first.system_call) == (0, 2, 0, 0)
        assert recording.contexts()[first.context or 0] is Context.SYSTEM_CALL
        assert [column[0] for column in next(recording.sightings(Selection()))] == [0, 0, 1, 0, 0, 0, first.context, 0]


def test_symbols_and_name_of_a_file_may_come_later(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    early, late = (SymbolTable.from_symbols([(0x1000, "T", name)]) for name in ("early", "late"))
    with RecordingWriter(path, clock=Clock()) as writer:
        for name, symbols in (("/bin/a", None), ("/bin/b", early), ("/bin/c", None)):
            writer.add_image(Image(name, FrameKind.USER, 0, None, (), symbols))
        writer.update_image(0, symbols=late)
        writer.commit()
        writer.update_image(1, build_id="c0ffee")
        writer.update_image(2, build_id="00ff", symbols=early)
        writer.update_image(2, name="/bin/d", symbols=late)
    with Recording.open(path) as recording:
        found = [(image.name, image.build_id, [symbol.name for symbol in image.symbols or ()]) for image in recording.images()]
    assert found == [("/bin/a", None, ["late"]), ("/bin/b", "c0ffee", ["early"]), ("/bin/d", "00ff", ["late"])]


def test_a_recording_of_format_1_still_opens(tmp_path: Path) -> None:
    """``format_1.gz`` was written by version 0.1.0: 16 samples of two vCPUs (``tests/builders/profiles.py`` describes them)."""
    path = tmp_path / "a.guestprof"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "format_1.gz").read_bytes()))
    before = path.read_bytes()
    path.chmod(0o444)
    with Recording.open(path) as recording:
        samples = list(recording.samples())
        assert len(samples) == 16
        assert {(each.task, each.context, each.system_call, each.callchain.user_end) for each in samples} == {
            (None, Context.UNKNOWN, None, None)
        }
        assert sum(total.samples for total in recording.stack_totals(Selection(since_ns=20_000_000))) == 14
        assert sum(len(columns[0]) for columns in recording.sightings(Selection(frozenset({1})))) == 8
        assert (recording.tasks(), recording.system_calls(), recording.contexts()) == ({}, {}, {})
        assert list(recording.clocks()) == []
        assert [image.name for image in recording.images()] == ["vmlinux", "ext4", "e1000"]
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.guestprof"]


def test_a_recording_from_before_clocks_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=Clock()) as writer:
        writer.add_halt(HALTS[0])
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE clocks")
    connection.close()
    with Recording.open(path) as recording:
        assert list(recording.clocks()) == []
        assert list(recording.halts()) == HALTS[:1]


def test_equal_frames_and_callchains_are_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=Clock()) as writer:
        for index in range(100):
            writer.add_halt(Halt(index, index, 1, 0))
            writer.add_sample(sample(index, 0, TRUNCATED if index % 2 else IN_KERNEL))
    with sqlite3.connect(path) as database:
        counts = database.execute(
            "SELECT (SELECT count(*) FROM frames), (SELECT count(*) FROM callchains), (SELECT count(*) FROM samples)"
        ).fetchone()
        hexadecimal = database.execute("SELECT printf('%x', pc) FROM frames WHERE id = 0").fetchone()[0]
    assert counts == (3, 2, 100)
    assert hexadecimal == "ffffffff81000010"


def test_totals_and_time_lines_obey_the_selection(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=Clock()) as writer:
        for index in range(4):
            writer.add_halt(Halt(index * 11, index * 10, 1, 0))
            writer.add_sample(sample(index, 0, IN_KERNEL, 10))
            writer.add_sample(sample(index, 1, TRUNCATED if index == 2 else NOTHING, 10))
    with Recording.open(path) as recording:
        assert list(recording.stack_totals(Selection())) == [
            StackTotal(0, 0, 0, 4, 40, None, 9, None, 0, 3),
            StackTotal(1, 0, 1, 3, 30, None, 9, None, 0, 3),
            StackTotal(2, 0, 1, 1, 10, None, 9, None, 2, 2),
        ]
        assert list(recording.stack_totals(Selection(frozenset({1}), 10, 30))) == [
            StackTotal(1, 0, 1, 1, 10, None, 9, None, 1, 1),
            StackTotal(2, 0, 1, 1, 10, None, 9, None, 2, 2),
        ]
        assert [list(zip(*columns, strict=True)) for columns in recording.sightings(Selection(since_ns=20))] == [
            [
                (0, 20, 10, 0, 0, None, 9, None),
                (1, 20, 10, 2, 0, None, 9, None),
                (0, 30, 10, 0, 0, None, 9, None),
                (1, 30, 10, 1, 0, None, 9, None),
            ]
        ]
        assert list(recording.sightings(Selection(frozenset()))) == []
        assert recording.halt_times(Selection(since_ns=10, until_ns=30)) == {1: 10, 2: 20}
        assert list(recording.halts(Selection(since_ns=10, until_ns=20))) == [Halt(11, 10, 1, 0)]


def test_commits_are_due_every_half_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "a.guestprof", Clock()
    with RecordingWriter(path, clock=clock) as writer:
        seen = []
        for step, elapsed_s in enumerate((0.0, 0.4, 0.5, 0.9, 1.0)):
            clock.now_s = 100.0 + elapsed_s
            writer.add_halt(Halt(step, step, 1, 0))
            writer.commit_if_due()
            with Recording.open(path) as recording:
                seen.append(len(list(recording.halts())))
    assert seen == [0, 0, 3, 3, 5]


def test_a_reader_sees_one_state_while_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=Clock()) as writer:
        writer.add_halt(HALTS[0])
        writer.commit()
        with Recording.open(path) as recording:
            writer.add_halt(HALTS[1])
            writer.commit()
            assert list(recording.halts()) == HALTS[:1]
            writer.close()
    with Recording.open(path) as recording:
        assert list(recording.halts()) == HALTS


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    path.write_bytes(b"precious")
    with pytest.raises(GuestprofError, match=r"a\.guestprof exists; use --force to replace it$"):
        RecordingWriter(path, clock=Clock())
    assert path.read_bytes() == b"precious"
    (tmp_path / "a.guestprof-wal").write_bytes(b"log of another recording")
    with RecordingWriter(path, clock=Clock(), overwrite=True) as writer:
        writer.add_halt(HALTS[0])
    with Recording.open(path) as recording:
        assert list(recording.halts()) == HALTS[:1]


@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_cannot_be_written(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(GuestprofError, match="exists; choose a file to write to"):
        RecordingWriter(tmp_path, clock=Clock(), overwrite=overwrite)
    with pytest.raises(GuestprofError, match=r"cannot write .*No such file or directory; choose another file with -o"):
        RecordingWriter(tmp_path / "missing" / "a", clock=Clock(), overwrite=overwrite)


KILLED = """
import sys
from collections.abc import Callable
from pathlib import Path
from recording.model import *
from recording.store import RecordingWriter

now = 0.0
writer = RecordingWriter(Path(sys.argv[1]), clock=lambda: now)
callchain = Callchain((Frame(64, 63),), StackEnd.TASK_ROOT)
for index in range(1000):
    now = index / 100
    writer.add_halt(Halt(index, index, 1, 0))
    writer.add_sample(Sample(index, 0, 0, 1, callchain))
    writer.commit_if_due()
    if index == 730:
        print("now", flush=True)
        sys.stdin.read()
"""


def kill_writer(path: Path) -> None:
    """A recording at 100 Hz whose profiler is killed 7.3 seconds after its start."""
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdin.close()
    child.stdout.close()


def test_kill_9_loses_half_a_second_at_most(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    kill_writer(path)
    assert (tmp_path / "a.guestprof-wal").stat().st_size > 0
    with Recording.open(path) as recording:
        # Committed every 0.5 s of 100 Hz: the last time at 7.00 s, with the sample of that moment.
        assert [s.halt for s in recording.samples()] == list(range(701))
        assert len(list(recording.halts())) == 701


def _halts_seen_by_nobody(path: Path) -> int:
    """How many halts a process without root's rights reads, which fails where that needs to write beside the file."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            with Recording.open(path) as recording:
                os.write(writing, str(len(list(recording.halts()))).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return int(answer.read() or "-1")


@pytest.fixture
def public_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that any user may enter and nobody but its owner may write to."""
    directory = tmp_path_factory.mktemp("public")
    for parent in directory.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("left", "expected"),
    [("closed", 1), ("running, file copied alone", 1), ("killed", 701), ("killed, without shared memory", 701)],
)
def test_reading_needs_no_write_permission(public_directory: Path, tmp_path: Path, left: str, expected: int) -> None:
    path = public_directory / "a.guestprof"
    if left.startswith("killed"):
        kill_writer(path)
        if left != "killed":
            (public_directory / "a.guestprof-shm").unlink()
    else:
        writer = RecordingWriter(tmp_path / "a", clock=Clock())
        writer.add_halt(HALTS[0])
        writer.commit()
        if left == "closed":
            writer.close()
        else:
            sqlite3.connect(tmp_path / "a").execute("PRAGMA wal_checkpoint(FULL)")
        shutil.copyfile(tmp_path / "a", path)
        writer.close()
    for file in public_directory.iterdir():
        file.chmod(0o444)
    public_directory.chmod(0o555)
    try:
        assert _halts_seen_by_nobody(path) == expected
    finally:
        public_directory.chmod(0o755)


FULL = """
import resource, sys
from pathlib import Path
from recording.errors import GuestprofError
from recording.model import *
from recording.store import RecordingWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
writer = RecordingWriter(Path(sys.argv[1]), clock=lambda: 0.0)
try:
    with writer:
        for index in range(1_000_000):
            writer.add_halt(Halt(index, index, 1, 0))
            if index % 1000 == 999:
                writer.commit()
                print(index + 1, flush=True)
except GuestprofError as error:
    print(error)
"""


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *committed, message = done.stdout.splitlines()
    assert message.startswith(f"cannot write {path}: ")
    assert message.endswith("; what was recorded before is kept, make room or choose another file with -o")
    with Recording.open(path) as recording:
        assert len(list(recording.halts())) == int(committed[-1])


def test_closing_twice_and_writing_after_an_error_do_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    writer = RecordingWriter(path, clock=Clock())
    writer.add_halt(HALTS[0])
    writer.close()
    writer.close()
    with RecordingWriter(path, clock=Clock(), overwrite=True) as twice:
        twice.add_halt(HALTS[0])
        twice.add_sample(sample(0, 0, NOTHING))
        twice.commit()
        list(twice.add_unwinder(0, UNWINDER))
        with pytest.raises(GuestprofError, match="UNIQUE constraint failed"):
            list(twice.add_unwinder(0, UNWINDER))
    with Recording.open(path) as recording:
        assert list(recording.samples()) == [sample(0, 0, NOTHING)]


def test_what_unwinding_needs_comes_back_and_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    code = bytes(range(256)) * 3000
    first = UnwindData(0, False, (1, 2), ((KERNEL_PC, code), (KERNEL_PC + len(code), b"boot")), OrcData(3, 1 << 63, b"ip", b"orc"))
    with RecordingWriter(path, clock=Clock()) as writer:
        for halt, vcpu, unwinder in ((0, 0, None), (0, 1, None), (0, 1, 1)):
            writer.add_capture(halt, vcpu, b"r", [(KERNEL_PC, b"stack")], unwinder)
        steps = writer.add_unwinder(0, first)
        next(steps)
        with Recording.open(path) as early:
            assert len(list(early.captures())) == 2
            assert early.unwind_data(0) is None
        # 768000 bytes of code in pieces of 128 KiB (the first five are equal), and one piece of each of the others.
        assert len(list(steps)) == 6 + 1 + 1 + 1 - 1
        list(writer.add_unwinder(1, UNWINDER))
        list(writer.add_unwinder(2, replace(first, is_settled=True)))
    with Recording.open(path) as recording:
        assert recording.unwind_data(0) == first
        assert recording.unwind_data(1) == UNWINDER
        assert recording.unwind_data(2) == replace(first, is_settled=True)
        assert recording.unwind_data(3) is None
        assert [(capture.vcpu, capture.unwinder) for capture in recording.captures()] == [(0, None), (1, 1)]
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM blobs").fetchone() == (7,)


class Interrupted:
    """A connection on which Ctrl-C arrives before or after one of its statements."""

    def __init__(self, connection: sqlite3.Connection, statement: int, *, after: bool) -> None:
        self._connection = connection
        self._left = statement
        self._after = after

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str) -> None:
        self._run(lambda: self._connection.execute(statement))

    def executemany(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        self._run(lambda: self._connection.executemany(statement, rows))

    def _run(self, job: Callable[[], object]) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise KeyboardInterrupt
        job()
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("statement", range(1, 18))
def test_ctrl_c_in_the_middle_of_a_commit_loses_nothing(tmp_path: Path, statement: int, after: bool) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=Clock()) as writer:
        for index, halt in enumerate(HALTS):
            writer.add_halt(halt)
            writer.add_sample(sample(index, 0, IN_KERNEL))
        true_connection = writer._connection
        assert true_connection is not None
        writer._connection = Interrupted(true_connection, statement, after=after)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            writer.commit()
        writer._connection = true_connection
        writer.add_event(Event(7, "end", "interrupted"))
    with Recording.open(path) as recording:
        assert list(recording.samples()) == [sample(0, 0, IN_KERNEL), sample(1, 0, IN_KERNEL)]
        assert list(recording.halts()) == HALTS
        assert recording.events() == [Event(7, "end", "interrupted")]


def test_a_later_sample_of_a_halt_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=Clock()) as writer:
        writer.add_halt(HALTS[0])
        writer.add_sample(sample(0, 0, NOTHING))
        writer.commit()
        writer.add_sample(sample(0, 0, IN_KERNEL))
    with Recording.open(path) as recording:
        assert list(recording.samples()) == [sample(0, 0, IN_KERNEL)]


def test_a_recording_without_anything_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    RecordingWriter(path, clock=Clock()).close()
    with Recording.open(path) as recording:
        assert (recording.meta, list(recording.samples()), recording.images(), list(recording.captures())) == ({}, [], [], [])


def test_a_missing_recording(tmp_path: Path) -> None:
    with pytest.raises(BadRecordingError, match=r"nothing\.guestprof does not exist; name a file that 'guestprof record' wrote"):
        Recording.open(tmp_path / "nothing.guestprof")
