"""Thumb's instructions (T32), as far as leaving a function is concerned (Arm ARM for ARMv7-A, A6).

Addresses of Thumb code are odd here, as in return addresses and function pointers.
"""

from __future__ import annotations

from collections.abc import Sequence

from unwind.instructions import Effect, Instruction, in_order

REGISTERS = (*(f"r{number}" for number in range(13)), "sp", "lr", "pc")
_CALL_SCRATCH, _SP, _LR, _PC = 12, 13, 14, 15
_ALWAYS = 14
_MASK = 0xFFFF_FFFF
Parts = Sequence[Instruction]
"""What an instruction does, one after the other; sizes do not count."""


def signed(value: int, bits: int) -> int:
    """The number that a field of so many bits stands for."""
    return value - (value >> bits - 1 << bits)


def write(*numbers: int) -> list[Instruction]:
    """Registers become something unknown."""
    return [Instruction(Effect.WRITE, 0, REGISTERS[number]) for number in numbers if number != _PC]


def add(target: int, number: int, source: int) -> list[Instruction]:
    """``target`` becomes ``source`` plus a number; the pc as source is none that matters."""
    if _PC in (target, source):
        return [Instruction(Effect.END, 0)] if target == _PC else write(target)
    return [Instruction(Effect.ADD, 0, REGISTERS[target], number, REGISTERS[source])]


def add_register(target: int, first: int, second: int) -> list[Instruction]:
    """``target`` becomes the sum of two registers, of which the stack pointer, if any, comes first."""
    if _PC in (target, first, second):
        return [Instruction(Effect.END, 0)] if target == _PC else write(target)
    if second == _SP:
        first, second = second, first
    return [Instruction(Effect.ADD_REGISTER, 0, REGISTERS[target], 0, REGISTERS[first], REGISTERS[second])]


def constant(target: int, number: int) -> list[Instruction]:
    """``target`` becomes a number."""
    return [Instruction(Effect.SET, 0, REGISTERS[target], number)] if target != _PC else [Instruction(Effect.END, 0)]


def store(base: int, offset: int, numbers: Sequence[int], change: int) -> list[Instruction]:
    """Registers are stored from ``base`` plus ``offset`` on, which is then changed."""
    parts: list[Instruction] = []
    if base == _SP and numbers:
        names = [REGISTERS[number] for number in numbers]
        parts.append(Instruction(Effect.STORE, 0, names[0], offset, more=tuple(names[1:])))
    return parts + (add(base, change, base) if change else [])


def load(base: int, offset: int, numbers: Sequence[int], change: int) -> list[Instruction]:
    """Registers are loaded from ``base`` plus ``offset`` on, which is then changed. The pc is loaded as if by the link register."""
    if _PC in numbers and base != _SP and len(numbers) == 1:
        return [Instruction(Effect.STUB if base == _CALL_SCRATCH else Effect.END, 0)]
    names = [REGISTERS[_LR if number == _PC else number] for number in numbers]
    if _SP in numbers or (_LR in numbers and _PC in numbers):
        return [Instruction(Effect.END, 0)]
    source = "" if base == _SP else REGISTERS[base]
    parts = [Instruction(Effect.LOAD, 0, names[0], offset, source, more=tuple(names[1:]))] if names else []
    if change and base not in numbers:
        parts += add(base, change, base)
    return parts + ([Instruction(Effect.RETURN, 0)] if _PC in numbers else [])


def jump_register(number: int) -> list[Instruction]:
    """``bx``: a return, or a call of a function that returns to the caller; by r12 always (AAPCS32 6.1.1)."""
    if number == _LR:
        return [Instruction(Effect.RETURN, 0)]
    return [Instruction(Effect.STUB, 0, source="" if number == _CALL_SCRATCH else REGISTERS[number])]


def _bits(mask: int) -> list[int]:
    return [number for number in range(16) if mask >> number & 1]


def decode_thumb(address: int, code: bytes) -> Instruction | None:
    """The instruction at an odd address; None where there are too few bytes, or it is none that is known."""
    if len(code) < 2:
        return None
    half = int.from_bytes(code[:2], "little")
    if half & 0xFF00 == 0xBF00 and half & 0x0F:
        return _decode_block(address, code)
    size = _size(half)
    found = _parts(address, code)
    return None if found is None else in_order(found, size)


def _size(half: int) -> int:
    return 4 if half >> 11 >= 0b11101 else 2


def _parts(address: int, code: bytes) -> Parts | None:
    half = int.from_bytes(code[:2], "little")
    if _size(half) == 2:
        return _parts_short(address, half) if len(code) >= 2 else None
    if len(code) < 4:
        return None
    second = int.from_bytes(code[2:4], "little")
    if half & 0xFFF0 == 0xE8D0 and second & 0xFFE0 == 0xF000:  # tbb, tbh
        width = 2 if second >> 4 & 1 else 1
        if half & 15 != _PC or len(code) < 4 + width:
            return [Instruction(Effect.END, 0)]
        # To the first of several cases; the table is right behind.
        return [Instruction(Effect.JUMP, 0, number=address + 4 + 2 * int.from_bytes(code[4 : 4 + width], "little") & _MASK)]
    return _parts_long(address, half, second)


def _decode_block(address: int, code: bytes) -> Instruction | None:
    """``it``: the instructions behind it for its condition, and a way around these. It leads to the first of the opposite one."""
    half = int.from_bytes(code[:2], "little")
    mask, condition = half & 15, half >> 4 & 15
    count = 4 - ((mask & -mask).bit_length() - 1)
    parts: list[Instruction] = []
    at, other = 2, 0
    for index in range(count):
        part = _parts(address + at, code[at:])
        if part is None:
            return None
        if index == 0 or mask >> 4 - index & 1 == condition & 1:
            parts += part
        else:
            other = other or at
        at += _size(int.from_bytes(code[at : at + 2], "little"))
    if condition == _ALWAYS:
        return in_order(parts, at)
    return in_order([Instruction(Effect.BRANCH, 0, number=address + (other or at)), *parts], at)


def _parts_short(address: int, half: int) -> Parts | None:
    kind = half >> 12
    if kind < 4:
        return _arithmetic(half)
    match kind:
        case 4:
            return _registers(address, half)
        case 11:
            return _miscellaneous(address, half)
        case 13 | 14:
            return _branch_short(address, half)
    return _memory_short(half)


def _memory_short(half: int) -> Parts:
    """Loads and stores, and sums with the stack pointer (A6.2.4 and behind)."""
    kind, is_load, register, number = half >> 12, half >> 11 & 1, half >> 8 & 7, (half & 0xFF) * 4
    match kind:
        case 9:
            return (load if is_load else store)(_SP, number, [register], 0)
        case 10:
            return add(register, number, _SP) if is_load else write(register)
        case 12:
            numbers = _bits(half & 0xFF)
            size = 4 * len(numbers)
            return load(register, 0, numbers, size) if is_load else add(register, size, register)
    if kind == 6 and is_load:
        return load(half >> 3 & 7, (half >> 6 & 0x1F) * 4, [half & 7], 0)
    if kind == 5:
        is_load = half >> 9 & 7 >= 3
    return write(half & 7) if is_load else []


def _branch_short(address: int, half: int) -> Parts:
    if half >> 12 == 14:
        return [Instruction(Effect.JUMP, 0, number=address + 4 + 2 * signed(half & 0x7FF, 11) & _MASK)]
    condition = half >> 8 & 15
    if condition >= _ALWAYS:  # udf, svc
        return [] if condition > _ALWAYS else [Instruction(Effect.END, 0)]
    return [Instruction(Effect.BRANCH, 0, number=address + 4 + 2 * signed(half & 0xFF, 8) & _MASK)]


def _arithmetic(half: int) -> Parts:
    """Shifts, additions, comparisons (A6.2.1)."""
    kind, low, high = half >> 11, half & 7, half >> 8 & 7
    match kind:
        case 4:
            return constant(high, half & 0xFF)
        case 5:
            return []
        case 6 | 7:
            return add(high, half & 0xFF if kind == 6 else -(half & 0xFF), high)
    if kind == 3 and half >> 10 & 1:
        number = half >> 6 & 7
        return add(low, -number if half >> 9 & 1 else number, half >> 3 & 7)
    return write(low)


def _registers(address: int, half: int) -> Parts:
    """Data processing of registers, and what works on the high ones, too (A6.2.2, A6.2.3)."""
    if half >> 11 & 1:
        return write(half >> 8 & 7)  # ldr from behind the code
    low, source = half & 7, half >> 3 & 15
    target = low | half >> 4 & 8
    if not half >> 10 & 1:
        return [] if half >> 6 & 15 in (8, 10, 11) else write(low)
    match half >> 8 & 3:
        case 0:
            return add_register(target, target, source)
        case 1:
            return []
        case 2:
            return jump_register(source) if target == _PC else add(target, 0, source)
    if half >> 7 & 1:
        return [Instruction(Effect.CALL, 0)]
    if source == _PC:
        return [Instruction(Effect.JUMP, 0, number=(address + 3) & ~3)]  # to A32 code right behind it
    return jump_register(source)


def _miscellaneous(address: int, half: int) -> Parts | None:
    """A6.2.5"""
    kind = half >> 8 & 15
    if kind == 0:
        number = (half & 0x7F) * 4
        return add(_SP, -number if half >> 7 & 1 else number, _SP)
    if half & 0x0500 == 0x0100:  # cbz, cbnz
        offset = (half >> 3 & 0x1F) << 1 | (half >> 9 & 1) << 6
        return [Instruction(Effect.BRANCH, 0, number=address + 4 + offset & _MASK)]
    if kind in (4, 5):  # push
        numbers = [*_bits(half & 0xFF), *([_LR] if kind & 1 else [])]
        return store(_SP, -4 * len(numbers), numbers, -4 * len(numbers))
    if kind in (12, 13):  # pop
        numbers = [*_bits(half & 0xFF), *([_PC] if kind & 1 else [])]
        return load(_SP, 0, numbers, 4 * len(numbers))
    if kind in (2, 10):
        return [Instruction(Effect.END, 0)] if half & 0xFFC0 == 0xBA80 else write(half & 7)
    if kind == 14:
        return [Instruction(Effect.END, 0)]
    return []


def _parts_long(address: int, first: int, second: int) -> Parts | None:
    if first & 0xEF00 == 0xEF00:
        return []  # of vectors
    match first >> 11 & 3:
        case 1:
            return _parts_memory(first, second)
        case 2:
            return _branch(address, first, second) if second >> 15 else _immediates(first, second)
    return _parts_single(first, second)


def _parts_memory(first: int, second: int) -> Parts | None:
    """A6.3.5, A6.3.6, A6.3.11, A6.3.18"""
    kind = first >> 4 & 0x7F
    if kind & 0x64 == 0:
        return _multiple(first, second)
    if kind & 0x64 == 4:
        return _dual(first, second)
    if kind & 0x60 == 0x20:
        return _shifted(first, second)
    return coprocessor(first << 16 | second)


def _multiple(first: int, second: int) -> Parts | None:
    base, numbers = first & 15, _bits(second)
    mode, size = first >> 7 & 3, 4 * len(_bits(second))
    if mode in (0, 3) or not numbers:
        return None  # no code of programs
    change = size if mode == 1 else -size
    transfer = load if first >> 4 & 1 else store
    return transfer(base, 0 if mode == 1 else -size, numbers, change if first >> 5 & 1 else 0)


def _dual(first: int, second: int) -> Parts | None:
    """Two registers, exclusive ones."""
    base, one, two = first & 15, second >> 12, second >> 8 & 15
    is_indexed, is_up, writes = first >> 8 & 1, first >> 7 & 1, first >> 5 & 1
    is_load = first >> 4 & 1
    if is_indexed or writes:
        number = (second & 0xFF) * (4 if is_up else -4)
        return (load if is_load else store)(base, number if is_indexed else 0, [one, two], number if writes else 0)
    if not is_up:  # strex, ldrex
        return write(one if is_load else two)
    if is_load:
        return write(one, *([two] if second >> 4 & 15 == 7 else []))
    return write(second & 15)


def _shifted(first: int, second: int) -> Parts:
    """Data processing of a register and one that is shifted."""
    operation, source = first >> 5 & 15, first & 15
    target, other = second >> 8 & 15, second & 15
    if target == _PC:
        return []
    is_plain = not second & 0x70F0
    if operation == 2 and source == _PC and is_plain:
        return add(target, 0, other)
    return add_register(target, source, other) if operation == 8 and is_plain else write(target)


def _expand(first: int, second: int) -> int:
    """A modified constant (A6.3.2)."""
    value, kind = second & 0xFF, (first >> 10 & 1) << 4 | (second >> 12 & 7) << 1 | second >> 7 & 1
    if kind < 8:
        return value * (1, 0x10001, 0x1000100, 0x1010101)[kind >> 1]
    value |= 0x80
    return (value >> kind | value << 32 - kind) & _MASK


def _immediates(first: int, second: int) -> Parts:
    """Data processing with constants (A6.3.1, A6.3.3)."""
    source, target = first & 15, second >> 8 & 15
    if first >> 9 & 1:
        operation = {0: 8, 10: 13, 4: 2, 12: -1}.get(first >> 4 & 0x1F)
        number = (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF
        if operation in (2, -1):  # movw; movt behind it
            number |= source << 12
            return constant(target, number) if operation == 2 else add(target, number << 16, target)
    elif target == _PC:
        return []
    else:
        operation, number = first >> 5 & 15, _expand(first, second)
    if operation == 2 and source == _PC:
        return constant(target, number)
    if operation in (8, 13):
        return add(target, number if operation == 8 else -number, source)
    return write(target)


def _branch(address: int, first: int, second: int) -> Parts | None:
    """A6.3.4"""
    if second >> 14 & 1:
        return [Instruction(Effect.CALL, 0)]
    sign, one, two = first >> 10 & 1, second >> 13 & 1, second >> 11 & 1
    if second >> 12 & 1:
        high = sign << 2 | (1 ^ one ^ sign) << 1 | (1 ^ two ^ sign)
        offset = signed(high << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1, 25)
        return [Instruction(Effect.JUMP, 0, number=address + 4 + offset & _MASK)]
    if first >> 7 & 7 != 7:
        offset = signed(sign << 20 | two << 19 | one << 18 | (first & 0x3F) << 12 | (second & 0x7FF) << 1, 21)
        return [Instruction(Effect.BRANCH, 0, number=address + 4 + offset & _MASK)]
    if first & 0xFFE0 == 0xF3E0:
        return write(second >> 8 & 15)
    return [] if first & 0xFFC0 == 0xF380 else [Instruction(Effect.END, 0)]


def _parts_single(first: int, second: int) -> Parts | None:
    """A6.3.7 to A6.3.10, A6.3.12 to A6.3.17, A7.7"""
    kind = first >> 4 & 0x7F
    target = second >> 8 & 15
    if kind & 0x40:
        return coprocessor(first << 16 | second)
    if kind & 0x60 == 0x20:
        if kind & 0x18 == 0x18:  # of 64 bits, divisions
            return write(target, second >> 12)
        return write(target)
    if kind & 0x71 == 0x10:  # of vectors and memory
        return write(first & 15) if second & 15 != _PC else []
    return _single(first, second)


def _single(first: int, second: int) -> Parts:
    base, register = first & 15, second >> 12
    is_load, is_word = first >> 4 & 1, first >> 5 & 3 == 2
    if register == _PC and not is_word:
        return []  # hints to the cache
    offset: int | None = None
    at, change = 0, 0
    if first >> 7 & 1:
        at = offset = second & 0xFFF
    elif second >> 11 & 1:
        number = second & 0xFF if second >> 9 & 1 else -(second & 0xFF)
        offset = at = number if second >> 10 & 1 else 0
        change = number if second >> 8 & 1 else 0
    if offset is None or not is_word or base == _PC:
        if register == _PC and is_load:
            return [Instruction(Effect.END, 0)]
        parts = write(register) if is_load else []
        return parts + (add(base, change, base) if change else [])
    return (load if is_load else store)(base, at, [register], change)


def coprocessor(word: int) -> Parts:
    """Floating point and vectors in memory, and moves from these (A6.3.18, A7.6, A7.8): alike in both instruction sets."""
    base, register, second = word >> 16 & 15, word >> 12 & 15, word >> 16 & 15
    if word >> 25 & 1:
        # vmov, vmrs, mrc
        return write(register) if word >> 24 & 1 == 0 and word >> 20 & 1 and word >> 4 & 1 else []
    if word >> 21 & 0xF == 0b0010:
        return write(register, second) if word >> 20 & 1 else []
    if not word >> 21 & 1:
        return []
    size = 4 * (word & 0xFF)
    return add(base, size if word >> 23 & 1 else -size, base)
