"""ppc64el's kernel stacks, of a few literal words each: frames in every state, other stacks, all kinds of trap frames, damage."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from guest.text import TextImage
from recording.model import StackEnd
from recording.symbols import SymbolTable
from unwind.arch.ppc64el import PPC64EL
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows
from unwind.outside import Unwound

TEXT = 0xC000_0000_0000_0000
STACK = 0xC000_0000_0300_0000
TOP = STACK + 0x8000
IRQ_STACK = 0xC000_0000_1FF8_8000
USER_PC, USER_SP = 0x1000_1234, 0x3FFF_F000_0000
KERNEL_MSR, USER_MSR = 0x8000_0000_0000_1033, 0x8000_0000_0280_F033
MARKER, OLD_MARKER = 0x5347_4552, 0x7265_6773_6865_7265
SIZE = 0x100
NOP, BLR, BEQLR, BCTR, BCTRL, TRAP = 0x6000_0000, 0x4E80_0020, 0x4D82_0020, 0x4E80_0420, 0x4E80_0421, 0x7FE0_0008
MFLR, SAVE, PUSH, POP, LOAD, MTLR = 0x7C08_02A6, 0xF801_0010, 0xF821_FFD1, 0x3821_0030, 0xE801_0010, 0x7C08_03A6
LINK_R31, MOVE_R4, ENTER_R31, COME_BACK = 0xF83F_3F91, 0x7C24_0B78, 0x7FE1_FB78, 0xE821_0000
PROLOGUE, EPILOGUE = [MFLR, SAVE, PUSH], [POP, LOAD, MTLR, BLR]

NAMES = (
    "_stext",
    "system_call_vectored_common",
    "decrementer_common_virt",
    "exc_virt_0x4900_decrementer",
    "exc_virt_0x3000_system_call_vectored",
    "__end_soft_masked",
    "ret_from_kernel_thread",
    "start_here_common",
    "kthread",
    "vfs_read",
    "memcpy",
    "do_softirq_own_stack",
    "handle_softirqs",
    "shrunk",
    "switching",
    "vfs_read.cold",
    "load_up_vsx",
    "lazy",
    "warns",
    "pressed",
    "joined",
    "flushes",
    "patched",
    "far",
)
AT = {name: TEXT + SIZE * index for index, name in enumerate(NAMES)}


def b(words: int) -> int:
    return 0x4800_0000 | words * 4 & 0x03FF_FFFC


def beq(words: int) -> int:
    return 0x4182_0000 | words * 4 & 0xFFFC


CODE: Mapping[str, list[int]] = {
    # 0 mflr, 1 save, 2 push, 3 beq +6 (9), 4 bl, 5 addi, 6 ld, 7 mtlr, 8 blr, 9 b vfs_read.cold
    "vfs_read": [*PROLOGUE, beq(6), b(1) | 1, *EPILOGUE, b(SIZE // 4 * 6 - 9)],
    "memcpy": [NOP, BEQLR, NOP, BLR],
    # 3 stdu r1, 16272(r31); 4 mr r4, r1; 5 mr r1, r31; 6 bl; 7 ld r1, 0(r1)
    "do_softirq_own_stack": [*PROLOGUE, LINK_R31, MOVE_R4, ENTER_R31, b(1) | 1, COME_BACK, *EPILOGUE],
    # A frame on one way only: 0 beq +3, 1 nop, 2 blr, 3...
    "shrunk": [beq(3), NOP, BLR, *PROLOGUE, b(1) | 1, *EPILOGUE],
    # 3 bctr to 4 and 5, where no branch leads
    "switching": [*PROLOGUE, BCTR, NOP, *EPILOGUE],
    "vfs_read.cold": [NOP, b(1) | 1],
    # The return address is saved on one way only: 0 stdu, 1 beq +6 (7), 2 mflr, 3 std r0, 64(r1), 4 bl, 5 ld r0, 64(r1), 6 mtlr,
    # 7 addi, 8 blr
    "lazy": [PUSH, beq(6), MFLR, 0xF801_0040, b(1) | 1, 0xE801_0040, MTLR, POP, BLR],
    # 0 beq +7 (7), 1 mflr, 2 stdu, 3 std r0, 64(r1), 4 nop, 5 addi, 6 nop, 7 nop, 8 blr: lr is as it was
    "joined": [beq(7), MFLR, PUSH, 0xF801_0040, NOP, POP, NOP, NOP, BLR],
    # 0 nop, 1 stdu, 2 mflr, 3 mtlr r3, 4 nop, 5 std r0, 64(r1), 6 mflr r9, 7 mtlr r4, 8 nop, 9 ld r0, 64(r1), 10 mtlr r0
    "pressed": [NOP, PUSH, MFLR, 0x7C68_03A6, NOP, 0xF801_0040, 0x7D28_02A6, 0x7C88_03A6, NOP, 0xE801_0040, MTLR, POP, BLR],
    # 0 stdu, 1 beq +3 (4), 2 std r0, 64(r1), 3 trap, 4 nop, 5 beq +6 (11), 6 std r0, 64(r1), 7 trap, 8 nop, 9 addi, 10 blr
    "warns": [PUSH, beq(3), 0xF801_0040, TRAP, NOP, beq(6), 0xF801_0040, TRAP, NOP, POP, BLR],
    # 0 mflr r9, 1 bl +1, 2 bl +1, 3 nop, 4 mtlr r9, 5 blr: as it fills the link stack
    "flushes": [0x7D28_02A6, b(1) | 1, b(1) | 1, NOP, 0x7D28_03A6, BLR],
    # The return address is saved on one way only, which joins the other: 0 stdu, 1 beq +8 (9), 2 to 6 nop, 7 addi, 8 blr, 9 mflr,
    # 10 std r0, 64(r1), 11 nop, 12 ld r0, 64(r1), 13 mtlr, 14 b 7, 15 nop, 16 bl, 17 b 11, 18 nop, 19 ld r0, 64(r1), 20 addi,
    # 21 mtlr, 22 blr, 23 nop, 24 addi, 25 ld r0, 16(r1), 26 mtlr, 27 blr: to 15, 18 and 23 nothing leads
    "patched": [
        *(PUSH, beq(8), NOP, NOP, NOP, NOP, NOP, POP, BLR),
        *(MFLR, 0xF801_0040, NOP, 0xE801_0040, MTLR, b(-7), NOP, b(1) | 1, b(-6), NOP, 0xE801_0040, POP, MTLR, BLR),
        *(NOP, POP, LOAD, MTLR, BLR),
    ],
    # The last function of a module, and behind it, from 8 on, a veneer of its calls (arch/powerpc/kernel/module_64.c)
    "far": [*PROLOGUE, b(1) | 1, *EPILOGUE, 0x3D62_FFFF, 0x396B_4440, 0xF841_0018, 0xE98B_0020, 0x7D89_03A6, BCTR, 0, 0x7374_7562],
    "load_up_vsx": [NOP] * 16,
}


def image() -> TextImage:
    code = b""
    for name in NAMES:
        words = CODE.get(name, [*PROLOGUE, b(1) | 1, BCTRL])
        code += struct.pack(f"<{SIZE // 4}I", *words, *[BLR] * (SIZE // 4 - len(words)))
    return TextImage([(TEXT, code)])


def unwind(registers: Mapping[str, int], *pieces: tuple[int, bytes]) -> Unwound:
    symbols = SymbolTable.from_symbols([(address, "T", name) for name, address in AT.items()])
    text = image()
    unwinder = KernelUnwinder(PPC64EL, symbols, text, frame_rows(PPC64EL, symbols, text))
    full = {**{f"r{number}": 0 for number in range(32)}, "msr": KERNEL_MSR, "lr": 0, "ctr": 0, **registers}
    return unwinder.unwind(Capture(0, full, tuple(sorted(pieces))))


def place(name: str, instruction: int) -> int:
    return AT[name] + 4 * instruction


def frame(caller_sp: int, *, saved: int = 0xDEAD, size: int = 48) -> bytes:
    """A frame, and in it the return address of the function that its owner has called."""
    return struct.pack("<3Q", caller_sp, 0, saved).ljust(size, b"\0")


def trap(sp: int, pc: int, msr: int, *, lr: int = 0, marker: int = MARKER, at: int = 48, end: int = 384) -> bytes:
    """The frame of entry code: the back chain, the marker, and the registers."""
    registers = [0] * 48
    registers[1], registers[32], registers[33], registers[36], registers[40] = sp, pc, msr, lr, 0x900
    head = struct.pack("<3Q", sp, 0, 0xBEEF).ljust(at - 16, b"\0") + struct.pack("<2Q", marker, 0)
    return head + struct.pack("<48Q", *registers)[:end]


USER_FRAME = (TOP - 432, trap(USER_SP, USER_PC, USER_MSR))


def names(unwound: Unwound) -> list[str]:
    by_address = sorted((address, name) for name, address in AT.items())
    return [[name for address, name in by_address if address <= frame.lookup_pc][-1] for frame in unwound.callchain.frames]


def returning(entry: bytes, address: int) -> bytes:
    """A frame of entry code in which the function that it called has saved its return address."""
    return entry[:16] + struct.pack("<Q", address) + entry[24:]


def user_stack(saved: int) -> tuple[tuple[int, bytes], ...]:
    """The frame of a function that the entry code has called, ``saved`` being what its last callee saved there, and the user's."""
    return (TOP - 480, frame(TOP - 432, saved=saved)), (TOP - 432, returning(trap(USER_SP, USER_PC, USER_MSR), FROM_ENTRY))


def word(value: int) -> bytes:
    return struct.pack("<Q", value)


FROM_ENTRY = place("system_call_vectored_common", 4)
FROM_VFS_READ = place("vfs_read", 5)
STALE = place("memcpy", 1)


@pytest.mark.parametrize(
    ("name", "instruction", "sp", "lr"),
    [
        ("vfs_read", 0, TOP - 432, FROM_ENTRY),
        ("vfs_read", 1, TOP - 432, FROM_ENTRY),
        ("vfs_read", 8, TOP - 432, FROM_ENTRY),
        ("memcpy", 0, TOP - 432, FROM_ENTRY),
        ("memcpy", 2, TOP - 432, FROM_ENTRY),  # behind a conditional return
        ("shrunk", 1, TOP - 432, FROM_ENTRY),
        ("shrunk", 3, TOP - 432, FROM_ENTRY),
        ("lazy", 1, TOP - 480, FROM_ENTRY),
        ("lazy", 3, TOP - 480, FROM_ENTRY),
        ("lazy", 8, TOP - 432, FROM_ENTRY),  # on the way that saves nothing
        ("joined", 7, TOP - 432, FROM_ENTRY),
        ("joined", 8, TOP - 432, FROM_ENTRY),
        ("patched", 6, TOP - 480, FROM_ENTRY),
        ("flushes", 0, TOP - 432, FROM_ENTRY),
        ("flushes", 5, TOP - 432, FROM_ENTRY),
        ("warns", 4, TOP - 480, FROM_ENTRY),  # behind a trap that never comes here
        *(("far", instruction, TOP - 432, FROM_ENTRY) for instruction in range(8, 14)),
    ],
)
def test_return_address_in_the_link_register(name: str, instruction: int, sp: int, lr: int) -> None:
    """What lies where it would be saved is of an earlier call."""
    stack = ((TOP - 480, frame(TOP - 432)), (TOP - 432, returning(trap(USER_SP, USER_PC, USER_MSR), STALE)))
    unwound = unwind({"pc": place(name, instruction), "r1": sp, "lr": lr}, *stack)
    assert names(unwound) == [name, "system_call_vectored_common"]
    assert unwound.callchain.end is StackEnd.USER_ENTRY


@pytest.mark.parametrize(
    ("name", "instruction", "sp"),
    [
        ("vfs_read", 2, TOP - 432),  # saved, not pushed
        ("vfs_read", 3, TOP - 480),
        ("vfs_read", 4, TOP - 480),
        ("vfs_read", 5, TOP - 480),
        ("vfs_read", 6, TOP - 432),  # popped, not loaded
        ("vfs_read", 7, TOP - 432),
        ("vfs_read", 9, TOP - 480),
        ("vfs_read.cold", 1, TOP - 480),
        ("shrunk", 6, TOP - 480),
        ("shrunk", 8, TOP - 432),
        ("switching", 4, TOP - 480),  # where a register jumped to
        ("switching", 6, TOP - 432),
        ("lazy", 5, TOP - 480),
        ("lazy", 6, TOP - 480),
        ("warns", 8, TOP - 480),  # a trap alone leads here
        ("patched", 15, TOP - 480),  # it makes a call and goes on where the return address is saved, as hardly any of the code does
        ("patched", 17, TOP - 480),
        ("patched", 18, TOP - 480),  # it loads the return address
        ("patched", 23, TOP - 480),
        ("patched", 24, TOP - 480),
        ("patched", 11, TOP - 480),  # what nothing leads to says nothing of others
    ],
)
def test_return_address_in_memory(name: str, instruction: int, sp: int) -> None:
    unwound = unwind({"pc": place(name, instruction), "r1": sp, "lr": STALE}, *user_stack(STALE))
    assert names(unwound) == [name, "system_call_vectored_common"]
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert (unwound.user_registers["pc"], unwound.user_registers["r1"]) == (USER_PC, USER_SP)


@pytest.mark.parametrize(("marker", "at"), [(MARKER, 48), (MARKER, 112), (OLD_MARKER, 112)])
def test_trap_frames_of_all_kernels(marker: int, at: int) -> None:
    sp = TOP - 384 - at
    user = trap(USER_SP, USER_PC, USER_MSR, marker=marker, at=at)
    stack = user[:16] + word(FROM_ENTRY) + user[24:]
    unwound = unwind({"pc": place("memcpy", 0), "r1": sp, "lr": FROM_ENTRY}, (sp, stack))
    assert unwound.callchain.end is StackEnd.USER_ENTRY


@pytest.mark.parametrize(
    "changed",
    [
        {"msr": USER_MSR & ~1},
        {"msr": KERNEL_MSR},  # with the user's addresses
        {"pc": TEXT},  # with the user's MSR
    ],
)
def test_damaged_trap_frames(changed: dict[str, int]) -> None:
    values = {"pc": USER_PC, "msr": USER_MSR, "marker": MARKER, **changed}
    user = trap(USER_SP, values["pc"], values["msr"], marker=values["marker"])
    unwound = unwind({"pc": place("memcpy", 0), "r1": TOP - 432, "lr": FROM_ENTRY}, (TOP - 432, user + bytes(64)))
    assert unwound.callchain.end is StackEnd.BAD_RETURN_ADDRESS


def test_forked_process_s_first_way_to_user_mode() -> None:
    user = trap(USER_SP, USER_PC, USER_MSR, marker=0)
    unwound = unwind({"pc": place("memcpy", 0), "r1": TOP - 432, "lr": FROM_ENTRY}, (TOP - 432, user))
    assert unwound.callchain.end is StackEnd.USER_ENTRY


def test_user_registers_anywhere_else_than_at_a_stack_s_top() -> None:
    sp = TOP - 432 - 64
    unwound = unwind({"pc": place("memcpy", 0), "r1": sp, "lr": FROM_ENTRY}, (sp, trap(USER_SP, USER_PC, USER_MSR) + bytes(64)))
    assert unwound.callchain.end is StackEnd.BAD_RETURN_ADDRESS


@pytest.mark.parametrize("marker", [MARKER, 0])
def test_interrupted_kernel_function(marker: int) -> None:
    """It is in its prologue; what lies at its stack pointer's return address is stale. Registers without a marker are none."""
    sp = TOP - 480 - 720
    inner = trap(TOP - 480, place("kthread", 1), KERNEL_MSR, lr=FROM_VFS_READ, marker=marker)
    pieces = [(sp, returning(inner, place("decrementer_common_virt", 4)) + bytes(64)), *user_stack(STALE)]
    unwound = unwind({"pc": place("memcpy", 0), "r1": sp, "lr": place("decrementer_common_virt", 4)}, *pieces)
    found = ["memcpy", "decrementer_common_virt", "kthread", "vfs_read", "system_call_vectored_common"]
    assert names(unwound) == (found if marker else found[:2])
    assert unwound.callchain.end is (StackEnd.USER_ENTRY if marker else StackEnd.BAD_RETURN_ADDRESS)


def test_softirq_stack() -> None:
    """The first frame there leads to the frame of the function that switched to it, not to its caller's."""
    base = IRQ_STACK + 0x3F90
    pieces = [
        (base - 48, frame(base)),
        (base, frame(TOP - 480, saved=place("do_softirq_own_stack", 7))),
        *user_stack(place("do_softirq_own_stack", 7)),
    ]
    inner = {"pc": place("handle_softirqs", 4), "r1": base - 48, "lr": STALE}
    unwound = unwind(inner, *pieces)
    assert names(unwound) == ["handle_softirqs", "do_softirq_own_stack", "system_call_vectored_common"]
    assert unwound.callchain.end is StackEnd.USER_ENTRY


def test_amid_the_switch_to_another_stack() -> None:
    base = IRQ_STACK + 0x3F90
    for instruction, sp in ((5, TOP - 480), (6, base), (7, base), (8, TOP - 480)):
        unwound = unwind(
            {"pc": place("do_softirq_own_stack", instruction), "r1": sp, "lr": FROM_ENTRY},
            (base, frame(TOP - 480)),
            *user_stack(STALE),
        )
        assert names(unwound) == ["do_softirq_own_stack", "system_call_vectored_common"], instruction


def test_kernel_thread_and_idle_task() -> None:
    for root, end in (("ret_from_kernel_thread", StackEnd.TASK_ROOT), ("start_here_common", StackEnd.IDLE_ROOT)):
        root_pc = place(root, 4)
        unwound = unwind(
            {"pc": place("kthread", 4), "r1": TOP - 96, "lr": STALE}, (TOP - 96, frame(TOP - 48) + frame(0, saved=root_pc))
        )
        assert names(unwound) == ["kthread", root]
        assert unwound.callchain.end is end


@pytest.mark.parametrize("name", ["decrementer_common_virt", "system_call_vectored_common", "load_up_vsx"])
def test_entry_windows(name: str) -> None:
    """Also where a whole trap frame lies at the stack pointer: it may be one of before."""
    unwound = unwind({"pc": place(name, 8), "r1": TOP - 432}, USER_FRAME)
    assert unwound.callchain.end is StackEnd.ENTRY_WINDOW
    assert len(unwound.callchain.frames) == 1


def test_exception_that_was_just_taken() -> None:
    vector = {"pc": place("exc_virt_0x4900_decrementer", 0), "msr": KERNEL_MSR}
    kernel = {**vector, "r1": TOP - 480, "lr": FROM_ENTRY, "srr0": place("vfs_read", 4), "srr1": KERNEL_MSR}
    unwound = unwind(kernel, *user_stack(STALE)[1:], (TOP - 480, frame(TOP - 432)))
    assert names(unwound) == ["exc_virt_0x4900_decrementer", "vfs_read", "system_call_vectored_common"]
    user = unwind({**vector, "r1": USER_SP, "srr0": USER_PC, "srr1": USER_MSR})
    assert user.callchain.end is StackEnd.USER_ENTRY
    assert user.user_registers is not None
    assert user.user_registers["r1"] == USER_SP
    assert unwind({**vector, "r1": USER_SP}).callchain.end is StackEnd.ENTRY_WINDOW
    assert unwind({**vector, "r1": USER_SP, "srr0": USER_PC, "srr1": KERNEL_MSR}).callchain.end is StackEnd.ENTRY_WINDOW
    second = {**vector, "pc": place("exc_virt_0x4900_decrementer", 1), "srr0": USER_PC, "srr1": USER_MSR, "r1": USER_SP}
    assert unwind(second).callchain.end is StackEnd.ENTRY_WINDOW


def test_vectored_system_call_that_was_just_made() -> None:
    """``scv`` leaves SRR0 and SRR1 as they were."""
    vector = {"pc": place("exc_virt_0x3000_system_call_vectored", 0), "srr0": 0x2000, "srr1": USER_MSR, "r1": USER_SP}
    unwound = unwind({**vector, "lr": USER_PC, "ctr": USER_MSR})
    assert unwound.user_registers is not None
    assert unwound.user_registers["pc"] == USER_PC


@pytest.mark.parametrize("instruction", [4, 5, 6, 8, 9])
def test_link_register_that_is_used_for_something_else(instruction: int) -> None:
    """Until it is saved the return address is in r0, and that is no secret of the link register's."""
    registers = {"pc": place("pressed", instruction), "r1": TOP - 480, "lr": STALE, "r0": FROM_ENTRY if instruction < 6 else 0}
    is_saved = instruction >= 6
    stack = user_stack(STALE) if is_saved else ((TOP - 480, frame(TOP - 432)), (TOP - 432, returning(USER_FRAME[1], STALE)))
    assert names(unwind(registers, *stack)) == ["pressed", "system_call_vectored_common"]


@pytest.mark.parametrize("instruction", [2, 3, 4])
def test_calls_to_the_next_instruction_leave_the_return_address_in_another_register(instruction: int) -> None:
    registers = {
        "pc": place("flushes", instruction),
        "r1": TOP - 432,
        "lr": place("flushes", min(instruction, 3)),
        "r9": FROM_ENTRY,
    }
    assert names(unwind(registers, USER_FRAME)) == ["flushes", "system_call_vectored_common"]


def test_chain_that_leads_back_to_itself() -> None:
    unwound = unwind({"pc": place("kthread", 4), "r1": TOP - 96, "lr": STALE}, (TOP - 96, frame(TOP - 96, saved=FROM_VFS_READ)))
    assert unwound.callchain.end is StackEnd.DID_NOT_ADVANCE


def test_chain_that_was_not_copied() -> None:
    unwound = unwind({"pc": place("kthread", 4), "r1": TOP - 96, "lr": STALE}, (TOP - 96, frame(TOP - 0x4000)))
    assert unwound.callchain.end is StackEnd.UNREADABLE_MEMORY


def test_chain_to_no_code() -> None:
    stack = (TOP - 96, frame(TOP - 48) + frame(0, saved=STACK))
    assert unwind({"pc": place("kthread", 4), "r1": TOP - 96, "lr": STALE}, stack).callchain.end is StackEnd.BAD_RETURN_ADDRESS
