"""The machine code of a function becomes the unwind row for an address in it, where no table has one.

Whatever way the function takes from there, it ends with the caller's registers restored and a return (or a jump to another
function, which returns for it). So any way through its code that reaches a return tells where they are: how far the stack pointer
moves on it, and which words are loaded into which registers. Ways that do not get there are given up: through a table of jumps,
round in circles, or behind a call that never returns into the next function, which finds no return address there.

Where no way out is found, as in functions that never return, a way in tells the same: from an instruction before the address that
moves the stack pointer down to there, with the return address saved on it, or that saves it and others at once before that.
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
_LONGEST = 8
_WINDOW = 256
_MAX_CACHED = 1 << 16
_MASK = (1 << 64) - 1

_Place = tuple[str, int]
"""A stack address as (register at the start of the way, bytes above it)."""


@dataclass(slots=True)
class _Way:
    """A way through the code so far. A register holds what it held at the start, unless it is in one of these.

    sp: the stack pointer. lost: registers that hold something unknown. loaded: those that hold a word of the stack.
    near: those that hold a stack address. constants: those that hold a number.
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
        self.stored[self.sp[0], self.sp[1] + offset] = self.loaded.get(register, register if self.is_first(register) else "")

    def load(self, register: str, offset: int, sp: str, base: _Place | None) -> None:
        """A register is restored from there (base: the stack pointer), if it is known where that is.

        What lies below the first stack pointer was not there at the start.
        """
        self.forget(register)
        if base is None:
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

    def add(self, register: str, source: str, number: int | None, sp: str) -> bool:
        """``register`` becomes ``source`` plus a number, None if that is unknown; False where the stack pointer is unknown then."""
        place = self.sp if source == sp else self.near.get(source)
        if place is None and register == sp and self.is_first(source):
            place = source, 0
        moved = None if place is None or number is None else (place[0], place[1] + _signed(number))
        constant = self.constants.get(source)
        if register == sp:
            self.sp = moved or self.sp
            return moved is not None
        self.forget(register)
        if moved is not None:
            self.near[register] = moved
        elif constant is not None and number is not None:
            self.constants[register] = constant + number & _MASK
        else:
            self.lost.add(register)
        return True


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

    def find_row(self, address: int, *, interrupted: bool) -> Row | None:
        """The row for the instruction at an address, None where none is found. A call returns there unless it was interrupted."""
        key = (address, interrupted)
        if key not in self._rows:
            if len(self._rows) >= _MAX_CACHED:
                self._rows.clear()
            self._left = _MAX_INSTRUCTIONS
            row = self._find_way_out(address, interrupted)
            self._left = _MAX_INSTRUCTIONS
            self._rows[key] = row or self._find_way_in(address)
        return self._rows[key]

    def _instruction(self, address: int) -> Instruction | None:
        if address not in self._decoded:
            if len(self._decoded) >= _MAX_CACHED:
                self._decoded.clear()
            self._decoded[address] = self._decode(address)
        return self._decoded[address]

    def _decode(self, address: int) -> Instruction | None:
        if not self._start <= address <= self._start + len(self._code) - _LONGEST:
            sizes = (_WINDOW, _LONGEST)
            self._start, self._code = address, next((code for size in sizes if (code := self._read(address, size))), b"")
        decode, at = self._abi.decode, address - self._start
        return None if decode is None else decode(address, self._code[at : at + _LONGEST])

    def _find_way_out(self, address: int, interrupted: bool) -> Row | None:
        # Behind a call the link register holds the address of where we are.
        start = _Way(address, (self._abi.sp, 0), set() if interrupted else {self._link})
        for way in self._ways(start):
            instruction = self._instruction(way.pc)
            effect = Effect.END if instruction is None else instruction.effect
            is_out = (
                effect is Effect.RETURN
                or (effect is Effect.STUB and way.is_first(self._link))
                # A jump to another function, if the frame was taken down before; else one by a table.
                or (effect is Effect.JUMP_REGISTER and self._link in way.loaded)
            )
            row = self._row_of_way_out(way) if is_out else None
            if row is not None:
                return row
        return None

    def _row_of_way_out(self, way: _Way) -> Row | None:
        abi, link = self._abi, self._link
        if link in way.loaded:
            return_address = _saved(abi.pc, way.loaded[link], way.sp)
        elif way.is_first(link):
            return_address = Saved(abi.pc, link, 0, is_value=True)
        else:
            return None
        saved = tuple(_saved(name, place, way.sp) for name, place in way.loaded.items() if name in abi.callee_saved)
        kept = tuple(name for name in abi.callee_saved if way.is_first(name) and name != abi.sp)
        return Row(RowKind.CALL, *way.sp, saved=saved, kept=kept, return_address=return_address)

    def _find_way_in(self, address: int) -> Row | None:
        sp, starts = self._abi.sp, 0
        for start in range(address - _SMALLEST, address - _MAX_BACK, -_SMALLEST):
            instruction = self._instruction(start)
            if instruction is None or not self._may_begin(instruction):
                continue
            way = next((way for way in self._ways(_Way(start, (sp, 0))) if way.pc == address), None)
            row = None if way is None else self._row_of_way_in(way)
            starts += 1
            if row is not None or starts >= _MAX_STARTS:
                return row
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
        if link not in places or way.sp[0] != abi.sp:
            return None
        saved = tuple(Saved(name, None, places[name]) for name in abi.callee_saved if name in places and name != abi.sp)
        kept = tuple(name for name in abi.callee_saved if name not in places and way.is_first(name) and name != abi.sp)
        return_address = Saved(abi.pc, None, places[link])
        return Row(RowKind.CALL, abi.sp, -way.sp[1], saved=saved, kept=kept, return_address=return_address)

    def _ways(self, start: _Way) -> Iterator[_Way]:
        """The ways from a start on, before each instruction that one of them is the first to come to."""
        ways = [start]
        seen: set[int] = set()
        while ways and self._left:
            way = ways[-1]
            instruction = None if way.pc in seen else self._instruction(way.pc)
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
        effect, size, register, number, source, other, _more = instruction
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
            case Effect.STORE | Effect.LOAD:
                self._move(way, instruction)
            case Effect.SET:
                way.forget(register)
                way.constants[register] = number
            case Effect.ADD | Effect.ADD_REGISTER:
                if not way.add(register, source, way.constants.get(other) if other else number, self._abi.sp):
                    return False
            case Effect.WRITE:
                way.overwrite(register)
        if following is None or (effect is Effect.WRITE and register == self._abi.sp):
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
