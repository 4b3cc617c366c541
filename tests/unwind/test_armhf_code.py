"""Rows out of Arm's two instruction sets: assembled functions, the truth for each of their instructions written beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording.model import Frame, Space, UserEnd
from unwind.arch.armhf import ARMHF
from unwind.arch.armhf_code import decode, follows_call, known_row
from unwind.checked_rows import CheckedCodeRows
from unwind.rules import Row, RowKind, Saved
from unwind.user import Region, UserUnwinder

ABI = ARMHF.user_abis[0]
TEXT = 0x1_0000
IN_LINK = Saved("pc", "lr", 0, is_value=True)
SAVED = Saved("pc", None, -4)

# f:  push {r4, r5, r6, lr}; vpush {d8-d9}; sub sp, #24; mov r4, r0; blx r3; cmp r0, #0; itt eq; addeq sp, #24; beq 1f; add sp, #24
# 1:  vpop {d8-d9}; ldmia.w sp!, {r4, r5, r6, lr}; b.w g; nop
# g:  cbz r0, 2f; str lr, [sp, #-4]!; sub.w sp, sp, #4096; movw r1, #0x5678; movt r1, #0x1234; ldr r1, [sp, #4]
#     add.w sp, sp, #4096; ldr pc, [sp], #4
# 2:  it ne; bxne lr; bx lr
# alloca: push {r7, lr}; sub sp, #8; add r7, sp, #0; sub.w sp, sp, r0; blx r3; adds r7, #8; mov sp, r7; pop {r7, pc}
# table: tbb [pc, r0]; .byte 2, 1; nop; bx lr
# noreturn: push {r0, r1, r2, r3}; push {r4, lr}; sub sp, #8; str r4, [sp, #4]
# 3:  blx r3; b 3b
# switch: add r3, r2; bx r3
# tail: ldr r3, [r0]; bx r3
THUMB = bytes.fromhex(
    "70b52ded048b86b004469847002804bf06b000e006b0bdec048bbde8704000f001b800bf60b14df804edadf5805d45f27861c2f23421"
    "01990df5805d5df804fb18bf7047704780b582b000afaded000d98470837bd4680bddfe800f0020100bf70470fb410b582b00194"
    "9847fde713441847036818 47".replace(" ", "")
)
# f: push {r4, fp, lr}; add fp, sp, #8; sub sp, sp, #12; blx r3; cmp r0, #0; subeq sp, fp, #8; popeq {r4, fp, pc}; bl f
#    sub sp, fp, #8; pop {r4, fp, lr}; bx lr
# div: add pc, pc, r3, lsl #2; nop; movne r0, #1; bx lr
# plt: push {lr}; ldr lr, [pc, #4]; add lr, pc, lr; ldr pc, [lr, #8]!; .word 0
#      add ip, pc, #0, 12; add ip, ip, #12288; ldr pc, [ip, #291]!
A32 = bytes.fromhex(
    "10482de908b08de20cd04de233ff2fe1000050e308d04b021088bd08f7ffffeb08d04be21048bde81eff2fe103f18fe000f020e3"
    "0100a0131eff2fe104e02de504e09fe50ee08fe008f0bee50000000000c68fe203ca8ce223f1bce5"
)


def rows_of(code: bytes) -> CheckedCodeRows:
    def read(address: int, size: int) -> bytes | None:
        start = address - TEXT
        return code[start : start + size] if 0 <= start <= len(code) - size else None

    return CheckedCodeRows(read, ABI)


def place(row: Row | None) -> tuple[str, int, Saved | None, dict[str, int]] | None:
    """CFA's register and offset, the return address, and how far below the CFA other registers are."""
    if row is None:
        return None
    return row.register, row.offset, row.return_address, {saved.register: saved.offset for saved in row.saved}


F = {"r4": -16, "r5": -12, "r6": -8}
R7 = {"r7": -8}


@pytest.mark.parametrize(
    ("offset", "interrupted", "expected"),
    [
        (0x00, True, ("sp", 0, IN_LINK, {})),
        (0x02, True, ("sp", 16, SAVED, F)),
        (0x06, True, ("sp", 32, SAVED, F)),
        (0x08, True, ("sp", 56, SAVED, F)),
        (0x0C, False, ("sp", 56, SAVED, F)),
        (0x0E, True, ("sp", 56, SAVED, F)),
        (0x14, True, ("sp", 56, SAVED, F)),
        (0x16, True, ("sp", 32, SAVED, F)),
        (0x1A, True, ("sp", 16, SAVED, F)),
        (0x1E, True, ("sp", 0, IN_LINK, {})),  # a tail call
        (0x26, True, ("sp", 0, IN_LINK, {})),
        (0x2A, True, ("sp", 4, SAVED, {})),
        (0x2E, True, ("sp", 4100, SAVED, {})),
        (0x3C, True, ("sp", 4, SAVED, {})),
        (0x40, True, ("sp", 0, IN_LINK, {})),
        (0x42, True, ("sp", 0, IN_LINK, {})),
        (0x4A, True, ("sp", 16, SAVED, R7)),
        (0x52, False, ("r7", 16, SAVED, R7)),  # behind alloca() the frame pointer tells
        (0x54, True, ("r7", 8, SAVED, R7)),
        (0x56, True, ("sp", 8, SAVED, R7)),
        (0x58, True, ("sp", 0, IN_LINK, {})),
        # No way out: the way in, from the first of two pushes on.
        (0x68, True, ("sp", 32, Saved("pc", None, -20), {"r4": -24})),
        (0x6C, False, ("sp", 32, Saved("pc", None, -20), {"r4": -24})),
        # Through a register that holds a sum: a table of jumps, perhaps.
        (0x6E, True, None),
        (0x70, True, None),
        (0x72, True, ("sp", 0, IN_LINK, {})),
        (0x74, False, None),
    ],
)
def test_thumb(offset: int, interrupted: bool, expected: tuple[str, int, Saved | None, dict[str, int]] | None) -> None:
    row = next(rows_of(THUMB).find_rows(TEXT + offset | 1, interrupted=interrupted), None)
    assert place(row) == expected
    assert row is None or set(row.kept) == set(ABI.callee_saved) - {saved.register for saved in row.saved}


@pytest.mark.parametrize(
    ("offset", "interrupted", "expected"),
    [
        (0x00, True, ("sp", 0, IN_LINK, {})),
        (0x04, True, ("sp", 12, SAVED, {"r4": -12, "r11": -8})),
        (0x08, True, ("r11", 4, SAVED, {"r4": -12, "r11": -8})),
        (0x10, False, ("r11", 4, SAVED, {"r4": -12, "r11": -8})),
        (0x18, True, ("sp", 12, SAVED, {"r4": -12, "r11": -8})),
        (0x20, False, ("r11", 4, SAVED, {"r4": -12, "r11": -8})),
        (0x28, True, ("sp", 0, IN_LINK, {})),
        (0x2C, True, ("sp", 0, IN_LINK, {})),
        (0x40, True, ("sp", 4, SAVED, {})),  # the first stub of a .plt
        (0x50, True, ("sp", 0, IN_LINK, {})),
        (0x58, True, ("sp", 0, IN_LINK, {})),
    ],
)
def test_a32(offset: int, interrupted: bool, expected: tuple[str, int, Saved | None, dict[str, int]]) -> None:
    assert place(next(rows_of(A32).find_rows(TEXT + offset, interrupted=interrupted), None)) == expected


def test_all_that_is_unknown_ends_a_way() -> None:
    # Where the way out is not known, the way in tells.
    assert [row.offset for row in rows_of(THUMB[:8]).find_rows(TEXT + 6 | 1, interrupted=False)] == [32]
    assert not list(rows_of(b"").find_rows(TEXT, interrupted=True))


@given(st.binary(max_size=24), st.booleans())
def test_any_bytes(code: bytes, is_thumb: bool) -> None:
    instruction = decode(TEXT | is_thumb, code)
    sizes = []
    while instruction is not None:
        sizes.append(instruction.size)
        instruction = instruction.then
    assert not any(sizes[:-1])
    assert sum(sizes) <= max(len(code), 0)
    follows_call(TEXT | is_thumb, code)


@pytest.mark.parametrize(
    ("address", "before", "expected"),
    [
        (TEXT + 1, "00 00 98 47", True),  # blx r3
        (TEXT + 1, "53 f0 0e f8", True),  # bl
        (TEXT + 1, "f6 f7 66 eb", True),  # blx
        (TEXT + 1, "f6 f7 66 bb", False),  # b.w
        (TEXT + 1, "98 47 00 28", False),
        (TEXT, "f7 ff ff eb", True),
        (TEXT, "33 ff 2f e1", True),
        (TEXT, "00 00 00 fa", True),
        (TEXT, "0f e0 a0 e1 04 f0 93 e5", True),  # mov lr, pc; ldr pc, [r3, #4]
        (TEXT, "04 f0 93 e5", False),
        (TEXT, "eb", False),
    ],
)
def test_addresses_that_calls_return_to(address: int, before: str, expected: bool) -> None:
    assert follows_call(address, bytes.fromhex(before)) is expected


@pytest.mark.parametrize(
    ("address", "code", "offset"),
    [
        (TEXT, "77 70 a0 e3 00 00 00 ef", 32),  # mov r7, #119; svc 0
        (TEXT, "ad 70 a0 e3 00 00 00 ef", 160),
        (TEXT + 1, "77 27 00 df", 32),
        (TEXT + 1, "ad 27 00 df 00 00 00 00", 160),
        (TEXT + 1, "4f f0 ad 07 00 df", 160),
        (TEXT, "ad 27 00 df 00 00 00 00", None),
        (TEXT + 1, "", None),
    ],
)
def test_what_signal_handlers_return_to(address: int, code: str, offset: int | None) -> None:
    row = known_row(address, bytes.fromhex(code))
    assert (row is None) is (offset is None)
    if row is not None and offset is not None:
        assert row.is_signal
        assert row.return_address == Saved("pc", "sp", offset + 60)
        assert {Saved("sp", "sp", offset + 52), Saved("cpsr", "sp", offset + 64), Saved("r0", "sp", offset)} <= set(row.saved)


SP = 0xBEFF_0000
HANDLER, RESTORER, MAIN = 0x3000, 0x4000, 0x5000
AT_CALL = Row(RowKind.CALL, "sp", 8, saved=(Saved("r4", None, -8),), kept=ABI.callee_saved[1:], only_calls=True)


class Process:
    """A file at TEXT: THUMB; a handler and what it returns to, in A32; a function that has a table, and what a thread begins in."""

    def __init__(self) -> None:
        code = bytearray(0x6000)
        code[: len(THUMB)] = THUMB
        code[HANDLER : HANDLER + 12] = bytes.fromhex("04e02de5 33ff2fe1 04f09de4")  # push {lr}; blx r3; pop {pc}
        code[RESTORER : RESTORER + 8] = bytes.fromhex("ad70a0e3 000000ef")
        code[MAIN - 4 : MAIN] = bytes.fromhex("9847 9847")  # blx r3, twice
        code[MAIN + 14 : MAIN + 22] = bytes.fromhex("9847 4ff00107 00df")  # mov.w r7, #1; svc 0: clone()
        self._rows = rows_of(bytes(code))
        self.stack: dict[int, int] = {}

    def find_row(self, address: int) -> Row | None:
        return AT_CALL if address == MAIN + TEXT - 1 else None

    def find_start(self, _address: int) -> int | None:
        return None

    def find_region(self, address: int) -> Region | None:
        return Region(TEXT, TEXT + 0x6000, 0, 3, self, None, None, self._rows) if TEXT <= address < TEXT + 0x6000 else None

    def read(self, address: int, size: int) -> bytes | None:
        return self.stack[address].to_bytes(size, "little") if address in self.stack else None


def test_a_stack_through_both_instruction_sets_and_a_signal() -> None:
    process = Process()
    process.stack = {
        SP: TEXT + RESTORER,  # what the handler has pushed
        SP + 4 + 160 + 4 * 4: 0x44,
        SP + 4 + 160 + 4 * 13: SP + 0x400,
        SP + 4 + 160 + 4 * 14: TEXT + MAIN | 1,
        SP + 4 + 160 + 4 * 15: TEXT + 0x1A,  # in f's end
        SP + 4 + 160 + 4 * 16: 0x2000_0030,
        SP + 0x400: 0x77,
        SP + 0x40C: TEXT + MAIN | 1,
        SP + 0x410: 0x88,
        SP + 0x414: TEXT + MAIN + 0x10 | 1,
    }
    registers = {"pc": TEXT + HANDLER + 8, "sp": SP, "lr": 1, "cpsr": 0x10}
    walk = UserUnwinder(ARMHF).unwind(registers, process.read, process)
    addresses = [TEXT + HANDLER + 8, TEXT + RESTORER, TEXT + 0x1A, TEXT + MAIN]
    assert [frame.pc for frame in walk.frames[:4]] == addresses
    assert walk.frames[2] == Frame(TEXT + 0x1A, TEXT + 0x1A, Space.USER, False, 3, None)
    assert [frame.pc for frame in walk.frames[4:]] == [TEXT + MAIN + 0x10]
    assert walk.end is UserEnd.THREAD_START


def test_a_row_for_calls_does_not_lead_out_of_an_interrupted_prologue() -> None:
    process = Process()
    process.stack = {SP: 0x1234, SP + 4: 0x5678}
    registers = {"pc": TEXT + MAIN - 1, "sp": SP, "lr": TEXT + MAIN | 1, "cpsr": 0x10}
    assert UserUnwinder(ARMHF).unwind(registers, process.read, process).end is not UserEnd.THREAD_START


def test_a_return_address_that_no_call_leaves_ends_the_stack() -> None:
    process = Process()
    registers = {"pc": TEXT, "sp": SP, "lr": TEXT + 0x20 | 1, "cpsr": 0x30}
    walk = UserUnwinder(ARMHF).unwind(registers, process.read, process)
    assert ([frame.pc for frame in walk.frames], walk.end) == ([TEXT], UserEnd.NO_UNWIND_INFO)
