"""Samples, halts and images become rows of one SQLite file (``recording/schema.py``), while the guest runs.

A writer gathers rows in memory and commits them in one transaction when half a second has passed, so that a killed profiler
loses no more than that, and sampling never waits for a disk's sync (WAL mode, synchronous=NORMAL).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from recording import files
from recording.errors import GuestprofError
from recording.loaded import frames_to_pieces, to_pieces
from recording.model import (
    Callchain,
    ClockReading,
    Context,
    Event,
    Frame,
    Halt,
    Image,
    KeptFile,
    Sample,
    SystemCall,
    Task,
    UnwindData,
)
from recording.schema import APPLICATION_ID, FORMAT_VERSION, TABLES, WRITES, storable_text, to_signed
from recording.symbols import SymbolTable

COMMIT_PERIOD_S = 0.5
PIECE = struct.Struct("<QI")
"""Header of a piece of captured memory: its address and length; its bytes follow."""

BLOB_SIZE = 1 << 17
"""Bytes of a blob at most. Compressing one takes 2 ms, no longer than unwinding a few samples."""

_frame_key = attrgetter("pc", "lookup_pc", "guess", "space._value_", "image", "start")
"""What makes frames equal, as plain values: hashing them costs a third of hashing the frames."""


class RecordingWriter:
    """Owns the file of a recording that is being made. A context manager; leaving it closes the file.

    All methods that write raise GuestprofError where the disk is full or fails; what was committed before is kept, and closing
    writes nothing more.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float], overwrite: bool = False) -> None:
        """``clock`` gives seconds. Raises GuestprofError where the file exists (without ``overwrite``) or cannot be written."""
        self._path = path
        self._clock = clock
        self._rows: dict[str, list[tuple[object, ...]]] = {table: [] for table in WRITES}
        self._frame_ids: dict[Frame, int] = {}
        self._callchain_ids: dict[tuple[object, ...], int] = {}
        self._task_ids: dict[Task, int] = {}
        self._system_call_ids: dict[SystemCall, int] = {}
        self._context_ids: dict[Context, int] = {context: index for index, context in enumerate(Context)}
        self._blob_ids: dict[bytes, int] = {}
        self._halts = self._images = self._events = 0
        self._failed = False
        self._connection: sqlite3.Connection | None = files.create(path, overwrite=overwrite)
        try:
            # One transaction: a profiler that is killed here leaves an empty file or a recording, nothing in between.
            self._connection.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION}; {TABLES} COMMIT;"
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        self._rows["contexts"] += [(index, context.value) for context, index in self._context_ids.items()]
        self._committed_at = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def set_meta(self, key: str, value: object) -> None:
        """Keep something about the run; ``value`` is anything JSON can hold. A later value of a key replaces the earlier one."""
        self._rows["meta"].append((storable_text(key), json.dumps(value)))

    def add_halt(self, halt: Halt) -> int:
        """Keep a halt; gives its index, from 0."""
        index = self._halts
        self._halts += 1
        self._rows["halts"].append((index, halt.host_time_ns, halt.running_time_ns, halt.halted_ns, halt.lateness_ns))
        return index

    def add_clock(self, reading: ClockReading) -> None:
        """Keep the guest's own clocks in a halt that was added."""
        self._rows["clocks"].append((reading.halt, reading.boot, reading.monotonic_ns, reading.printk_ns))

    def add_sample(self, sample: Sample) -> None:
        """Keep a sample. Its halt must have been added; samples of one halt may come at any later time, one a vCPU.

        A later sample of the same halt and vCPU replaces the earlier one: early boot is unwound again once the kernel is known.
        """
        callchain = sample.callchain
        key = (callchain.end, callchain.user_end, *map(_frame_key, callchain.frames))
        callchain_id = self._callchain_ids.get(key)
        if callchain_id is None:
            callchain_id = self._callchain_ids[key] = self._add_callchain(callchain)
        task = None if sample.task is None else self._task_id(sample.task)
        call = None if sample.system_call is None else self._system_call_id(sample.system_call)
        context = self._context_ids[sample.context]
        self._rows["samples"].append((sample.halt, sample.vcpu, sample.boot, sample.weight_ns, callchain_id, task, context, call))

    def _add_callchain(self, callchain: Callchain) -> int:
        index = len(self._callchain_ids)
        ids = [self._frame_id(frame) for frame in callchain.frames]
        user_end = None if callchain.user_end is None else callchain.user_end.value
        self._rows["callchains"].append((index, callchain.end.value, orjson.dumps(ids).decode(), user_end))
        return index

    def _task_id(self, task: Task) -> int:
        found = self._task_ids.get(task)
        if found is None:
            found = self._task_ids[task] = len(self._task_ids)
            cgroup = None if task.cgroup is None else storable_text(task.cgroup)
            names = storable_text(task.comm), storable_text(task.process)
            self._rows["tasks"].append((found, task.pid, task.tgid, *names, int(task.is_kernel_thread), cgroup))
        return found

    def _system_call_id(self, call: SystemCall) -> int:
        found = self._system_call_ids.get(call)
        if found is None:
            found = self._system_call_ids[call] = len(self._system_call_ids)
            name = None if call.name is None else storable_text(call.name)
            self._rows["system_calls"].append((found, storable_text(call.table), call.number, name))
        return found

    def _frame_id(self, frame: Frame) -> int:
        found = self._frame_ids.get(frame)
        if found is None:
            found = self._frame_ids[frame] = len(self._frame_ids)
            start = None if frame.start is None else to_signed(frame.start)
            addresses = to_signed(frame.pc), to_signed(frame.lookup_pc)
            self._rows["frames"].append((found, *addresses, frame.space.value, int(frame.guess), frame.image, start))
        return found

    def add_image(self, image: Image) -> int:
        """Keep an image with its symbols; gives its index, from 0."""
        index = self._images
        self._images += 1
        late = _late_columns(image.build_id, image.symbols)
        self._rows["images"].append((index, storable_text(image.name), image.kind.value, image.boot, *late))
        for position, (start, end) in enumerate(image.ranges):
            self._rows["image_ranges"].append((index, position, to_signed(start), to_signed(end)))
        return index

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        """Keep what became known of an image after it was added, and perhaps written; None leaves what is known.

        Samples may come before and after that: frames of user files refer to their image by its index.
        """
        self._rows["image_updates"].append(
            (None if name is None else storable_text(name), *_late_columns(build_id, symbols), index)
        )

    def add_event(self, event: Event) -> None:
        """Keep something that happened."""
        row = (self._events, event.running_time_ns, storable_text(event.kind), storable_text(event.text))
        self._events += 1
        self._rows["events"].append(row)

    def add_capture(
        self, halt: int, vcpu: int, registers: bytes, memory: Sequence[tuple[int, bytes]], unwinder: int | None = None
    ) -> None:
        """Keep the raw bytes that a sample was made from: the registers as the stub sent them, and pieces of guest memory.

        unwinder: what it was unwound with, an index that was or will be given to ``add_unwinder``. A later capture of the same halt
        and vCPU replaces the earlier one, as its sample does.
        """
        packed = b"".join(PIECE.pack(address, len(piece)) + piece for address, piece in memory)
        self._rows["captures"].append((halt, vcpu, unwinder, zlib.compress(registers, 1), zlib.compress(packed, 1)))

    def add_unwinder(self, index: int, data: UnwindData) -> Iterator[None]:
        """Keep what captures are unwound with, some 20 MB: in steps of a few milliseconds, each of which commits.

        The unwinder is in the file when the last step is done.
        """
        orc = data.orc
        parts = [("text", part, address, code) for part, (address, code) in enumerate(data.text)]
        if orc is not None:
            parts += [("orc_ip", 0, orc.address, orc.ip_table), ("orc", 0, 0, orc.entries)]
        parts += [*to_pieces(data.loaded), *frames_to_pieces(data.frames)]
        pieces: list[tuple[object, ...]] = []
        for name, part, start, content in parts:
            for offset in range(0, len(content), BLOB_SIZE):
                blob = self._blob_id(content[offset : offset + BLOB_SIZE])
                pieces.append((index, name, part, offset, to_signed(start + offset), blob))
                self.commit()
                yield
        low, high = map(to_signed, data.init_text)
        self._rows["unwinders"].append((index, data.boot, int(data.is_settled), low, high, orc.version if orc else None))
        self._rows["unwinder_pieces"].extend(pieces)
        self.commit()

    def add_kept_file(self, file: KeptFile) -> Iterator[None]:
        """Keep a file of the user's, in steps of a few milliseconds; it is there when the last one is done."""
        pieces: list[tuple[object, ...]] = []
        for start, content in file.pieces:
            for offset in range(0, len(content), BLOB_SIZE):
                pieces.append((file.image, start + offset, self._blob_id(content[offset : offset + BLOB_SIZE])))
                self.commit()
                yield
        root = None if file.root is None else to_signed(file.root)
        self._rows["kept_files"].append((file.image, file.size, to_signed(file.bias), root))
        self._rows["kept_file_pieces"].extend(pieces)
        self.commit()

    def _blob_id(self, content: bytes) -> int:
        digest = hashlib.blake2b(content, digest_size=32).digest()
        found = self._blob_ids.get(digest)
        if found is None:
            found = self._blob_ids[digest] = len(self._blob_ids)
            self._rows["blobs"].append((found, zlib.compress(content, 1)))
        return found

    def commit_if_due(self) -> None:
        """Write to the file what was added, when half a second has passed since the last time."""
        if self._clock() - self._committed_at >= COMMIT_PERIOD_S:
            self.commit()

    def commit(self) -> None:
        """Write to the file what was added, now."""
        connection = self._connection
        if connection is None or self._failed:
            return
        before = connection.total_changes
        try:
            connection.execute("BEGIN")
            for table, statement in WRITES.items():
                connection.executemany(statement, self._rows[table])
            connection.execute("COMMIT")
            self._forget_rows()
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        except BaseException:
            # Ctrl-C may come between any two lines: either all rows are in the file and forgotten here, or the other way round.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            elif connection.total_changes != before:
                self._forget_rows()
            raise
        self._committed_at = self._clock()

    def _forget_rows(self) -> None:
        for rows in self._rows.values():
            rows.clear()

    def close(self) -> None:
        """Write what is left and make one single file of it. Closing again does nothing."""
        if self._connection is None:
            return
        try:
            self.commit()
            if not self._failed:
                # Fails while somebody reads the recording; then its log stays beside it and is read with it.
                self._connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise self._failure(error) from error
        finally:
            self._connection.close()
            self._connection = None

    def _failure(self, error: sqlite3.DatabaseError) -> GuestprofError:
        """Give up writing: the error to raise. SQLite rolls the open transaction back when the connection closes."""
        self._failed = True
        return GuestprofError(
            f"cannot write {self._path}: {error}; what was recorded before is kept, make room or choose another file with -o"
        )


def _late_columns(build_id: str | None, symbols: SymbolTable | None) -> tuple[str | None, bytes | None]:
    """How an image's build ID and symbols are kept."""
    return None if build_id is None else storable_text(build_id), None if symbols is None else symbols.to_blob()
