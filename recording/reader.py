"""A recording's file becomes the values of ``recording/model.py`` again.

Nothing in the file is trusted: it may be cut short, or made by somebody else. Whatever does not fit raises BadRecordingError.
"""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, NamedTuple, Self

from recording import files
from recording.errors import BadRecordingError
from recording.interpolation import interpolated
from recording.loaded import frames_from_pieces, from_pieces
from recording.model import (
    Callchain,
    ClockReading,
    Context,
    Event,
    Frame,
    FrameKind,
    Halt,
    Image,
    KeptFile,
    OrcData,
    RawCapture,
    Sample,
    SourceLine,
    Space,
    StackEnd,
    SystemCall,
    Task,
    UnwindData,
    UserEnd,
)
from recording.schema import RETIMED_TABLES, to_unsigned
from recording.store import PIECE
from recording.symbols import SymbolTable

_MAX_CAPTURE = 1 << 26
_MAX_BLOB = 1 << 20
_ROWS = 1 << 10
_MAX_PIECES = 1 << 14
"""Of one unwinder: half a GiB as they are written, several times the largest kernel."""
_DAMAGE = (
    sqlite3.DatabaseError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RecursionError,
    struct.error,
    zlib.error,
)
"""What damaged content raises where it is taken apart."""
_HALTS = """
    SELECT id, host_time_ns, running_time_ns, halted_ns, lateness_ns FROM halts h
    WHERE (?1 IS NULL OR h.running_time_ns >= ?1) AND (?2 IS NULL OR h.running_time_ns < ?2)
    ORDER BY id"""
_STACK_TOTALS = """
    SELECT callchain, boot, vcpu, count(*), sum(weight_ns), task, context, system_call, min(halt), max(halt) FROM samples s
    WHERE ((?1 IS NULL AND ?2 IS NULL) OR EXISTS (
            SELECT 1 FROM halts h WHERE h.id = s.halt
            AND (?1 IS NULL OR h.running_time_ns >= ?1) AND (?2 IS NULL OR h.running_time_ns < ?2)))
        AND (?3 IS NULL OR s.vcpu IN (SELECT value FROM json_each(?3)))
    GROUP BY vcpu, boot, callchain, task, context, system_call ORDER BY vcpu, boot, callchain, task, context, system_call"""
_TIMELINE_START = """
    SELECT min(running_time_ns - weight_ns) AS start_ns FROM samples s JOIN halts h ON h.id = s.halt
    WHERE (?1 IS NULL OR h.running_time_ns >= ?1) AND (?2 IS NULL OR h.running_time_ns < ?2)
        AND (?3 IS NULL OR s.vcpu IN (SELECT value FROM json_each(?3)))"""
_SIGHTINGS = """
    SELECT vcpu, running_time_ns, weight_ns, callchain, boot, task, context, system_call
    FROM samples s CROSS JOIN halts h ON h.id = s.halt
    WHERE (?1 IS NULL OR h.running_time_ns >= ?1) AND (?2 IS NULL OR h.running_time_ns < ?2)
        AND (?3 IS NULL OR s.vcpu IN (SELECT value FROM json_each(?3)))
    ORDER BY halt, vcpu"""
"""A cross join, so that SQLite goes through the samples in their own order and sorts nothing."""
_OPTIONAL = frozenset({"monotonic_ns", "printk_ns", "task", "context", "system_call", "start_ns"})
"""Columns that may be NULL."""
_MAX_KEPT_FILE = 1 << 40
_KEPT_PIECES = """
    SELECT image, position, data FROM kept_file_pieces JOIN blobs ON blobs.id = kept_file_pieces.blob ORDER BY image, position
"""
_UNWINDER_PIECES = """
    SELECT p.name, p.part, p.address, b.data FROM unwinder_pieces p JOIN blobs b ON b.id = p.blob
    WHERE p.unwinder = ? ORDER BY p.name, p.part, p.position"""


_SOURCE_LINES = """
    SELECT l.image, l.address, l.name, f.path, l.line FROM source_lines l LEFT JOIN source_files f ON f.id = l.file
    ORDER BY l.image, l.address, l.depth"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples to look at.

    vcpus: None for all.
    since_ns, until_ns: guest running time since the recording's start, [since, until); None for no bound.
    idle: whether samples of the idle loop count.
    processes: by name or by number (tgid), None for all.
    contexts: None for all.
    modules: stacks with a frame in one of these, by the module's name, with or without brackets or directory; None for all.
    inlined: functions that the compiler has inlined are frames of their own, where debug information told of them.
    focus: stacks with a function in whose name or module one of these is found; ignore: but without those. None for all.
    """

    vcpus: frozenset[int] | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    idle: bool = True
    processes: frozenset[str] | None = None
    contexts: frozenset[Context] | None = None
    modules: frozenset[str] | None = None
    focus: tuple[re.Pattern[str], ...] | None = None
    ignore: tuple[re.Pattern[str], ...] | None = None
    inlined: bool = False


class StackTotal(NamedTuple):
    """How often one callchain was seen on one vCPU in one boot, in one task, context and system call (all by their ids).

    first, last: the halts between which that was.
    """

    callchain: int
    boot: int
    vcpu: int
    samples: int
    weight_ns: int
    task: int | None
    context: int | None
    system_call: int | None
    first: int
    last: int


class Recording:
    """A finished or running recording, opened to read. A context manager.

    What is read is the state at the time of opening. All methods raise BadRecordingError where the file is damaged.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, copy: tempfile.TemporaryDirectory[str] | None, meta: dict[str, Any]
    ) -> None:
        """Use ``open``."""
        self.path = path
        self.meta = meta
        self._connection = connection
        self._copy = copy

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Raises BadRecordingError where the file is missing, empty, foreign, of a newer format or damaged."""
        connection, copy = files.open_read_only(path)
        recording = cls(path, connection, copy, {})
        try:
            for key, value in recording._query("SELECT key, value FROM meta ORDER BY key"):
                with recording._damage_told():
                    recording.meta[str(key)] = json.loads(value)
        except BadRecordingError:
            recording.close()
            raise
        return recording

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closing again does nothing."""
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """Errors that damaged content raises become BadRecordingError."""
        try:
            yield
        except BadRecordingError as error:
            raise BadRecordingError(f"{self.path}: {error}") from error
        except _DAMAGE as error:
            raise BadRecordingError(f"{self.path} is damaged ({error}); record again") from error

    def _query(self, statement: str, parameters: tuple[int | str | None, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows whose INTEGER columns may hold anything: SQLite does not enforce types."""
        with self._damage_told():
            yield from self._connection.execute(statement, parameters)

    def _integers(self, statement: str, parameters: tuple[int | str | None, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of integers and nothing else, or None where a column is optional."""
        for columns in self._columns(statement, parameters):
            yield from zip(*columns, strict=True)

    def _columns(self, statement: str, parameters: tuple[int | str | None, ...] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """The same by columns, some thousand rows at once."""
        with self._damage_told():
            cursor = self._connection.execute(statement, parameters)
            allowed = [{int, NoneType} if name in _OPTIONAL else {int} for name, *_ in cursor.description]
            while rows := cursor.fetchmany(_ROWS):
                # By columns, as looking at each of a million values takes longer than all else.
                columns = list(zip(*rows, strict=True))
                for column, types in zip(columns, allowed, strict=True):
                    if not types.issuperset(map(type, column)):
                        wrong = next(value for value in column if type(value) not in types)
                        raise ValueError(f"{wrong!r:.40} where a number belongs")
                yield columns

    def halts(self, selection: Selection | None = None) -> Iterator[Halt]:
        """The halts within a selection's time, all without one, in time order."""
        for row in self._integers(_HALTS, _parameters(selection)[:2]):
            yield Halt(*row[1:])

    def halt_times(self, selection: Selection) -> dict[int, int]:
        """The guest running time of each halt within a selection's time, by the halt's index, in time order."""
        return {halt: time_ns for halt, _, time_ns, _, _ in self._integers(_HALTS, _parameters(selection)[:2])}

    def retime(self, times_ns: Sequence[int]) -> None:
        """From now on the halts have these running times, ascending, one for each; samples and events have what lies between them.

        The file stays as it is: temporary tables stand before its own.
        """
        halts = list(self.halts())
        before_ns = [halt.running_time_ns for halt in halts]
        rows = list(self._query("SELECT * FROM samples ORDER BY halt, vcpu"))
        events = self.events()
        with self._damage_told():
            for statement in RETIMED_TABLES:
                self._connection.execute(statement)
            of_halts = [
                (index, halt.host_time_ns, time_ns, halt.halted_ns, halt.lateness_ns)
                for index, (halt, time_ns) in enumerate(zip(halts, times_ns, strict=True))
            ]
            self._connection.executemany("INSERT INTO temp.halts VALUES (?, ?, ?, ?, ?)", of_halts)
            of_samples = [
                (halt, vcpu, boot, times_ns[halt] - interpolated(before_ns[halt] - weight_ns, before_ns, times_ns), *rest)
                for halt, vcpu, boot, weight_ns, *rest in rows
            ]
            self._connection.executemany("INSERT INTO temp.samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)", of_samples)
            of_events = [(interpolated(event.running_time_ns, before_ns, times_ns), event.kind, event.text) for event in events]
            self._connection.executemany("INSERT INTO temp.events (running_time_ns, kind, text) VALUES (?, ?, ?)", of_events)

    def clocks(self) -> Iterator[ClockReading]:
        """The guest's own clocks in the order of their halts; none of early recordings."""
        for row in self._integers("SELECT halt, boot, monotonic_ns, printk_ns FROM clocks ORDER BY halt"):
            yield ClockReading(*row)

    def images(self) -> list[Image]:
        """All images in the order in which they were added, so that ``Frame.image`` is the place in this list."""
        ranges: dict[int, list[tuple[int, int]]] = {}
        for image, start, end in self._integers('SELECT image, start, "end" FROM image_ranges ORDER BY image, position'):
            ranges.setdefault(image, []).append((to_unsigned(start), to_unsigned(end)))
        images: list[Image] = []
        for index, name, kind, boot, build_id, symbols in self._query(
            "SELECT id, name, kind, boot, build_id, symbols FROM images ORDER BY id"
        ):
            with self._damage_told():
                if index != len(images):
                    raise ValueError(f"no image {len(images)}")
                if type(boot) is not int or not isinstance(name, str) or not isinstance(build_id, str | None):
                    raise ValueError("an image's name or boot is of the wrong type")
                table = None if symbols is None else SymbolTable.from_blob(symbols)
                images.append(Image(name, FrameKind(kind), boot, build_id, tuple(ranges.get(index, ())), table))
        return images

    def walks(self) -> Iterator[tuple[int, int]]:
        """Boot and callchain of the samples, each pair once."""
        yield from self._integers("SELECT DISTINCT boot, callchain FROM samples")

    @property
    def has_source_lines(self) -> bool:
        """Whether debug information was put into the recording."""
        return self._has_table("source_lines")

    def _has_table(self, name: str) -> bool:
        """Of those that only some recordings have."""
        return any(True for _ in self._query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))

    def source_lines(self) -> dict[tuple[int, int], tuple[SourceLine, ...]]:
        """By an image's number and an address: the functions there, innermost first, the last one not inlined."""
        found: dict[tuple[int, int], list[SourceLine]] = {}
        known: dict[tuple[str | None, str | None, int | None], SourceLine] = {}
        if not self.has_source_lines:
            return {}
        for image, address, *what in self._query(_SOURCE_LINES):
            with self._damage_told():
                line = known.get(key := (what[0], what[1], what[2]))
                if line is None:
                    if (
                        not isinstance(key[0], str | None)
                        or not isinstance(key[1], str | None)
                        or type(key[2]) not in {int, NoneType}
                    ):
                        raise TypeError("a source line is of the wrong type")
                    line = known[key] = SourceLine(*key)
                found.setdefault((image, to_unsigned(address)), []).append(line)
        return {key: tuple(lines) for key, lines in found.items()}

    def frames(self) -> dict[int, Frame]:
        """All distinct frames by their id."""
        frames = {}
        for index, pc, lookup_pc, space, guess, image, start in self._query(
            "SELECT id, pc, lookup_pc, space, guess, image, start FROM frames"
        ):
            with self._damage_told():
                if image is not None and type(image) is not int:
                    raise ValueError("a frame's image is of the wrong type")
                begin = None if start is None else to_unsigned(start)
                frames[index] = Frame(to_unsigned(pc), to_unsigned(lookup_pc), Space(space), bool(guess), image, begin)
        return frames

    def callchains(self) -> dict[int, Callchain]:
        """All distinct callchains by their id."""
        frames, callchains = self.frames(), {}
        with self._damage_told():
            for index, end, ids, user_end in self._query('SELECT id, "end", frames, user_end FROM callchains'):
                ends = StackEnd(end), None if user_end is None else UserEnd(user_end)
                callchains[index] = Callchain(tuple(map(frames.__getitem__, json.loads(ids))), *ends)
        return callchains

    def tasks(self) -> dict[int, Task]:
        """All tasks by their id."""
        tasks = {}
        for index, pid, tgid, comm, process, is_kernel_thread, cgroup in self._query(
            "SELECT id, pid, tgid, comm, process, is_kernel_thread, cgroup FROM tasks"
        ):
            with self._damage_told():
                if not isinstance(comm, str) or not isinstance(process, str) or not isinstance(cgroup, str | None):
                    raise TypeError("a task's name is of the wrong type")
                tasks[index] = Task(int(pid), int(tgid), comm, process, bool(is_kernel_thread), cgroup)
        return tasks

    def system_calls(self) -> dict[int, SystemCall]:
        """All system calls by their id."""
        calls = {}
        for index, table, number, name in self._query("SELECT id, abi, number, name FROM system_calls"):
            with self._damage_told():
                if not isinstance(table, str) or not isinstance(name, str | None):
                    raise TypeError("a system call's name is of the wrong type")
                calls[index] = SystemCall(table, int(number), name)
        return calls

    def contexts(self) -> dict[int, Context]:
        """The contexts by their ids."""
        rows = list(self._query("SELECT id, name FROM contexts"))
        with self._damage_told():
            return {index: Context(name) for index, name in rows}

    def samples(self) -> Iterator[Sample]:
        """All samples in time order, and by vCPU within a halt."""
        callchains, tasks, contexts, calls = self.callchains(), self.tasks(), self.contexts(), self.system_calls()
        for halt, vcpu, boot, weight_ns, callchain, task, context, call in self._integers(
            "SELECT halt, vcpu, boot, weight_ns, callchain, task, context, system_call FROM samples ORDER BY halt, vcpu"
        ):
            with self._damage_told():
                chain = callchains[callchain]
                what = (
                    None if task is None else tasks[task],
                    Context.UNKNOWN if context is None else contexts[context],
                    None if call is None else calls[call],
                )
            yield Sample(halt, vcpu, boot, weight_ns, chain, *what)

    def stack_totals(self, selection: Selection) -> Iterator[StackTotal]:
        """Samples counted by vCPU, boot, callchain, task, context and system call, in that order.

        Of the selection only vCPUs and times are looked at here: the others need names.
        """
        yield from map(StackTotal._make, self._integers(_STACK_TOTALS, _parameters(selection)))

    def timeline_start(self, selection: Selection) -> int:
        """Where the first moment of all vCPUs begins, in guest running time; 0 where there is none."""
        ((start_ns,),) = self._integers(_TIMELINE_START, _parameters(selection))
        return start_ns or 0

    def sightings(self, selection: Selection) -> Iterator[list[tuple[Any, ...]]]:
        """The samples in time order, and by vCPU within a halt: some thousand at once, as columns.

        vcpu, running_time_ns, weight_ns, callchain, boot, task, context, system_call; the last three are ids or None. Of the
        selection only vCPUs and times are looked at here.
        """
        yield from self._columns(_SIGHTINGS, _parameters(selection))

    def events(self) -> list[Event]:
        """All events in the order in which they were added."""
        with self._damage_told():
            rows = self._connection.execute("SELECT running_time_ns, kind, text FROM events ORDER BY id")
            return [Event(int(time_ns), str(kind), str(text)) for time_ns, kind, text in rows]

    def captures(self) -> Iterator[RawCapture]:
        """The raw captures in time order, none unless they were asked for when recording."""
        for halt, vcpu, unwinder, registers, memory in self._query(
            "SELECT halt, vcpu, unwinder, registers, memory FROM captures ORDER BY halt, vcpu"
        ):
            with self._damage_told():
                pieces = tuple(_pieces(_inflated(memory, _MAX_CAPTURE)))
                known = None if unwinder is None else int(unwinder)
                capture = RawCapture(int(halt), int(vcpu), _inflated(registers, _MAX_CAPTURE), pieces, known)
            yield capture

    def unwind_data(self, unwinder: int) -> UnwindData | None:
        """What captures that name this unwinder were unwound with; None where the recording was killed before it was written."""
        found = list(
            self._query("SELECT boot, is_settled, init_start, init_end, orc_version FROM unwinders WHERE id = ?", (unwinder,))
        )
        if not found:
            return None
        parts: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
        for count, (name, part, address, blob) in enumerate(self._query(_UNWINDER_PIECES, (unwinder,))):
            with self._damage_told():
                if count >= _MAX_PIECES:
                    raise ValueError("an unwinder has too many pieces")
                parts.setdefault((str(name), int(part)), []).append((to_unsigned(address), _inflated(blob, _MAX_BLOB)))
        with self._damage_told():
            boot, is_settled, low, high, version = found[0]
            joined = {key: (pieces[0][0], b"".join(data for _address, data in pieces)) for key, pieces in parts.items()}
            orc = None
            if version is not None:
                address, ip_table = joined["orc_ip", 0]
                orc = OrcData(int(version), address, ip_table, joined["orc", 0][1])
            text = tuple(sorted(piece for (name, _part), piece in joined.items() if name == "text"))
            init_text = (to_unsigned(low), to_unsigned(high))
            loaded, frames = from_pieces(joined), frames_from_pieces(joined)
            return UnwindData(int(boot), bool(is_settled), init_text, text, orc, loaded, frames)

    def kept_files(self) -> list[KeptFile]:
        """The files of ``--elf`` that ``--raw`` kept, by their images; those of a recording that was killed may be missing."""
        if not self._has_table("kept_files"):
            return []
        pieces: dict[int, list[tuple[int, bytes]]] = {}
        for count, (image, position, blob) in enumerate(self._query(_KEPT_PIECES)):
            with self._damage_told():
                if count >= _MAX_PIECES or not 0 <= position < _MAX_KEPT_FILE:
                    raise ValueError("a file of --elf has too many pieces, or is too long")
                pieces.setdefault(int(image), []).append((int(position), _inflated(blob, _MAX_BLOB)))
        files = []
        for image, size, bias, root in self._query("SELECT image, size, bias, root FROM kept_files ORDER BY image"):
            with self._damage_told():
                if not 0 <= size < _MAX_KEPT_FILE:
                    raise ValueError("a file of --elf is too long")
                place = to_unsigned(bias), None if root is None else to_unsigned(root)
                files.append(KeptFile(int(image), int(size), *place, tuple(pieces.get(int(image), ()))))
        return files


def _parameters(selection: Selection | None) -> tuple[int | str | None, ...]:
    """What the numbered parameters of the statements stand for: since, until, and the vCPUs as a JSON array."""
    if selection is None:
        return None, None, None
    vcpus = None if selection.vcpus is None else json.dumps(sorted(selection.vcpus))
    return selection.since_ns, selection.until_ns, vcpus


def _inflated(blob: bytes, limit: int) -> bytes:
    engine = zlib.decompressobj()
    data = engine.decompress(blob, limit + 1)
    if not engine.eof or len(data) > limit:
        raise ValueError("a capture is cut short or too large")
    return data


def _pieces(packed: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(packed):
        address, size = PIECE.unpack_from(packed, offset)
        offset += PIECE.size
        if offset + size > len(packed):
            raise ValueError("a piece of captured memory is cut short")
        yield address, packed[offset : offset + size]
        offset += size
