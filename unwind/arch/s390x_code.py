"""s390x instructions as far as frames are concerned (z/Architecture Principles of Operation, SA22-7832, chapters 5 and 7).

GCC makes frames so with ``-mpacked-stack -mbackchain`` (arch/s390/Makefile)::

    stmg  %r11,%r15,112(%r15)     save registers in the caller's frame, %r14 at 136
    lgr   %r14,%r15
    lay   %r15,-160(%r15)
    stg   %r14,152(%r15)          the back chain
    …
    lmg   %r11,%r15,272(%r15)     registers and the stack pointer as they were
    br    %r14
"""

from __future__ import annotations

from unwind.arch import FrameStep

_SP, _LINK = 15, 14
BACK_CHAIN = 152
"""``back_chain`` of struct stack_frame (asm/stacktrace.h)."""
_COMPARE_AND_BRANCH = frozenset({0x44, 0x45, 0x64, 0x65, 0x76, 0x77, 0x7C, 0x7D, 0x7E, 0x7F})
"""Last bytes of RIE instructions whose second halfword is where they branch to (``brxhg`` … ``clij``)."""
_SETS_FIRST = frozenset({0x04, 0x08, 0x09, 0x0A, 0x0B, 0x14, 0x16, 0x18, 0x19, 0x1A, 0x1B, 0x80, 0x81, 0x82})
"""Second bytes of RRE instructions (``b9``) that write their first operand: loads, sums, differences, ``ngr``, ``ogr``, ``xgr``."""
_SETS_FIRST_OF_THREE = frozenset({0xE2, 0xE4, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB})
"""The same of RRF instructions: ``locgr``, ``ngrk`` … ``slgrk``."""


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def instruction_size(first: int) -> int:
    """Bytes of an instruction, by its first one (chapter 5, "FrameStep Formats")."""
    return (2, 4, 4, 6)[first >> 6]


def decode(address: int, code: bytes) -> FrameStep:
    """The instruction that some bytes begin with; one that is cut off ends its function."""
    size = instruction_size(code[0]) if code else 2
    if len(code) < size:
        return FrameStep(size, goes_on=False)
    match size:
        case 2:
            return _decode_2(code)
        case 4:
            return _decode_4(address, code)
    return _decode_6(address, code)


def _decode_2(code: bytes) -> FrameStep:
    opcode, first, second = code[0], code[1] >> 4, code[1] & 15
    if opcode == 0x07:  # bcr
        return FrameStep(2, goes_on=not (first == 15 and second))
    if opcode in (0x0B, 0x00):  # bsm; no instruction
        return FrameStep(2, goes_on=False)
    return FrameStep(2)


def _decode_4(address: int, code: bytes) -> FrameStep:
    opcode, first = code[0], code[1] >> 4
    immediate = _signed(int.from_bytes(code[2:4], "big"), 16)
    if opcode == 0xA7:
        return _decode_immediate(address, code[1], immediate)
    if opcode in (0x84, 0x85):  # brxh, brxle
        return FrameStep(4, address + 2 * immediate)
    moves_sp: int | None = 0
    if opcode == 0x41 and first == _SP:  # la
        moves_sp = _moved(code, immediate & 0xFFF)
    elif opcode == 0xB9 and _sets_sp(code):
        moves_sp = None
    # lpswe may load the address behind it, where the processor then waits for an interrupt (arch_cpu_idle).
    return FrameStep(4, moves_sp=moves_sp, goes_on=not (opcode == 0x47 and first == 15))  # bc


def _decode_immediate(address: int, second: int, immediate: int) -> FrameStep:
    """RI instructions (``a7``), of whose second byte the lower half is part of the operation."""
    first = second >> 4
    match second & 15:
        case 0x4 if first:  # brc
            return FrameStep(4, address + 2 * immediate, goes_on=first != 15)
        case 0x6 | 0x7:  # brct, brctg
            return FrameStep(4, address + 2 * immediate)
        case 0xA | 0xB if first == _SP:  # ahi, aghi
            return FrameStep(4, moves_sp=immediate)
        case 0x9 if first == _SP:  # lghi
            return FrameStep(4, moves_sp=None)
    return FrameStep(4)


def _sets_sp(code: bytes) -> bool:
    return code[3] >> 4 == _SP and (code[1] in _SETS_FIRST or code[1] in _SETS_FIRST_OF_THREE)


def _moved(code: bytes, displacement: int) -> int | None:
    """What an address computation into the stack pointer adds to it; None where it begins with another register."""
    return displacement if sorted((code[1] & 15, code[2] >> 4)) == [0, _SP] else None


def _decode_6(address: int, code: bytes) -> FrameStep:
    opcode, last, first, second, base = code[0], code[5], code[1] >> 4, code[1] & 15, code[2] >> 4
    immediate = _signed(int.from_bytes(code[2:6], "big"), 32)
    displacement = _signed(code[4] << 12 | (code[2] & 15) << 8 | code[3], 20)
    if opcode == 0xC0 and second == 4 and first:  # brcl
        return FrameStep(6, address + 2 * immediate, goes_on=first != 15)
    if opcode == 0xC2 and first == _SP:  # slgfi, agfi, algfi
        return FrameStep(6, moves_sp={0x4: -(immediate & 0xFFFF_FFFF), 0x8: immediate, 0xA: immediate & 0xFFFF_FFFF}.get(second, 0))
    if opcode == 0xEC and last in _COMPARE_AND_BRANCH:
        return FrameStep(6, address + 2 * (immediate >> 16))
    if opcode == 0xEC and last == 0xD9 and first == _SP:  # aghik
        return FrameStep(6, moves_sp=immediate >> 16 if second == _SP else None)
    if opcode == 0xEB and last in (0x04, 0x24):
        return _decode_multiple(last == 0x24, (first, second, base), displacement)
    return _decode_single(last, (first, second, base), displacement, code) if opcode == 0xE3 else FrameStep(6)


def _decode_single(last: int, registers: tuple[int, int, int], displacement: int, code: bytes) -> FrameStep:
    """RXY instructions (``e3``) of one register and an address."""
    first, index, base = registers
    if last == 0x24 and (index, base) == (0, _SP):  # stg
        saves = displacement if first == _LINK else None
        return FrameStep(6, saves_link=saves, stores_chain=f"r{first}" if displacement == BACK_CHAIN else "")
    if last == 0x71 and first == _SP:  # lay
        return FrameStep(6, moves_sp=_moved(code, displacement))
    if last == 0x04 and first == _SP:  # lg
        # From the frame, or in __switch_to from the other task's struct thread_struct (arch/s390/kernel/entry.S).
        return FrameStep(6, restores_sp=base == _SP or bool(index and base and displacement), moves_sp=None)
    return FrameStep(6)


def _decode_multiple(is_store: bool, registers: tuple[int, int, int], displacement: int) -> FrameStep:
    """``lmg`` and ``stmg`` of the registers from the first to the last, 0 following 15."""
    first, last, base = registers
    count = (last - first) % 16 + 1
    if is_store:
        has_link = (_LINK - first) % 16 < count and base == _SP
        return FrameStep(6, saves_link=displacement + 8 * ((_LINK - first) % 16) if has_link else None)
    has_sp = (_SP - first) % 16 < count
    return FrameStep(6, restores_sp=has_sp and base != 0, moves_sp=None if has_sp else 0)
