"""s390x instructions as far as frames are concerned (z/Architecture Principles of Operation, SA22-7832, chapters 5 and 7).

GCC makes frames so, in the kernel with ``-mpacked-stack -mbackchain`` (arch/s390/Makefile)::

    stmg  %r11,%r15,112(%r15)     save registers in the caller's frame, %r14 at 136 (in programs: 88, 112)
    lgr   %r14,%r15
    lay   %r15,-160(%r15)
    stg   %r14,152(%r15)          the back chain (in programs there is none)
    …
    lmg   %r11,%r15,272(%r15)     registers and the stack pointer as they were
    br    %r14

What is not listed here may write its first operand, and is taken to do so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unwind.instructions import Effect, Instruction

GENERAL = tuple(f"r{number}" for number in range(16))
_SP, _LINK = 15, 14
_COMPARE_AND_BRANCH = frozenset({0x44, 0x45, 0x64, 0x65, 0x76, 0x77, 0x7C, 0x7D, 0x7E, 0x7F})
"""Last bytes of RIE instructions (``ec``) whose second halfword is where they branch to (``brxhg`` … ``clij``)."""
_WITHOUT_RESULT = {
    # Stores, comparisons, tests, moves in memory, floating point; by the first byte.
    2: frozenset({0x04, 0x0A, 0x0E, 0x0F, 0x15, 0x19, *range(0x20, 0x40)}),
    4: frozenset(
        {0x40, 0x42, 0x49, 0x50, 0x55, 0x59, 0x90, 0x91, 0x92, 0x94, 0x95, 0x96, 0x97, 0x9A, 0x9B, 0xAF, 0xB6, 0xB7, 0xBD, 0xBE}
        | {*range(0x60, 0x80)}
    ),
    6: frozenset({0xE5, 0xED, *range(0xD0, 0xE0)}),
}
_COMPARE_RRE = frozenset({0x02, 0x20, 0x21, 0x30, 0x31, 0xCD, 0xCF})
"""Second bytes of RRE comparisons (``b9``); ``ltgr`` of a register with itself among them."""
_NO_RESULT_RXY = frozenset(
    {*range(0x20, 0x22), 0x24, 0x26, 0x2F, 0x30, 0x31, 0x34, 0x36, 0x3E, 0x3F, 0x50, 0x55, 0x59, 0x70, 0x72, 0x79}
)
_NO_RESULT_RSY = frozenset({0x20, 0x21, 0x24, 0x25, 0x26, 0x2C, 0x2D, 0x2F, *range(0x51, 0x58), 0x90, 0x9B, 0xE1, 0xE3, 0xF3})
_TEST_RI = frozenset({0x0, 0x1, 0x2, 0x3, 0xE, 0xF})
_NO_RESULT_RIL = frozenset(
    {
        *((0xC2, operation) for operation in range(0xC, 0x10)),
        *((0xC4, operation) for operation in (0x7, 0xB, 0xF)),
        *((0xC6, operation) for operation in range(0x10)),
    }
)
"""Comparisons, stores, ``exrl``: first byte and lower half of the second."""
_SUMS: Mapping[tuple[int, int], Callable[[int], int]] = {
    (0xC2, 0x4): lambda number: -(number & 0xFFFF_FFFF),
    (0xC2, 0x8): lambda number: number,
    (0xC2, 0xA): lambda number: number & 0xFFFF_FFFF,
}
"""``slgfi``, ``agfi``, ``algfi``."""


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def decode(address: int, code: bytes) -> Instruction | None:
    """The instruction that some bytes begin with; None where they are too few."""
    size = (2, 4, 4, 6)[code[0] >> 6] if code else 2
    if len(code) < size:
        return None
    match size:
        case 2:
            return _decode_2(code)
        case 4:
            return _decode_4(address, code)
    return _decode_6(address, code)


def _nothing(size: int) -> Instruction:
    return Instruction(Effect.NOTHING, size)


def _write(size: int, register: int) -> Instruction:
    return Instruction(Effect.WRITE, size, GENERAL[register])


def _add(size: int, register: int, number: int, source: int) -> Instruction:
    return Instruction(Effect.ADD, size, GENERAL[register], number, GENERAL[source])


def _jump(size: int, condition: int, target: int) -> Instruction:
    """A jump on a condition: 15 is always, 0 never."""
    if not condition:
        return _nothing(size)
    return Instruction(Effect.JUMP if condition == 15 else Effect.BRANCH, size, number=target)


def _decode_2(code: bytes) -> Instruction:
    opcode, first, second = code[0], code[1] >> 4, code[1] & 15
    if opcode == 0x07:  # bcr
        if first != 15 or not second:
            return _nothing(2)
        return Instruction(Effect.RETURN, 2) if second == _LINK else Instruction(Effect.JUMP_REGISTER, 2, source=GENERAL[second])
    if opcode == 0x0D:  # basr
        return Instruction(Effect.CALL, 2) if first == _LINK else _write(2, first)
    if opcode in (0x0B, 0x00):  # bsm; no instruction
        return Instruction(Effect.END, 2)
    return _nothing(2) if opcode in _WITHOUT_RESULT[2] else _write(2, first)


def _decode_4(address: int, code: bytes) -> Instruction:
    opcode, first = code[0], code[1] >> 4
    immediate = _signed(int.from_bytes(code[2:4], "big"), 16)
    if opcode == 0xA7:
        return _decode_immediate(address, code[1], immediate)
    if opcode in (0x84, 0x85):  # brxh, brxle
        return Instruction(Effect.BRANCH, 4, number=address + 2 * immediate)
    if opcode == 0x47:  # bc
        return Instruction(Effect.END, 4) if first == 15 else _nothing(4)
    if opcode == 0x41:  # la
        return _decode_address(4, code, immediate & 0xFFF)
    if opcode == 0xB9:
        return _decode_registers(code)
    if opcode in (0xB2, 0xB3):  # control; floating point, of which some have a general register for their result
        return _nothing(4)
    return _nothing(4) if opcode in _WITHOUT_RESULT[4] else _write(4, first)


def _decode_immediate(address: int, second: int, immediate: int) -> Instruction:
    """RI instructions (``a7``), of whose second byte the lower half is part of the operation."""
    first, operation = second >> 4, second & 15
    match operation:
        case 0x4:  # brc
            return _jump(4, first, address + 2 * immediate)
        case 0x5:  # bras
            return Instruction(Effect.CALL, 4) if first == _LINK else Instruction(Effect.JUMP, 4, number=address + 2 * immediate)
        case 0x6 | 0x7:  # brct, brctg
            return Instruction(Effect.BRANCH, 4, number=address + 2 * immediate)
        case 0xB:  # aghi
            return _add(4, first, immediate, first)
    return _nothing(4) if operation in _TEST_RI else _write(4, first)


def _decode_registers(code: bytes) -> Instruction:
    """RRE and RRF instructions (``b9``)."""
    first, second = code[3] >> 4, code[3] & 15
    if code[1] == 0x04:  # lgr
        return _add(4, first, 0, second)
    return _nothing(4) if code[1] in _COMPARE_RRE else _write(4, first)


def _decode_address(size: int, code: bytes, displacement: int) -> Instruction:
    """``la`` and ``lay``: of a base and an index either may be missing."""
    first, index, base = code[1] >> 4, code[1] & 15, code[2] >> 4
    return _write(size, first) if bool(index) == bool(base) else _add(size, first, displacement, index or base)


def _decode_6(address: int, code: bytes) -> Instruction:
    opcode, last, first, second = code[0], code[5], code[1] >> 4, code[1] & 15
    immediate = _signed(int.from_bytes(code[2:6], "big"), 32)
    displacement = _signed(code[4] << 12 | (code[2] & 15) << 8 | code[3], 20)
    match opcode:
        case 0xC0 | 0xC2 | 0xC4 | 0xC6:
            return _decode_long_immediate(address, code, immediate)
        case 0xE3:
            return _decode_memory(code, displacement)
        case 0xEB:
            return _decode_multiple(code, displacement)
        case 0xEC if last in _COMPARE_AND_BRANCH:
            return Instruction(Effect.BRANCH, 6, number=address + 2 * (immediate >> 16))
        case 0xEC if last == 0xD9:  # aghik
            return _add(6, first, immediate >> 16, second)
    # Of vectors, only vlgv has its result in a general register.
    return _nothing(6) if opcode in _WITHOUT_RESULT[6] or (opcode == 0xE7 and last != 0x21) else _write(6, first)


def _decode_long_immediate(address: int, code: bytes, immediate: int) -> Instruction:
    """RIL instructions, of whose second byte the lower half is part of the operation."""
    operation, first = (code[0], code[1] & 15), code[1] >> 4
    if operation == (0xC0, 0x4):  # brcl
        return _jump(6, first, address + 2 * immediate)
    if operation == (0xC0, 0x5):  # brasl; with another register for its link, tracing and entry code call
        return Instruction(Effect.CALL, 6) if first == _LINK else _nothing(6)
    if operation in _SUMS:
        return _add(6, first, _SUMS[operation](immediate), first)
    return _nothing(6) if operation in _NO_RESULT_RIL else _write(6, first)


def _decode_memory(code: bytes, displacement: int) -> Instruction:
    """RXY instructions (``e3``) of one register and an address."""
    last, first, index, base = code[5], code[1] >> 4, code[1] & 15, code[2] >> 4
    if last == 0x71:  # lay
        return _decode_address(6, code, displacement)
    if last == 0x24 and (index, base) == (0, _SP):  # stg
        return Instruction(Effect.STORE, 6, GENERAL[first], displacement)
    if last == 0x04 and not index and base:  # lg
        return Instruction(Effect.LOAD, 6, GENERAL[first], displacement, "" if base == _SP else GENERAL[base])
    return _nothing(6) if last in _NO_RESULT_RXY else _write(6, first)


def _decode_multiple(code: bytes, displacement: int) -> Instruction:
    """RSY instructions (``eb``): ``lmg`` and ``stmg`` are of the registers from the first to the last, 0 following 15."""
    last, first, base = code[5], code[1] >> 4, code[2] >> 4
    if last not in (0x04, 0x24):
        return _nothing(6) if last in _NO_RESULT_RSY else _write(6, first)
    registers = tuple(GENERAL[(first + number) % 16] for number in range(((code[1] & 15) - first) % 16 + 1))
    if last == 0x24:
        return Instruction(Effect.STORE, 6, registers[0], displacement, more=registers[1:]) if base == _SP else _nothing(6)
    if not base:
        return _write(6, _SP if GENERAL[_SP] in registers else first)
    return Instruction(Effect.LOAD, 6, registers[0], displacement, "" if base == _SP else GENERAL[base], more=registers[1:])
