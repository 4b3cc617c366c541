"""The depths of Go's stacks (``go_table.py``) become rows: exact ones, where Go programs have no other unwind data.

The runtime itself walks stacks by these tables (``pcvalue``, ``gentraceback`` in src/runtime; its collector must find every frame).
At each pc a table says how far the stack pointer is below the return address; so it holds for processors whose calls push that.
Whether a frame keeps the caller's frame pointer the tables do not say (assembler functions use the register as they like), and
nothing here needs it: no row of Go counts from it.
"""

from __future__ import annotations

from bisect import bisect_right

from guest.elf.file import ElfFile
from guest.elf.go_table import GoFunction, GoTable, find_go_table
from unwind.frame_table import Unread
from unwind.rules import Memory, Row, RowKind, Saved
from unwind.user_abi import UserAbi

_TOP_FRAME, _WRITES_SP = 1, 2
"""Flags of functions since Go 1.17 (src/internal/abi/symtab.go): the outermost of a stack; "writes an arbitrary value to SP"."""
_ROOTS = frozenset({"runtime.goexit", "runtime.mstart", "runtime.rt0_go"})
"""The same by their names (``topofstack`` of Go 1.16); and ``_rt0_amd64_linux`` and its kind, the entry points."""
_ENTRY = "_rt0_"
_SWITCHES = frozenset({"runtime.mcall", "runtime.systemstack", "runtime.morestack", "runtime.asmcgocall"})
"""They call on another stack, the thread's own (g0's). What lies behind them there is stale, so that the stack in use begins here;
the goroutine's stack, of which they were called, is another, which only the runtime's data tell. The runtime's traceback ends at
them too (gentraceback: "we stop the traceback here"; ``topofstack`` of Go 1.16), as do those that crashes print."""
_ON_BOTH = "runtime.cgocallback"
"""Writes the stack pointer, but "carefully arranges that during the transition BOTH stacks have cgocallback frame valid"."""
_HANDLER = "runtime.sigtramp"
"""Marked as outermost, which is what the runtime wants; the kernel built a frame behind it."""
_RESTORER = "runtime.sigreturn"
"""Beginning of the name of what signal handlers return to (also ``runtime.sigreturn__sigaction``): its first byte."""
_CLOCKS = frozenset({"runtime.nanotime1", "runtime.walltime", "time.now"})
"""They call the vDSO on g0's stack, which has room for C, and keep their own stack pointer in a register that C leaves alone."""
_CLOCK_START = 32
"""They have copied it when this many of their bytes have run, and switch stacks only after that."""
_INJECTED = frozenset({"runtime.asyncPreempt", "runtime.sigpanic", "runtime.sigpanic0"})
"""Signal handlers make it look as if the interrupted instruction had called these (``pushCall``)."""
_NAME_SIZE = 40
_CHUNK = 256
_MAX_DEPTHS = 1 << 16
"""Bytes of one function's table."""
_MAX_DEPTH = 1 << 31
"""``runtime.call1073741824`` takes a little more than half of it."""
_MAX_CACHED = 1 << 16


class _UnreadError(Exception):
    """Bytes that are needed are not known now."""


class GoRows:
    """Rows by link-time address, out of what is known of a file."""

    def __init__(self, file: ElfFile, abi: UserAbi) -> None:
        self._file = file
        self._abi = abi
        self._table: GoTable | None = None
        self._is_absent = abi.registers[abi.return_column] != abi.pc
        self._rows: dict[int, Row | None] = {}
        self._made: dict[tuple[str, int, bool], Row] = {}

    def open(self) -> None:
        """Find the table, which the first ``find_row`` would otherwise do."""
        if self._table is None and not self._is_absent:
            found = find_go_table(self._file)
            if isinstance(found, GoTable):
                self._table = found
            self._is_absent = found is None

    def find_row(self, address: int) -> Row | Unread | None:
        """The row for a link-time address; None where the table says nothing about it, or is damaged there."""
        if address in self._rows:
            return self._rows[address]
        self.open()
        if self._table is None:
            return None if self._is_absent else Unread.UNREAD
        try:
            row = self._find(self._table, address)
        except _UnreadError:
            return Unread.UNREAD
        if len(self._rows) >= _MAX_CACHED:
            self._rows.clear()
        self._rows[address] = row
        return row

    def _find(self, table: GoTable, address: int) -> Row | None:
        offset = address - table.text
        step = table.entry.size

        def start(index: int) -> int:
            first: int = table.entry.unpack(self._read(table.functions + index * step, step))[0]
            return first

        index = bisect_right(range(table.count), offset, key=start) - 1
        if index < 0:
            return None
        function = self._function(table, index)
        if function is None or not function.start <= address < function.end:
            return None
        if address + 1 == function.end and index + 1 < table.count:
            # A signal handler's return address, in front of the function that it returns to.
            following = self._function(table, index + 1)
            if following is not None and self._name(table, following).startswith(_RESTORER):
                return self._signal_row()
        return self._row(table, function, address)

    def _function(self, table: GoTable, index: int) -> GoFunction | None:
        step = table.entry.size
        pair = self._read(table.functions + index * step, step + step // 2)
        place = table.records + table.entry.unpack_from(pair)[1]
        if place + table.record_size > table.end:
            return None
        return table.function(pair, self._read(place, table.record_size))

    def _row(self, table: GoTable, function: GoFunction, address: int) -> Row | None:
        name = self._name(table, function)
        if name.startswith(_RESTORER):
            return self._signal_row()
        if name in _ROOTS or name.startswith(_ENTRY) or (function.flags & _TOP_FRAME and name != _HANDLER):
            return Row(RowKind.END)
        if address > function.start and name in _SWITCHES:
            return Row(RowKind.END)
        if function.depths is None:
            return None
        offset, base = address - function.start, self._abi.sp
        if offset and function.flags & _WRITES_SP and name != _ON_BOTH:
            if name not in _CLOCKS:
                return Row(RowKind.UNDEFINED)
            if offset >= _CLOCK_START:
                offset, base = _CLOCK_START, self._abi.go_clock_sp
        depth = self._depth(table, function.depths, offset)
        if depth is None:
            return None
        key = (base, depth, name in _INJECTED)
        if key not in self._made:
            if len(self._made) >= _MAX_CACHED:
                self._made.clear()
            self._made[key] = Row(RowKind.CALL, base, depth + self._abi.pointer_size, is_signal=name in _INJECTED)
        return self._made[key]

    def _signal_row(self) -> Row:
        """The handler has returned here, so that the stack pointer is at what the kernel saved."""
        places = self._abi.signal_frame
        sp, pc = places.get(self._abi.sp), places.get(self._abi.pc)
        if sp is None or pc is None:
            return Row(RowKind.UNDEFINED)
        saved = tuple(Saved(name, self._abi.sp, place) for name, place in places.items() if name != self._abi.pc)
        return Row(
            RowKind.CALL,
            self._abi.sp,
            sp,
            Memory.BEFORE,
            saved=saved,
            return_address=Saved(self._abi.pc, self._abi.sp, pc),
            is_signal=True,
        )

    def _name(self, table: GoTable, function: GoFunction) -> str:
        """The beginning of its name, "" where the table lies about it."""
        size = min(_NAME_SIZE, table.names[1] - function.name)
        return self._read(function.name, size).partition(b"\0")[0].decode("latin-1") if size > 0 else ""

    def _depth(self, table: GoTable, place: int, target: int) -> int | None:
        """Bytes between the stack pointer and the return address ``target`` bytes into a function (``step`` in the runtime).

        Pairs of a change of the value, zigzag, and the bytes for which it then holds; a change of 0 behind the first one ends it.
        """
        value, pc = -1, 0
        data, position = b"", 0
        end = min(place + _MAX_DEPTHS, table.end)
        numbers: list[int] = []
        number = shift = 0
        while True:
            if position == len(data):
                if place >= end:
                    return None
                data, position = self._read(place, min(_CHUNK, end - place)), 0
                place += len(data)
            byte = data[position]
            position += 1
            number |= (byte & 0x7F) << shift
            if byte & 0x80:
                shift += 7
                if shift > 28:
                    return None
                continue
            numbers.append(number)
            number = shift = 0
            if len(numbers) == 1 and numbers[0] == 0 and pc:
                return None
            if len(numbers) == 2:
                change, length = numbers
                numbers.clear()
                value += -(change >> 1) - 1 if change & 1 else change >> 1
                pc += length * table.quantum
                if target < pc:
                    return value if 0 <= value < _MAX_DEPTH and not value % self._abi.pointer_size else None

    def _read(self, offset: int, size: int) -> bytes:
        data = self._file.contents.read(offset, size)
        if data is None or len(data) != size:
            raise _UnreadError
        return data
