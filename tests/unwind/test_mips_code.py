"""Rows out of MIPS code: real functions of a few instructions, the truth for each of them written beside it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recording.model import UserEnd
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mipsel import MIPSEL
from unwind.code_rows import CodeRows
from unwind.instructions import Effect, Instruction
from unwind.rules import Row, Saved
from unwind.user import Region, UserUnwinder
from unwind.user_abi import UserAbi

O32, N64 = MIPSEL.user_abis[0], MIPS64EL.user_abis[0]
TEXT = 0x40_0000
IN_LINK = Saved("pc", "ra", 0, is_value=True)

NOP = 0
LUI_GP, ADDIU_GP, ADDU_GP_T9 = 0x3C1C0015, 0x279C55E4, 0x0399E021  # lui gp; addiu gp, gp; addu gp, gp, t9
PUSH, POP = 0x27BDFFE0, 0x27BD0020  # addiu sp, sp, -32; addiu sp, sp, 32
SW_RA, LW_RA, SW_S0, LW_S0 = 0xAFBF001C, 0x8FBF001C, 0xAFB00018, 0x8FB00018  # 28(sp), 24(sp)
SW_S8, LW_S8, S8_FROM_SP, SP_FROM_S8 = 0xAFBE0014, 0x8FBE0014, 0x03A0F025, 0x03C0E825  # 20(sp)
JALR_T9, JR_T9, JR_V0, RETURN = 0x0320F809, 0x03200008, 0x00400008, 0x03E00008
MOVE_A0_S0, LI_S0, SUBU_SP_V0 = 0x02002025, 0x24100005, 0x03A2E823
SAVED_RA = Saved("pc", None, -4)


def rows_of(*code: int, abi: UserAbi = O32) -> CodeRows:
    text = struct.pack(f"<{len(code)}I", *code)

    def read(address: int, size: int) -> bytes | None:
        start = address - TEXT
        return text[start : start + size] if 0 <= start <= len(text) - size else None

    return CodeRows(read, abi)


def places(row: Row | None) -> tuple[str, int, Saved | None, dict[str, int]]:
    """CFA's register and offset, the return address, and how far below the CFA other registers are."""
    assert row is not None
    found = {saved.register: saved.offset for saved in row.saved if saved.base is None and saved.register != "gp"}
    return row.register, row.offset, row.return_address, found


FUNCTION = (LUI_GP, ADDIU_GP, ADDU_GP_T9, PUSH, SW_RA, SW_S0, JALR_T9, MOVE_A0_S0, LW_RA, LW_S0, RETURN, POP)


@pytest.mark.parametrize(
    ("index", "cfa", "link", "saved"),
    [
        (0, 0, IN_LINK, {}),
        (2, 0, IN_LINK, {}),
        (3, 0, IN_LINK, {}),
        (4, 32, IN_LINK, {}),
        (5, 32, SAVED_RA, {}),
        (6, 32, SAVED_RA, {"s0": -8}),
        (7, 32, SAVED_RA, {"s0": -8}),  # in the delay slot of the call, which has set ra
        (8, 32, SAVED_RA, {"s0": -8}),
        (9, 32, IN_LINK, {"s0": -8}),
        (10, 32, IN_LINK, {}),
        (11, 32, IN_LINK, {}),  # in the delay slot of the return: the frame is still there
    ],
)
def test_each_instruction_of_a_function(index: int, cfa: int, link: Saved, saved: dict[str, int]) -> None:
    row = rows_of(*FUNCTION).find_row(TEXT + 4 * index, interrupted=True)
    assert places(row) == ("sp", cfa, link, saved)
    assert row is not None
    assert "s1" in row.kept
    assert ("s0" in row.kept) is ("s0" not in saved)


def test_a_call_returns_behind_its_delay_slot() -> None:
    assert places(rows_of(*FUNCTION).find_row(TEXT + 32, interrupted=False)) == ("sp", 32, SAVED_RA, {"s0": -8})


def test_n64() -> None:
    code = (
        *(0x67BDFFE0, 0xFFBC0010, 0x3C1C0014, 0x0399E02D),  # daddiu sp, sp, -32; sd gp, 16(sp); lui gp; daddu gp, gp, t9
        *(0xFFBF0018, JALR_T9, NOP, 0xDFBF0018, 0xDFBC0010, RETURN, 0x67BD0020),
    )
    rows = rows_of(*code, abi=N64)
    assert places(rows.find_row(TEXT + 4, interrupted=True)) == ("sp", 32, IN_LINK, {})
    assert places(rows.find_row(TEXT + 28, interrupted=False)) == ("sp", 32, Saved("pc", None, -8), {})
    row = rows.find_row(TEXT + 28, interrupted=False)
    assert row is not None
    assert Saved("gp", None, -16) in row.saved  # which functions keep, in this ABI


def test_registers_of_half_the_size_are_no_saved_ones() -> None:
    """``sw``, ``lw`` in n64 code: a number on the stack."""
    assert N64.decode is not None
    assert N64.decode(TEXT, struct.pack("<I", SW_RA)) == Instruction(Effect.NOTHING, 4)
    assert N64.decode(TEXT, struct.pack("<I", LW_RA)) == Instruction(Effect.WRITE, 4, "ra")


def test_delay_slots_of_branches() -> None:
    """Done before the branch on both ways; of a likely branch only where it is taken."""
    beqz, beqzl, bnez_back = 0x10800002, 0x50800002, 0x1480FFFD
    code: tuple[int, ...] = (PUSH, SW_RA, beqz, LW_RA, RETURN, POP, RETURN, POP)
    assert places(rows_of(*code).find_row(TEXT + 8, interrupted=True)) == ("sp", 32, SAVED_RA, {})
    code = (beqzl, PUSH, RETURN, NOP, RETURN, POP)
    assert places(rows_of(*code).find_row(TEXT, interrupted=True)) == ("sp", 0, IN_LINK, {})
    assert places(rows_of(*code).find_row(TEXT + 16, interrupted=True)) == ("sp", 32, IN_LINK, {})
    code = (NOP, bnez_back, NOP, RETURN, NOP)
    assert places(rows_of(*code).find_row(TEXT + 8, interrupted=True)) == ("sp", 0, IN_LINK, {})


def test_tail_calls() -> None:
    """Of another file's function by t9; of one in this file, which takes its address from t9, by a branch."""
    code: tuple[int, ...] = (JALR_T9, NOP, LW_RA, JR_T9, POP)
    assert places(rows_of(*code).find_row(TEXT + 8, interrupted=False)) == ("sp", 32, SAVED_RA, {})
    code = (JALR_T9, NOP, LW_RA, 0x10000001, POP, *FUNCTION)
    assert places(rows_of(*code).find_row(TEXT + 8, interrupted=False)) == ("sp", 32, SAVED_RA, {})


def test_frame_of_variable_size() -> None:
    code: tuple[int, ...] = (PUSH, SW_RA, SW_S8, S8_FROM_SP, SUBU_SP_V0, JALR_T9, NOP, SP_FROM_S8, LW_RA, LW_S8, RETURN, POP)
    rows = rows_of(*code)
    assert places(rows.find_row(TEXT + 28, interrupted=False)) == ("s8", 32, SAVED_RA, {"s8": -12})
    # Before it has its frame pointer the code is followed past the move of the stack pointer.
    assert places(rows.find_row(TEXT + 4, interrupted=True)) == ("sp", 32, IN_LINK, {})


def test_frame_of_variable_size_of_a_function_that_never_returns() -> None:
    code = (PUSH, SW_RA, SW_S8, S8_FROM_SP, SUBU_SP_V0, JALR_T9, NOP, 0x1000FFFD, NOP)
    assert places(rows_of(*code).find_row(TEXT + 28, interrupted=False)) == ("s8", 32, SAVED_RA, {"s8": -12})


def test_return_address_that_is_saved_after_the_frame_pointer_was_set() -> None:
    """It is restored by the frame pointer, but is not there yet."""
    code = (PUSH, SW_S8, S8_FROM_SP, NOP, SW_RA, SUBU_SP_V0, JALR_T9, NOP, SP_FROM_S8, LW_RA, LW_S8, RETURN, POP)
    assert places(rows_of(*code).find_row(TEXT + 12, interrupted=True)) == ("s8", 32, IN_LINK, {"s8": -12})


def test_large_frame() -> None:
    """Its size does not fit into one instruction."""
    lui_ori, subtract, add = (0x3C020001, 0x34428000), 0x03A2E823, 0x03A2E821
    code = (*lui_ori, subtract, NOP, *lui_ori, add, RETURN, NOP)
    assert places(rows_of(*code).find_row(TEXT + 12, interrupted=True)) == ("sp", 0x18000, IN_LINK, {})


def test_a_function_that_never_returns_in_front_of_another() -> None:
    """What begins behind its last call is another function, as its use of t9 shows."""
    noreturn = (LUI_GP, ADDIU_GP, ADDU_GP_T9, PUSH, SW_RA, JALR_T9, NOP)
    rows = rows_of(*noreturn, *FUNCTION)
    assert places(rows.find_row(TEXT + 28, interrupted=False)) == ("sp", 32, SAVED_RA, {})
    for index, cfa, link in ((0, 0, IN_LINK), (3, 0, IN_LINK), (4, 32, IN_LINK), (5, 32, SAVED_RA)):
        assert places(rows_of(*FUNCTION, *noreturn).find_row(TEXT + 48 + 4 * index, interrupted=True))[:3] == ("sp", cfa, link)


def test_switch() -> None:
    """The cases stand behind the jump; there is no other way out."""
    code = (PUSH, SW_RA, NOP, JR_V0, NOP, JALR_T9, NOP, LW_RA, RETURN, POP)
    assert places(rows_of(*code).find_row(TEXT + 8, interrupted=True)) == ("sp", 32, SAVED_RA, {})


def test_stubs_of_the_linker() -> None:
    """``lw t9; move t7, ra; jalr t9; li t8, 5``: the resolver returns to what is in t7, or jumps to the function."""
    stub = (0x8F998010, 0x03E07825, JALR_T9, 0x24180005)
    rows = rows_of(*stub)
    assert [places(rows.find_row(TEXT + 4 * index, interrupted=True))[1:3] for index in range(3)] == [(0, IN_LINK)] * 3
    assert rows.find_row(TEXT + 12, interrupted=True) is None  # ra is the stub's own by now
    # The resolver: sw t7, 28(sp); jalr t9; lw ra, 28(sp); jr t9
    resolver = (PUSH, 0xAFAF001C, JALR_T9, NOP, LW_RA, JR_T9, POP)
    assert places(rows_of(*resolver).find_row(TEXT, interrupted=True))[1:3] == (0, Saved("pc", "t7", 0, is_value=True))
    assert places(rows_of(*resolver).find_row(TEXT + 16, interrupted=False))[1:3] == (32, SAVED_RA)


def test_code_that_becomes_known() -> None:
    text = struct.pack(f"<{len(FUNCTION)}I", *FUNCTION)
    known = [False]
    rows = CodeRows(
        lambda address, size: text[address - TEXT : address - TEXT + size] if known[0] and address >= TEXT else None, O32
    )
    assert rows.find_row(TEXT + 32, interrupted=False) is None
    known[0] = True
    assert places(rows.find_row(TEXT + 32, interrupted=False)) == ("sp", 32, SAVED_RA, {"s0": -8})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(st.sampled_from([*FUNCTION, JR_V0, JR_T9, 0x1480FFFD, SUBU_SP_V0]), st.integers(0, 0xFFFF_FFFF)), max_size=60
    ),
    st.integers(0, 60),
    st.booleans(),
    st.sampled_from([O32, N64]),
)
def test_any_code_has_a_row_or_none(code: list[int], index: int, interrupted: bool, abi: UserAbi) -> None:
    row = rows_of(*code, abi=abi).find_row(TEXT + 4 * index, interrupted=interrupted)
    assert row is None or row.return_address is not None


class File:
    """A program's code, at its link-time address."""

    def __init__(self, rows: CodeRows) -> None:
        self._rows = rows

    def find_code_rows(self, address: int, *, interrupted: bool) -> Sequence[Row]:
        return self._rows.find_rows(address, interrupted=interrupted)

    def find_call(self, address: int) -> Instruction | None:
        return self._rows.find_call(address)

    def find_region(self, address: int) -> Region | None:
        return Region(TEXT, TEXT + 0x1000, 0, 0, None, TEXT + 0x100, self) if TEXT <= address < TEXT + 0x1000 else None


@pytest.mark.parametrize(
    ("abi", "number", "pc_at", "registers_at"), [(O32, 4119, 32, 40), (O32, 4193, 184, 192), (N64, 5211, 768, 192)]
)
def test_signal_frames(abi: UserAbi, number: int, pc_at: int, registers_at: int) -> None:
    """A handler returns to code without unwind data; the kernel saved all registers, 8 bytes each in both ABIs."""
    architecture = MIPSEL if abi is O32 else MIPS64EL
    handler = (NOP, RETURN, NOP, NOP)
    trampoline = (0x24020000 | number, 0x0C)
    interrupted = (NOP, RETURN, NOP)
    file = File(rows_of(*handler, *trampoline, *interrupted, *[NOP] * 64, abi=abi))
    stack = bytearray(0x1000)
    stack[pc_at : pc_at + 8] = (TEXT + 24).to_bytes(8, "little")
    for index, value in ((29, 0x7000_0800), (31, TEXT + 0x110)):
        stack[registers_at + 8 * index : registers_at + 8 * index + 8] = value.to_bytes(8, "little")

    def read(address: int, size: int) -> bytes | None:
        at = address - 0x7000_0000
        return bytes(stack[at : at + size]) if 0 <= at <= len(stack) - size else None

    walk = UserUnwinder(architecture).unwind({"pc": TEXT, "sp": 0x7000_0000, "ra": TEXT + 16}, read, file)
    assert [frame.pc for frame in walk.frames] == [TEXT, TEXT + 16, TEXT + 24, TEXT + 0x110]
    assert [frame.lookup_pc for frame in walk.frames] == [TEXT, TEXT + 16, TEXT + 24, TEXT + 0x10F]
    assert walk.end is UserEnd.THREAD_START
