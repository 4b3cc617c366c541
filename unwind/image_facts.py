"""What must be known of an architecture to profile code that no Linux kernel tells of: ELF files of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unwind.rules import ReadWord, Row

_FLAGS_FIXED, _FLAGS_LIMIT = 1 << 1, 1 << 22
"""Of eflags: the bit that is always set, and those that exist (Intel SDM volume 1, 3.4.3)."""
_MAX_SELECTOR = 1 << 16
_USER = 3


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """See ``unwind/images.py``.

    machines: what ELF files call the architecture (e_machine).
    has_both_orders: whether the processor runs code of either byte order, and so files may have the other one.
    roots: physical addresses of the top-level page tables that are in use, by the registers; None where none tells.
    is_waiting: whether a vCPU waits for an interrupt, by its registers and the code in front of its pc (4 bytes).
    pushed_exception: what an interrupt or exception has interrupted that the processor has pushed to an address: (that, bytes of a
        word, the vCPU's registers, words of memory) -> pc and stack pointer there, None where it has not. None for processors that
        push nothing.
    leaving: the row of a function that was interrupted amid its way back, where no compiler's table follows it: (the table's row,
        registers, the instruction in front of the pc, code from it on) -> row. None where tables tell all.
    """

    machines: tuple[int, ...]
    has_both_orders: bool
    roots: Callable[[Mapping[str, int]], tuple[int, ...]] | None
    is_waiting: Callable[[Mapping[str, int], bytes], bool]
    pushed_exception: Callable[[int, int, Mapping[str, int], ReadWord], Mapping[str, int] | None] | None
    leaving: Callable[[Row, Mapping[str, int], bytes, bytes], Row] | None


def waits_behind(*instructions: bytes) -> Callable[[Mapping[str, int], bytes], bool]:
    """For processors that stand behind the instruction that waits."""
    return lambda _registers, before: before.endswith(instructions)


def x86_exceptions(pc: str, sp: str) -> Callable[[int, int, Mapping[str, int], ReadWord], Mapping[str, int] | None]:
    """Frames of x86: pc, code segment, flags, and the stack pointer and its segment: in 64-bit mode always, with the frame's end
    aligned to 16 bytes; else where the privilege changes (Intel SDM volume 3, 6.12.1 and 6.14.2).
    """

    def find(address: int, word: int, registers: Mapping[str, int], read_word: ReadWord) -> Mapping[str, int] | None:
        words = [read_word(address + word * index) for index in range(3)]
        pushed_pc, selector, flags = (-1 if each is None else each for each in words)
        if not 0 < selector < _MAX_SELECTOR or not flags & _FLAGS_FIXED or not 0 <= flags < _FLAGS_LIMIT:
            return None
        ring, here = selector & _USER, registers["cs"] & _USER
        if ring < here or (ring == here and selector != registers["cs"] & _MAX_SELECTOR - 1):
            return None
        if word == 4 and ring == here:
            return {pc: pushed_pc, sp: address + 3 * word}
        stack, segment = read_word(address + 3 * word), read_word(address + 4 * word)
        if stack is None or segment is None or segment >= _MAX_SELECTOR or segment & _USER != (ring if segment else 0):
            return None
        return None if word == 8 and (address + 5 * word) % 16 else {pc: pushed_pc, sp: stack}

    return find
