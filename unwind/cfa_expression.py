"""DWARF expressions of unwind tables become expressions of the rules (DWARF 5, 2.5 and 6.4.2)."""

from __future__ import annotations

from recording.errors import BadImageError
from unwind.dwarf import Reader
from unwind.rules import Expression, Operation, Operator

_MAX_OPERATIONS = 256
_CONSTANTS: dict[int, tuple[int, bool]] = {
    0x08: (1, False),
    0x09: (1, True),
    0x0A: (2, False),
    0x0B: (2, True),
    0x0C: (4, False),
    0x0D: (4, True),
    0x0E: (8, False),
    0x0F: (8, True),
}
"""DW_OP_const1u ... const8s: bytes, signed."""
_ONE = Operation(Operator.CONSTANT, 1)
_SWAP = Operation(Operator.SWAP)
_PLAIN: dict[int, tuple[Operation, ...]] = {
    0x06: (Operation(Operator.LOAD),),
    0x12: (Operation(Operator.PICK, 0),),  # dup
    0x13: (Operation(Operator.DROP),),
    0x14: (Operation(Operator.PICK, 1),),  # over
    0x16: (_SWAP,),
    0x1A: (Operation(Operator.AND),),
    0x1C: (Operation(Operator.SUBTRACT),),
    0x1E: (Operation(Operator.MULTIPLY),),
    0x1F: (Operation(Operator.CONSTANT, 0), _SWAP, Operation(Operator.SUBTRACT)),  # neg
    0x20: (Operation(Operator.CONSTANT, -1), Operation(Operator.XOR)),  # not
    0x21: (Operation(Operator.OR),),
    0x22: (Operation(Operator.ADD),),
    0x24: (Operation(Operator.SHIFT_LEFT),),
    0x25: (Operation(Operator.SHIFT_RIGHT),),
    0x26: (Operation(Operator.SHIFT_RIGHT_SIGNED),),
    0x27: (Operation(Operator.XOR),),
    0x29: (Operation(Operator.EQUAL),),
    0x2A: (_SWAP, Operation(Operator.LESS_OR_EQUAL)),  # ge
    0x2B: (_SWAP, Operation(Operator.LESS)),  # gt
    0x2C: (Operation(Operator.LESS_OR_EQUAL),),
    0x2D: (Operation(Operator.LESS),),
    0x2E: (Operation(Operator.EQUAL), _ONE, Operation(Operator.XOR)),  # ne
    0x96: (),  # nop
}
_CONSTU, _CONSTS, _PICK, _PLUS_UCONST, _DEREF_SIZE = 0x10, 0x11, 0x15, 0x23, 0x94
_LIT0, _LIT31, _BREG0, _BREG31, _BREGX = 0x30, 0x4F, 0x70, 0x8F, 0x92


def parse_expression(reader: Reader, registers: tuple[str, ...]) -> Expression:
    """The expression that takes up the rest of a reader; ``registers``: names by DWARF number.

    Raises BadImageError for what no unwind table needs (jumps, division, names of locations).
    """
    operations: list[Operation] = []
    while reader.position < reader.end:
        operations += _parse_operation(reader, registers)
        if len(operations) > _MAX_OPERATIONS:
            raise BadImageError(f"an expression of the unwind table at {reader.address:#x} is too long")
    return Expression(tuple(operations), reader.pointer_size)


def _parse_operation(reader: Reader, registers: tuple[str, ...]) -> tuple[Operation, ...]:
    code = reader.byte()
    plain = _PLAIN.get(code)
    if plain is not None:
        return plain
    if _BREG0 <= code <= _BREG31 or code == _BREGX:
        number = reader.uleb() if code == _BREGX else code - _BREG0
        if number < len(registers):
            return (Operation(Operator.REGISTER, reader.sleb(), registers[number]),)
    elif _LIT0 <= code <= _LIT31:
        return (Operation(Operator.CONSTANT, code - _LIT0),)
    elif code in _CONSTANTS:
        size, signed = _CONSTANTS[code]
        return (Operation(Operator.CONSTANT, reader.number(size, signed=signed)),)
    elif code in (_CONSTU, _PLUS_UCONST):
        constant = Operation(Operator.CONSTANT, reader.uleb())
        return (constant,) if code == _CONSTU else (constant, Operation(Operator.ADD))
    elif code == _CONSTS:
        return (Operation(Operator.CONSTANT, reader.sleb()),)
    elif code == _PICK:
        return (Operation(Operator.PICK, reader.byte()),)
    elif code == _DEREF_SIZE and reader.byte() == reader.pointer_size:
        return (Operation(Operator.LOAD),)
    raise BadImageError(f"an expression of the unwind table at {reader.address:#x} has the unsupported operation {code:#x}")
