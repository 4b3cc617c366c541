"""The machine code of a function becomes unwind rows for an address in it, where no table has one.

Whatever way the function takes from there, it ends with the caller's registers restored and a return (or a jump to another
function, which returns for it). So any way through its code that reaches a return tells where they are: how far the stack pointer
moves on it, and which words are loaded into which registers. Ways that do not get there are given up: through a table of jumps,
round in circles, or behind a call that never returns into the next function, which saves what is no return address.

Where no way out is found, as in functions that never return, a way in tells the same: from an instruction before the address that
moves the stack pointer down to there, with the return address saved on it, or that saves it and others at once before that.

Unlike ``code_rows.py`` this is for processors with two instruction sets whose instructions do several things (Arm): there may be
several rows for a place, which the walker tries until one leads to a return address that a call has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from unwind.instructions import Effect, Instruction
from unwind.rules import Row, RowKind, Saved
from unwind.user_abi import UserAbi

_MAX_INSTRUCTIONS = 4000
"""That are followed for one row, on ways out and as many on ways in: some 20 ms."""
_MAX_STARTS = 16
_MAX_BACK = 1 << 14
_SMALLEST = 2
"""Instructions are aligned to it. An odd address is one of the other instruction set, where a processor has two."""
_LONGEST, _SHORT = 20, 8
"""Bytes that one may have, with those that it makes conditional; that suffice for most."""
_WINDOW = 256
_SIZES = (_WINDOW, _LONGEST, _SHORT, _SHORT // 2, _SMALLEST)
_SIGNAL_CALL = 5
"""Bytes back from where a system call is made to where its number is put into a register, and one."""
_MAX_CACHED = 1 << 16
_MASK = (1 << 64) - 1

_Place = tuple[str, int]
"""A stack address as (register at the start of the way, bytes above it)."""
_UNKNOWN: _Place = "", 0
"""Where the stack pointer is behind alloca(), until the frame pointer tells it again."""


@dataclass(slots=True)
class _Way:
    """A way through the code so far. A register holds what it held at the start, unless it is in one of these.

    sp: the stack pointer. lost: registers that hold something unknown. loaded: those that hold a word of the stack.
    fetched: registers that hold what was loaded last, and not what was computed since.
    near: those that hold a stack address, or else something near what another one held at the start.
    constants: those that hold a number.
    stored: words of the stack that were written, and the register whose first value they hold, or the word of the stack that was
        loaded before ("" for anything else).
    rest: what the instruction at ``pc`` still has to do.
    """

    pc: int
    sp: _Place
    lost: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)
    loaded: dict[str, _Place] = field(default_factory=dict)
    near: dict[str, _Place] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    stored: dict[_Place, str | _Place] = field(default_factory=dict)
    rest: Instruction | None = None

    def fork(self, pc: int) -> _Way:
        """The same way, going on elsewhere."""
        maps = (dict(self.loaded), dict(self.near), dict(self.constants), dict(self.stored))
        return _Way(pc, self.sp, set(self.lost), set(self.fetched), *maps)

    def is_first(self, register: str) -> bool:
        """Whether a register holds what it held at the start."""
        return not any(register in known for known in (self.lost, self.loaded, self.near, self.constants))

    def overwrite(self, register: str) -> None:
        """A register holds something unknown from now on."""
        self.forget(register)
        self.lost.add(register)

    def forget(self, register: str) -> None:
        """What a register holds will be said anew."""
        self.lost.discard(register)
        self.fetched.discard(register)
        self.loaded.pop(register, None)
        self.near.pop(register, None)
        self.constants.pop(register, None)

    def store(self, register: str, offset: int) -> None:
        """A register is saved at the stack pointer plus ``offset``."""
        if self.sp == _UNKNOWN:
            return
        self.stored[self.sp[0], self.sp[1] + offset] = self.loaded.get(register, register if self.is_first(register) else "")

    def load(self, register: str, offset: int, sp: str, base: _Place | None) -> None:
        """A register is restored from there (base: the stack pointer), if it is known where that is.

        What lies below the first stack pointer was not there at the start.
        """
        self.forget(register)
        self.fetched.add(register)
        if base is None or base == _UNKNOWN:
            self.lost.add(register)
            return
        place = base[0], base[1] + offset
        known = self.stored.get(place)
        if isinstance(known, tuple):
            self.loaded[register] = known
        elif known is None and (place[0] != sp or place[1] >= 0):
            self.loaded[register] = place
        elif known != register:
            self.lost.add(register)
        if register == sp:
            # It is the caller's now, and words are counted from where it was at the start.
            self.sp = sp, 0

    def place(self, register: str) -> _Place | None:
        """The stack address that a register holds, None where that is not known."""
        return self.near.get(register) or ((register, 0) if self.is_first(register) else None)

    def add(self, register: str, source: str, number: int | None, sp: str) -> None:
        """``register`` becomes ``source`` plus a number, None if that is unknown."""
        place = self.sp if source == sp else self.place(source)
        moved = None if place is None or place == _UNKNOWN or number is None else (place[0], place[1] + _signed(number))
        constant = self.constants.get(source)
        if register == sp:
            self.sp = moved or _UNKNOWN
            return
        self.forget(register)
        if moved is not None:
            self.near[register] = moved
        elif constant is not None and number is not None:
            self.constants[register] = constant + number & _MASK
        else:
            self.lost.add(register)


class CheckedCodeRows:
    """Rows by link-time address, out of the code of a file as far as it is known."""

    def __init__(self, read: Callable[[int, int], bytes | None], abi: UserAbi) -> None:
        """``read``: bytes at a link-time address, None where they are not known."""
        self._read = read
        self._abi = abi
        self._link = abi.registers[abi.return_column]
        self._rows: dict[tuple[int, bool, bool], tuple[Row, ...]] = {}
        self._code, self._start = b"", 0
        self._decoded: dict[int, Instruction | None] = {}
        self._left = 0

    def find_rows(self, address: int, *, interrupted: bool) -> Iterator[Row]:
        """Rows for the instruction at an address, the best first, made as they are asked for.

        A call returns there unless it was interrupted.
        """
        for is_way_out in (True, False):
            key = (address, interrupted, is_way_out)
            if key not in self._rows:
                if len(self._rows) >= _MAX_CACHED:
                    self._rows.clear()
                self._left = _MAX_INSTRUCTIONS
                self._rows[key] = self._find_way_out(address, interrupted) if is_way_out else self._find_way_in(address)
            yield from self._rows[key]

    def find_known_row(self, address: int, *, interrupted: bool) -> Row | None:
        """See ``UserAbi.known_row``; None for other code."""
        find = self._abi.known_row
        starts = range(address, address - _SIGNAL_CALL if interrupted else address - 1, -_SMALLEST)
        rows = () if find is None else (find(start, self._read_some(start)) for start in starts)
        return next((row for row in rows if row is not None), None)

    def is_return(self, address: int) -> bool:
        """False for an address that no call returns to, where that can be told."""
        follows_call, back = self._abi.follows_call, _SHORT
        before = None if follows_call is None else self._read((address & -_SMALLEST) - back, back)
        is_call = follows_call is None or before is None or follows_call(address, before)
        return is_call or self.find_known_row(address, interrupted=False) is not None

    def _read_some(self, address: int) -> bytes:
        """A few bytes of code, as many as are known."""
        place = address & -_SMALLEST
        return next((code for size in _SIZES[2:] if (code := self._read(place, size)) is not None), b"")

    def _instruction(self, address: int) -> Instruction | None:
        if address not in self._decoded:
            if len(self._decoded) >= _MAX_CACHED:
                self._decoded.clear()
            self._decoded[address] = self._decode(address)
        return self._decoded[address]

    def _decode(self, address: int) -> Instruction | None:
        decode, place = self._abi.decode, address & -_SMALLEST
        if not self._start <= place <= self._start + len(self._code) - _LONGEST:
            self._start, self._code = place, next((code for size in _SIZES if (code := self._read(place, size))), b"")
        at = place - self._start
        return None if decode is None else decode(address, self._code[at : at + _LONGEST])

    def _find_way_out(self, address: int, interrupted: bool) -> tuple[Row, ...]:
        # Behind a call the link register holds the address of where we are.
        start = _Way(address, (self._abi.sp, 0), set() if interrupted else {self._link})
        for way in self._ways(start):
            instruction = way.rest or self._instruction(way.pc)
            row = self._row_of_way_out(way) if instruction is not None and self._is_out(way, instruction) else None
            if row is not None:
                return (row,)
        return ()

    def _is_out(self, way: _Way, instruction: Instruction) -> bool:
        """Whether a way leaves the function."""
        source = instruction.source
        match instruction.effect:
            case Effect.RETURN:
                return True
            case Effect.STUB if not source or source in way.fetched:
                return True
            case Effect.STUB | Effect.JUMP_REGISTER:
                # A jump to another function, if the frame was taken down before; else one by a table, perhaps.
                return self._link in way.loaded
        return False

    def _row_of_way_out(self, way: _Way) -> Row | None:
        abi, link = self._abi, self._link
        if way.sp == _UNKNOWN:
            return None
        if link in way.loaded:
            return_address = _saved(abi.pc, way.loaded[link], way.sp)
        elif way.is_first(link):
            return_address = Saved(abi.pc, link, 0, is_value=True)
        else:
            return None
        saved = tuple(_saved(name, place, way.sp) for name, place in way.loaded.items() if name in abi.callee_saved)
        kept = tuple(name for name in abi.callee_saved if way.is_first(name) and name != abi.sp)
        return Row(RowKind.CALL, *way.sp, saved=saved, kept=kept, return_address=return_address)

    def _find_way_in(self, address: int) -> tuple[Row, ...]:
        sp, starts = self._abi.sp, 0
        for start in range(address - _SMALLEST, address - _MAX_BACK, -_SMALLEST):
            instruction = self._instruction(start)
            if instruction is None or not self._may_begin(instruction):
                continue
            way = next((way for way in self._ways(_Way(self._first_push(start), (sp, 0))) if way.pc == address), None)
            rows = () if way is None else self._rows_of_way_in(way)
            starts += 1
            if rows or starts >= _MAX_STARTS:
                return rows
        return ()

    def _first_push(self, start: int) -> int:
        """The first of several instructions that push something, up to one."""
        for size in (_SMALLEST, 2 * _SMALLEST):
            before = self._instruction(start - size)
            moves = None if before is None else before.then
            if (
                before is not None
                and before.effect is Effect.STORE
                and moves is not None
                and moves.size == size
                and moves.number < 0
            ):
                return self._first_push(start - size)
        return start

    def _may_begin(self, instruction: Instruction) -> bool:
        """Whether an instruction moves the stack pointer down, or saves the return address among other registers before that."""
        sp = self._abi.sp
        if instruction.effect is Effect.STORE:
            is_first = bool(instruction.more) or instruction.then is not None
            return is_first and self._link in (instruction.register, *instruction.more)
        return (instruction.effect, instruction.register, instruction.source) == (Effect.ADD, sp, sp) and instruction.number < 0

    def _rows_of_way_in(self, way: _Way) -> tuple[Row, ...]:
        """The rows where a way from the function's first instructions has come to: by the stack pointer, and by registers near it,

        one of which is the frame pointer of a function that takes memory of a variable size from the stack.
        """
        abi, link = self._abi, self._link
        places: dict[str, int] = {}
        for (_base, offset), register in way.stored.items():
            if isinstance(register, str):
                places.setdefault(register, offset)  # later ones are copies
        if link not in places:
            return ()
        saved = tuple(Saved(name, None, places[name]) for name in abi.callee_saved if name in places and name != abi.sp)
        kept = tuple(name for name in abi.callee_saved if name not in places and way.is_first(name) and name != abi.sp)
        bases = {abi.sp: way.sp, **{name: way.near[name] for name in abi.callee_saved if name in way.near and name != abi.sp}}
        return_address = Saved(abi.pc, None, places[link])
        return tuple(
            Row(RowKind.CALL, name, -place[1], saved=saved, kept=kept, return_address=return_address)
            for name, place in bases.items()
            if place[0] == abi.sp
        )

    def _ways(self, start: _Way) -> Iterator[_Way]:
        """The ways from a start on, before each instruction that one of them is the first to come to."""
        ways = [start]
        seen: set[int] = set()
        while ways and self._left:
            way = ways[-1]
            instruction = way.rest or (None if way.pc in seen else self._instruction(way.pc))
            if instruction is None:
                ways.pop()
                continue
            seen.add(way.pc)
            self._left -= 1
            yield way
            if instruction.effect is Effect.BRANCH:
                ways.insert(-1, way.fork(instruction.number))
            if not self._follow(way, instruction):
                ways.pop()

    def _follow(self, way: _Way, instruction: Instruction) -> bool:
        """Do one instruction; whether the way goes on."""
        effect, size, register, number, source, other, more = instruction[:7]
        way.rest = instruction.then
        following: int | None = way.pc + size
        match effect:
            case Effect.RETURN | Effect.STUB | Effect.END:
                return False
            case Effect.JUMP:
                following = number
            case Effect.JUMP_REGISTER:
                base = way.constants.get(source)
                following = None if base is None else base + number & _MASK
            case Effect.CALL:
                way.overwrite(self._link)
                way.constants.clear()
            case Effect.STORE if self._link in way.lost and self._link in (register, *more):
                # Nobody saves what a call has left there: it does not return, and the next function begins here.
                return False
            case Effect.STORE | Effect.LOAD:
                self._move(way, instruction)
            case Effect.SET:
                way.forget(register)
                way.constants[register] = number
            case Effect.ADD | Effect.ADD_REGISTER:
                way.add(register, source, way.constants.get(other) if other else number, self._abi.sp)
            case Effect.WRITE if register == self._abi.sp:
                way.sp = _UNKNOWN
            case Effect.WRITE:
                way.overwrite(register)
        if following is None:
            return False
        way.pc = following
        return True

    def _move(self, way: _Way, instruction: Instruction) -> None:
        """Save registers on the stack, or restore them."""
        stack = way.place(instruction.source) if instruction.source else way.sp
        for index, register in enumerate((instruction.register, *instruction.more)):
            offset = instruction.number + index * self._abi.pointer_size
            if instruction.effect is Effect.STORE:
                way.store(register, offset)
            else:
                way.load(register, offset, self._abi.sp, stack)


def _signed(number: int) -> int:
    return (number + (1 << 63) & _MASK) - (1 << 63)


def _saved(register: str, place: _Place, cfa: _Place) -> Saved:
    if place[0] == cfa[0]:
        return Saved(register, None, place[1] - cfa[1])
    return Saved(register, place[0], place[1])
