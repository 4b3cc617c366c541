"""The one vocabulary that every unwind format is lowered to, and the evaluator that applies it.

A row says how to get from a frame to its caller:

    CFA            = register + offset            (Memory.NONE)
                   = *(register + offset)         (Memory.BEFORE)
                   = *(register) + offset         (Memory.AFTER)
    CALL           : caller's pc = *(CFA - word), caller's sp = CFA, caller's saved register = *(base + offset)
    TRAP           : the processor's registers were saved at CFA in the layout of a ``TrapFrame``; the caller is what it interrupted
    TRAP_PARTIAL   : only the part of it that the processor itself saves was saved there
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
    END = auto()
    UNDEFINED = auto()


@dataclass(frozen=True, slots=True)
class Saved:
    """A register that the frame saved: its caller's value is ``*(base + offset)``, where base is the CFA if None."""

    register: str
    base: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Row:
    """How to unwind one frame.

    kept: registers that this frame leaves as they were (the callee-saved ones that it did not save).
    tagged: where the CFA's register has its lowest bit set, it is no frame pointer but the address of a trap frame plus one
        (Linux' ENCODE_FRAME_POINTER).
    """

    kind: RowKind
    register: str = ""
    offset: int = 0
    memory: Memory = Memory.NONE
    saved: tuple[Saved, ...] = ()
    kept: tuple[str, ...] = ()
    tagged: bool = False


@dataclass(frozen=True, slots=True)
class TrapFrame:
    """Where the kernel's entry code saves the interrupted registers: name -> byte offset.

    full: everything that the entry code saves (Linux' ``struct pt_regs``), ``size`` bytes.
    partial: what the processor itself saves, counted from the address of a TRAP_PARTIAL row.
    """

    size: int
    full: Mapping[str, int]
    partial: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Missing:
    """A step failed: a register whose value is not known (``address`` None) or a word that was not copied."""

    address: int | None


def find_cfa(row: Row, registers: Mapping[str, int], read_word: ReadWord) -> int | Missing:
    """The canonical frame address of a row, from the frame's known registers."""
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
    return_address = read_word(cfa - word)
    if return_address is None:
        return Missing(cfa - word)
    pc, sp = names
    caller = {pc: return_address, sp: cfa}
    for name in row.kept:
        if name in registers:
            caller[name] = registers[name]
    for saved in row.saved:
        base = cfa if saved.base is None else registers.get(saved.base)
        value = None if base is None else read_word(base + saved.offset & _WORD_MASK)
        if value is not None:
            caller[saved.register] = value
    return caller


def read_trap(layout: Mapping[str, int], address: int, read_word: ReadWord) -> dict[str, int] | Missing:
    """The registers of a trap frame at an address."""
    registers = {}
    for name, offset in layout.items():
        value = read_word(address + offset)
        if value is None:
            return Missing(address + offset)
        registers[name] = value
    return registers
