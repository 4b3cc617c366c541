"""What A32 code does to the stack, as literal instructions (assembled by GNU as)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.arm_frame import State, frame_states
from unwind.rules import Row, RowKind, Saved

START = 0xC030_0000
NOP, RETURN, RETURN_IF = 0xE1A0_0000, 0xE12F_FF1E, 0x012F_FF1E  # nop; bx lr; bxeq lr
PUSH, POP, POP_IF = 0xE92D_4010, 0xE8BD_8010, 0x08BD_8010  # push {r4, lr}; pop {r4, pc}; popeq {r4, pc}
PUSH_LINK, POP_LINK = 0xE52D_E004, 0xE49D_F004  # push {lr}; pop {pc}
DROP = 0xE28D_D004  # add sp, sp, #4
CALL, CALL_REGISTER = 0xEB00_1000, 0xE12F_FF33  # bl; blx r3
PUSHED = ((4, -8), (14, -4))
LINK_SAVED = ((14, -4),)


def states(*instructions: int) -> dict[int, State]:
    code = struct.pack(f"<{len(instructions)}I", *instructions)
    return {(address - START) // 4: state for address, state in frame_states(START, code).items()}


def branch(distance: int, condition: int = 14) -> int:
    """A branch over ``distance`` instructions."""
    return condition << 28 | 0x0A00_0000 | (distance - 2 & 0xFF_FFFF)


def test_prologue_and_epilogue() -> None:
    assert states(PUSH, NOP, POP) == {0: State(), 1: State(8, PUSHED), 2: State(8, PUSHED)}


def test_calls_overwrite_the_link_register() -> None:
    assert states(PUSH, CALL, CALL_REGISTER, POP) == {
        0: State(),
        1: State(8, PUSHED),
        2: State(8, PUSHED, has_link=False),
        3: State(8, PUSHED, has_link=False),
    }
    assert states(CALL, NOP)[1].row() is None


def test_ftrace_has_pushed_the_link_register_for_a_moment() -> None:
    """``push {lr}`` in front of a call of ``__gnu_mcount_nc`` that was patched away to ``add sp, sp, #4``."""
    assert states(PUSH_LINK, DROP, NOP) == {0: State(), 1: State(4, LINK_SAVED), 2: State()}


@pytest.mark.parametrize(
    ("instructions", "state"),
    [
        ((0xE24D_D014,), State(20)),  # sub sp, sp, #20
        ((0xE24D_DC02,), State(512)),  # sub sp, sp, #512
        ((0xE16D_41F0,), State(16, ((4, -16), (5, -12)))),  # strd r4, [sp, #-16]!
        ((0xE92D_000F,), State(16)),  # push {r0-r3}
        ((0xED2D_8B04,), State(16)),  # vpush {d8, d9}
        ((0xED2D_8B04, 0xECBD_8B04), State()),  # vpop {d8, d9}
        ((0xE24D_D00C, 0xE58D_E008), State(12, LINK_SAVED)),  # sub sp, sp, #12; str lr, [sp, #8]
        ((PUSH_LINK, 0xE24D_D00C, 0xE59D_E00C), State(16)),  # push {lr}; sub sp, sp, #12; ldr lr, [sp, #12]
        ((PUSH, 0xE8BD_4010), State()),  # pop {r4, lr}
        ((PUSH, 0xE1CD_40D0), State(8, ((14, -4),))),  # ldrd r4, [sp]: r4 is its own again
        ((0xE28D_B004, 0xE92D_4800), State(8, ((11, -8), (14, -4)), frame=4)),  # add fp, sp, #4; push {fp, lr}
        ((0xE92D_4800, 0xE1A0_B00D), State(8, ((11, -8), (14, -4)), frame=-8)),  # push {fp, lr}; mov fp, sp
        ((0xE52D_B004, 0xE28D_B000, 0xE04D_D003), State(None, ((11, -4),), frame=-4)),  # ...; sub sp, sp, r3
        ((0xE52D_B004, 0xE28D_B000, 0xE04D_D003, 0xE28B_D000), State(4, ((11, -4),), frame=-4)),  # ...; add sp, fp, #0
        ((0xE1A0_E003,), State(has_link=False)),  # mov lr, r3
        ((0xE593_E000,), State(has_link=False)),  # ldr lr, [r3]
        ((0xE893_4010,), State(has_link=False)),  # ldm r3, {r4, lr}
    ],
)
def test_effects(instructions: tuple[int, ...], state: State) -> None:
    assert states(*instructions, NOP)[len(instructions)] == state


@pytest.mark.parametrize("instruction", [0xE1A0_D003, 0xE04D_D003, 0xE59D_D000, 0xE79D_D003, 0xE89D_A800, 0xE3CD_D007])
def test_a_stack_pointer_that_is_not_known(instruction: int) -> None:
    """mov sp, r3; sub sp, sp, r3; ldr sp, [sp]; ldr sp, [sp, r3]; ldm sp, {fp, sp, pc} returns; bic sp, sp, #7."""
    assert 1 not in states(instruction, NOP)


def test_a_prologue_behind_the_first_test() -> None:
    assert states(RETURN_IF, PUSH, NOP, POP) == {
        0: State(),
        1: State(),
        2: State(8, PUSHED),
        3: State(8, PUSHED),
    }


def test_both_ways_of_a_branch() -> None:
    # 0 beq 3; 1 push; 2 pop; 3 bx lr
    found = states(branch(3, 0), PUSH, POP, RETURN)
    assert (found[2], found[3]) == (State(8, PUSHED), State())


def test_ways_that_disagree() -> None:
    # 0 beq 2; 1 sub sp, sp, #20; 2 nop
    found = states(branch(2, 0), 0xE24D_D014, NOP, NOP)
    assert set(found) == {0, 1}


def test_conditional_returns_go_on() -> None:
    assert states(PUSH, POP_IF, NOP)[2] == State(8, PUSHED)


def test_a_conditional_epilogue_in_front_of_a_jump() -> None:
    """``popeq {r4, lr}``, ``beq`` elsewhere: in between the condition decides, behind it the frame is whole."""
    found = states(PUSH, 0x08BD_4010, branch(1000, 0), NOP, POP)
    assert set(found) == {0, 1, 3, 4}
    assert found[3] == State(8, PUSHED)


def test_a_conditional_change_without_a_jump() -> None:
    assert set(states(PUSH, 0x024D_D014, NOP)) == {0, 1}  # subeq sp, sp, #20


def test_behind_a_call_that_does_not_return_lies_something_else() -> None:
    # 0 beq 3; 1 push; 2 bl panic; 3 bx lr
    found = states(branch(3, 0), PUSH, CALL, RETURN)
    assert found[3] == State()


def test_a_call_or_none_before_the_same_place() -> None:
    # 0 push; 1 beq 3; 2 bl; 3 pop
    assert states(PUSH, branch(2, 0), CALL, POP)[3] == State(8, PUSHED, has_link=False)
    # Without a frame the return address is gone on one way: 0 beq 3; 1 nop; 2 mov lr, r3; 3 nop
    assert 3 not in states(branch(3, 0), NOP, 0xE1A0_E003, NOP)


def test_switch_by_addresses() -> None:
    """``ldrls pc, [pc, r3, lsl #2]``, a branch for the rest, and a table."""
    found = states(PUSH, 0x979F_F103, branch(4), START + 4 * 5, START + 4 * 6, NOP, POP, NOP)
    assert set(found) == {0, 1, 2, 5, 6}
    assert found[5] == State(8, PUSHED)


def test_switch_by_distances() -> None:
    """``add pc, pc, r3, lsl #2`` and ``nop``: where it leads is in a table elsewhere, so to what nothing else leads to."""
    found = states(PUSH, 0xE08F_F103, NOP, POP, NOP, POP, 0xE7F0_01F2, NOP)
    assert {at: found.get(at) for at in (3, 4, 5, 7)} == dict.fromkeys((3, 4, 5, 7), State(8, PUSHED))


def test_behind_undefined_instructions_nothing_follows() -> None:
    assert set(states(PUSH, 0xE7F0_01F2, NOP)) == {0, 1}


def test_rows() -> None:
    assert State().row() == Row(
        RowKind.CALL,
        "sp",
        0,
        kept=("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11"),
        return_address=Saved("pc", "lr", 0, is_value=True),
    )
    assert State(24, PUSHED, has_link=False).row() == Row(
        RowKind.CALL,
        "sp",
        24,
        saved=(Saved("r4", None, -8),),
        kept=("r5", "r6", "r7", "r8", "r9", "r10", "r11"),
        return_address=Saved("pc", None, -4),
    )
    by_frame = State(None, ((11, -8), (14, -4)), frame=-8).row()
    assert by_frame is not None
    assert (by_frame.register, by_frame.offset) == ("r11", 8)


@given(st.lists(st.integers(0, 0xFFFF_FFFF), max_size=64))
def test_any_code(instructions: list[int]) -> None:
    found = states(*instructions)
    assert all(0 <= at < len(instructions) for at in found)
    assert all(state.row() is None or isinstance(state.row(), Row) for state in found.values())
