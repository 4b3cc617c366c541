"""Instructions of x86, as far as leaving a function is concerned (Intel SDM volume 2: chapter 2, appendix A).

Their lengths must be right, and what they do to the stack and to frame pointers. Other registers need not be followed: a function
that writes one of its caller's has pushed it before, and pops it at its end.
"""

from __future__ import annotations

from collections.abc import Callable

from unwind.instructions import Effect, Instruction

_SP, _FP = 4, 5
_MASK = (1 << 64) - 1
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\xf0\xf2\xf3")
_OPERAND_SIZE, _ADDRESS_SIZE = 0x66, 0x67
_IMMEDIATE_8 = frozenset(
    (
        *(at + 4 for at in range(0, 0x40, 8)),
        0x6A,
        0x6B,
        0x80,
        0x82,
        0x83,
        0xA8,
        *range(0xB0, 0xB8),
        0xC0,
        0xC1,
        0xC6,
        0xCD,
        0xD4,
        0xD5,
    )
) | frozenset(range(0xE4, 0xE8))
_IMMEDIATE = frozenset((*(at + 5 for at in range(0, 0x40, 8)), 0x68, 0x69, 0x81, 0xA9, *range(0xB8, 0xC0), 0xC7))
"""Of 4 bytes, of 2 behind an operand size prefix."""
_MODRM = frozenset(
    (
        *(at + low for at in range(0, 0x40, 8) for low in range(4)),
        *(0x62, 0x63, 0x69, 0x6B, 0xC0, 0xC1, 0xC6, 0xC7, 0xF6, 0xF7, 0xFE, 0xFF),
        *range(0x80, 0x90),
        *range(0xD0, 0xD4),
        *range(0xD8, 0xE0),
    )
)
_NO_MODRM_0F = frozenset(
    (*range(0x05, 0x0A), 0x0B, 0x0E, *range(0x30, 0x38), 0x77, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA, *range(0xC8, 0xD0))
)
_IMMEDIATE_8_0F = frozenset((0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6))
_STOPS = frozenset((0x9A, 0xCA, 0xCB, 0xCC, 0xCF, 0xEA, 0xF1, 0xF4))
"""Far calls, jumps and returns, traps, hlt."""
_JUMPS = {0xE8: (Effect.CALL, 4), 0xE9: (Effect.JUMP, 4), 0xEB: (Effect.JUMP, 1)}
_SIMPLE = {
    **dict.fromkeys((0x68, 0x6A, 0x9C), Effect.PUSH),
    **dict.fromkeys((0x8F, 0x9D), Effect.POP),
    **dict.fromkeys((0xC2, 0xC3), Effect.RETURN),
    0xC9: Effect.LEAVE,
}


class _Code:
    """The bytes of one instruction, behind its prefixes."""

    __slots__ = ("code", "modrm", "operand", "position", "rex", "wide")

    def __init__(self, code: bytes, wide: bool) -> None:
        self.code, self.wide = code, wide
        self.position, self.operand, self.rex = 0, 4, 0
        self.modrm = _ModRm()
        while code[self.position] in _PREFIXES or (wide and code[self.position] == _ADDRESS_SIZE):
            if code[self.position] == _OPERAND_SIZE:
                self.operand = 2
            self.position += 1
        if wide and code[self.position] & 0xF0 == 0x40:
            self.rex = code[self.position]
            self.position += 1

    def byte(self) -> int:
        """The next one. Raises IndexError where there is none."""
        self.position += 1
        return self.code[self.position - 1]

    def number(self, size: int) -> int:
        """The next bytes as a signed number."""
        data = self.code[self.position : self.position + size]
        self.position += size
        if len(data) < size:
            raise IndexError
        return int.from_bytes(data, "little", signed=True)

    def read_modrm(self) -> _ModRm:
        """Operands, with what follows them."""
        byte = self.byte()
        mode, rm = byte >> 6, byte & 7
        found = _ModRm(mode, byte >> 3 & 7, rm)
        if mode != 3:
            if rm == _SP:
                sib = self.byte()
                found.base, index = sib & 7, sib >> 3 & 7
                found.has_index = index != _SP or bool(self.rex & 2)
                if mode == 0 and found.base == _FP:
                    found.base, found.number = -1, self.number(4)
            elif mode == 0 and rm == _FP:
                found.number = self.number(4)
            else:
                found.base = rm
            if mode:
                found.number = self.number(1 if mode == 1 else 4)
            if found.base >= 0 and self.rex & 1:
                found.base += 8
        elif self.rex & 1:
            found.rm += 8
        if self.rex & 4:
            found.register += 8
        self.modrm = found
        return found


class _ModRm:
    """Operands: a register, and another one or memory at ``base`` (-1 for none) plus ``number``."""

    __slots__ = ("base", "has_index", "mode", "number", "register", "rm")

    def __init__(self, mode: int = 0, register: int = 0, rm: int = 0) -> None:
        self.mode, self.register, self.rm = mode, register, rm
        self.base, self.number, self.has_index = -1, 0, False


def decoder(names: tuple[str, ...], word: int) -> Callable[[int, bytes], Instruction | None]:
    """The decoder of an ABI, by its names of the general registers in the processor's order and the size of one."""

    def decode(address: int, code: bytes) -> Instruction | None:
        try:
            return _Decoder(names, word, address, code).decode()
        except IndexError:
            return None

    return decode


class _Decoder:
    """Of one instruction."""

    def __init__(self, names: tuple[str, ...], word: int, address: int, code: bytes) -> None:
        self._names, self._word, self._address = names, word, address
        self._code = _Code(code, wide=word == 8)

    def decode(self) -> Instruction | None:
        """The instruction. Raises IndexError where bytes are missing."""
        code = self._code
        opcode = code.byte()
        if self._is_vector(opcode):
            return self._vector(opcode)
        if opcode == 0x0F:
            return self._two_bytes()
        if opcode in _STOPS:
            return Instruction(Effect.END, code.position)
        if opcode in _MODRM:
            code.read_modrm()
        immediate = self._immediate(opcode)
        return self._one_byte(opcode, immediate)

    def _made(self, effect: Effect, register: int = -1, number: int = 0, source: int = -1) -> Instruction:
        names = self._names
        name = names[register] if register >= 0 else ""
        return Instruction(effect, self._code.position, name, number, names[source] if source >= 0 else "")

    def _immediate(self, opcode: int) -> int:
        code = self._code
        if opcode in _IMMEDIATE_8 or (opcode == 0xF6 and code.modrm.register & 6 == 0):
            return code.number(1)
        if opcode in _IMMEDIATE or (opcode == 0xF7 and code.modrm.register & 6 == 0):
            return code.number(8 if code.rex & 8 and opcode & 0xF8 == 0xB8 else code.operand)
        if 0xA0 <= opcode < 0xA4:
            return code.number(self._word)
        if opcode == 0xC8:
            return code.number(2) + code.number(1)
        return code.number(2) if opcode == 0xC2 else 0

    def _one_byte(self, opcode: int, immediate: int) -> Instruction:
        code, rm = self._code, self._code.modrm
        extension = rm.register & 7
        if 0x50 <= opcode < 0x60:
            register = (opcode & 7) + (8 if code.rex & 1 else 0)
            return self._made(Effect.PUSH if opcode < 0x58 else Effect.POP, register)
        if 0x70 <= opcode < 0x80 or 0xE0 <= opcode < 0xE4:
            return self._jump(Effect.BRANCH, code.number(1))
        if opcode in _JUMPS:
            effect, size = _JUMPS[opcode]
            return self._jump(effect, code.number(size))
        if opcode in _SIMPLE:
            return self._made(_SIMPLE[opcode], number=immediate if opcode == 0xC2 else 0)
        if opcode == 0xFF and extension in (2, 4, 6):
            # What has an index is a table; else a word of the GOT or of a struct tells, and the jump is a tail call.
            jump = Effect.TABLE if rm.has_index else Effect.STUB
            return self._made({2: Effect.CALL, 4: jump, 6: Effect.PUSH}[extension])
        return self._data(opcode, immediate)

    def _jump(self, effect: Effect, distance: int) -> Instruction:
        size = self._code.position
        return Instruction(effect, size, number=self._address + size + distance & _MASK)

    def _data(self, opcode: int, immediate: int) -> Instruction:
        rm, operand = self._code.modrm, self._code.operand
        is_register, is_whole = rm.mode == 3, operand == 4 and (self._word == 4 or bool(self._code.rex & 8))
        if opcode in (0x81, 0x83) and is_register and rm.rm == _SP:
            number = {0: immediate, 5: -immediate}.get(rm.register & 7)
            if number is not None:
                return self._made(Effect.ADD, _SP, number, _SP)
            return self._made({4: Effect.ALIGN, 7: Effect.NOTHING}.get(rm.register & 7, Effect.WRITE), _SP)
        if opcode in (0x89, 0x8B) and is_whole:
            return self._move(opcode == 0x89)
        if opcode == 0x8D and not rm.has_index and rm.base >= 0 and is_whole:
            return self._made(Effect.ADD, rm.register, rm.number, rm.base)
        target = self._target(opcode)
        return self._made(Effect.WRITE, _SP) if target == _SP else self._made(Effect.NOTHING)

    def _target(self, opcode: int) -> int:
        """The register that arithmetic writes, as far as it may be the stack pointer."""
        rm = self._code.modrm
        if opcode in (0x03, 0x0B, 0x13, 0x1B, 0x23, 0x2B, 0x33, 0x8B, 0x8D):
            return rm.register
        return rm.rm if rm.mode == 3 and opcode in (0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x87, 0x89) else -1

    def _move(self, to_rm: bool) -> Instruction:
        rm = self._code.modrm
        if rm.mode == 3:
            target, source = (rm.rm, rm.register) if to_rm else (rm.register, rm.rm)
            return self._made(Effect.ADD, target, 0, source)
        if rm.has_index or rm.base not in (_SP, _FP):
            return self._made(Effect.NOTHING if to_rm else Effect.WRITE, rm.register if not to_rm else -1)
        if to_rm:
            return self._made(Effect.STORE, rm.register, rm.number) if rm.base == _SP else self._made(Effect.NOTHING)
        return self._made(Effect.LOAD, rm.register, rm.number, -1 if rm.base == _SP else rm.base)

    def _two_bytes(self) -> Instruction:
        code = self._code
        opcode = code.byte()
        if opcode in (0x38, 0x3A):
            code.byte()
            code.read_modrm()
            code.position += opcode == 0x3A
            return self._made(Effect.NOTHING)
        if 0x80 <= opcode < 0x90:
            return self._jump(Effect.BRANCH, code.number(4))
        if opcode == 0x0B:
            return self._made(Effect.END)
        if opcode in (0xA0, 0xA8):
            return self._made(Effect.PUSH)
        if opcode in (0xA1, 0xA9):
            return self._made(Effect.POP)
        if opcode not in _NO_MODRM_0F:
            code.read_modrm()
            code.position += opcode in _IMMEDIATE_8_0F
        return self._made(Effect.NOTHING)

    def _is_vector(self, opcode: int) -> bool:
        """Whether these are the prefixes VEX and EVEX, which in 32-bit code are others where a register follows."""
        return opcode in (0x62, 0xC4, 0xC5) and (self._word == 8 or self._code.code[self._code.position] & 0xC0 == 0xC0)

    def _vector(self, opcode: int) -> Instruction:
        code = self._code
        first = code.byte()
        map_number = 1 if opcode == 0xC5 else first & (7 if opcode == 0x62 else 31)
        code.position += {0xC5: 0, 0xC4: 1, 0x62: 2}[opcode]
        operation = code.byte()
        if operation != 0x77 or map_number != 1:
            code.read_modrm()
        code.position += map_number == 3 or (map_number == 1 and operation in _IMMEDIATE_8_0F)
        return self._made(Effect.NOTHING)
