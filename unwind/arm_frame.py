"""A function's A32 code becomes, for each of its instructions, how far the stack is down and where registers were saved.

Unwind tables of the EHABI have one entry for a whole function, which is wrong amid its prologue and its epilogues (there may be
several), before a prologue that the compiler has put behind the first test, and where a table has no entry. The code leaves no
doubt there: all of its ways are followed from the function's start on. Instructions are those of the Arm Architecture Reference
Manual, ARMv7-A, A5 and A8.

What cannot be followed (a stack pointer out of another register, two ways that disagree) has no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unwind.ehabi import CALLEE_SAVED, NAMES
from unwind.rules import Row, RowKind, Saved

_FP, _SP, _LR, _PC = 11, 13, 14, 15
_ALWAYS, _UNCONDITIONAL = 14, 15
_MAX_CASES = 512
_BX = 0x012F_FF10
_TABLE_JUMP = 0x008F_F100
"""``add pc, pc, index, lsl #2``"""
_PREDICATED = 4
"""Instructions of a conditional epilogue that are looked at for the branch that ends it."""
_WANTED = frozenset((*CALLEE_SAVED, _LR))


@dataclass(frozen=True, slots=True)
class State:
    """Before an instruction. Places on the stack are counted from the caller's stack pointer.

    depth: bytes of stack in use, None where that is not known (but the frame pointer is). saved: by register its place.
    has_link: whether the link register holds the return address. frame: the place that the frame pointer points to.
    """

    depth: int | None = 0
    saved: tuple[tuple[int, int], ...] = ()
    has_link: bool = True
    frame: int | None = None

    def save(self, number: int, at: int) -> State:
        """A register was stored, for the first time."""
        if number not in _WANTED or any(number == known for known, _at in self.saved):
            return self
        if number == _LR and not self.has_link:
            return self
        return replace(self, saved=(*self.saved, (number, at)))

    def load(self, number: int, at: int) -> State:
        """A register was loaded, perhaps from where it was saved."""
        if (number, at) not in self.saved:
            return self
        left = tuple(each for each in self.saved if each != (number, at))
        return replace(self, saved=left, has_link=self.has_link or number == _LR)

    def move(self, change: int) -> State:
        """The stack pointer goes down by some bytes; what lies below it then is gone."""
        return self if self.depth is None else self.move_to(self.depth + change)

    def move_to(self, depth: int) -> State:
        """The stack pointer is put somewhere."""
        return replace(self, depth=depth, saved=tuple(each for each in self.saved if each[1] >= -depth))

    def merge(self, other: State) -> State | None:
        """What is true whichever of two ways led here, None where they disagree."""
        if (self.depth, self.saved) != (other.depth, other.saved):
            return None
        if self.has_link != other.has_link and not any(number == _LR for number, _at in self.saved):
            return None
        frame = self.frame if self.frame == other.frame else None
        if self.depth is None and frame is None:
            return None
        return replace(self, has_link=self.has_link and other.has_link, frame=frame)

    def row(self) -> Row | None:
        """How to unwind a frame in this state; None where the return address is gone."""
        saved = dict(self.saved)
        place = saved.pop(_LR, None)
        if place is None and not self.has_link:
            return None
        if self.depth is None and self.frame is None:
            return None
        return Row(
            RowKind.CALL,
            "sp" if self.depth is not None else NAMES[_FP],
            self.depth if self.depth is not None else -(self.frame or 0),
            saved=tuple(Saved(NAMES[number], None, at) for number, at in saved.items()),
            kept=tuple(NAMES[number] for number in CALLEE_SAVED if number not in saved),
            return_address=Saved("pc", "lr", 0, is_value=True) if place is None else Saved("pc", None, place),
        )


def frame_states(start: int, code: bytes) -> Mapping[int, State]:
    """State before each instruction of a function that begins at an address, where there is no doubt."""
    words = [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code) - 3, 4)]
    states: dict[int, State | None] = {}
    work: list[tuple[int, State | None]] = [(0, State())]
    behind_calls: list[tuple[int, State | None]] = []
    jumps: list[int] = []
    while work or behind_calls or jumps:
        is_sure = bool(work)
        if not work and not behind_calls:
            # Where a table leads that lies elsewhere is not known: to what nothing else leads to.
            jump = jumps.pop()
            behind_calls = [(at, states[jump]) for at in range(jump + 2, len(words)) if at not in states and _ends(words[at - 1])]
            continue
        at, state = work.pop() if work else behind_calls.pop()
        if not 0 <= at < len(words):
            continue
        if at in states:
            known = states[at]
            merged = None if known is None or state is None else known.merge(state)
            # Many a call does not return, and what lies behind it then belongs to another way.
            if merged == known or (merged is None and not is_sure):
                continue
            state = merged
        states[at] = state
        if words[at] & 0x0FFF_FFF0 == _TABLE_JUMP:
            jumps.append(at)
        for target, left, is_call in _next(words, at, start, states[at]):
            (behind_calls if is_call else work).append((target, left))
    return {start + 4 * at: state for at, state in states.items() if state is not None}


def _next(words: list[int], at: int, start: int, state: State | None) -> Iterator[tuple[int, State | None, bool]]:
    """(index of an instruction that may follow, state before it, whether a call lies between)."""
    word = words[at]
    condition = word >> 28
    if _is_call(word):
        yield at + 1, None if state is None else replace(state, has_link=False), True
    elif condition == _UNCONDITIONAL:
        yield at + 1, state, False
    elif _is_branch(word) or _writes_pc(word):
        if _is_branch(word):
            yield at + 2 + (word & 0xFF_FFFF) - (word << 1 & 0x100_0000), state, False
        else:
            yield from ((target, state, False) for target in _cases(words, at, start))
        if condition != _ALWAYS:
            yield at + 1, state, False
    elif not _is_undefined(word):
        yield _fall_through(words, at, state)


def _fall_through(words: list[int], at: int, state: State | None) -> tuple[int, State | None, bool]:
    """As ``_next``, for an instruction that goes on to the next one."""
    word = words[at]
    condition = word >> 28
    left = None if state is None else _effect(word, state)
    if left is None and state is not None and state.frame is not None:
        left = replace(state, depth=None)
    if condition == _ALWAYS or left == state:
        return at + 1, left, False
    # A conditional epilogue: whether it has run is open until the branch of the same condition behind it.
    for ahead in range(at + 1, min(at + _PREDICATED, len(words))):
        if words[ahead] >> 28 != condition:
            break
        if _is_branch(words[ahead]) or words[ahead] & 0x0FFF_FFF0 == _BX:
            return ahead + 1, state, False
    return at + 1, None, False


def _is_call(word: int) -> bool:
    """``bl``, ``blx``."""
    if word >> 28 == _UNCONDITIONAL:
        return word >> 25 & 7 == 0b101
    return word >> 24 & 15 == 0b1011 or word & 0x0FFF_FFF0 == 0x012F_FF30


def _is_branch(word: int) -> bool:
    return word >> 24 & 15 == 0b1010 and word >> 28 != _UNCONDITIONAL


def _is_undefined(word: int) -> bool:
    """``udf``"""
    return word & 0xFFF0_00F0 == 0xE7F0_00F0


def _writes_pc(word: int) -> bool:
    """Returns, jumps through registers and tables, but no branch."""
    if word & 0x0FFF_FFF0 == _BX:
        return True
    kind = word >> 25 & 7
    if kind == 0b100:
        return bool(word >> 20 & 1 and word >> _PC & 1)
    if kind == 0b010 or (kind == 0b011 and not word >> 4 & 1):
        return bool(word >> 20 & 1) and word >> 12 & 15 == _PC
    return _is_arithmetic(word) and word >> 12 & 15 == _PC and word >> 23 & 3 != 0b10


def _is_arithmetic(word: int) -> bool:
    """Data processing (A5.2), as opposed to what shares its space: multiplications, halfwords, status registers."""
    kind = word >> 25 & 7
    if kind == 0b000 and word >> 4 & 1 and word >> 7 & 1:
        return False
    return kind in (0b000, 0b001) and word >> 20 & 0b11001 != 0b10000


def _cases(words: list[int], at: int, start: int) -> Iterator[int]:
    """Where a switch is known to lead: ``ldr pc, [pc, index, lsl #2]`` has addresses behind it, ``add pc, pc, ...`` code."""
    if words[at] & 0x0FFF_FFF0 == 0x079F_F100:
        for address in words[at + 2 : at + 2 + _MAX_CASES]:
            if not start <= address < start + 4 * len(words) or address % 4:
                break
            yield (address - start) // 4
    elif words[at] & 0x0FFF_FFF0 == _TABLE_JUMP:
        yield at + 2


def _ends(word: int) -> bool:
    """Whether an instruction never goes on to the next one."""
    return _is_undefined(word) or (word >> 28 == _ALWAYS and (_is_branch(word) or _writes_pc(word)))


def _immediate(word: int) -> int:
    """A constant of data processing (A5.2.4)."""
    value, turn = word & 0xFF, word >> 7 & 0x1E
    return (value >> turn | value << 32 - turn) & 0xFFFF_FFFF


def _effect(word: int, state: State) -> State | None:
    """What an instruction that goes on to the next one does to the stack."""
    kind = word >> 25 & 7
    if kind == 0b100:
        return _effect_multiple(word, state)
    if kind == 0b010 or (kind == 0b011 and not word >> 4 & 1):
        return _effect_single(word, state, word & 0xFFF if kind == 0b010 else None, (word >> 12 & 15,))
    if kind == 0b110:
        return _effect_floating(word, state)
    if kind == 0b000 and word >> 4 & 1 and word >> 7 & 1:
        if word >> 5 & 3 >= 2 and not word >> 20 & 1:  # ldrd, strd
            first = word >> 12 & 15
            offset = (word >> 4 & 0xF0 | word & 0xF) if word >> 22 & 1 else None
            return _effect_single(word, state, offset, (first, first + 1), loads=not word >> 5 & 1)
        return state
    # Comparisons have no target.
    return _effect_arithmetic(word, state) if _is_arithmetic(word) and word >> 23 & 3 != 0b10 else state


def _effect_arithmetic(word: int, state: State) -> State | None:
    operation, base, target = word >> 21 & 15, word >> 16 & 15, word >> 12 & 15
    change = None
    if word >> 25 & 1 and operation in (2, 4):
        change = -_immediate(word) if operation == 2 else _immediate(word)
    elif word & 0x0FFF_0FF0 == 0x01A0_0000:  # mov
        base, change = word & 15, 0
    if target == _FP and base == _SP and change is not None and state.depth is not None:
        return replace(state, frame=change - state.depth)
    if target != _SP:
        return _overwritten((target,), state)
    if base == _SP and change is not None:
        return state.move(-change)
    if base == _FP and change is not None and state.frame is not None:
        return state.move_to(-(state.frame + change))
    return None


def _overwritten(registers: Sequence[int], state: State) -> State:
    """Something else is put into registers, among which may be the link register or the frame pointer."""
    if _LR in registers and state.has_link:
        state = replace(state, has_link=False)
    return replace(state, frame=None) if _FP in registers and state.frame is not None else state


def _effect_multiple(word: int, state: State) -> State | None:
    """``push``, ``pop`` and their kin."""
    registers = [number for number in range(16) if word >> number & 1]
    size, loads = 4 * len(registers), bool(word >> 20 & 1)
    if word >> 16 & 15 != _SP:
        if loads and _SP in registers:
            return None
        return _overwritten(registers, state) if loads else state
    upwards, before, writes = word >> 23 & 1, word >> 24 & 1, word >> 21 & 1
    if loads:
        if _SP in registers:
            return None
        state = _overwritten(registers, state)
    if state.depth is None:
        return state
    low = -state.depth + ((4 if before else 0) if upwards else (0 if before else 4) - size)
    for index, number in enumerate(registers):
        state = state.load(number, low + 4 * index) if loads else state.save(number, low + 4 * index)
    return state.move(-size if upwards else size) if writes else state


def _effect_single(
    word: int, state: State, offset: int | None, registers: tuple[int, ...], *, loads: bool | None = None
) -> State | None:
    """``ldr``, ``str`` and their forms for two registers, with a constant offset or (None) one in a register."""
    loads = bool(word >> 20 & 1) if loads is None else loads
    if loads and _SP in registers:
        return None
    upwards, before, writes = word >> 23 & 1, word >> 24 & 1, word >> 21 & 1 or not word >> 24 & 1
    is_bytes = len(registers) == 1 and word >> 22 & 1
    if loads:
        state = _overwritten(registers, state)
    if word >> 16 & 15 != _SP or state.depth is None:
        return state
    if offset is None:
        return None if writes else state
    change = offset if upwards else -offset
    at = -state.depth + (change if before else 0)
    if not is_bytes:
        for index, number in enumerate(registers):
            state = state.load(number, at + 4 * index) if loads else state.save(number, at + 4 * index)
    return state.move(-change) if writes else state


def _effect_floating(word: int, state: State) -> State | None:
    """``vpush`` and ``vpop``; others do not move the stack pointer, or in no way that a compiler uses."""
    if word >> 16 & 15 != _SP or not word >> 21 & 1:
        return state
    size = 4 * (word & 0xFF)
    return state.move(-size if word >> 23 & 1 else size)
