"""What machine instructions do with the stack, as far as leaving a function is concerned: the words of ``unwind/code_rows.py``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple


class Effect(Enum):
    """The kinds of instructions. Registers go by gdb's names."""

    NOTHING = auto()
    """It neither jumps nor writes a register that matters."""
    WRITE = auto()
    """``register`` becomes something unknown."""
    ENTRY = auto()
    """The same, among the first instructions of a function and nowhere else."""
    SET = auto()
    """``register`` becomes ``number``."""
    ADD = auto()
    """``register`` becomes ``source`` plus ``number``."""
    ADD_REGISTER = auto()
    """``register`` becomes ``source`` plus ``other``."""
    ALIGN = auto()
    """The stack pointer becomes a round number below it."""
    SUBTRACT_REGISTER = auto()
    """``register`` becomes ``source`` minus ``other``."""
    STORE = auto()
    """``register`` is saved at the stack pointer plus ``number``, and ``more`` behind it."""
    LOAD = auto()
    """``register`` is restored from the stack pointer, or from ``source``, plus ``number``, and ``more`` from behind it."""
    PUSH = auto()
    """``register``, or something else, is saved below the stack pointer, which moves there."""
    POP = auto()
    """The other way round."""
    LEAVE = auto()
    """The stack pointer is what the frame pointer was, and that is restored from there."""
    CALL = auto()
    """It goes on behind it, when the function that it calls has returned; ``register`` has the return address."""
    BRANCH = auto()
    """It goes on behind it, or at ``number``."""
    JUMP = auto()
    """It goes on at ``number``."""
    JUMP_REGISTER = auto()
    """It goes on at ``source`` plus ``number``."""
    TABLE = auto()
    """It goes on elsewhere in the same function (a ``switch``)."""
    STUB = auto()
    """It goes on in another function, which returns to the caller: the end of a stub of the linker's (``.plt``), a tail call.

    ``register``, if any, is written like a call's. If there is a ``source``, where that points to: in another function if a
    pointer was loaded, elsewhere in this one if it was computed.
    """
    RETURN = auto()
    END = auto()
    """It does not go on, or nobody knows where."""


class Instruction(NamedTuple):
    """One instruction.

    size: in bytes. more: registers that are saved or restored with ``register``, a word from each other.
    slot: what stands behind it and is done before it jumps; it counts to its size. skips_slot: only where it does jump.
    then: what it does after that, for those that do several things; the last of these has its size.
    """

    effect: Effect
    size: int
    register: str = ""
    number: int = 0
    source: str = ""
    other: str = ""
    more: tuple[str, ...] = ()
    slot: Instruction | None = None
    skips_slot: bool = False
    then: Instruction | None = None


def in_order(parts: Sequence[Instruction], size: int) -> Instruction:
    """One instruction of that size which does several things, one after the other; nothing if there are none."""
    *first, last = parts or (Instruction(Effect.NOTHING, 0),)
    done = last._replace(size=size, then=None)
    for part in reversed(first):
        done = part._replace(size=0, then=done)
    return done
