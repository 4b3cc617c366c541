"""The code of a function becomes rows for kernels without unwind tables and frame pointers (arch/mips/kernel/process.c).

    amid a function             CFA = sp + what its instructions have taken so far, return address = *(CFA - offset)
                                or in the link register: before it was saved, and after the frame was taken down;
                                other registers likewise, so that a system call's are known where it left user mode
    behind a call               the same, and the link register is lost
    where sp is not known       CFA = fp + offset (a frame of variable size)
    entry code                  TRAP: the registers lie at the stack pointer, or where the first word of an interrupt stack leads
    roots of tasks              END

The kernel's own unwinder looks at prologues alone; a halt may be amid an epilogue, and behind one. So each function is followed
from its start on along all its branches, with their delay slots; what no branch that can be seen leads to (tables of ``switch``)
goes on as the last jump did whose target is in a register.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unwind.arch import Architecture, CodeStep, FrameCode, StackLink
from unwind.rules import Expression, Operation, Operator, Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource, find_ranges

_END = Row(RowKind.END)
_UNDEFINED = Row(RowKind.UNDEFINED)
_MAX_FUNCTION = 1 << 16
_MAX_KEPT = 1 << 12


@dataclass(frozen=True, slots=True)
class FrameState:
    """What there is of a frame in front of an instruction. Places in it are counted from the CFA, the caller's stack pointer.

    size: CFA minus stack pointer, None where that is not known. fp_height: CFA minus frame pointer, None where it is the caller's.
    link: where the return address was saved, None where it was not. in_link: whether the link register has it.
    saved: where other registers of the caller's were saved, its frame pointer among them.
    """

    size: int | None = 0
    fp_height: int | None = None
    link: int | None = None
    in_link: bool = True
    saved: tuple[tuple[str, int], ...] = ()


def follow_frames(code: FrameCode, start: int, words: Sequence[int], fp: str) -> Mapping[int, FrameState]:
    """By address, the state in front of each instruction of a function; where several ways lead there, by the shortest one."""
    steps = [code.decode(start + code.size * index, word) for index, word in enumerate(words)]
    states: dict[int, FrameState] = {}
    jumps: list[tuple[int, FrameState]] = []
    body = FrameState()
    for index in range(len(steps)):
        if index in states:
            continue
        # Jumps are met before what they lead to.
        seed = next((state for place, state in reversed(jumps) if place < index), body) if index else FrameState()
        waiting = deque([(index, seed)])
        while waiting:
            place, state = waiting.popleft()
            if not 0 <= place < len(steps) or place in states:
                continue
            states[place] = state
            step = steps[place]
            behind = _after(state, step, code, fp)
            if step.is_call:
                behind = replace(behind, in_link=False)
                body = behind
            if not step.has_slot:
                if step.goes_on:
                    waiting.append((place + 1, behind))
                continue
            slot = steps[place + 1] if place + 1 < len(steps) else CodeStep()
            states.setdefault(place + 1, behind)
            taken = _after(behind, slot, code, fp)
            if step.goes_on:
                waiting.append((place + 2, behind if step.skips_slot else taken))
            if step.target is not None:
                waiting.append(((step.target - start) // code.size, taken))
            if step.is_computed:
                jumps.append((place, taken))
                jumps.sort(key=lambda jump: jump[0])
    return {start + code.size * index: state for index, state in states.items()}


def _after(state: FrameState, step: CodeStep, code: FrameCode, fp: str) -> FrameState:
    """The state behind an instruction, which no branch was taken by."""
    size = state.size
    if step.loses_sp:
        return replace(state, size=None)
    if step.sp_from_fp is not None:
        return _trimmed(replace(state, size=None if state.fp_height is None else state.fp_height - step.sp_from_fp))
    if size is None:
        return state
    if step.moves_sp:
        return _trimmed(replace(state, size=size - step.moves_sp))
    if step.fp_from_sp is not None and any(register == fp for register, _place in state.saved):
        return replace(state, fp_height=size - step.fp_from_sp)
    return _stored(state, size, step, code, fp)


def _stored(state: FrameState, size: int, step: CodeStep, code: FrameCode, fp: str) -> FrameState:
    if step.saves is not None:
        register, place = step.saves[0], step.saves[1] - size
        if register == code.link and state.in_link and state.link is None:
            return replace(state, link=place)
        if register in code.kept and not any(register == known for known, _place in state.saved):
            return replace(state, saved=(*state.saved, (register, place)))
    if step.loads is not None:
        register, place = step.loads[0], step.loads[1] - size
        if register == code.link and place == state.link:
            return replace(state, in_link=True)
        if (register, place) in state.saved:
            saved = tuple(known for known in state.saved if known != (register, place))
            return replace(state, fp_height=None if register == fp else state.fp_height, saved=saved)
    return state


def _trimmed(state: FrameState) -> FrameState:
    """Without what the stack pointer has left behind."""
    if state.size is None:
        return state
    lowest = -state.size
    link = state.link if state.link is not None and state.link >= lowest else None
    return replace(state, link=link, saved=tuple(known for known in state.saved if known[1] >= lowest))


class PrologueRows:
    """Rows made from the code of functions."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, text: TextSource) -> None:
        kernel, code = architecture.kernel_code, architecture.kernel_code.frame_code
        if code is None:
            raise ValueError(f"{architecture.name} names a method that needs to read its code, but not how")
        self._architecture = architecture
        self._symbols, self._text, self._code = symbols, text, code
        self._roots = kernel.task_roots | kernel.idle_roots
        self._entry_ranges = find_ranges(symbols, kernel.entry_ranges)
        self._entry = _entry_row(architecture)
        self._followed: OrderedDict[int, Mapping[int, FrameState]] = OrderedDict()
        self._rows: dict[FrameState, Row] = {}

    def find_row(self, lookup_pc: int) -> Row:
        """The row for an instruction in code, or for the call whose return address is the next byte."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is None:
            return _UNDEFINED
        if symbol.name in self._roots:
            return _END
        pc = lookup_pc - lookup_pc % self._code.size
        if any(low <= pc < high for low, high in self._entry_ranges):
            return self._entry_row(pc) if pc == lookup_pc else self._entry
        state = self._follow(symbol.address, symbol.size).get(pc)
        return _UNDEFINED if state is None else self._row(state)

    def _entry_row(self, pc: int) -> Row:
        """The row for a halt in entry code. An interrupt stack that it is about to put the first word on leads nowhere yet."""
        word = self._text.read(pc, self._code.size)
        step = None if word is None else self._code.decode(pc, int.from_bytes(word, self._architecture.byteorder))
        is_linking = step is not None and step.saves is not None and step.saves[1] == 0
        return _UNDEFINED if is_linking else self._entry

    def _follow(self, start: int, size: int) -> Mapping[int, FrameState]:
        known = self._followed.get(start)
        if known is None:
            length = min(size, _MAX_FUNCTION) & -self._code.size
            data = self._text.read(start, length)
            known = {}
            if data is not None:
                words = [
                    int.from_bytes(data[at : at + self._code.size], self._architecture.byteorder)
                    for at in range(0, length, self._code.size)
                ]
                known = follow_frames(self._code, start, words, self._architecture.fp)
            self._followed[start] = known
            if len(self._followed) > _MAX_KEPT:
                self._followed.popitem(last=False)
        return known

    def _row(self, state: FrameState) -> Row:
        row = self._rows.get(state)
        if row is None:
            row = self._rows[state] = _row_of(state, self._architecture, self._code)
        return row


def _row_of(state: FrameState, architecture: Architecture, code: FrameCode) -> Row:
    pc, sp, fp = architecture.pc, architecture.sp, architecture.fp
    if state.size is not None:
        register, offset = sp, state.size
    elif state.fp_height is not None:
        register, offset = fp, state.fp_height
    else:
        return _UNDEFINED
    if state.link is not None:
        place = Saved(pc, None, state.link)
    elif state.in_link:
        place = Saved(pc, code.link, 0, is_value=True)
    else:
        return _UNDEFINED
    known = dict(state.saved)
    saved = tuple(Saved(name, None, where) for name, where in state.saved)
    kept = tuple(name for name in code.kept if name not in known)
    return Row(RowKind.CALL, register, offset, saved=saved, kept=kept, return_address=place)


def _entry_row(architecture: Architecture) -> Row:
    """A trap frame at the stack pointer, or where the first word of an interrupt stack leads if the stack pointer is there."""
    stacks, sp = architecture.interrupt_stacks, architecture.sp
    if stacks.link is not StackLink.BOTTOM_WORD:
        return Row(RowKind.TRAP, sp)
    here = Operation(Operator.REGISTER, 0, sp)
    operations = (
        *(here, Operation(Operator.LOAD), here, Operation(Operator.SUBTRACT)),
        *(here, Operation(Operator.CONSTANT, architecture.stack_size - 1), Operation(Operator.AND)),
        *(Operation(Operator.CONSTANT, stacks.word_at), Operation(Operator.EQUAL)),
        *(Operation(Operator.MULTIPLY), here, Operation(Operator.ADD)),
    )
    return Row(RowKind.TRAP, expression=Expression(operations, architecture.pointer_size))
