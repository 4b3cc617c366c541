"""How programs of one kind use the processor: facts of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unwind.instructions import Instruction
from unwind.rules import Row


@dataclass(frozen=True, slots=True)
class UserAbi:
    """How programs of one kind use the processor, as far as their stacks are concerned. Register names are gdb's.

    registers: by DWARF number.
    frame_record: how far from the frame pointer to a frame's two words (caller's frame pointer, return address).
    caller_slot: where in the caller's frame the return address is instead, None where it is behind the caller's frame pointer.
    has_frames_above: whether a frame's two words end it, so that the caller's stack begins there.
    address_bits: of a return address; those above may hold its signature.
    callee_saved: those that a function leaves as they were unless its unwind row says otherwise.
    return_column: DWARF number of the return address; where that is a register, it is there until a row says otherwise.
    red_zone: bytes below the stack pointer that a function may use.
    system_call_size: bytes of the instruction that makes a system call.
    entry_size: of a program's ``_start`` in front of the call that never returns, and that call; a little more.
    signal_frame: where, counted from the stack pointer that a signal handler returns with, the kernel saved what it interrupted;
        empty where that is not known.
    signal_code: (bytes of the code that it returns to, the same for that), where that has no unwind data.
    init_code: bytes with which ``.init`` and ``.fini`` move the stack pointer down at their start, up at their end, how far;
        None where that is not told by their code.
    go_clock_sp: where Go's runtime keeps the stack pointer while it asks the vDSO for the time on another stack.
    decode: the instruction at (address, bytes from there on), None where it is none; for programs that may have neither unwind
        tables nor frame pointers, else None.
    is_process: whether registers of user mode belong to such a program.
    mode_flag: the register and its bit that tell the instruction set which has odd addresses in calls; None where there is one.
    index_segment: type of an EHABI index program header. kernel_code: the kernel's for programs: name, start, end, functions.
    known_row: of code at (address, bytes) that signal handlers, threads return to. follows_call: bytes before one are a call.
    return_offset: from the address that a call leaves to where it returns.
    stack_bias: what a stack pointer lacks to the address that it means (and unwind tables speak of).
    windowed: registers that are others in a function with a register window of its own; () where there are no windows. Those of its
        callers are in the processor until it needs the room: where they lie in memory there may be older ones.
    """

    name: str
    pointer_size: int
    pc: str
    sp: str
    fp: str
    registers: tuple[str, ...]
    frame_record: int
    caller_slot: int | None
    has_frames_above: bool
    address_bits: int
    callee_saved: tuple[str, ...]
    return_column: int
    red_zone: int
    system_call_size: int
    entry_size: int
    signal_frame: Mapping[str, int]
    signal_code: tuple[tuple[bytes, Mapping[str, int]], ...]
    go_clock_sp: str
    init_code: tuple[bytes, bytes, int] | None
    decode: Callable[[int, bytes], Instruction | None] | None
    is_process: Callable[[Mapping[str, int]], bool]
    mode_flag: tuple[str, int] | None
    index_segment: int
    known_row: Callable[[int, bytes], Row | None] | None
    follows_call: Callable[[int, bytes], bool] | None
    kernel_code: tuple[str, int, int, Mapping[str, int]] | None
    return_offset: int
    stack_bias: int
    windowed: tuple[str, ...]
