"""The one vocabulary that every unwind format is lowered to, and the evaluator that applies it.

A row says how to get from a frame to its caller:

    CFA            = register + offset            (Memory.NONE)
                   = *(register + offset)         (Memory.BEFORE)
                   = *(register) + offset         (Memory.AFTER)
                   = an expression                (what the above cannot say)
    CALL           : caller's pc = *(CFA - word) or where ``return_address`` says, caller's sp = CFA,
                     caller's saved register = *(base + offset), or base + offset itself
    TRAP           : the processor's registers were saved at CFA in the layout of a ``TrapFrame``; the caller is what it interrupted
    TRAP_PARTIAL   : only the part of it that the processor itself saves was saved there
    TRAP_RECORD    : the frame record at CFA is part of a ``TrapFrame``
    TRAP_PUSHED    : a ``TrapFrame`` was pushed, and lies at CFA or above; the frame pointer is the stack pointer before
    END, UNDEFINED : the table says that the stack ends here, or that it does not know
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

ReadWord = Callable[[int], "int | None"]
"""The unsigned word at a virtual address, or None where it was not copied."""

_WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Memory(Enum):
    """Whether the CFA goes through memory, and on which side of the offset."""

    NONE = auto()
    BEFORE = auto()
    AFTER = auto()


class RowKind(Enum):
    """What a row leads to."""

    CALL = auto()
    TRAP = auto()
    TRAP_PARTIAL = auto()
    TRAP_RECORD = auto()
    TRAP_PUSHED = auto()
    END = auto()
    UNDEFINED = auto()


class Operator(Enum):
    """What an operation of an expression does with its stack of words; other operations of DWARF are made of these."""

    REGISTER = auto()
    """Pushes the value of ``register`` plus ``number``."""
    CONSTANT = auto()
    """Pushes ``number``."""
    LOAD = auto()
    """Replaces an address by the word that lies there."""
    PICK = auto()
    """Pushes a copy of the word ``number`` below the top."""
    DROP = auto()
    SWAP = auto()
    # These replace the two topmost words by one. Comparisons are signed and yield 1 or 0.
    ADD = auto()
    SUBTRACT = auto()
    MULTIPLY = auto()
    AND = auto()
    OR = auto()
    XOR = auto()
    SHIFT_LEFT = auto()
    SHIFT_RIGHT = auto()
    SHIFT_RIGHT_SIGNED = auto()
    EQUAL = auto()
    LESS = auto()
    LESS_OR_EQUAL = auto()


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of an expression."""

    operator: Operator
    number: int = 0
    register: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """Operations on a stack of words of ``word`` bytes, without jumps; the value is the topmost word at the end."""

    operations: tuple[Operation, ...]
    word: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A register that the frame saved: its caller's value is ``*(base + offset)``, or ``base + offset`` itself if ``is_value``.

    base: a register, an expression (which finds the CFA on its stack), or the CFA if None.
    """

    register: str
    base: str | Expression | None
    offset: int
    is_value: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """How to unwind one frame.

    kept: registers that this frame leaves as they were (the callee-saved ones that it did not save).
    tagged: where the CFA's register has its lowest bit set, it is no frame pointer but the address of a trap frame plus one
        (Linux' ENCODE_FRAME_POINTER).
    return_address: where the caller's pc is, unless right below the CFA.
    expression: the CFA, where register, offset and memory cannot say it.
    is_signal: the caller is no caller: a signal interrupted it, so that its pc is no return address.
    guess: it stands in where there is no unwind data, and the caller that it leads to is marked as a guess.
    is_window: of a trap: it is not there, or no longer, where the code of the row was itself interrupted.
    leaf: the row instead, for a function that holds its return address in the link register (``unwind/leaf.py`` says when).
    leaf_in_frame: for one that has set its frame pointer already.
    start: where the function begins for which it holds; None where that does not matter.
    only_calls: it is true where the function calls another one; elsewhere its code tells more.
    is_bound: the CFA is no more than a lower bound of the caller's stack pointer.
    otherwise: the row instead, where this one leads nowhere; it is then one of debug information (``unwind/methods.py``).
    """

    kind: RowKind
    register: str = ""
    offset: int = 0
    memory: Memory = Memory.NONE
    saved: tuple[Saved, ...] = ()
    kept: tuple[str, ...] = ()
    tagged: bool = False
    return_address: Saved | None = None
    expression: Expression | None = None
    is_signal: bool = False
    guess: bool = False
    is_window: bool = False
    leaf: Row | None = None
    leaf_in_frame: Row | None = None
    start: int | None = None
    only_calls: bool = False
    is_bound: bool = False
    otherwise: Row | None = None


@dataclass(frozen=True, slots=True)
class TrapFrame:
    """Where the kernel's entry code saves the interrupted registers: name -> byte offset.

    full: everything that the entry code saves (Linux' ``struct pt_regs``), ``size`` bytes.
    partial: what the processor itself saves, counted from the address of a TRAP_PARTIAL row; it is a part of the frame, too, at
        ``partial_at``.
    alignment: of the frame's address.
    records: where in the frame entry code may have put a frame record, which the frame pointer then leads to.
    is_pushed: a frame of kernel mode lies right below the stack pointer that it holds.
    is_partial: whether a full one lacks those in ``unsaved``, by what it holds.
    """

    size: int
    full: Mapping[str, int]
    partial: Mapping[str, int]
    partial_at: int
    alignment: int = 1
    records: tuple[int, ...] = ()
    is_pushed: bool = False
    unsaved: frozenset[str] = frozenset()
    is_partial: Callable[[Mapping[str, int]], bool] = lambda _saved: False


@dataclass(frozen=True, slots=True)
class Missing:
    """A step failed: a register whose value is not known (``address`` None) or a word that was not copied."""

    address: int | None


def find_cfa(row: Row, registers: Mapping[str, int], read_word: ReadWord) -> int | Missing:
    """The canonical frame address of a row, from the frame's known registers."""
    if row.expression is not None:
        return evaluate(row.expression, None, registers, read_word)
    base = registers.get(row.register)
    if base is None:
        return Missing(None)
    match row.memory:
        case Memory.NONE:
            return base + row.offset & _WORD_MASK
        case Memory.BEFORE:
            address = base + row.offset & _WORD_MASK
            value = read_word(address)
            return Missing(address) if value is None else value
        case Memory.AFTER:
            value = read_word(base)
            return Missing(base) if value is None else value + row.offset & _WORD_MASK


def find_caller(
    row: Row, registers: Mapping[str, int], cfa: int, word: int, names: tuple[str, str], read_word: ReadWord
) -> dict[str, int] | Missing:
    """The caller's known registers by a CALL row; ``names``: of the pc and the stack pointer, ``word``: a pointer's size.

    A saved register that cannot be read is left out: only the step that needs it fails.
    """
    pc, sp = names
    if row.return_address is None:
        return_address = read_word(cfa - word)
        if return_address is None:
            return Missing(cfa - word)
    else:
        found = _restore(row.return_address, registers, cfa, read_word)
        if isinstance(found, Missing):
            return found
        return_address = found
    caller = {pc: return_address, sp: cfa}
    for name in row.kept:
        if name in registers:
            caller[name] = registers[name]
    for saved in row.saved:
        if saved.base is None and not saved.is_value:  # the usual case, in the hottest loop
            word_there = read_word(cfa + saved.offset & _WORD_MASK)
            if word_there is not None:
                caller[saved.register] = word_there
            continue
        value = _restore(saved, registers, cfa, read_word)
        if not isinstance(value, Missing):
            caller[saved.register] = value
    return caller


def _restore(saved: Saved, registers: Mapping[str, int], cfa: int, read_word: ReadWord) -> int | Missing:
    """The caller's value of one register."""
    base: int | Missing | None
    if saved.base is None:
        base = cfa
    elif isinstance(saved.base, str):
        base = registers.get(saved.base)
    else:
        base = evaluate(saved.base, cfa, registers, read_word)
    if base is None:
        return Missing(None)
    if isinstance(base, Missing):
        return base
    address = base + saved.offset & _WORD_MASK
    if saved.is_value:
        return address
    value = read_word(address)
    return Missing(address) if value is None else value


def evaluate(expression: Expression, cfa: int | None, registers: Mapping[str, int], read_word: ReadWord) -> int | Missing:
    """The value of an expression, whose stack begins with the CFA (None: with nothing)."""
    bits = 8 * expression.word
    mask = (1 << bits) - 1
    stack = [] if cfa is None else [cfa]
    try:
        for operation in expression.operations:
            operator, number = operation.operator, operation.number
            if operator is Operator.REGISTER:
                base = registers.get(operation.register)
                if base is None:
                    return Missing(None)
                stack.append(base + number & mask)
            elif operator is Operator.CONSTANT:
                stack.append(number & mask)
            elif operator is Operator.LOAD:
                value = read_word(stack[-1])
                if value is None:
                    return Missing(stack[-1])
                stack[-1] = value
            elif operator is Operator.PICK:
                stack.append(stack[-1 - number])
            elif operator is Operator.DROP:
                stack.pop()
            elif operator is Operator.SWAP:
                stack[-1], stack[-2] = stack[-2], stack[-1]
            else:
                second, first = stack.pop(), stack.pop()
                stack.append(_COMBINE[operator](first, second, bits) & mask)
        return stack[-1]
    except IndexError:
        return Missing(None)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


_COMBINE: Mapping[Operator, Callable[[int, int, int], int]] = {
    Operator.ADD: lambda first, second, _bits: first + second,
    Operator.SUBTRACT: lambda first, second, _bits: first - second,
    Operator.MULTIPLY: lambda first, second, _bits: first * second,
    Operator.AND: lambda first, second, _bits: first & second,
    Operator.OR: lambda first, second, _bits: first | second,
    Operator.XOR: lambda first, second, _bits: first ^ second,
    Operator.SHIFT_LEFT: lambda first, second, bits: first << second if second < bits else 0,
    Operator.SHIFT_RIGHT: lambda first, second, bits: first >> min(second, bits),
    Operator.SHIFT_RIGHT_SIGNED: lambda first, second, bits: _signed(first, bits) >> min(second, bits),
    Operator.EQUAL: lambda first, second, _bits: int(first == second),
    Operator.LESS: lambda first, second, bits: int(_signed(first, bits) < _signed(second, bits)),
    Operator.LESS_OR_EQUAL: lambda first, second, bits: int(_signed(first, bits) <= _signed(second, bits)),
}


def read_trap(layout: Mapping[str, int], address: int, read_word: ReadWord) -> dict[str, int] | Missing:
    """The registers of a trap frame at an address."""
    registers = {}
    for name, offset in layout.items():
        value = read_word(address + offset)
        if value is None:
            return Missing(address + offset)
        registers[name] = value
    return registers
