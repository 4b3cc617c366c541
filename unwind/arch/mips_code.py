"""MIPS' instructions, as far as leaving a function is concerned (volume II of "MIPS Architecture For Programmers", release 2)."""

from __future__ import annotations

from collections.abc import Callable

from unwind.instructions import Effect, Instruction

_T8, _T9, _GP, _SP, _RA = 24, 25, 28, 29, 31
_SIZE = 4
_MASK = (1 << 64) - 1
_SPECIAL, _REGIMM, _J, _JAL, _LUI, _ORI = 0x00, 0x01, 0x02, 0x03, 0x0F, 0x0D
_COP1, _SPECIAL2, _SPECIAL3 = 0x11, 0x1C, 0x1F
_ADD_IMMEDIATE = (0x09, 0x19)
"""addiu, daddiu"""
_BEQ, _BEQL = 0x04, 0x14
_BRANCHES = (0x04, 0x05, 0x06, 0x07, 0x14, 0x15, 0x16, 0x17)
"""beq, bne, blez, bgtz; the same, likely."""
_RESULT_IN_RT = frozenset((*range(0x08, 0x10), 0x18, 0x19, 0x1A, 0x1B, *range(0x20, 0x28), 0x30, 0x34, 0x37, 0x38, 0x3C))
"""Arithmetic with constants, loads, conditional stores."""
_JR, _JALR, _SYSCALL, _BREAK, _SYNC = 0x08, 0x09, 0x0C, 0x0D, 0x0F
_ADD = (0x20, 0x21, 0x2C, 0x2D)
_SUBTRACT = (0x22, 0x23, 0x2E, 0x2F)
_OR = 0x25
_TRAPS = range(0x30, 0x38)
_FROM_FLOAT = (0, 1, 2, 3)
_BRANCH_ON_FLOAT = 8
_BITS_TO_RT, _BITS_TO_RD = (0, 1, 2, 3, 4, 5, 6, 7, 0x3B), (0x20, 0x24)
"""ext, ins and their likes, rdhwr; bshfl, dbshfl."""


def decoder(names: tuple[str, ...], word: int) -> Callable[[int, bytes], Instruction | None]:
    """The decoder of an ABI, by its names of the general registers and the size of one.

    An instruction with a delay slot has that within, so that 8 bytes are needed of it.
    """
    load, store = (0x23, 0x2B) if word == 4 else (0x37, 0x3F)  # lw, sw; ld, sd

    def decode(address: int, code: bytes) -> Instruction | None:
        if address % _SIZE or len(code) < _SIZE:
            return None
        number = int.from_bytes(code[:_SIZE], "little")
        jump = _decode_jump(address, number, names)
        if jump is None:
            return _decode_plain(number, names, load, store)
        if jump.effect is Effect.END or len(code) < 2 * _SIZE:
            return jump if jump.effect is Effect.END else None
        slot = _decode_plain(int.from_bytes(code[_SIZE : 2 * _SIZE], "little"), names, load, store)
        if jump.effect is Effect.CALL and jump.source == names[_T9] and slot.register == names[_T8]:
            # The end of a stub that has the linker find the function: it keeps ra in another register, and tells in t8 which.
            return jump._replace(effect=Effect.STUB, slot=slot)
        return jump._replace(slot=slot)

    return decode


def _decode_plain(number: int, names: tuple[str, ...], load: int, store: int) -> Instruction:
    """An instruction without a jump. load, store: the opcodes for whole registers."""
    operation, rs, rt = number >> 26, number >> 21 & 31, number >> 16 & 31
    if operation == store and rs == _SP:
        return Instruction(Effect.STORE, _SIZE, names[rt], _signed(number & 0xFFFF, 16))
    if operation == _SPECIAL:
        return _decode_special(number, names)
    if operation == _SPECIAL2 or (operation == _SPECIAL3 and number & 63 in _BITS_TO_RD):
        return _write(names, number >> 11 & 31)
    if not rt:
        return _NOTHING
    if operation == load and rs == _SP:
        return Instruction(Effect.LOAD, _SIZE, names[rt], _signed(number & 0xFFFF, 16))
    return _decode_immediate(operation, number, names[rt], names[rs] if rs else "")


def _decode_immediate(operation: int, number: int, target: str, source: str) -> Instruction:
    """An instruction of the format with a constant, whose ``target`` is not $zero; source: "" for that."""
    immediate = _signed(number & 0xFFFF, 16)
    if operation in _ADD_IMMEDIATE or operation == _ORI:
        # ``ori`` completes what ``lui`` began.
        value = number & 0xFFFF if operation == _ORI else immediate
        return Instruction(Effect.ADD, _SIZE, target, value, source) if source else _constant(target, value)
    if operation == _LUI:
        return _constant(target, immediate << 16)
    is_result = (
        operation in _RESULT_IN_RT
        or (operation == _COP1 and number >> 21 & 31 in _FROM_FLOAT)
        or (operation == _SPECIAL3 and number & 63 in _BITS_TO_RT)
    )
    return Instruction(Effect.WRITE, _SIZE, target) if is_result else _NOTHING


def _decode_jump(address: int, number: int, names: tuple[str, ...]) -> Instruction | None:
    """An instruction that does not simply go on, without its delay slot; None for others."""
    operation, rs, rt = number >> 26, number >> 21 & 31, number >> 16 & 31
    branch = address + _SIZE + (_signed(number & 0xFFFF, 16) << 2) & _MASK
    if operation == _SPECIAL:
        return _decode_register_jump(rs, number >> 11 & 31, number & 63, names)
    if operation == _REGIMM and rt & 0x0C == 0:
        if rt & 0x10:  # bltzal, bgezal
            return Instruction(Effect.CALL, 2 * _SIZE, names[_RA])
        return Instruction(Effect.BRANCH, 2 * _SIZE, number=branch, skips_slot=bool(rt & 2))
    if operation == _J:
        return Instruction(Effect.JUMP, 2 * _SIZE, number=address + _SIZE & ~0x0FFF_FFFF & _MASK | (number & 0x03FF_FFFF) << 2)
    if operation == _JAL:
        return Instruction(Effect.CALL, 2 * _SIZE, names[_RA])
    if operation in (_BEQ, _BEQL) and rs == rt:
        return Instruction(Effect.JUMP, 2 * _SIZE, number=branch)
    if operation in _BRANCHES or (operation == _COP1 and rs == _BRANCH_ON_FLOAT):
        skips_slot = bool(rt & 2) if operation == _COP1 else operation >= _BEQL
        return Instruction(Effect.BRANCH, 2 * _SIZE, number=branch, skips_slot=skips_slot)
    return None


def _decode_register_jump(rs: int, rd: int, function: int, names: tuple[str, ...]) -> Instruction | None:
    if function == _BREAK:
        return Instruction(Effect.END, _SIZE)
    if function == _JR or (function == _JALR and not rd):
        # Functions are called by t9, from which they take their own address; else it is a switch.
        effect = {_RA: Effect.RETURN, _T9: Effect.STUB}.get(rs, Effect.TABLE)
        return Instruction(effect, 2 * _SIZE, source=names[rs])
    return Instruction(Effect.CALL, 2 * _SIZE, names[rd], source=names[rs]) if function == _JALR else None


def _decode_special(number: int, names: tuple[str, ...]) -> Instruction:
    rs, rt, rd, function = number >> 21 & 31, number >> 16 & 31, number >> 11 & 31, number & 63
    if not rd or function in _TRAPS or function in (_SYSCALL, _SYNC):
        return _NOTHING
    if function in _ADD or (function == _OR and not (rs and rt)):
        if not rs and not rt:
            return _constant(names[rd], 0)
        if not (rs and rt):
            return Instruction(Effect.ADD, _SIZE, names[rd], 0, names[rs or rt])
        if rd == _GP and _T9 in (rs, rt):
            # A function finds its global pointer by its own address, which t9 has.
            return Instruction(Effect.ENTRY, _SIZE, names[rd])
        return Instruction(Effect.ADD_REGISTER, _SIZE, names[rd], 0, names[rs], names[rt])
    if function in _SUBTRACT:
        return Instruction(Effect.SUBTRACT_REGISTER, _SIZE, names[rd], 0, names[rs], names[rt])
    return _write(names, rd)


def _write(names: tuple[str, ...], register: int) -> Instruction:
    return Instruction(Effect.WRITE, _SIZE, names[register]) if register else _NOTHING


def _constant(register: str, number: int) -> Instruction:
    return Instruction(Effect.SET, _SIZE, register, number & _MASK)


def _signed(value: int, bits: int) -> int:
    return value - (value >> bits - 1 << bits)


_NOTHING = Instruction(Effect.NOTHING, _SIZE)
