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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from unwind.arch import UserAbi
from unwind.instructions import Effect, Instruction
from unwind.rules import Row, RowKind, Saved

_MAX_INSTRUCTIONS = 4000
"""That are followed for one row, on ways out and as many on ways in: some 20 ms."""
_MAX_STARTS = 16
_MAX_BACK = 1 << 14
_SMALLEST = 2
_SLOT = 4
"""How far a delay slot is behind the instruction that it belongs to."""
_LONGEST = 8
_WINDOW = 256
_MAX_CACHED = 1 << 16
_MASK = (1 << 64) - 1

_Place = tuple[str, int]
"""A stack address as (register at the start of the way, bytes above it)."""
_NOWHERE: _Place = ("", 0)
_FIRST_BYTES = 32
"""In which a function does what only its beginning does (``Effect.ENTRY``)."""


@dataclass(slots=True)
class _Way:
    """A way through the code so far. A register holds what it held at the start, unless it is in one of these.

    sp: the stack pointer, ``_NOWHERE`` while it is not known. lost: registers that hold something unknown.
    loaded: those that hold a word of the stack. near: those that hold a stack address. constants: those that hold a number.
    stored: words of the stack that were written, and the register whose first value they hold, or the word of the stack that was
        loaded before ("" for anything else).
    """

    pc: int
    sp: _Place
    lost: set[str] = field(default_factory=set)
    loaded: dict[str, _Place] = field(default_factory=dict)
    near: dict[str, _Place] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    stored: dict[_Place, str | _Place] = field(default_factory=dict)

    def fork(self, pc: int) -> _Way:
        """The same way, going on elsewhere."""
        maps = (dict(self.loaded), dict(self.near), dict(self.constants), dict(self.stored))
        return _Way(pc, self.sp, set(self.lost), *maps)

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
        self.loaded.pop(register, None)
        self.near.pop(register, None)
        self.constants.pop(register, None)

    def store(self, register: str, offset: int) -> None:
        """A register is saved at the stack pointer plus ``offset``."""
        if self.sp[0]:
            self.stored[self.sp[0], self.sp[1] + offset] = self.loaded.get(register, register if self.is_first(register) else "")

    def load(self, register: str, offset: int, sp: str, base: _Place | None) -> None:
        """A register is restored from there (base: the stack pointer), if it is known where that is.

        What lies below the first stack pointer was not there at the start.
        """
        self.forget(register)
        if base is None or not base[0]:
            self.lost.add(register)
            return
        place = base[0], base[1] + offset
        known = self.stored.get(place)
        if isinstance(known, tuple):
            self.loaded[register] = known
        elif known is None and (place[0] != sp or place[1] >= 0):
            self.loaded[register] = place
        elif known and known != register:
            self.near[register] = known, 0
        elif not known:
            self.lost.add(register)
        if register == sp:
            # It is the caller's now, and words are counted from where it was at the start.
            self.sp = sp, 0

    def place(self, register: str) -> _Place | None:
        """The stack address that a register holds, None where that is not known."""
        return self.near.get(register) or ((register, 0) if self.is_first(register) else None)

    def add(self, register: str, source: str, number: int | None, sp: str) -> None:
        """``register`` becomes ``source`` plus a number, None if that is unknown."""
        place = self.sp if source == sp else self.near.get(source)
        if place is None and register == sp and self.is_first(source):
            place = source, 0
        moved = None if place is None or not place[0] or number is None else (place[0], place[1] + _signed(number))
        constant = self.constants.get(source)
        if register == sp:
            self.sp = moved or _NOWHERE
            return
        self.forget(register)
        if moved is not None:
            self.near[register] = moved
        elif constant is not None and number is not None:
            self.constants[register] = constant + number & _MASK
        else:
            self.lost.add(register)


class CodeRows:
    """Rows by link-time address, out of the code of a file as far as it is known."""

    def __init__(self, read: Callable[[int, int], bytes | None], abi: UserAbi) -> None:
        """``read``: bytes at a link-time address, None where they are not known."""
        self._read = read
        self._abi = abi
        self._link = abi.registers[abi.return_column]
        self._rows: dict[tuple[int, bool], Row | None] = {}
        self._code, self._start = b"", 0
        self._decoded: dict[int, Instruction | None] = {}
        self._left = 0
        self._through_tables = False
        self._is_partial = False
        """Whether code was missing that may be known later."""

    def find_row(self, address: int, *, interrupted: bool) -> Row | None:
        """The row for the instruction at an address, None where none is found. A call returns there unless it was interrupted."""
        key = (address, interrupted)
        if key not in self._rows:
            if len(self._rows) >= _MAX_CACHED:
                self._rows.clear()
            self._is_partial = False
            way = self._start_of_ways(address, interrupted)
            start = way.pc
            row = (
                self._find_signal_frame(address)
                or self._find_way_out(way)
                or self._find_way_in(start, is_first=interrupted and self._is_beginning(start))
            )
            if row is None:
                row = self._find_way_out(self._start_of_ways(address, interrupted), through_tables=True)
            if row is None and self._is_partial:
                return None
            self._rows[key] = row
        return self._rows[key]

    def _find_signal_frame(self, address: int) -> Row | None:
        """The row for code that signal handlers return to."""
        abi = self._abi
        for code, places in abi.signal_code:
            if any(self._read(address - done, len(code)) == code for done in range(0, len(code), _SLOT)):
                saved = tuple(Saved(name, None, place) for name, place in places.items() if name != abi.pc)
                return_address = Saved(abi.pc, None, places[abi.pc])
                return Row(RowKind.CALL, abi.sp, saved=saved, return_address=return_address, is_signal=True)
        return None

    def _start_of_ways(self, address: int, interrupted: bool) -> _Way:
        before = self._instruction(address - _SLOT) if interrupted else None
        if before is not None and before.slot is not None:
            # It is about to jump, nobody knows where to: as if it were there once more.
            return _Way(address - _SLOT, (self._abi.sp, 0), {before.register} - {""})
        # Behind a call the link register holds the address of where we are.
        return _Way(address, (self._abi.sp, 0), set() if interrupted else {self._link})

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
            self._start, self._code = (start, code) if code else (address, self._read(address, _LONGEST) or b"")
        return self._code[address - self._start : address - self._start + _LONGEST]

    def _find_way_out(self, start: _Way, *, through_tables: bool = False) -> Row | None:
        """through_tables: what stands behind the jump of a ``switch`` is one of its cases, more likely than not."""
        self._left, self._through_tables = _MAX_INSTRUCTIONS, through_tables
        for way in self._ways(start):
            instruction = self._instruction(way.pc)
            effect = Effect.END if instruction is None else instruction.effect
            if instruction is None or effect not in (Effect.RETURN, Effect.STUB, Effect.JUMP_REGISTER):
                continue
            leaving = way
            if instruction.slot is not None:
                leaving = way.fork(way.pc)
                self._change(leaving, instruction.slot)
            is_out = (
                effect is Effect.RETURN
                or (effect is Effect.STUB and leaving.is_first(self._link))
                # A jump to another function, if the frame was taken down before; else one by a table.
                or self._link in leaving.loaded
                or self._link in leaving.near
            )
            row = self._row_of_way_out(leaving) if is_out else None
            if row is not None:
                return row
        return None

    def _row_of_way_out(self, way: _Way) -> Row | None:
        abi, link = self._abi, self._link
        if not way.sp[0]:
            return None
        loaded = way.loaded
        if loaded.get(link, way.sp)[0] != abi.sp and link in way.stored.values():
            # By a frame pointer, where it was saved by the stack pointer, and is to be yet, as others are.
            loaded = {name: place for name, place in loaded.items() if name not in way.stored.values()}
            return_address = Saved(abi.pc, link, 0, is_value=True)
        elif link in loaded:
            return_address = _saved(abi.pc, loaded[link], way.sp)
        elif way.is_first(link) or link in way.near:
            return_address = Saved(abi.pc, *way.near.get(link, (link, 0)), is_value=True)
        else:
            return None
        saved = tuple(_saved(name, place, way.sp) for name, place in loaded.items() if name in abi.callee_saved)
        unchanged = {name for name in way.loaded if name not in loaded}
        kept = tuple(name for name in abi.callee_saved if (way.is_first(name) or name in unchanged) and name != abi.sp)
        return Row(RowKind.CALL, *way.sp, saved=saved, kept=kept, return_address=return_address)

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
        return self._row_of_way_in(_Way(address, (sp, 0))) if is_first else None

    def _way_in(self, start: int, address: int) -> _Way | None:
        """A way from a start to an address, if the return address is saved on it, or about to be."""
        found: _Way | None = None
        for way in self._ways(_Way(start, (self._abi.sp, 0))):
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

    def _row_of_way_in(self, way: _Way) -> Row | None:
        """The row where a way from the function's first instructions has come to."""
        abi, link = self._abi, self._link
        places = {register: offset for (_base, offset), register in way.stored.items() if isinstance(register, str) and register}
        # In a frame of variable size the frame pointer has what the stack pointer was.
        register = abi.sp if way.sp[0] else abi.fp
        base, moved = way.sp if way.sp[0] else way.near.get(abi.fp, _NOWHERE)
        if (link not in places and not way.is_first(link)) or base != abi.sp:
            return None
        saved = tuple(Saved(name, None, places[name]) for name in abi.callee_saved if name in places and name != abi.sp)
        kept = tuple(name for name in abi.callee_saved if name not in places and way.is_first(name) and name != abi.sp)
        return_address = Saved(abi.pc, None, places[link]) if link in places else Saved(abi.pc, link, 0, is_value=True)
        return Row(RowKind.CALL, register, -moved, saved=saved, kept=kept, return_address=return_address)

    def _ways(self, start: _Way) -> Iterator[_Way]:
        """The ways from a start on, before each instruction that one of them is the first to come to."""
        ways = [start]
        # A way that has lost the return address may have come round a call that never returns.
        seen: set[tuple[int, bool]] = set()
        while ways and self._left:
            way = ways[-1]
            state = (way.pc, self._link in way.lost)
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

    def _follow(self, way: _Way, instruction: Instruction) -> bool:
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

    def _change(self, way: _Way, instruction: Instruction) -> None:
        """Do what an instruction does to registers and the stack."""
        register, number, source, other = instruction.register, instruction.number, instruction.source, instruction.other
        match instruction.effect:
            case Effect.STORE | Effect.LOAD:
                self._move(way, instruction)
            case Effect.SET:
                way.forget(register)
                way.constants[register] = number
            case Effect.ADD:
                way.add(register, source, number, self._abi.sp)
            case Effect.ADD_REGISTER:
                way.add(register, source, way.constants.get(other), self._abi.sp)
            case Effect.SUBTRACT_REGISTER:
                known = way.constants.get(other)
                way.add(register, source, None if known is None else -known, self._abi.sp)
            case Effect.WRITE | Effect.ENTRY if register == self._abi.sp:
                # A frame pointer may have it.
                way.sp = _NOWHERE
            case Effect.WRITE | Effect.ENTRY:
                way.overwrite(register)

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
