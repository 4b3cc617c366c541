"""A32 instructions, as far as leaving a function is concerned (Arm ARM for ARMv7-A, A5), and what programs' code tells besides.

Addresses of Thumb code (``armhf_thumb.py``) are odd, as in return addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unwind.arch.armhf_thumb import (
    REGISTERS,
    Parts,
    add,
    add_register,
    constant,
    coprocessor,
    decode_thumb,
    jump_register,
    load,
    signed,
    store,
    write,
)
from unwind.instructions import Effect, Instruction, in_order
from unwind.rules import Row, RowKind, Saved

_SP, _LR, _PC = 13, 14, 15
_ALWAYS, _UNCONDITIONAL = 14, 15
_MASK = 0xFFFF_FFFF
_LONGEST_RUN = 4
_SIGNAL_CODE = {
    bytes.fromhex("7770a0e3000000ef"): 32,
    bytes.fromhex("ad70a0e3000000ef"): 160,
    bytes.fromhex("772700df"): 32,
    bytes.fromhex("ad2700df"): 160,
    bytes.fromhex("4ff0770700df"): 32,
    bytes.fromhex("4ff0ad0700df"): 160,
}
"""The system calls with which signal handlers end, ``sigreturn`` and ``rt_sigreturn``: handlers return to the kernel's page of such
code (kernel/sigreturn_codes.S) or to a C library's. By these, where the saved registers are (asm/ucontext.h, asm/signal.h)."""


_EXITS = frozenset(bytes.fromhex(code) for code in ("0170a0e3000000ef", "012700df", "4ff0010700df"))
"""The system call ``exit``, to which the function of a thread returns (glibc's sysdeps/unix/sysv/linux/arm/clone.S)."""


def known_row(address: int, code: bytes) -> Row | None:
    """The row of the code that a signal handler, or a thread's function, returns to; None for other code."""
    sizes = (4, 6) if address & 1 else (8,)
    if any(code[:size] in _EXITS for size in sizes):
        return Row(RowKind.END)
    offset = next((found for size in sizes if (found := _SIGNAL_CODE.get(code[:size])) is not None), None)
    if offset is None:
        return None
    saved = tuple(Saved(name, "sp", offset + 4 * number) for number, name in enumerate((*REGISTERS, "cpsr")) if name != "pc")
    return Row(RowKind.CALL, "sp", offset, saved=saved, return_address=Saved("pc", "sp", offset + 4 * _PC), is_signal=True)


def follows_call(address: int, before: bytes) -> bool:
    """``bl``, ``blx``; or an address that code has put into the link register itself, for an instruction that writes the pc."""
    word = int.from_bytes(before[-4:], "little")
    if len(before) < 4:
        return False
    if address & 1:
        return word & 0xD000_F800 in (0xC000_F000, 0xD000_F000) or word >> 16 & 0xFF87 == 0x4780
    if word >> 28 == _UNCONDITIONAL:
        return word >> 25 & 7 == 5
    is_call = word >> 24 & 15 == 0b1011 or word & 0x0FFF_FFF0 == 0x012F_FF30
    previous = int.from_bytes(before[-8:-4], "little")
    return is_call or previous & 0x0FFF_FFFF == 0x01A0_E00F  # mov lr, pc


def decode(address: int, code: bytes) -> Instruction | None:
    """The instruction at an address; None where there are too few bytes, or it is none that is known."""
    if address & 1:
        return decode_thumb(address, code)
    words = [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code) - 3, 4)]
    if not words:
        return None
    condition = words[0] >> 28
    if condition >= _ALWAYS:
        parts = _unconditional(words[0]) if condition > _ALWAYS else _parts(address, words[0])
        return None if parts is None else in_order(parts, 4)
    return _decode_run(address, words[:_LONGEST_RUN], condition)


def _decode_run(address: int, words: Sequence[int], condition: int) -> Instruction | None:
    """Instructions of one condition: what they do, and a way around them."""
    done: list[Instruction] = []
    size = 0
    for word in words:
        if word >> 28 != condition:
            break
        parts = _parts(address + size, word)
        if parts is None:
            break
        done += parts
        size += 4
        if _sets_flags(word) or any(part.effect not in _PLAIN for part in parts):
            break
    return in_order([Instruction(Effect.BRANCH, 0, number=address + size), *done], size) if size else None


_PLAIN = frozenset({Effect.WRITE, Effect.SET, Effect.ADD, Effect.ADD_REGISTER, Effect.STORE, Effect.LOAD, Effect.NOTHING})


def _sets_flags(word: int) -> bool:
    return word >> 26 & 3 == 0 and bool(word >> 20 & 1)


def _unconditional(word: int) -> Parts:
    """A5.7"""
    if word >> 25 & 7 == 5:
        return [Instruction(Effect.CALL, 0)]
    if word >> 24 & 15 == 4 and not word >> 20 & 1:  # of vectors and memory
        return write(word >> 16 & 15) if word & 15 != _PC else []
    return []


def _parts(address: int, word: int) -> Parts | None:
    kind = word >> 25 & 7
    if word & 0x0FFF_F010 == 0x008F_F000:  # add pc, pc, ...: to the first of several cases, or further on
        return [Instruction(Effect.JUMP, 0, number=address + 8 & _MASK)]
    if kind == 5:
        if word >> 24 & 1:
            return [Instruction(Effect.CALL, 0)]
        return [Instruction(Effect.JUMP, 0, number=address + 8 + 4 * signed(word & 0xFF_FFFF, 24) & _MASK)]
    return _KINDS[kind](word)


def _registers(word: int) -> Parts | None:
    """Data processing of registers, and what shares its space (A5.2)."""
    if word >> 4 & 1 and word >> 7 & 1:
        return _extra(word) if word >> 5 & 3 else _multiplication(word)
    operation, target, first, second = word >> 21 & 15, word >> 12 & 15, word >> 16 & 15, word & 15
    if operation >> 2 == 2 and not word >> 20 & 1:
        return _miscellaneous(word)
    if operation >> 2 == 2:
        return []  # comparisons
    is_plain = not word & 0xFF0
    if operation == 13 and is_plain:
        return jump_register(second) if target == _PC and second == _LR else add(target, 0, second)
    if operation == 4 and is_plain:
        return add_register(target, first, second)
    return [Instruction(Effect.END, 0)] if target == _PC else write(target)


def _miscellaneous(word: int) -> Parts:
    """A5.2.12"""
    kind = word >> 4 & 15
    if word & 0x0FF0_00F0 == 0x0120_0010:
        return jump_register(word & 15)
    if word & 0x0FF0_00F0 == 0x0120_0030:
        return [Instruction(Effect.CALL, 0)]
    if kind == 0:
        return [] if word >> 21 & 1 else write(word >> 12 & 15)  # msr, mrs
    if kind == 7:
        return [Instruction(Effect.END, 0)]
    if kind >> 3 and word >> 21 & 3 != 3:  # of halfwords; the long one writes two
        return write(word >> 16 & 15, *([word >> 12 & 15] if word >> 21 & 3 == 2 else []))
    return write(word >> 16 & 15) if kind >> 3 else write(word >> 12 & 15)  # smul; clz, qadd


def _multiplication(word: int) -> Parts:
    """A5.2.5, A5.2.10"""
    if word >> 24 & 1:  # swp, ldrex, strex
        target = word >> 12 & 15
        return write(target, target + 1) if word >> 20 & 7 == 3 and target < _LR else write(target)
    return write(word >> 16 & 15, *([word >> 12 & 15] if word >> 23 & 1 else []))


def _extra(word: int) -> Parts | None:
    """Halfwords, signed bytes and pairs of registers (A5.2.8)."""
    register, base, kind = word >> 12 & 15, word >> 16 & 15, word >> 5 & 3
    is_load = bool(word >> 20 & 1)
    is_pair = not is_load and kind >= 2
    if is_pair and register >= _LR:
        return None
    offset = (word >> 4 & 0xF0 | word & 0xF) if word >> 22 & 1 else None
    return _transfer(word, base, [register, register + 1] if is_pair else [register], offset, (is_load, is_pair))


def _single(word: int) -> Parts:
    """A5.3"""
    register, base, is_byte = word >> 12 & 15, word >> 16 & 15, word >> 22 & 1
    offset = None if word >> 25 & 1 else word & 0xFFF
    return _transfer(word, base, [register], offset, (bool(word >> 20 & 1), not is_byte))


def _transfer(word: int, base: int, registers: Sequence[int], offset: int | None, what: tuple[bool, bool]) -> Parts:
    """what: whether it loads, whether words."""
    is_load, is_word = what
    if not is_load and len(registers) == 2:
        is_load = not word >> 5 & 1  # ldrd
    is_before, writes = word >> 24 & 1, word >> 21 & 1 or not word >> 24 & 1
    if offset is None or not is_word or base == _PC:
        if is_load and _PC in registers:
            return [Instruction(Effect.END, 0)]
        parts = write(*registers) if is_load else []
        if writes:
            parts += write(base) if offset is None else add(base, offset if word >> 23 & 1 else -offset, base)
        return parts
    number = offset if word >> 23 & 1 else -offset
    return (load if is_load else store)(base, number if is_before else 0, registers, number if writes else 0)


def _immediates(word: int) -> Parts:
    """A5.2.3, A5.2.11"""
    operation, target, source = word >> 21 & 15, word >> 12 & 15, word >> 16 & 15
    turn = word >> 7 & 0x1E
    number = ((word & 0xFF) >> turn | (word & 0xFF) << 32 - turn) & _MASK
    if operation >> 2 == 2:
        if word >> 20 & 1 or word >> 21 & 1:
            return []  # comparisons, msr, hints
        plain = word >> 4 & 0xF000 | word & 0xFFF
        return add(target, plain << 16, target) if word >> 22 & 1 else constant(target, plain)
    if operation in (2, 4):
        return add(target, number if operation == 4 else -number, source)
    if operation in (13, 15):
        return constant(target, number if operation == 13 else ~number & _MASK)
    return [Instruction(Effect.END, 0)] if target == _PC else write(target)


def _media(word: int) -> Parts:
    """A5.4"""
    if word & 0x0FF0_00F0 == 0x07F0_00F0:
        return [Instruction(Effect.END, 0)]
    kind = word >> 20 & 31
    if kind >> 3 == 2:  # multiplications, divisions
        return write(word >> 16 & 15, *([word >> 12 & 15] if kind & 7 == 4 else []))
    return write(word >> 16 & 15) if kind == 0b11000 else write(word >> 12 & 15)


def _multiple(word: int) -> Parts | None:
    """A5.5"""
    numbers = [number for number in range(16) if word >> number & 1]
    size, base = 4 * len(numbers), word >> 16 & 15
    if word >> 22 & 1 or not numbers:
        return None  # no code of programs
    is_before, is_up = word >> 24 & 1, word >> 23 & 1
    low = (4 if is_before else 0) if is_up else (0 if is_before else 4) - size
    change = size if is_up else -size
    return (load if word >> 20 & 1 else store)(base, low, numbers, change if word >> 21 & 1 else 0)


_KINDS: tuple[Callable[[int], Parts | None], ...] = (
    _registers,
    _immediates,
    _single,
    lambda word: _media(word) if word >> 4 & 1 else _single(word),
    _multiple,
    lambda _word: None,
    coprocessor,
    lambda word: [] if word >> 24 & 1 else coprocessor(word),
)
"""By bits 25 to 27 (A5.1)."""
