"""RISC-V's instructions, as far as leaving a function is concerned (Unprivileged Architecture, chapters 2, 4, 27, 34)."""

from __future__ import annotations

from unwind.instructions import Effect, Instruction

REGISTERS = (
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1"),
    *(f"a{number}" for number in range(8)),
    *(f"s{number}" for number in range(2, 12)),
    *(f"t{number}" for number in range(3, 7)),
)
"""x0 to x31 by gdb's names."""
_RA, _SP, _T1 = 1, 2, 6
_AUIPC, _ECALL = 0x17, 0x73
_MASK = (1 << 64) - 1
_INTEGER_RESULTS = (0x50, 0x51, 0x60, 0x61, 0x70, 0x71)
"""funct7 of floating-point instructions whose result is an integer: comparisons, conversions, moves."""


def signed(value: int, bits: int) -> int:
    """The number that a field of so many bits stands for."""
    return value - (value >> bits - 1 << bits)


def _bits(word: int, *pieces: tuple[int, int, int]) -> int:
    """A number that an instruction holds in pieces: (lowest bit in the instruction, how many, lowest bit in the number)."""
    return sum((word >> low & (1 << count) - 1) << place for low, count, place in pieces)


def jump_offset(word: int) -> int:
    """Of ``jal``."""
    return signed(_bits(word, (21, 10, 1), (20, 1, 11), (12, 8, 12), (31, 1, 20)), 21)


def decode(address: int, code: bytes) -> Instruction | None:
    """The instruction at an address; None where there are too few bytes, or it is none that is known."""
    if len(code) < 2:
        return None
    if code[0] & 3 != 3:
        return _decode_short(address, int.from_bytes(code[:2], "little"))
    return _decode_long(address, int.from_bytes(code[:4], "little")) if len(code) >= 4 else None


def _write(size: int, number: int) -> Instruction:
    return Instruction(Effect.WRITE, size, REGISTERS[number]) if number else Instruction(Effect.NOTHING, size)


def _decode_short(address: int, word: int) -> Instruction | None:
    match word & 3:
        case 0:
            return _decode_quadrant_0(word)
        case 1:
            return _decode_quadrant_1(address, word)
    return _decode_quadrant_2(word)


def _decode_quadrant_0(word: int) -> Instruction | None:
    kind, register = word >> 13, 8 + (word >> 2 & 7)
    if kind == 0:  # c.addi4spn
        number = _bits(word, (11, 2, 4), (7, 4, 6), (6, 1, 2), (5, 1, 3))
        if number:
            return Instruction(Effect.ADD, 2, REGISTERS[register], number, "sp")
        return None if word else Instruction(Effect.END, 2)  # all zeros are illegal on purpose
    if kind in (2, 3) or (kind == 4 and word >> 10 & 7 in (0, 1)):  # c.lw, c.ld, c.lbu, c.lhu
        return _write(2, register)
    return Instruction(Effect.NOTHING, 2)


def _decode_quadrant_1(address: int, word: int) -> Instruction | None:
    kind, register = word >> 13, word >> 7 & 31
    name, number = REGISTERS[register], signed(_bits(word, (2, 5, 0), (12, 1, 5)), 6)
    match kind:
        case 0:  # c.addi, c.nop
            return Instruction(Effect.ADD, 2, name, number, name) if register else Instruction(Effect.NOTHING, 2)
        case 2:  # c.li
            return Instruction(Effect.SET, 2, name, number & _MASK)
        case 3 if register == _SP:  # c.addi16sp
            number = signed(_bits(word, (6, 1, 4), (2, 1, 5), (5, 1, 6), (3, 2, 7), (12, 1, 9)), 10)
            return Instruction(Effect.ADD, 2, "sp", number, "sp")
        case 3:  # c.lui
            return Instruction(Effect.SET, 2, name, number << 12 & _MASK)
        case 4:
            return _write(2, 8 + (word >> 7 & 7))
        case 5:  # c.j
            pieces = (3, 3, 1), (11, 1, 4), (2, 1, 5), (7, 1, 6), (6, 1, 7), (9, 2, 8), (8, 1, 10), (12, 1, 11)
            return Instruction(Effect.JUMP, 2, number=address + signed(_bits(word, *pieces), 12) & _MASK)
        case 6 | 7:  # c.beqz, c.bnez
            offset = signed(_bits(word, (3, 2, 1), (10, 2, 3), (2, 1, 5), (5, 2, 6), (12, 1, 8)), 9)
            return Instruction(Effect.BRANCH, 2, number=address + offset & _MASK)
    return Instruction(Effect.ADD, 2, name, number, name) if register else None  # c.addiw


def _decode_quadrant_2(word: int) -> Instruction | None:
    kind, register, second = word >> 13, word >> 7 & 31, word >> 2 & 31
    name = REGISTERS[register]
    match kind:
        case 3:  # c.ldsp
            return Instruction(Effect.LOAD, 2, name, _bits(word, (5, 2, 3), (12, 1, 5), (2, 3, 6))) if register else None
        case 7:  # c.sdsp
            return Instruction(Effect.STORE, 2, REGISTERS[second], _bits(word, (10, 3, 3), (7, 3, 6)))
        case 4 if second:
            is_add = word >> 12 & 1
            effect = Effect.ADD_REGISTER if is_add else Effect.ADD
            return Instruction(effect, 2, name, 0, *((name, REGISTERS[second]) if is_add else (REGISTERS[second],)))
        case 4 if word >> 12 & 1:  # c.jalr, c.ebreak
            return Instruction(Effect.CALL if register else Effect.END, 2)
        case 4:  # c.jr
            effect = Effect.RETURN if register == _RA else Effect.JUMP_REGISTER
            return Instruction(effect, 2, source=name) if register else None
        case 0 | 2:  # c.slli, c.lwsp
            return _write(2, register)
    return Instruction(Effect.NOTHING, 2)


def _decode_long(address: int, word: int) -> Instruction | None:
    handler = _HANDLERS.get(word & 0x7F)
    return None if handler is None else handler(address, word)


def _fields(word: int) -> tuple[int, int, int]:
    """rd, funct3, rs1."""
    return word >> 7 & 31, word >> 12 & 7, word >> 15 & 31


def _nothing(_address: int, _word: int) -> Instruction:
    return Instruction(Effect.NOTHING, 4)


def _result(_address: int, word: int) -> Instruction:
    return _write(4, _fields(word)[0])


def _load(_address: int, word: int) -> Instruction:
    register, kind, first = _fields(word)
    if kind == 3 and first == _SP and register:  # ld
        return Instruction(Effect.LOAD, 4, REGISTERS[register], signed(word >> 20, 12))
    return _write(4, register)


def _store(_address: int, word: int) -> Instruction:
    _register, kind, first = _fields(word)
    if kind == 3 and first == _SP:  # sd
        return Instruction(Effect.STORE, 4, REGISTERS[word >> 20 & 31], signed(_bits(word, (7, 5, 0), (25, 7, 5)), 12))
    return Instruction(Effect.NOTHING, 4)


def _immediate(_address: int, word: int) -> Instruction:
    register, kind, first = _fields(word)
    number = signed(word >> 20, 12)
    if kind or not register:
        return _write(4, register)
    if not first:  # li
        return Instruction(Effect.SET, 4, REGISTERS[register], number & _MASK)
    return Instruction(Effect.ADD, 4, REGISTERS[register], number, REGISTERS[first])  # addi, addiw


def _upper(address: int, word: int) -> Instruction:
    register = _fields(word)[0]
    base = address if word & 0x7F == _AUIPC else 0
    number = base + signed(word & 0xFFFF_F000, 32) & _MASK
    return Instruction(Effect.SET, 4, REGISTERS[register], number) if register else Instruction(Effect.NOTHING, 4)


def _register(_address: int, word: int) -> Instruction:
    register, kind, first = _fields(word)
    if kind or word >> 25 or not register:
        return _write(4, register)
    return Instruction(Effect.ADD_REGISTER, 4, REGISTERS[register], 0, REGISTERS[first], REGISTERS[word >> 20 & 31])


def _float(_address: int, word: int) -> Instruction:
    return _write(4, _fields(word)[0]) if word >> 25 in _INTEGER_RESULTS else Instruction(Effect.NOTHING, 4)


def _vector(_address: int, word: int) -> Instruction:
    register, kind, _first = _fields(word)
    return _write(4, register) if kind == 7 else Instruction(Effect.NOTHING, 4)  # vsetvli


def _system(_address: int, word: int) -> Instruction:
    register, kind, _first = _fields(word)
    if kind:
        return _write(4, register)
    return Instruction(Effect.NOTHING if word == _ECALL else Effect.END, 4)


def _branch(address: int, word: int) -> Instruction:
    offset = signed(_bits(word, (8, 4, 1), (25, 6, 5), (7, 1, 11), (31, 1, 12)), 13)
    return Instruction(Effect.BRANCH, 4, number=address + offset & _MASK)


def _jump(address: int, word: int) -> Instruction:
    register = _fields(word)[0]
    if not register:
        return Instruction(Effect.JUMP, 4, number=address + jump_offset(word) & _MASK)
    return Instruction(Effect.CALL if register == _RA else Effect.END, 4)


def _jump_register(_address: int, word: int) -> Instruction:
    register, _kind, first = _fields(word)
    number = signed(word >> 20, 12)
    if register == _RA:
        return Instruction(Effect.CALL, 4)
    if register == _T1:  # the end of a .plt stub (RISC-V ELF psABI, 8.4.6)
        return Instruction(Effect.STUB, 4)
    if register:
        return Instruction(Effect.END, 4)
    if first == _RA and not number:
        return Instruction(Effect.RETURN, 4)
    return Instruction(Effect.JUMP_REGISTER, 4, number=number, source=REGISTERS[first])


_HANDLERS = {
    0x03: _load,
    0x13: _immediate,
    0x17: _upper,
    0x1B: _immediate,
    0x23: _store,
    0x2F: _result,
    0x33: _register,
    0x37: _upper,
    0x3B: _result,
    0x53: _float,
    0x57: _vector,
    0x63: _branch,
    0x67: _jump_register,
    0x6F: _jump,
    0x73: _system,
    # Loads and stores of other registers, their arithmetic, fences.
    **dict.fromkeys((0x07, 0x0F, 0x27, 0x43, 0x47, 0x4B, 0x4F), _nothing),
}
"""By opcode (Unprivileged Architecture, 34)."""
