"""The machine code of a function becomes the unwind row for an address in it, where no table has one.

Whatever way the function takes from there, it ends with the caller's registers restored and a return (or a jump to another
function, which returns for it). So any way through its code that reaches a return tells where they are: how far the stack pointer
moves on it, and which words are loaded into which registers. Ways that do not get there are given up: through a table of jumps,
round in circles, or behind a call that never returns into the next function, which finds no return address there.

Where no way out is found, as in functions that never return, a way in tells the same: from an instruction before the address that
moves the stack pointer down to there, with the return address saved on it or right behind it, or that saves it and others at once
before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from unwind.code_way import ALIGNED, NOWHERE, Place, Way
from unwind.instructions import Effect, Instruction
from unwind.rules import Memory, Row, RowKind, Saved
from unwind.user_abi import UserAbi

_MAX_INSTRUCTIONS = 4000
"""That are followed for one row, on ways out and as many on ways in: some 20 ms."""
_MAX_WHERE_PUSHED = 300
"""The same where calls push their return address: several ways are looked at there, and instructions are of many kinds."""
_MAX_STARTS = 16
_MAX_BACK = 1 << 14
_SMALLEST = 2
_SLOT = 4
"""How far a delay slot is behind the instruction that it belongs to."""
_LONGEST = 16
_SIZES = (_LONGEST, 8, 4, 2, 1)
_CALL_SIZES = (5, 6, 2, 3, 7, 4, 8)
_MAX_ROWS = 8
_WINDOW = 256
_MAX_CACHED = 1 << 16
_MASK = (1 << 64) - 1

_FIRST_BYTES = 32
"""In which a function does what only its beginning does (``Effect.ENTRY``)."""


class CodeRows:
    """Rows by link-time address, out of the code of a file as far as it is known."""

    def __init__(
        self,
        read: Callable[[int, int], bytes | None],
        abi: UserAbi,
        starts: Callable[[int], Sequence[int]] = lambda _address: (),
    ) -> None:
        """read: bytes at a link-time address, None where they are not known. starts: where the function of one may begin."""
        self._read = read
        self._abi = abi
        self._find_starts = starts
        link = abi.registers[abi.return_column]
        self._link = "" if link == abi.pc else link
        """The register in which calls leave their return address, "" where they push it."""
        self._cfa = (abi.sp, abi.pointer_size)
        self._rows: dict[tuple[int, bool], tuple[Row, ...]] = {}
        self._code, self._start = b"", 0
        self._decoded: dict[int, Instruction | None] = {}
        self._left = 0
        self._through_tables = False
        self._is_partial = False
        """Whether code was missing that may be known later."""

    def find_row(self, address: int, *, interrupted: bool) -> Row | None:
        """The first of ``find_rows``, None where there is none."""
        return next(iter(self.find_rows(address, interrupted=interrupted)), None)

    def find_rows(self, address: int, *, interrupted: bool) -> tuple[Row, ...]:
        """The rows for the instruction at an address, likeliest first. A call returns there unless it was interrupted.

        There is one at most where calls leave the return address in a register. Else several are found, also by ways through
        another function behind a call that never returns, and the return addresses must tell: ``find_call``, and ``Row.start``.
        """
        key = (address, interrupted)
        if key not in self._rows:
            if len(self._rows) >= _MAX_CACHED:
                self._rows.clear()
            self._is_partial = False
            rows = self._find_rows(address, interrupted)
            if not rows and self._is_partial:
                return ()
            self._rows[key] = rows
        return self._rows[key]

    def _find_rows(self, address: int, interrupted: bool) -> tuple[Row, ...]:
        signal = self._find_signal_frame(address)
        if signal is not None:
            return (signal,)
        if not self._link:
            rows = [*self._rows_from(self._find_starts(address), address), *self._ways_out(Way(address, (self._abi.sp, 0)))]
            return tuple(dict.fromkeys(rows))
        way = self._start_of_ways(address, interrupted)
        start = way.pc
        row = next(self._ways_out(way), None)
        row = row or self._find_way_in(start, is_first=interrupted and self._is_beginning(start))
        row = row or next(self._ways_out(self._start_of_ways(address, interrupted), through_tables=True), None)
        return () if row is None else (row,)

    def _rows_from(self, starts: Sequence[int], address: int) -> Iterator[Row]:
        """Rows by the ways from where the function may begin, where calls push their return address."""
        abi = self._abi
        for start in starts:
            self._left, self._through_tables = _MAX_WHERE_PUSHED, True
            for way in self._ways(Way(start, (abi.sp, 0))):
                row = self._row_from_start(way, start) if way.pc == address else None
                if row is not None:
                    yield row

    def _row_from_start(self, way: Way, start: int) -> Row | None:
        """The row where a way from a function's start has come to, where calls push their return address."""
        abi = self._abi
        places = {name: place for place, name in way.stored.items() if isinstance(name, str) and name}
        kept = tuple(name for name in abi.callee_saved if name not in places and way.is_first(name))
        base, moved = near = way.near.get(abi.fp, NOWHERE)
        if base == ALIGNED == way.cfa_at[0]:
            # Nothing but the frame pointer tells where the frame is, and the CFA is a word in it.
            offsets = {name: place[1] - moved for name, place in places.items() if place[0] == base}
            saved = tuple(Saved(name, abi.fp, offsets[name]) for name in abi.callee_saved if name in offsets)
            return Row(RowKind.CALL, abi.fp, way.cfa_at[1] - moved, Memory.BEFORE, saved, kept, start=start)
        register, (base, moved) = (abi.sp, way.sp) if way.sp[0] == abi.sp else (abi.fp, near)
        if base != abi.sp:
            return None
        saved = tuple(Saved(name, None, places[name][1] - abi.pointer_size) for name in abi.callee_saved if name in places)
        return Row(RowKind.CALL, register, abi.pointer_size - moved, saved=saved, kept=kept, start=start)

    def find_call(self, address: int) -> Instruction | None:
        """The call that returns to an address, None where there is none."""
        for size in _CALL_SIZES:
            instruction = self._instruction(address - size)
            if instruction is not None and instruction.effect is Effect.CALL and instruction.size == size:
                return instruction
        return None

    def _find_signal_frame(self, address: int) -> Row | None:
        """The row for code that signal handlers return to."""
        abi = self._abi
        for code, places in abi.signal_code:
            if any(self._read(address - done, len(code)) == code for done in range(0, len(code), _SLOT)):
                saved = tuple(Saved(name, None, place) for name, place in places.items() if name != abi.pc)
                return_address = Saved(abi.pc, None, places[abi.pc])
                return Row(RowKind.CALL, abi.sp, saved=saved, return_address=return_address, is_signal=True)
        return None

    def _start_of_ways(self, address: int, interrupted: bool) -> Way:
        before = self._instruction(address - _SLOT) if interrupted else None
        if before is not None and before.slot is not None:
            # It is about to jump, nobody knows where to: as if it were there once more.
            return Way(address - _SLOT, (self._abi.sp, 0), {before.register} - {""})
        # Behind a call the link register holds the address of where we are.
        return Way(address, (self._abi.sp, 0), set() if interrupted else {self._link})

    def _instruction(self, address: int) -> Instruction | None:
        if address not in self._decoded:
            code = self._bytes(address)
            if not code:
                self._is_partial = True
                return None
            if len(self._decoded) >= _MAX_CACHED:
                self._decoded.clear()
            decode = self._abi.decode
            self._decoded[address] = None if decode is None else decode(address, code)
        return self._decoded[address]

    def _bytes(self, address: int) -> bytes:
        """Those of an instruction; none where they are not known now."""
        if not self._start <= address <= self._start + len(self._code) - _LONGEST:
            start = address - address % _WINDOW
            code = self._read(start, _WINDOW + _LONGEST)
            if not code:
                start, code = address, next((known for size in _SIZES if (known := self._read(address, size))), b"")
            self._start, self._code = start, code
        return self._code[address - self._start : address - self._start + _LONGEST]

    def _ways_out(self, start: Way, *, through_tables: bool = False) -> Iterator[Row]:
        """Rows of ways out that differ in where the return address is.

        through_tables: what stands behind the jump of a ``switch`` is one of its cases, more likely than not.
        """
        self._left, self._through_tables = _MAX_INSTRUCTIONS if self._link else _MAX_WHERE_PUSHED, through_tables
        found: set[tuple[str, int]] = set()
        for way in self._ways(start):
            instruction = self._instruction(way.pc)
            effect = Effect.END if instruction is None else instruction.effect
            if instruction is None or effect not in (Effect.RETURN, Effect.STUB, Effect.JUMP_REGISTER):
                continue
            leaving = way
            if instruction.slot is not None:
                leaving = way.fork(way.pc)
                self._change(leaving, instruction.slot)
            row = self._row_of_way_out(leaving) if self._is_out(leaving, effect) else None
            if row is not None and (row.register, row.offset) not in found and len(found) < _MAX_ROWS:
                found.add((row.register, row.offset))
                yield row

    def _is_out(self, way: Way, effect: Effect) -> bool:
        link = self._link
        if effect is Effect.RETURN or not link:
            return True
        # A jump to another function, if the frame was taken down before; else one by a table.
        return (effect is Effect.STUB and way.is_first(link)) or link in way.loaded or link in way.near

    def _row_of_way_out(self, way: Way) -> Row | None:
        abi, link = self._abi, self._link
        if not way.sp[0]:
            return None
        loaded, return_address = way.loaded, None
        place = way.sp
        if not link:
            place = place[0], place[1] + abi.pointer_size
        elif loaded.get(link, way.sp)[0] != abi.sp and link in way.stored.values():
            # By a frame pointer, where it was saved by the stack pointer, and is to be yet, as others are.
            loaded = {name: where for name, where in loaded.items() if name not in way.stored.values()}
            return_address = Saved(abi.pc, link, 0, is_value=True)
        elif link in loaded:
            return_address = _saved(abi.pc, loaded[link], place)
        elif way.is_first(link) or link in way.near:
            return_address = Saved(abi.pc, *way.near.get(link, (link, 0)), is_value=True)
        else:
            return None
        saved = tuple(_saved(name, where, place) for name, where in loaded.items() if name in abi.callee_saved)
        unchanged = {name for name in way.loaded if name not in loaded}
        kept = tuple(name for name in abi.callee_saved if (way.is_first(name) or name in unchanged) and name != abi.sp)
        return Row(RowKind.CALL, *place, saved=saved, kept=kept, return_address=return_address)

    def _is_beginning(self, address: int) -> bool:
        """Whether an address is among the first instructions of a function, before it makes its frame, and that can be told."""
        for at in range(address - _SMALLEST, address - _FIRST_BYTES, -_SMALLEST):
            instruction = self._instruction(at)
            if instruction is not None and instruction.effect is Effect.ENTRY:
                return True
            if instruction is not None and (instruction.slot is not None or self._may_begin(instruction)):
                break
        end = address + _FIRST_BYTES
        while address < end and (instruction := self._instruction(address)) is not None:
            if instruction.effect is Effect.ENTRY:
                return True
            if instruction.slot is not None or instruction.effect in (Effect.CALL, Effect.RETURN, Effect.END):
                return False
            address += instruction.size
        return False

    def _find_way_in(self, address: int, *, is_first: bool) -> Row | None:
        """is_first: it is at the beginning of a function."""
        self._left, self._through_tables = _MAX_INSTRUCTIONS, False
        sp, starts = self._abi.sp, 0
        for start in range(address - _SMALLEST, address - (2 * _FIRST_BYTES if is_first else _MAX_BACK), -_SMALLEST):
            instruction = self._instruction(start)
            if instruction is None or not self._may_begin(instruction):
                if not self._bytes(start):
                    break
                continue
            way = self._way_in(start, address)
            row = None if way is None or (is_first and not way.is_first(self._link)) else self._row_of_way_in(way)
            starts += 1
            if row is not None or starts >= _MAX_STARTS:
                return row
        return self._row_of_way_in(Way(address, (sp, 0))) if is_first else None

    def _way_in(self, start: int, address: int) -> Way | None:
        """A way from a start to an address, if the return address is saved on it, or about to be."""
        found: Way | None = None
        for way in self._ways(Way(start, (self._abi.sp, 0))):
            is_saved = self._link in way.stored.values()
            if found is None and way.pc == address:
                found = way.fork(address)
            if found is not None and (is_saved or not way.is_first(self._link)):
                return found if is_saved else None
        return None

    def _may_begin(self, instruction: Instruction) -> bool:
        """Whether an instruction moves the stack pointer down, or saves the return address among other registers before that."""
        sp = self._abi.sp
        if instruction.effect is Effect.STORE:
            return bool(instruction.more) and self._link in (instruction.register, *instruction.more)
        return (instruction.effect, instruction.register, instruction.source) == (Effect.ADD, sp, sp) and instruction.number < 0

    def _row_of_way_in(self, way: Way) -> Row | None:
        """The row where a way from the function's first instructions has come to."""
        abi, link = self._abi, self._link
        places = {register: offset for (_base, offset), register in way.stored.items() if isinstance(register, str) and register}
        # In a frame of variable size the frame pointer has what the stack pointer was.
        register = abi.sp if way.sp[0] else abi.fp
        base, moved = way.sp if way.sp[0] else way.near.get(abi.fp, NOWHERE)
        if (link not in places and not way.is_first(link)) or base != abi.sp:
            return None
        saved = tuple(Saved(name, None, places[name]) for name in abi.callee_saved if name in places and name != abi.sp)
        kept = tuple(name for name in abi.callee_saved if name not in places and way.is_first(name) and name != abi.sp)
        return_address = Saved(abi.pc, None, places[link]) if link in places else Saved(abi.pc, link, 0, is_value=True)
        return Row(RowKind.CALL, register, -moved, saved=saved, kept=kept, return_address=return_address)

    def _ways(self, start: Way) -> Iterator[Way]:
        """The ways from a start on, before each instruction that one of them is the first to come to."""
        ways = [start]
        # A way that has lost the return address may have come round a call that never returns; one that has lost the stack pointer
        # may not find it again.
        seen: set[tuple[int, bool | Place, bool]] = set()
        while ways and self._left:
            way = ways[-1]
            state = (way.pc, self._link in way.lost if self._link else way.sp, bool(way.sp[0]))
            instruction = None if state in seen else self._instruction(way.pc)
            if instruction is None:
                ways.pop()
                continue
            seen.add(state)
            self._left -= 1
            yield way
            slot = instruction.slot
            if slot is not None and not instruction.skips_slot:
                self._change(way, slot)
            if instruction.effect is Effect.BRANCH:
                ways.insert(-1, other := way.fork(instruction.number))
                if slot is not None and instruction.skips_slot:
                    self._change(other, slot)
            if not self._follow(way, instruction):
                ways.pop()

    def _follow(self, way: Way, instruction: Instruction) -> bool:
        """Do one instruction, but for its slot; whether the way goes on."""
        following: int | None = way.pc + instruction.size
        match instruction.effect:
            case Effect.RETURN | Effect.STUB | Effect.END:
                return False
            case Effect.JUMP:
                following = instruction.number
            case Effect.JUMP_REGISTER:
                base = way.constants.get(instruction.source)
                following = None if base is None else base + instruction.number & _MASK
            case Effect.CALL:
                if self._link:
                    way.overwrite(self._link)
                way.constants.clear()
            case Effect.TABLE:
                following = following if self._through_tables else None
            case Effect.ENTRY if self._link in way.lost or self._through_tables:
                # Behind a call that never returns another function begins.
                return False
            case _:
                self._change(way, instruction)
        if following is None:
            return False
        way.pc = following
        return True

    def _change(self, way: Way, instruction: Instruction) -> None:
        """Do what an instruction does to registers and the stack."""
        register, number, source, other = instruction.register, instruction.number, instruction.source, instruction.other
        match instruction.effect:
            case Effect.STORE | Effect.LOAD:
                self._move(way, instruction)
            case Effect.PUSH:
                way.add(self._abi.sp, self._abi.sp, -self._abi.pointer_size, self._abi.sp)
                way.store(register, 0, self._cfa)
            case Effect.POP:
                self._pop(way, register)
            case Effect.LEAVE:
                way.add(self._abi.sp, self._abi.fp, 0, self._abi.sp)
                self._pop(way, self._abi.fp)
            case Effect.SET:
                way.forget(register)
                way.constants[register] = number
            case Effect.ADD:
                way.add(register, source, number, self._abi.sp)
            case Effect.ADD_REGISTER:
                way.add(register, source, way.constants.get(other), self._abi.sp)
            case Effect.ALIGN:
                way.sp = ALIGNED, 0
            case Effect.SUBTRACT_REGISTER:
                known = way.constants.get(other)
                way.add(register, source, None if known is None else -known, self._abi.sp)
            case Effect.WRITE | Effect.ENTRY if register == self._abi.sp:
                # A frame pointer may have it.
                way.sp = NOWHERE
            case Effect.WRITE | Effect.ENTRY:
                way.overwrite(register)

    def _pop(self, way: Way, register: str) -> None:
        sp = self._abi.sp
        if register:
            way.load(register, 0, sp, way.sp)
        way.add(sp, sp, self._abi.pointer_size, sp)

    def _move(self, way: Way, instruction: Instruction) -> None:
        """Save registers on the stack, or restore them."""
        stack = way.place(instruction.source) if instruction.source else way.sp
        for index, register in enumerate((instruction.register, *instruction.more)):
            offset = instruction.number + index * self._abi.pointer_size
            if instruction.effect is Effect.STORE:
                way.store(register, offset, self._cfa)
            else:
                way.load(register, offset, self._abi.sp, stack)


def _saved(register: str, place: Place, cfa: Place) -> Saved:
    if place[0] == cfa[0]:
        return Saved(register, None, place[1] - cfa[1])
    return Saved(register, place[0], place[1])
