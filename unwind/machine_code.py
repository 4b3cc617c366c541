"""What must be known of instructions to follow a function's code (``unwind/code_flow.py``): one table of facts an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameState:
    """What a function's instructions have done to its frame, up to one of them.

    pushed: bytes of the frame that it has made.
    is_saved: its return address is in memory. Else it is in the link register, or where that is used for something else
        (``is_link_used``), in the register ``copy``.
    next_stack: the number of a register that holds the end of a frame on another stack, linked to this one; -1 for none.
    is_on_other: the function runs there.
    """

    pushed: int = 0
    is_saved: bool = False
    is_link_used: bool = False
    copy: str = ""
    next_stack: int = -1
    is_on_other: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """Where execution goes on from an instruction.

    target: of a branch, None where there is none or a register says it. goes_on: with the next instruction, perhaps.
    is_computed: anywhere in the function, perhaps. is_trap: with the next instruction only if an exception lets it.
    """

    target: int | None
    goes_on: bool
    is_computed: bool = False
    is_trap: bool = False


@dataclass(frozen=True, slots=True)
class MachineCode:
    """How instructions of ``size`` bytes are understood, as far as frames are concerned.

    step: the state behind an instruction, from that before it. flow: (address, instruction) -> where it goes on.
    fits: whether an instruction makes sense in a state, which calls without a saved return address do not.
    is_veneer: whether code of ``veneer_size`` bytes begins in one of the veneers that modules call the kernel through, which leave
        stack and return address alone.
    """

    size: int
    step: Callable[[FrameState, bytes], FrameState]
    flow: Callable[[int, bytes], Flow]
    fits: Callable[[FrameState, bytes], bool]
    is_veneer: Callable[[bytes], bool]
    veneer_size: int
