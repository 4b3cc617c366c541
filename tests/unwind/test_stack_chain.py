"""s390x' kernel stacks, of a few literal words each: chained frames, and functions that were interrupted before they had one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.text import TextImage
from recording.model import Callchain, StackEnd
from recording.symbols import SymbolTable
from unwind.arch.s390x import S390X
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows
from unwind.outside import Unwound

TEXT = 0x3FF_FE90_0000
STACK = 0x37F_FE9A_4000
TOP = STACK + 0x4000
IRQ_TOP = 0x1FDE_4000
USER_PC, USER_SP = 0x1_00C6_268, 0x3FF_E147_8550
SIZE = 0x100
USER, KERNEL = 0x0705_1001_8000_0000, 0x0704_C001_8000_0000
SYSTEM_CALL = TOP - 360
"""Where the frame of entry code is, the first of a task's stack: a trap frame of 200 bytes lies 160 above."""

PROLOGUE = "eb6ff0480024 b90400ef e3f0ff60ff71 e3e0f0980024"  # stmg %r6,%r15,72(%r15); lgr %r14,%r15; lay %r15,-160(…); stg
EPILOGUE = "eb6ff0e80004 07fe"  # lmg %r6,%r15,232(%r15); br %r14
BRASL, NOPR = bytes.fromhex("c0e5"), b"\x07\x00"

NAMES = (
    "vfs_read",
    "__do_syscall",
    "__memset64",  # without a frame
    "do_ext_irq",
    "do_irq_async",
    "kthread",
    "early_exit",  # returns before it has made a frame, or behind it
    "early_exit.cold",
    "in_frame",  # makes a frame, but saves no return address
    "__switch_to_asm",
    "system_call",
    "ret_from_fork",
    "ext_int_handler",
    "pgm_check_handler",
    "__irqentry_text_end",
)
AT = {name: TEXT + SIZE * index for index, name in enumerate(NAMES)}
SPECIAL = {
    "__memset64": "07fe",
    # lgr %r1,%r2; cgije %r1,0,.+0x34; prologue; brcl .cold; epilogue; and where the first branch leads to: br %r14
    "early_exit": f"b9040012 ec180018007c {PROLOGUE} c084{(SIZE - 0x20) // 2:08x} {EPILOGUE} 0700 0700 0700 07fe",
    "early_exit.cold": "0700 0700",
    "in_frame": "a7fbff00 b9040012 0700 a7fb0100 07fe",  # aghi %r15,-256; lgr; nopr; aghi %r15,256; br %r14
    # stmg; stg %r15,64(%r1,%r2); lg %r15,0(%r4,%r3); agr %r15,%r5; lg %r15,64(%r1,%r3); lmg %r6,%r15,72(%r15); br %r14
    "__switch_to_asm": "eb6ff0480024 e3f120400024 e3f430000004 b90800f5 e3f130400004 eb6ff0480004 07fe",
}
AFTER_PROLOGUE = 22


class Kernel:
    """Functions begin with a prologue; calls are written where a test wants them."""

    def __init__(self) -> None:
        self.code = bytearray()
        for name in NAMES:
            body = bytes.fromhex(SPECIAL.get(name, PROLOGUE))
            self.code += body + NOPR * ((SIZE - len(body)) // 2)

    def call(self, caller: str, callee: str, at: int = 0x40) -> int:
        """The return address of a call in a function."""
        address = AT[caller] + at
        self.code[address - TEXT : address - TEXT + 6] = BRASL + struct.pack(">i", (AT[callee] - address) // 2)
        return address + 6

    def unwind(self, stack: bytes, *others: tuple[int, bytes], **registers: int) -> Unwound:
        """``stack`` ends at the top of the task's; the stack pointer is its first byte."""
        symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
        text = TextImage([(TEXT, bytes(self.code))])
        unwinder = KernelUnwinder(S390X, symbols, text, frame_rows(S390X, symbols, text))
        general = {f"r{number}": 0x1111 * number for number in range(16)}
        known = {**general, "r15": TOP - len(stack), "pswm": KERNEL, **registers}
        return unwinder.unwind(Capture(0, known, tuple(sorted([(TOP - len(stack), stack), *others]))))


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def frame(chain: int, link: int = 0, size: int = 160) -> bytes:
    """A frame: what a function that it calls saves in it, and the word that leads to the caller's."""
    head = bytearray(size)
    struct.pack_into(">QQQ", head, 136, link, 0, chain)
    return bytes(head)


def trap(**registers: int) -> bytes:
    saved = bytearray(200)
    for name, value in registers.items():
        struct.pack_into(">Q", saved, S390X.kernel_code.trap.full[name], value)
    return bytes(saved)


USER_TRAP = trap(pswm=USER, pswa=USER_PC, r15=USER_SP, r11=0x77, int_code=0x0002_0003 << 32, flags=1)


def entry(kernel: Kernel, link: int | None = None) -> bytes:
    """The end of every process' stack: entry code's frame, and the user's registers."""
    return frame(0, kernel.call("system_call", "__do_syscall") if link is None else link) + USER_TRAP


def in_call(kernel: Kernel) -> bytes:
    """The stack of a system call from the frame of ``__do_syscall`` on, which has called ``vfs_read``."""
    return frame(SYSTEM_CALL, kernel.call("__do_syscall", "vfs_read")) + entry(kernel)


def names(chain: Callchain) -> list[str]:
    return [next(name for name, start in AT.items() if start <= frame.lookup_pc < start + SIZE) for frame in chain.frames]


def check(unwound: Unwound, *expected: str) -> None:
    assert names(unwound.callchain) == [*expected, "__do_syscall", "system_call"]
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert {name: unwound.user_registers[name] for name in ("pswa", "r15", "r11")} == {"pswa": USER_PC, "r15": USER_SP, "r11": 0x77}
    assert S390X.kernel_code.system_call_number(unwound.user_registers) == 3


CALLER = SYSTEM_CALL - 160
"""The stack pointer of ``__do_syscall``."""


def test_a_chain_ends_at_the_user_registers() -> None:
    kernel = Kernel()
    own = frame(CALLER)
    check(kernel.unwind(own + in_call(kernel), pswa=AT["vfs_read"] + 0x80), "vfs_read")
    link = kernel.call("vfs_read", "__memset64", 0x60)
    check(kernel.unwind(own + in_call(kernel), pswa=AT["__memset64"], r14=link), "__memset64", "vfs_read")


@pytest.mark.parametrize(
    ("offset", "r14", "moved"),
    [
        (0, None, 0),  # before anything: the return address is in %r14
        (6, None, 0),  # saved, and still there
        (10, CALLER, 0),  # saved; %r14 is the stack pointer
        (16, CALLER, 160),  # the frame is made, its chain is not written
        (22, CALLER, 160),
    ],
)
def test_amid_a_prologue(offset: int, r14: int | None, moved: int) -> None:
    kernel = Kernel()
    stack = in_call(kernel)
    link = AT["__do_syscall"] + 0x46
    if not offset:
        stack = stack[:136] + bytes(8) + stack[144:]
    stale = bytearray(b"\x55" * moved)
    if offset == AFTER_PROLOGUE:
        struct.pack_into(">Q", stale, 152, CALLER)
    check(kernel.unwind(bytes(stale) + stack, pswa=AT["vfs_read"] + offset, r14=link if r14 is None else r14), "vfs_read")


@pytest.mark.parametrize(("offset", "moved"), [(0x0A, 0), (0x20, 160), (0x26, 160), (0x2C, 0), (0x34, 0)])
def test_a_function_that_may_return_before_it_makes_a_frame(offset: int, moved: int) -> None:
    """Behind its epilogue lies code that has none: where the branch comes from says it."""
    kernel = Kernel()
    link = kernel.call("__do_syscall", "early_exit")
    stack = frame(SYSTEM_CALL, link) + entry(kernel)
    own = frame(CALLER)[-moved:] if moved else b""
    check(kernel.unwind(own + stack, pswa=AT["early_exit"] + offset, r14=link), "early_exit")


def test_a_part_that_lies_elsewhere_has_the_frame_of_the_branch_to_it() -> None:
    kernel = Kernel()
    link = kernel.call("__do_syscall", "early_exit")
    stack = bytes(160) + frame(SYSTEM_CALL, link) + entry(kernel)
    check(kernel.unwind(stack, pswa=AT["early_exit.cold"], r14=0x1234), "early_exit.cold")


@pytest.mark.parametrize(("offset", "moved"), [(0, 0), (4, 256), (10, 256), (14, 0)])
def test_a_frame_without_a_saved_return_address(offset: int, moved: int) -> None:
    """What lies in the caller's frame is of a call before."""
    kernel = Kernel()
    stale = kernel.call("__do_syscall", "vfs_read", 0x60)
    stack = bytes(moved) + frame(SYSTEM_CALL, stale) + entry(kernel)
    check(kernel.unwind(stack, pswa=AT["in_frame"] + offset, r14=kernel.call("__do_syscall", "in_frame")), "in_frame")


@pytest.mark.parametrize(("offset", "end"), [(12, "task"), (18, "window"), (22, "window"), (28, "window"), (34, "task")])
def test_amid_a_switch_of_tasks_there_is_no_stack_for_a_moment(offset: int, end: str) -> None:
    kernel = Kernel()
    stack = frame(SYSTEM_CALL, kernel.call("__do_syscall", "__switch_to_asm")) + entry(kernel)
    unwound = kernel.unwind(stack, pswa=AT["__switch_to_asm"] + offset, r14=0x55)
    if end == "task":
        check(unwound, "__switch_to_asm")
    else:
        assert names(unwound.callchain) == ["__switch_to_asm"]
        assert unwound.callchain.end is StackEnd.ENTRY_WINDOW


def test_an_interrupt_on_its_own_stack_leads_to_what_it_interrupted() -> None:
    kernel = Kernel()
    interrupted = trap(pswm=KERNEL, pswa=AT["vfs_read"], r15=CALLER, r14=kernel.call("__do_syscall", "vfs_read"))
    handler = CALLER - 360
    task = frame(0, kernel.call("ext_int_handler", "do_ext_irq")) + interrupted + frame(SYSTEM_CALL) + entry(kernel)
    task = frame(handler) + task
    chain_word = IRQ_TOP - 208
    irq = frame(handler, kernel.call("do_ext_irq", "do_irq_async"))
    unwound = kernel.unwind(
        task, (chain_word - 152 - 160, frame(chain_word - 152) + irq), pswa=AT["do_irq_async"] + 0x80, r15=chain_word - 312
    )
    check(unwound, "do_irq_async", "do_ext_irq", "ext_int_handler", "vfs_read")


def test_tasks_end_at_their_root() -> None:
    kernel = Kernel()
    stack = frame(SYSTEM_CALL, kernel.call("kthread", "vfs_read")) + frame(0, kernel.call("ret_from_fork", "kthread")) + bytes(200)
    chain = kernel.unwind(frame(CALLER) + stack, pswa=AT["vfs_read"] + 0x80).callchain
    assert names(chain) == ["vfs_read", "kthread", "ret_from_fork"]
    assert chain.end is StackEnd.TASK_ROOT


def lowcore(**words_at: tuple[int, int]) -> tuple[int, bytes]:
    """The part of the lowcore that a halt copies, with words at (address, value)."""
    data = bytearray(0x170)
    for address, value in words_at.values():
        struct.pack_into(">Q", data, address - 0x130, value)
    return 0x130, bytes(data)


def test_at_the_start_of_a_handler_the_old_psw_tells_what_was_interrupted() -> None:
    kernel = Kernel()
    saved = lowcore(mask=(0x130, KERNEL), address=(0x138, AT["vfs_read"] + 0x80))
    check(kernel.unwind(frame(CALLER) + in_call(kernel), saved, pswa=AT["ext_int_handler"]), "ext_int_handler", "vfs_read")
    later = kernel.unwind(frame(CALLER) + in_call(kernel), saved, pswa=AT["ext_int_handler"] + 6).callchain
    assert (names(later), later.end) == (["ext_int_handler"], StackEnd.ENTRY_WINDOW)


def test_the_last_instruction_of_the_way_out_is_in_the_lowcore() -> None:
    kernel = Kernel()
    saved = lowcore(mask=(0x290, USER), address=(0x298, USER_PC))
    unwound = kernel.unwind(b"", saved, pswa=0x400, r15=USER_SP)
    assert [frame.pc for frame in unwound.callchain.frames] == [0x400]
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert unwound.user_registers["pswa"] == USER_PC
    assert unwound.user_registers["r15"] == USER_SP
    without = kernel.unwind(b"", pswa=0x400, r15=USER_SP).callchain
    assert without.end is StackEnd.ENTRY_WINDOW


def test_any_address_is_the_kernels_while_it_translates_addresses() -> None:
    kernel = Kernel()
    assert kernel.unwind(b"", pswm=USER, pswa=AT["vfs_read"]).callchain.end is StackEnd.USER_MODE
    assert kernel.unwind(b"", pswm=0x1_8000_0000, pswa=AT["vfs_read"]).callchain.end is StackEnd.FIRMWARE


@pytest.mark.parametrize(
    "damaged",
    [
        {"pswm": USER | 1},  # reserved bits
        {"pswm": USER | 0x0000_C000_0000_0000},  # programs do not run in the home space
        {"pswm": 0x0404_4001_8000_0000},  # the kernel does
        {"pswm": USER & ~0x0400_0000_0000_0000},
        {"pswa": USER_PC + 1},
    ],
)
def test_a_trap_frame_that_no_exception_leaves_is_none(damaged: dict[str, int]) -> None:
    kernel = Kernel()
    broken = trap(**{"pswm": USER, "pswa": USER_PC, "r15": USER_SP, **damaged})
    chain = kernel.unwind(frame(CALLER) + in_call(kernel)[:-200] + broken, pswa=AT["vfs_read"] + 0x80).callchain
    assert names(chain) == ["vfs_read", "__do_syscall", "system_call"]
    assert chain.end is StackEnd.BAD_RETURN_ADDRESS


_WORD = st.one_of(
    st.sampled_from([*AT.values(), *(address + 0x46 for address in AT.values()), CALLER, SYSTEM_CALL, USER, KERNEL, 0]),
    st.integers(STACK, TOP).map(lambda address: address & -8),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_WORD, max_size=120), _WORD, st.sampled_from(sorted(AT.values())), st.integers(0, 40))
def test_damaged_stacks_end_with_a_reason(stack: list[int], link: int, function: int, instruction: int) -> None:
    kernel = Kernel()
    for name in ("vfs_read", "__do_syscall", "system_call"):
        kernel.call(name, "kthread")
    unwound = kernel.unwind(words(*stack), pswa=function + 2 * instruction, r14=link)
    assert 0 < len(unwound.callchain.frames) <= 256
    assert unwound.callchain.end in StackEnd
