"""Chained frames (``unwind.arch.StackChain``) as rows: a word of each frame leads to the caller's, which has the return address.

    at a call                   CFA = *(sp + word), return address = *(CFA + return_address)
    interrupted                 CFA = sp + the size of what the function has made of its frame so far, return address as at a call,
                                or in the link register where the function has not saved it there
    entry code                  at the end of a chain the trap frame follows, at sp + trap
    roots of tasks              END

How much of a frame there is, is told by the code from the start of the function to the place of the halt, along all its branches.
A call's return address minus one is amid an instruction, so that the address says whether a row is wanted for a call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recording.symbols import Symbol
from unwind.arch import Architecture
from unwind.instructions import Effect, Instruction
from unwind.rules import Memory, Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource, find_range

Decode = Callable[[int, bytes], "Instruction | None"]

_END = Row(RowKind.END)
_MAX_FUNCTION = 1 << 16
_MAX_FUNCTIONS = 4096
_LONGEST_INSTRUCTION = 8
_COLD = ".cold"
"""GCC's suffix for a part of a function that lies elsewhere."""


@dataclass(frozen=True, slots=True)
class FrameState:
    """What there is of a frame in front of an instruction.

    size: the caller's stack pointer minus the stack pointer; None where only the chain says it.
    has_link: the return address was saved.
    """

    size: int | None
    has_link: bool


_START = FrameState(0, has_link=False)
_MADE = FrameState(None, has_link=True)


@dataclass(frozen=True, slots=True)
class FunctionFrames:
    """By the address of an instruction, the state in front of it; of places in other functions that are branched to, too."""

    states: Mapping[int, FrameState]
    instructions: Mapping[int, Instruction]

    def at(self, address: int) -> FrameState:
        """The state in front of an instruction; behind branches whose target a register holds, that of the function's body."""
        return self.states.get(address, _MADE)


def trace_frames(start: int, code: bytes, decode: Decode, frame: FrameLayout, first: FrameState = _START) -> FunctionFrames:
    """Follow a function's code from its start on; each instruction is looked at once, in the state that is met first."""
    states = {start: first}
    instructions: dict[int, Instruction] = {}
    waiting = deque([start])
    while waiting:
        address = waiting.popleft()
        offset = address - start
        if not 0 <= offset < len(code) or address in instructions:
            continue
        instruction = decode(address, code[offset : offset + _LONGEST_INSTRUCTION])
        if instruction is None:
            continue
        instructions[address] = instruction
        state = frame.after(states[address], instruction)
        for place in _following(address, instruction):
            if place not in states:
                states[place] = state
                waiting.append(place)
    return FunctionFrames(states, instructions)


def _following(address: int, instruction: Instruction) -> tuple[int, ...]:
    match instruction.effect:
        case Effect.JUMP:
            return (instruction.number,)
        case Effect.BRANCH:
            return (address + instruction.size, instruction.number)
        case Effect.JUMP_REGISTER | Effect.STUB | Effect.RETURN | Effect.END:
            return ()
    return (address + instruction.size,)


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Registers by name; return_address, word: see ``StackChain``. word_size: of a saved register."""

    sp: str
    link: str
    return_address: int
    word: int
    word_size: int

    def after(self, state: FrameState, instruction: Instruction) -> FrameState:
        """The state behind an instruction."""
        size, has_link = state.size, state.has_link
        registers = (instruction.register, *instruction.more)
        match instruction.effect:
            case Effect.STORE if self.link in registers and size is not None:
                place = instruction.number + self.word_size * registers.index(self.link) - size
                has_link = has_link or place == self.return_address
            case Effect.LOAD if self.sp in registers:
                size = 0
            case Effect.ADD if instruction.register == self.sp == instruction.source:
                size = None if size is None else size - instruction.number
            case Effect.ADD | Effect.ADD_REGISTER | Effect.SET | Effect.WRITE if instruction.register == self.sp:
                size = None
        return FrameState(size, has_link)

    def stored_chain(self, instruction: Instruction | None) -> str:
        """The register that an instruction stores where the chain goes on, "" where it does not."""
        if instruction is None or instruction.effect is not Effect.STORE or instruction.number != self.word:
            return ""
        return instruction.register


class StackChainRows:
    """Rows for kernels that chain their frames."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, text: TextSource) -> None:
        code = architecture.kernel_code
        if code.chain is None:
            raise ValueError(f"{architecture.name} names a method that needs a chain, but no chain")
        self._chain = code.chain
        self._symbols = symbols
        self._text = text
        self._sp = architecture.sp
        self._layout = FrameLayout(self._sp, code.chain.link, code.chain.return_address, code.chain.word, architecture.pointer_size)
        self._in_link = Saved(architecture.pc, code.chain.link, 0, is_value=True)
        self._saved = Saved(architecture.pc, None, code.chain.return_address)
        self._roots = code.task_roots | code.idle_roots
        self._entry_text = find_range(symbols, code.entry_text)
        self._body = Row(RowKind.CALL, self._sp, code.chain.word, Memory.BEFORE, return_address=self._saved)
        self._entry = Row(RowKind.TRAP, self._sp, code.chain.trap, is_window=True)
        self._functions: dict[int, FunctionFrames | None] = {}

    def find_row(self, lookup_pc: int) -> Row:
        """The row for an address in code."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is None:
            return self._body
        if symbol.name in self._roots:
            return _END
        if self._entry_text[0] <= lookup_pc < self._entry_text[1] and symbol.name not in self._chain.called:
            return self._entry
        return self._body if lookup_pc % self._chain.alignment else self._interrupted(symbol, lookup_pc)

    def _interrupted(self, symbol: Symbol, pc: int) -> Row:
        frames = self._frames(symbol)
        if frames is None:
            return self._body
        state = frames.at(pc)
        if state.size is None and symbol.name in self._chain.switches:
            return self._entry
        address = self._saved if state.has_link else self._in_link
        if state.size is not None:
            return Row(RowKind.CALL, self._sp, state.size, return_address=address)
        stored = self._layout.stored_chain(frames.instructions.get(pc))
        if stored:
            return Row(RowKind.CALL, stored, return_address=address)
        return Row(RowKind.CALL, self._sp, self._chain.word, Memory.BEFORE, return_address=address)

    def _frames(self, symbol: Symbol) -> FunctionFrames | None:
        start = symbol.address
        if start not in self._functions:
            if len(self._functions) >= _MAX_FUNCTIONS:
                self._functions.clear()
            size = min(symbol.size, _MAX_FUNCTION)
            code = self._text.read(start, size)
            self._functions[start] = None if code is None else self._trace(start, code, symbol)
        return self._functions[start]

    def _trace(self, start: int, code: bytes, symbol: Symbol) -> FunctionFrames:
        return trace_frames(start, code, self._chain.decode, self._layout, self._first(symbol))

    def _first(self, symbol: Symbol) -> FrameState:
        """The state at the start of a function, or in that part of it which lies elsewhere at the branch to there."""
        name, part, _number = symbol.name.partition(_COLD)
        if not part:
            return _START
        whole = self._symbols.find(name)
        frames = None if whole is None else self._frames(whole)
        return _MADE if frames is None else frames.at(symbol.address)
