"""riscv64's kernel stacks, of a few literal words each: records right below the frame pointer, trap frames without any."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.text import TextImage
from recording.model import Callchain, StackEnd
from recording.symbols import SymbolTable
from unwind.arch.riscv64 import RISCV64
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows
from unwind.outside import Unwound

TEXT = 0xFFFF_FFFF_8001_0000
STACK = 0xFF20_0000_0001_0000
TOP = STACK + 0x4000
IRQ_STACK = 0xFF20_0000_0000_8000
USER_PC, USER_SP = 0x1_2344, 0x3F_FFF0_1230
SIZE = 0x200
NOP, JALR_A1, C_JALR_T1 = 0x0001, 0x9582, 0x9302
ADDI_SP, SD_S0, SET_FP, SD_RA = 0x1101, 0xE822, 0x1000, 0xEC06  # addi sp,sp,-32; sd s0,16(sp); addi s0,sp,32; sd ra,24(sp)
USER, KERNEL = 0x2_0000_0020, 0x2_0000_0120

NAMES = (
    "vfs_read",
    "__schedule",
    "do_trap_ecall_u",
    "memcpy",
    "do_irq",
    "handle_irq",
    "call_on_irq_stack",
    "kthread",
    "handle_exception",
    "ret_from_exception",
    "ret_from_exception_end",
    "ret_from_fork",
    "__switch_to",
)
AT = {name: TEXT + SIZE * index for index, name in enumerate(NAMES)}


class Kernel:
    """Every function: addi sp, sd s0, set fp, sd ra, nops; calls are written where a test wants them."""

    def __init__(self) -> None:
        self.code = bytearray()
        for _name in NAMES:
            self.code += struct.pack(f"<{SIZE // 2}H", ADDI_SP, SD_S0, SET_FP, SD_RA, *[NOP] * (SIZE // 2 - 4))

    def call(self, caller: str, callee: str | None, at: int = 0x18) -> int:
        """The return address of a call in a function, by name or through a register."""
        address = AT[caller] + at
        if callee is None:
            struct.pack_into("<H", self.code, address - TEXT, C_JALR_T1)
            return address + 2
        offset = AT[callee] - address
        upper = offset + 0x800 & 0xFFFF_F000
        struct.pack_into("<II", self.code, address - TEXT, 0x097 | upper, 0x0_80E7 | (offset & 0xFFF) << 20)
        return address + 8

    def unwind(self, stack: bytes, *others: tuple[int, bytes], **registers: int) -> Unwound:
        """``stack`` ends at the top of the task's."""
        symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
        text = TextImage([(TEXT, bytes(self.code))])
        unwinder = KernelUnwinder(RISCV64, symbols, text, frame_rows(RISCV64, symbols, text))
        known = {"sp": TOP - len(stack), "priv": 1, "fp": 0, "ra": 0, "sepc": 0, "sstatus": KERNEL, **registers}
        pieces = sorted([(TOP - len(stack), stack), *others])
        return unwinder.unwind(Capture(0, known, tuple(pieces)))


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def trap(**registers: int) -> bytes:
    saved = bytearray(288)
    for name, value in registers.items():
        struct.pack_into("<Q", saved, RISCV64.kernel_code.trap.full[name], value)
    return bytes(saved)


USER_TRAP = trap(pc=USER_PC, sp=USER_SP, fp=0x77, a7=63, sstatus=USER, scause=8)
SYSTEM_CALL = TOP - 288


def frame(fp: int, link: int) -> bytes:
    """32 bytes with a record at their end."""
    return words(0, 0, fp, link)


def system_call(kernel: Kernel) -> tuple[bytes, int]:
    """The stack of a system call from ``do_trap_ecall_u``'s frame on, and that one's frame pointer."""
    return frame(USER_SP, kernel.call("handle_exception", None)) + USER_TRAP, SYSTEM_CALL


def names(chain: Callchain) -> list[str]:
    return [next(name for name, start in AT.items() if start <= frame.lookup_pc < start + SIZE) for frame in chain.frames]


CALLERS = ["do_trap_ecall_u", "handle_exception"]


def check(unwound: Unwound, *expected: str) -> None:
    assert names(unwound.callchain) == [*expected, *CALLERS]
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert {name: unwound.user_registers[name] for name in ("pc", "sp", "fp")} == {"pc": USER_PC, "sp": USER_SP, "fp": 0x77}
    assert RISCV64.kernel_code.system_call_number(unwound.user_registers) == 63


def test_a_system_call_ends_at_the_user_registers() -> None:
    kernel = Kernel()
    stack, fp = system_call(kernel)
    own = frame(fp, kernel.call("do_trap_ecall_u", "vfs_read"))
    link = kernel.call("vfs_read", "memcpy", 0x20)
    check(kernel.unwind(own + stack, pc=AT["vfs_read"] + 0x40, fp=TOP - len(stack), ra=link), "vfs_read")
    check(kernel.unwind(own + stack, pc=AT["memcpy"], fp=TOP - len(stack), ra=link), "memcpy", "vfs_read")


@pytest.mark.parametrize("callee", ["vfs_read", None])
@pytest.mark.parametrize(("offset", "moved"), [(0, 0), (2, 32), (4, 32)])
def test_before_its_frame_a_function_returns_to_the_link_register(offset: int, moved: int, callee: str | None) -> None:
    kernel = Kernel()
    stack, fp = system_call(kernel)
    link = kernel.call("do_trap_ecall_u", callee)
    check(kernel.unwind(bytes(moved) + stack, pc=AT["vfs_read"] + offset, fp=fp, ra=link), "vfs_read")


@pytest.mark.parametrize("stale", [0, 1, AT["kthread"] + 0x1A])
def test_a_frame_whose_return_address_is_not_saved_yet(stale: int) -> None:
    """GCC may set the frame pointer before it saves ra: what lies there is of an earlier call."""
    kernel = Kernel()
    kernel.call("kthread", None)
    stack, fp = system_call(kernel)
    link = kernel.call("do_trap_ecall_u", "vfs_read")
    check(kernel.unwind(frame(fp, stale) + stack, pc=AT["vfs_read"] + 6, fp=TOP - len(stack), ra=link), "vfs_read")


@pytest.mark.parametrize("moved", [0, 32])
@pytest.mark.parametrize("offset", [0, 2])
def test_entry_code_has_called_a_function_without_a_frame_yet(offset: int, moved: int) -> None:
    """Its frame is where the frame pointer says that the interrupted stack pointer was."""
    kernel = Kernel()
    link = kernel.call("handle_exception", None)
    check(kernel.unwind(bytes(moved) + USER_TRAP, pc=AT["do_trap_ecall_u"] + offset, fp=USER_SP, ra=link))
    stack, fp = system_call(kernel)
    at = TOP - len(stack)
    inner = trap(pc=AT["memcpy"] + 8, sp=at, ra=kernel.call("do_trap_ecall_u", "memcpy", 0x20), fp=fp, sstatus=KERNEL)
    unwound = kernel.unwind(bytes(moved) + inner + stack, pc=AT["do_irq"] + offset, fp=at, ra=link)
    check(unwound, "do_irq", "handle_exception", "memcpy")


def test_an_interrupt_on_its_own_stack() -> None:
    kernel = Kernel()
    stack, fp = system_call(kernel)
    at = TOP - len(stack)
    stack = trap(pc=AT["memcpy"] + 8, sp=at, ra=kernel.call("do_trap_ecall_u", "memcpy", 0x20), fp=fp, sstatus=KERNEL) + stack
    stack = frame(at, kernel.call("handle_exception", "do_irq", 0x40)) + stack
    stack = frame(TOP - len(stack) + 32, kernel.call("do_irq", "call_on_irq_stack")) + stack
    own = frame(TOP - len(stack) + 32, kernel.call("call_on_irq_stack", None))
    unwound = kernel.unwind(
        stack,
        (IRQ_STACK - 32, own),
        pc=AT["handle_irq"] + 0x20,
        sp=IRQ_STACK - 32,
        fp=IRQ_STACK,
        ra=kernel.call("handle_irq", "memcpy"),
    )
    check(unwound, "handle_irq", "call_on_irq_stack", "do_irq", "handle_exception", "memcpy")


@pytest.mark.parametrize("offset", [0x30, 0x60])
def test_the_switch_uses_the_frame_pointer_for_something_else(offset: int) -> None:
    kernel = Kernel()
    stack, fp = system_call(kernel)
    own = frame(fp, kernel.call("do_trap_ecall_u", "__schedule"))
    link = kernel.call("__schedule", "__switch_to")
    check(kernel.unwind(own + stack, pc=AT["__switch_to"] + offset, fp=0x4_0000, ra=link), "__switch_to", "__schedule")
    chain = kernel.unwind(USER_TRAP, pc=AT["__switch_to"] + offset, fp=0x4_0000, ra=AT["ret_from_fork"]).callchain
    assert (names(chain), chain.end) == (["__switch_to", "ret_from_fork"], StackEnd.TASK_ROOT)


def test_a_kernel_thread_ends_by_name() -> None:
    kernel = Kernel()
    own = frame(AT["vfs_read"], kernel.call("ret_from_fork", None))  # s0 was the thread's function
    chain = kernel.unwind(own + bytes(288), pc=AT["kthread"] + 0x20, fp=TOP - 288).callchain
    assert (names(chain), chain.end) == (["kthread", "ret_from_fork"], StackEnd.TASK_ROOT)


def test_the_first_instruction_of_the_handler_has_all_registers() -> None:
    kernel = Kernel()
    stack, fp = system_call(kernel)
    registers = dict.fromkeys(RISCV64.kernel_code.trap.full, 0) | {"pc": AT["handle_exception"], "sstatus": KERNEL, "fp": fp}
    link = kernel.call("do_trap_ecall_u", "memcpy", 0x20)
    unwound = kernel.unwind(stack, **{**registers, "sp": TOP - len(stack), "ra": link, "sepc": AT["memcpy"]})
    check(unwound, "handle_exception", "memcpy")
    unwound = kernel.unwind(stack, **{**registers, "sp": USER_SP, "sstatus": USER, "sepc": USER_PC})
    assert (names(unwound.callchain), unwound.callchain.end) == (["handle_exception"], StackEnd.USER_ENTRY)
    assert unwound.user_registers is not None
    assert (unwound.user_registers["pc"], unwound.user_registers["sp"]) == (USER_PC, USER_SP)


@pytest.mark.parametrize(
    "registers",
    [
        {"pc": AT["handle_exception"] + 4},
        {"pc": AT["handle_exception"] + 0x1A},
        {"pc": AT["ret_from_exception"] + 8},
        {"sepc": USER_PC},  # not what sstatus says
        {"sstatus": USER},
        {"sstatus": KERNEL | 2},  # interrupts cannot be on
    ],
)
def test_anywhere_else_entry_code_is_a_window(registers: dict[str, int]) -> None:
    kernel = Kernel()
    stack, fp = system_call(kernel)
    zeros = dict.fromkeys(RISCV64.kernel_code.trap.full, 0)
    known = {**zeros, "pc": AT["handle_exception"], "sstatus": KERNEL, "sepc": AT["memcpy"], "fp": fp, "sp": TOP - len(stack)}
    chain = kernel.unwind(stack, **{**known, **registers}).callchain
    assert (len(chain.frames), chain.end) == (1, StackEnd.ENTRY_WINDOW)


def test_a_trap_frame_elsewhere_is_none() -> None:
    kernel = Kernel()
    own = frame(USER_SP, kernel.call("handle_exception", None))
    below = kernel.unwind(own + USER_TRAP + bytes(16), pc=AT["do_trap_ecall_u"] + 0x20, fp=TOP - 304)
    assert below.callchain.end is StackEnd.BAD_RETURN_ADDRESS
    inner = trap(pc=AT["memcpy"], sp=TOP - 16, sstatus=KERNEL)  # of a stack pointer that is not right above
    stack = frame(TOP, kernel.call("handle_exception", None)) + inner + bytes(16) + USER_TRAP
    chain = kernel.unwind(stack, pc=AT["do_trap_ecall_u"] + 0x20, fp=TOP - 288 - 16 - 288).callchain
    assert chain.end is StackEnd.BAD_RETURN_ADDRESS


_WORD = st.one_of(
    st.sampled_from([*AT.values(), *(address + 0x1A for address in AT.values()), SYSTEM_CALL, USER_SP, USER, KERNEL, 0]),
    st.integers(STACK, TOP).map(lambda address: address & -8),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_WORD, max_size=96), _WORD, _WORD, st.sampled_from(sorted(AT.values())), st.integers(0, 20))
def test_damaged_stacks_end_with_a_reason(stack: list[int], fp: int, link: int, function: int, instruction: int) -> None:
    kernel = Kernel()
    for name in ("do_trap_ecall_u", "vfs_read", "handle_exception"):
        kernel.call(name, None)
    unwound = kernel.unwind(words(*stack), pc=function + 2 * instruction, fp=fp, ra=link)
    assert 0 < len(unwound.callchain.frames) <= 256
    assert unwound.callchain.end in StackEnd
