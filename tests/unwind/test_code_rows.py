"""Rows out of RISC-V code: real functions of a few instructions, the truth for each of them written beside it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recording.model import UserEnd
from unwind.arch.riscv64 import RISCV64
from unwind.arch.riscv64_code import decode
from unwind.code_rows import CodeRows
from unwind.instructions import Effect, Instruction
from unwind.rules import Row, Saved
from unwind.user import Region, UserUnwinder

ABI = RISCV64.user_abis[0]
TEXT = 0x1_0000
IN_LINK = Saved("pc", "ra", 0, is_value=True)


def code_of(*instructions: int) -> bytes:
    """Instructions of 2 and 4 bytes."""
    return b"".join(each.to_bytes(4 if each & 3 == 3 else 2, "little") for each in instructions)


def rows_of(*instructions: int) -> CodeRows:
    code = code_of(*instructions)

    def read(address: int, size: int) -> bytes | None:
        start = address - TEXT
        return code[start : start + size] if 0 <= start < len(code) else None

    return CodeRows(read, ABI)


def places(row: Row | None) -> tuple[str, int, Saved | None, dict[str, int]]:
    """CFA's register and offset, the return address, and how far below the CFA other registers are."""
    assert row is not None
    return row.register, row.offset, row.return_address, {saved.register: saved.offset for saved in row.saved if saved.base is None}


ADDI_SP, ADDI_SP_BACK = 0x1101, 0x6105  # addi sp, sp, -32; addi sp, sp, 32
SD_RA, SD_S0, LD_RA, LD_S0 = 0xEC06, 0xE822, 0x60E2, 0x6442  # 24(sp), 16(sp)
RET, NOP, MV_S0_A0, JALR_A5, JR_A5, JR_T1 = 0x8082, 0x0001, 0x842A, 0x9782, 0x8782, 0x8302
SAVED_RA = Saved("pc", None, -8)

FUNCTION = (ADDI_SP, SD_RA, SD_S0, MV_S0_A0, JALR_A5, LD_RA, LD_S0, ADDI_SP_BACK, RET)


@pytest.mark.parametrize(
    ("index", "cfa", "link", "saved"),
    [
        (0, 0, IN_LINK, {}),
        (1, 32, IN_LINK, {}),
        (2, 32, SAVED_RA, {}),  # ra is there, and in the register too
        (3, 32, SAVED_RA, {"fp": -16}),
        (4, 32, SAVED_RA, {"fp": -16}),
        (5, 32, SAVED_RA, {"fp": -16}),
        (6, 32, IN_LINK, {"fp": -16}),
        (7, 32, IN_LINK, {}),
        (8, 0, IN_LINK, {}),
    ],
)
def test_each_instruction_of_a_function(index: int, cfa: int, link: Saved, saved: dict[str, int]) -> None:
    row = rows_of(*FUNCTION).find_row(TEXT + 2 * index, interrupted=True)
    assert places(row) == ("sp", cfa, link, saved)
    assert row is not None
    assert "s1" in row.kept
    assert ("fp" in row.kept) is ("fp" not in saved)


def test_a_call_returns_into_a_function_that_has_saved_its_return_address() -> None:
    rows = rows_of(*FUNCTION)
    assert places(rows.find_row(TEXT + 10, interrupted=False)) == ("sp", 32, SAVED_RA, {"fp": -16})


LI_T0, ADD_SP_T0, LUI_T0, ADDI_T0 = 0x6285, 0x9116, 0x72FD, 0x8302_8293  # lui t0, 1; add sp, sp, t0; lui t0, -1; addi t0, t0, -2000


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        # A frame of more than 2 KiB: the number is made in a register.
        ((LD_RA, LI_T0, ADD_SP_T0, RET), ("sp", 4096, Saved("pc", None, 24 - 4096), {})),
        ((LD_RA, LI_T0, ADDI_T0, ADD_SP_T0, RET), ("sp", 2096, Saved("pc", None, 24 - 2096), {})),
        ((LUI_T0, ADD_SP_T0, LI_T0, ADD_SP_T0, LD_RA, ADDI_SP_BACK, RET), ("sp", 32, SAVED_RA, {})),
        # addi sp, s0, -32: after alloca() the frame pointer tells.
        ((0xFE04_0113, LD_RA, LD_S0, ADDI_SP_BACK, RET), ("fp", 0, SAVED_RA, {"fp": -16})),
        # beqz a0, +4 to the second of two ways; the first never ends.
        ((0xC111, 0xA001, LD_RA, ADDI_SP_BACK, RET), ("sp", 32, SAVED_RA, {})),
        # The first of two ways to the same end loses the stack pointer: add sp, sp, a5.
        ((0xC111, 0x913E, LD_RA, ADDI_SP_BACK, RET), ("sp", 32, SAVED_RA, {})),
        # A tail call, far and by a register, behind the end of the frame.
        ((LD_RA, ADDI_SP_BACK, 0x0000_0317, 0x00C3_0067, NOP, NOP, RET), ("sp", 32, SAVED_RA, {})),
        ((LD_RA, ADDI_SP_BACK, JR_A5), ("sp", 32, SAVED_RA, {})),
        # c.j +4 over something else.
        ((0xA011, 0x0000, LD_RA, ADDI_SP_BACK, RET), ("sp", 32, SAVED_RA, {})),
    ],
)
def test_ways_out(instructions: Sequence[int], expected: tuple[str, int, Saved, dict[str, int]]) -> None:
    assert places(rows_of(*instructions).find_row(TEXT, interrupted=False)) == expected


@pytest.mark.parametrize(
    "instructions",
    [
        (JALR_A5, RET),  # the call has overwritten the return address
        (JR_A5,),  # a table of jumps: where it leads may take a frame down
        (0xA001,),  # j .
        (0x0000,),
        (LD_RA, 0x913E, RET),  # add sp, sp, a5
        (LD_RA, 0x8100_3103, RET),  # ld sp, -2032(zero)
        (),
    ],
)
@pytest.mark.parametrize("interrupted", [False, True])
def test_no_way_out(instructions: Sequence[int], interrupted: bool) -> None:
    assert rows_of(*instructions).find_row(TEXT, interrupted=interrupted) is None


def test_an_interrupted_stub_of_the_linker_returns_to_the_link_register() -> None:
    rows = rows_of(0x0018_AE17, 0x000E_3E03, 0x000E_0367)  # auipc t3; ld t3, 0(t3); jalr t1, t3
    assert places(rows.find_row(TEXT + 4, interrupted=True)) == ("sp", 0, IN_LINK, {})
    assert rows.find_row(TEXT + 4, interrupted=False) is None


NORETURN = (ADDI_SP, SD_RA, SD_S0, MV_S0_A0, JALR_A5)


@pytest.mark.parametrize("behind", [(), FUNCTION, (0x0000,), (0xA001,)])
def test_a_function_that_never_returns_is_known_by_the_way_in(behind: Sequence[int]) -> None:
    """What lies behind its last call is another function, which must not be taken for its end."""
    rows = rows_of(RET, *NORETURN, *(behind or (NOP,)))
    assert places(rows.find_row(TEXT + 12, interrupted=False)) == ("sp", 32, SAVED_RA, {"fp": -16})


def test_an_own_adjustment_amid_a_function_is_no_way_in() -> None:
    """alloca() moves the stack pointer too; only a start from which the return address is saved is one."""
    rows = rows_of(ADDI_SP, NOP, JALR_A5, 0xA001)
    assert rows.find_row(TEXT + 4, interrupted=True) is None
    assert rows.find_row(TEXT + 6, interrupted=False) is None
    rows = rows_of(*NORETURN, ADDI_SP, JALR_A5, 0xA001)
    assert places(rows.find_row(TEXT + 14, interrupted=False)) == ("sp", 64, SAVED_RA, {"fp": -16})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(st.sampled_from([*FUNCTION, JR_A5, 0xC111, 0xA011, 0xDD71]), st.integers(0, 0xFFFF)), max_size=80),
    st.integers(0, 40),
    st.booleans(),
)
def test_any_code_has_a_row_or_none(halves: list[int], index: int, interrupted: bool) -> None:
    code = struct.pack(f"<{len(halves)}H", *halves)
    rows = CodeRows(lambda address, size: code[address - TEXT : address - TEXT + size] if address >= TEXT else None, ABI)
    row = rows.find_row(TEXT + 2 * index, interrupted=interrupted)
    assert row is None or row.return_address is not None


@pytest.mark.parametrize(
    ("code", "instruction"),
    [
        ("1d 71", Instruction(Effect.ADD, 2, "sp", -96, "sp")),
        ("79 71", Instruction(Effect.ADD, 2, "sp", -48, "sp")),
        ("80 10", Instruction(Effect.ADD, 2, "fp", 96, "sp")),
        ("13 01 01 bd", Instruction(Effect.ADD, 4, "sp", -1072, "sp")),
        ("13 04 01 43", Instruction(Effect.ADD, 4, "fp", 1072, "sp")),
        ("86 ec", Instruction(Effect.STORE, 2, "ra", 88)),
        ("23 3c 11 2c", Instruction(Effect.STORE, 4, "ra", 728)),
        ("e6 60", Instruction(Effect.LOAD, 2, "ra", 88)),
        ("83 30 81 2d", Instruction(Effect.LOAD, 4, "ra", 728)),
        ("83 b0 82 2d", Instruction(Effect.WRITE, 4, "ra")),  # from t0's memory
        ("2a 84", Instruction(Effect.ADD, 2, "fp", 0, "a0")),
        ("82 80", Instruction(Effect.RETURN, 2, source="ra")),
        ("67 80 00 00", Instruction(Effect.RETURN, 4)),
        ("82 97", Instruction(Effect.CALL, 2)),
        ("ef 00 00 02", Instruction(Effect.CALL, 4)),
        ("ef 02 c0 0e", Instruction(Effect.END, 4)),  # jal t0: a subroutine of its own kind
        ("6f f0 df ff", Instruction(Effect.JUMP, 4, number=TEXT - 4)),
        ("63 08 a4 00", Instruction(Effect.BRANCH, 4, number=TEXT + 16)),
        ("73 00 00 00", Instruction(Effect.NOTHING, 4)),  # ecall
        ("73 00 10 00", Instruction(Effect.END, 4)),  # ebreak
        ("02 90", Instruction(Effect.END, 2)),
        ("53 05 05 e2", Instruction(Effect.WRITE, 4, "a0")),  # fmv.x.d a0, fa0
        ("53 05 b5 02", Instruction(Effect.NOTHING, 4)),  # fadd.d
        ("00 00", Instruction(Effect.END, 2)),
        ("08 00", None),
        ("13 01", None),
        ("", None),
    ],
)
def test_riscv64_instructions(code: str, instruction: Instruction | None) -> None:
    assert decode(TEXT, bytes.fromhex(code)) == instruction


def test_a_user_stack_goes_through_code_without_tables() -> None:
    rows = rows_of(*NORETURN, RET, *FUNCTION)

    class Code:
        def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
            return rows.find_rows(address, interrupted=interrupted)

        def find_call(self, address: int) -> Instruction | None:
            return rows.find_call(address)

        def find_region(self, address: int) -> Region | None:
            return Region(TEXT, TEXT + 0x1000, 0, 5, None, None, self) if TEXT <= address < TEXT + 0x1000 else None

    stack = {0x3F_0000_0018: TEXT + 10, 0x3F_0000_0010: 0x77, 0x3F_0000_0038: 0, 0x3F_0000_0030: 0}
    registers = {"pc": TEXT + 12 + 10, "sp": 0x3F_0000_0000, "fp": 0x1234, "ra": 0, "priv": 0}

    def read(address: int, size: int) -> bytes | None:
        return stack[address].to_bytes(size, "little") if address in stack else None

    walk = UserUnwinder(RISCV64).unwind(registers, read, Code())
    assert [(frame.pc, frame.guess) for frame in walk.frames] == [(TEXT + 22, False), (TEXT + 10, False)]
    assert walk.end is UserEnd.THREAD_START
