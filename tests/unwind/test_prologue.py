"""Code of MIPS functions becomes rows; literal instructions (MIPS volume II) for each kind of prologue, epilogue and frame."""

from __future__ import annotations

import struct

import pytest

from recording.model import StackEnd
from recording.symbols import SymbolTable
from unwind.arch import Architecture
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mipsel import MIPSEL
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows
from unwind.outside import Unwound
from unwind.prologue import FrameState, follow_frames

PUSH = 0x27BDFFE0  # addiu sp, sp, -32
POP = 0x27BD0020  # addiu sp, sp, 32
SAVE = 0xAFBF001C  # sw ra, 28(sp)
LOAD = 0x8FBF001C  # lw ra, 28(sp)
RETURN = 0x03E00008  # jr ra
NOP = 0
CALL = 0x0C400000  # jal 0x81000000
BEQZ_3 = 0x10800003  # beqz a0, 3 instructions behind the next
BEQZL_3 = 0x50800003  # the same, likely
JUMP = 0x00400008  # jr v0
SAVE_FP, LOAD_FP = 0xAFBE0018, 0x8FBE0018  # sw, lw s8, 24(sp)
FP_FROM_SP, SP_FROM_FP = 0x03A0F025, 0x03C0E825  # move s8, sp; move sp, s8
GROW = 0x03A2E823  # subu sp, sp, v0

START = 0x8100_1000
ENTERED = FrameState()
PUSHED = FrameState(size=32)
SAVED = FrameState(size=32, link=-4)
CALLED = FrameState(size=32, link=-4, in_link=False)


def states(*code: int) -> list[FrameState | None]:
    found = follow_frames(MIPSEL.kernel_code.frame_code, START, code, "s8")  # type: ignore[arg-type]
    return [found.get(START + 4 * index) for index in range(len(code))]


def test_a_function_that_calls() -> None:
    """The epilogue takes the frame down in the delay slot of the return."""
    assert states(PUSH, SAVE, CALL, NOP, LOAD, RETURN, POP) == [ENTERED, PUSHED, SAVED, CALLED, CALLED, SAVED, SAVED]


def test_behind_an_early_return() -> None:
    """What follows a return is reached by the branch before it, with the frame that was there then."""
    code = (PUSH, SAVE, BEQZ_3, NOP, RETURN, POP, CALL, NOP)
    assert states(*code) == [ENTERED, PUSHED, SAVED, SAVED, SAVED, SAVED, SAVED, CALLED]


def test_delay_slot_that_makes_the_frame() -> None:
    """Done before the branch: there on both ways; of a likely branch only where it is taken."""
    assert states(BEQZ_3, PUSH, RETURN, POP, RETURN, POP)[1:] == [ENTERED, PUSHED, PUSHED, PUSHED, PUSHED]
    assert states(BEQZL_3, PUSH, RETURN, NOP, RETURN, POP)[1:] == [ENTERED, ENTERED, ENTERED, PUSHED, PUSHED]


def test_table_of_a_switch() -> None:
    """No branch that can be seen leads to the cases."""
    assert states(PUSH, SAVE, JUMP, NOP, CALL, NOP, RETURN, POP) == [
        *(ENTERED, PUSHED, SAVED, SAVED),
        *(SAVED, CALLED, CALLED, CALLED),
    ]


def test_frame_of_variable_size() -> None:
    found = states(PUSH, SAVE, SAVE_FP, FP_FROM_SP, GROW, CALL, NOP, SP_FROM_FP, LOAD, LOAD_FP, RETURN, POP)
    made = FrameState(size=32, fp_height=32, link=-4, saved=(("s8", -8),))
    grown = FrameState(size=None, fp_height=32, link=-4, in_link=False, saved=(("s8", -8),))
    assert found[4] == made
    assert found[6:8] == [grown, grown]
    assert found[8] == FrameState(size=32, fp_height=32, link=-4, in_link=False, saved=(("s8", -8),))
    assert found[10] == SAVED


FUNCTION, CALLER, LEAF, ROOT, INTERRUPT, SWITCH, KEEPER = (START + 0x100 * index for index in range(7))
STACK = 0x8200_0000
TEXT = {
    FUNCTION: (PUSH, SAVE, CALL, NOP, LOAD, RETURN, POP),
    CALLER: (PUSH, SAVE, CALL, NOP, LOAD, RETURN, POP),
    LEAF: (NOP, RETURN, NOP),
    ROOT: (CALL, NOP, NOP),
    INTERRUPT: (CALL, NOP, NOP),
    SWITCH: (0x8CBD0010, RETURN, NOP),  # lw sp, 16(a1)
    KEEPER: (0x27BDFFD0, 0xAFBF002C, 0xAFBE0020, CALL, NOP),  # addiu sp, sp, -48; sw ra, 44(sp); sw s8, 32(sp)
}
NAMES = {
    FUNCTION: "function",
    CALLER: "caller",
    LEAF: "leaf",
    ROOT: "ret_from_kernel_thread",
    INTERRUPT: "rollback_handle_int",
    SWITCH: "isrdhwr",
    KEEPER: "keeper",
    START + 0x700: "_etext",
}
KERNEL, KERNEL_TAKEN, USER, USER_TAKEN = 0x1000_0001, 0x1000_0003, 0x0000_0011, 0x0000_0013
"""Status: CU0, EXL, KSU."""


class Text:
    def contains(self, address: int) -> bool:
        return START <= address < START + 0x700

    def read(self, address: int, size: int) -> bytes | None:
        image = bytearray(0x700)
        for start, code in TEXT.items():
            image[start - START : start - START + 4 * len(code)] = struct.pack(f"<{len(code)}I", *code)
        offset = address - START
        return bytes(image[offset : offset + size]) if 0 <= offset <= 0x700 - size else None


def unwind(registers: dict[str, int], words: dict[int, int], architecture: Architecture = MIPSEL) -> tuple[list[int], StackEnd]:
    callchain = walk(registers, words, architecture).callchain
    return [frame.pc for frame in callchain.frames], callchain.end


def walk(registers: dict[str, int], words: dict[int, int], architecture: Architecture = MIPSEL) -> Unwound:
    symbols = SymbolTable.from_symbols([(start, "T", name) for start, name in NAMES.items()])
    text = Text()
    unwinder = KernelUnwinder(architecture, symbols, text, frame_rows(architecture, symbols, text))
    memory = tuple((address, word.to_bytes(4, "little")) for address, word in sorted(words.items()))
    return unwinder.unwind(Capture(0, {"status": KERNEL, "s8": 0, "gp": STACK, **registers}, memory))


@pytest.mark.parametrize(("into", "sp"), [(0, 0x20), (4, 0), (8, 0), (0x14, 0), (0x18, 0)])
def test_return_address_in_a_register_or_in_the_frame(into: int, sp: int) -> None:
    words = {STACK + 0x101C: CALLER + 0x10, STACK + 0x103C: ROOT + 8}
    registers = {"pc": FUNCTION + into, "sp": STACK + 0x1000 + sp, "ra": CALLER + 0x10}
    assert unwind(registers, words) == ([FUNCTION + into, CALLER + 0x10, ROOT + 8], StackEnd.TASK_ROOT)


def test_the_link_register_may_be_anything_in_a_body() -> None:
    words = {STACK + 0x101C: CALLER + 0x10, STACK + 0x103C: ROOT + 8}
    registers = {"pc": FUNCTION + 0x10, "sp": STACK + 0x1000, "ra": FUNCTION + 0x10}
    assert unwind(registers, words) == ([FUNCTION + 0x10, CALLER + 0x10, ROOT + 8], StackEnd.TASK_ROOT)


def test_a_leaf() -> None:
    words = {STACK + 0x101C: ROOT + 8}
    assert unwind({"pc": LEAF, "sp": STACK + 0x1000, "ra": CALLER + 0x10}, words) == (
        [LEAF, CALLER + 0x10, ROOT + 8],
        StackEnd.TASK_ROOT,
    )


def test_a_return_address_must_follow_a_call() -> None:
    assert unwind({"pc": LEAF, "sp": STACK + 0x1000, "ra": CALLER + 4}, {}) == ([LEAF], StackEnd.BAD_RETURN_ADDRESS)


def trap(address: int, **saved: int) -> dict[int, int]:
    """``struct pt_regs``, all zero but for what is said."""
    return {address: 0, **{address + offset: saved.get(name, 0) for name, offset in MIPSEL.kernel_code.trap.full.items()}}


TOP = STACK + 0x2000
USER_TRAP = trap(TOP - 32 - 184, pc=0x0040_1000, sp=0x7FFF_F000, saved_status=USER_TAKEN)


def test_exception_on_the_stack_of_the_task() -> None:
    registers = {"pc": LEAF, "sp": TOP - 32 - 184, "ra": INTERRUPT + 8}
    assert unwind(registers, USER_TRAP) == ([LEAF, INTERRUPT + 8], StackEnd.USER_ENTRY)


def test_user_registers_of_a_system_call_are_found_where_functions_saved_them() -> None:
    """Entry code has not saved s0 to s8, and the temporaries are the kernel's by now; after an interrupt all are there."""
    at = TOP - 32 - 184
    pushed = at - 0x30
    stale = {"pc": 0x0040_1000, "sp": 0x7FFF_F000, "ra": 0x0040_2000, "s1": 0xBAD, "s8": 0xBAD, "t0": 0xBAD, "a0": 3}
    words = {pushed + 0x20: 0x7FFF_F100, pushed + 0x2C: INTERRUPT + 8}
    registers = {"pc": KEEPER + 0x10, "sp": pushed, "ra": KEEPER + 0x14, "s1": 7}
    found = walk(registers, {**words, **trap(at, **stale, saved_status=USER_TAKEN, cause=8 << 2)}).user_registers
    assert found is not None
    assert {name: found.get(name) for name in ("pc", "sp", "ra", "a0", "s1", "s8", "t0", "s0")} == {
        "pc": 0x0040_1000,
        "sp": 0x7FFF_F000,
        "ra": 0x0040_2000,
        "a0": 3,
        "s1": 7,
        "s8": 0x7FFF_F100,
        "t0": None,
        "s0": None,
    }
    found = walk(registers, {**words, **trap(at, **stale, saved_status=USER_TAKEN, cause=0)}).user_registers
    assert found is not None
    assert (found["s1"], found["s8"], found["t0"]) == (0xBAD, 0xBAD, 0xBAD)


def test_interrupt_stack_leads_to_what_was_interrupted() -> None:
    """The interrupted leaf has its return address in the register that was saved."""
    frame = STACK + 0x1800
    words = {
        STACK + 0x5FF0: frame,
        **trap(frame, pc=LEAF + 4, sp=frame + 184, ra=CALLER + 0x10, saved_status=KERNEL_TAKEN),
        frame + 184 + 0x1C: ROOT + 8,
    }
    registers = {"pc": LEAF, "sp": STACK + 0x5FF0, "ra": INTERRUPT + 8}
    assert unwind(registers, words) == ([LEAF, INTERRUPT + 8, LEAF + 4, CALLER + 0x10, ROOT + 8], StackEnd.TASK_ROOT)


@pytest.mark.parametrize(
    "saved",
    [
        {"pc": 0x0040_1000, "sp": 0x7FFF_F000, "saved_status": KERNEL_TAKEN},
        {"pc": LEAF, "sp": STACK, "saved_status": USER_TAKEN},
        {"pc": LEAF + 2, "sp": STACK, "saved_status": KERNEL_TAKEN},
        {"pc": LEAF, "sp": STACK, "saved_status": 0},
    ],
)
def test_registers_that_do_not_fit_each_other(saved: dict[str, int]) -> None:
    registers = {"pc": LEAF, "sp": TOP - 32 - 184, "ra": INTERRUPT + 8}
    assert unwind(registers, trap(TOP - 32 - 184, **saved)) == ([LEAF, INTERRUPT + 8], StackEnd.BAD_RETURN_ADDRESS)


def test_user_registers_lie_at_the_top_of_the_stack_only() -> None:
    registers = {"pc": LEAF, "sp": TOP - 40 - 184, "ra": INTERRUPT + 8}
    words = trap(TOP - 40 - 184, pc=0x0040_1000, sp=0x7FFF_F000, saved_status=USER_TAKEN)
    assert unwind(registers, words) == ([LEAF, INTERRUPT + 8], StackEnd.BAD_RETURN_ADDRESS)


@pytest.mark.parametrize("pc", [LEAF, 0x8058_2200, 0x8010_0180])
@pytest.mark.parametrize("status", [USER_TAKEN, KERNEL_TAKEN, 0x1000_0005])
def test_an_exception_that_is_being_taken(pc: int, status: int) -> None:
    """At vectors, in TLB handlers, anywhere: there may be no frame of it yet."""
    registers = {"pc": pc, "sp": STACK + 0x1000, "ra": CALLER + 0x10, "status": status}
    assert unwind(registers, {}) == ([pc], StackEnd.ENTRY_WINDOW)


def test_user_mode() -> None:
    assert unwind({"pc": 0x0040_1000, "sp": 0x7FFF_F000, "status": USER}, {}) == ([0x0040_1000], StackEnd.USER_MODE)


def test_the_change_to_another_stack_keeps_the_frame() -> None:
    words = {STACK + 0x101C: ROOT + 8}
    registers = {"pc": SWITCH + 4, "sp": STACK + 0x1000, "ra": CALLER + 0x10}
    assert unwind(registers, words) == ([SWITCH + 4, CALLER + 0x10, ROOT + 8], StackEnd.TASK_ROOT)


def test_wider_registers() -> None:
    code = (0x67BDFFE0, 0xFFBF0018, CALL, NOP, 0xDFBF0018, RETURN, 0x67BD0020)  # daddiu, sd, ld
    found = follow_frames(MIPS64EL.kernel_code.frame_code, START, code, "s8")  # type: ignore[arg-type]
    assert found[START + 8] == FrameState(size=32, link=-8)
    assert found[START + 12] == FrameState(size=32, link=-8, in_link=False)
    assert found[START + 24] == FrameState(size=32, link=-8)
