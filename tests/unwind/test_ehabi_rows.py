"""armhf's kernel stacks, of a few literal words each: calls, leaves, saved registers of both kinds, interrupts, a switch."""

from __future__ import annotations

import struct

import pytest

from guest.text import TextImage
from recording.model import Callchain, StackEnd
from recording.symbols import SymbolTable
from unwind.arch.armhf import ARMHF
from unwind.capture import Capture
from unwind.ehabi import EhabiTable
from unwind.kernel import KernelUnwinder
from unwind.methods import frame_rows
from unwind.outside import Unwound

TEXT, TABLE = 0xC030_0000, 0xC031_0000
STACK, IRQ_STACK = 0xE081_4000, 0xE080_0000
TOP = STACK + 0x2000
SIZE = 0x100
NOP, RETURN = 0xE1A0_0000, 0xE12F_FF1E
PUSH, POP, ROOM, NO_ROOM = 0xE92D_4010, 0xE8BD_8010, 0xE24D_D00C, 0xE28D_D00C  # push {r4, lr}; pop {r4, pc}; sp -= 12; sp += 12
USER_PC, USER_SP = 0x1_2344, 0xBEFF_F000
CANTUNWIND = 1

CODE: dict[str, tuple[list[int], int]] = {
    "__entry_text_start": ([], CANTUNWIND),
    "ret_fast_syscall": ([], CANTUNWIND),
    "__irq_svc": ([], CANTUNWIND),
    "__irq_usr": ([], CANTUNWIND),
    "__switch_to": ([], CANTUNWIND),
    "ret_from_fork": ([NOP] * 4 + [0x11A0_F005], CANTUNWIND),
    "__entry_text_end": ([], CANTUNWIND),
    "sys_read": ([PUSH, NOP, NOP, POP], 0x80A8_B0B0),
    "vfs_read": ([PUSH, ROOM, NOP, NOP, NO_ROOM, POP], 0x8002_A8B0),
    "memcpy": ([NOP, RETURN], CANTUNWIND),
    "call_with_stack": ([0xE92D_4800, 0xE1A0_B00D, 0xE1A0_D002], 0x809B_8480),
    "generic_handle_arch_irq": ([PUSH], 0x80A8_B0B0),
    "kthread": ([PUSH], 0x80A8_B0B0),
    "__schedule": ([0xE92D_4800, 0xE1A0_B00D], 0x809B_8480),
    "atomic_notifier_call_chain": ([PUSH], 0x80A8_B0B0),
    "secondary_start_kernel": ([], CANTUNWIND),
    "do_idle": ([PUSH], 0x80A8_B0B0),
}
AT = {name: TEXT + SIZE * index for index, name in enumerate(CODE)}


def bl(address: int, target: int) -> int:
    return 0xEB00_0000 | (target - address - 8 >> 2 & 0xFF_FFFF)


class Kernel:
    """Functions that are what their table says; calls are written where a test wants them."""

    def __init__(self) -> None:
        self.code = bytearray()
        for instructions, _unwinding in CODE.values():
            self.code += struct.pack(f"<{SIZE // 4}I", *instructions, *[NOP] * (SIZE // 4 - len(instructions)))

    def call(self, caller: str, callee: str, at: int = 0x40) -> int:
        """The return address of a call."""
        address = AT[caller] + at
        struct.pack_into("<I", self.code, address - TEXT, bl(address, AT[callee]))
        return address + 4

    def unwinder(self, *, has_table: bool = True) -> KernelUnwinder:
        symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
        text = TextImage([(TEXT, bytes(self.code))])
        words: list[int] = []
        for index, (name, (_code, unwinding)) in enumerate(CODE.items()):
            words += [AT[name] - TABLE - 8 * index & 0x7FFF_FFFF, unwinding]
        table = EhabiTable(TABLE, struct.pack(f"<{len(words)}I", *words), b"")
        return KernelUnwinder(ARMHF, symbols, text, frame_rows(ARMHF, symbols, text, table if has_table else None))


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def saved(**registers: int) -> bytes:
    """``struct pt_regs``."""
    data = bytearray(72)
    for name, value in registers.items():
        struct.pack_into("<I", data, ARMHF.kernel_code.trap.full[name], value)
    return bytes(data)


USER = saved(r7=3, pc=USER_PC, sp=USER_SP, lr=0x1_2000, cpsr=0x6000_0030, orig_r0=5) + bytes(8)
CALLERS = ["sys_read", "ret_fast_syscall"]


def system_call() -> bytes:
    """The stack from ``sys_read``'s frame on: r4, the return address, two arguments, the user's registers."""
    return words(0x44, AT["ret_fast_syscall"], 0, 0) + USER


def unwind(kernel: Kernel, stack: bytes, *others: tuple[int, bytes], has_table: bool = True, **registers: int) -> Unwound:
    """``stack`` ends at the top of the task's."""
    sp = TOP - len(stack)
    given = {"sp": sp, "cpsr": 0x6000_0013, "lr": 0, "r11": 0, **registers}
    return kernel.unwinder(has_table=has_table).unwind(Capture(0, given, tuple(sorted([(sp, stack), *others]))))


def names(chain: Callchain) -> list[str]:
    return [next(name for name, start in AT.items() if start <= frame.lookup_pc < start + SIZE) for frame in chain.frames]


@pytest.mark.parametrize("has_table", [True, False])
def test_system_call(has_table: bool) -> None:
    kernel = Kernel()
    stack = words(0, 0, 0, 0x99, kernel.call("sys_read", "vfs_read", 8)) + system_call()
    unwound = unwind(kernel, stack, has_table=has_table, pc=AT["vfs_read"] + 8)
    assert names(unwound.callchain) == ["vfs_read", *CALLERS]
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.callchain.frames[-1].lookup_pc == AT["ret_fast_syscall"]
    assert unwound.user_registers is not None
    assert (unwound.user_registers["pc"], unwound.user_registers["sp"], unwound.user_registers["r7"]) == (USER_PC, USER_SP, 3)


@pytest.mark.parametrize(
    ("offset", "pushed"),
    [(0, 0), (4, 8), (8, 20), (0x10, 20), (0x14, 8)],
    ids=["start", "pushed", "body", "epilogue", "return"],
)
def test_amid_prologue_and_epilogue(offset: int, pushed: int) -> None:
    kernel = Kernel()
    link = kernel.call("sys_read", "vfs_read")
    own = bytes(12) + words(0x99, link)
    unwound = unwind(kernel, own[len(own) - pushed :] + system_call(), pc=AT["vfs_read"] + offset, lr=link if not offset else 7)
    assert names(unwound.callchain) == ["vfs_read", *CALLERS]
    assert unwound.callchain.end is StackEnd.USER_ENTRY


def test_a_leaf() -> None:
    kernel = Kernel()
    stack = words(0, 0, 0, 0x99, kernel.call("sys_read", "vfs_read")) + system_call()
    unwound = unwind(kernel, stack, pc=AT["memcpy"] + 4, lr=kernel.call("vfs_read", "memcpy"))
    assert names(unwound.callchain) == ["memcpy", "vfs_read", *CALLERS]


@pytest.mark.parametrize("mode", [0x13, 0x10])
def test_interrupt_on_a_stack_of_its_own(mode: int) -> None:
    """call_with_stack's frame pointer leads back; the interrupted function is amid its prologue."""
    kernel = Kernel()
    link = kernel.call("sys_read", "vfs_read")
    entry = "__irq_svc" if mode == 0x13 else "__irq_usr"
    if mode == 0x13:
        stack = system_call()
        registers = saved(pc=AT["vfs_read"], sp=TOP - len(stack), lr=link, r11=0x11, cpsr=0x6000_0013)
        stack = registers + bytes(8) + stack
    else:
        stack = USER
    frame = words(0x11, kernel.call(entry, "call_with_stack"))
    irq = words(0x22, kernel.call("call_with_stack", "generic_handle_arch_irq"))
    unwound = unwind(
        kernel,
        frame + stack,
        (IRQ_STACK + 0x1F00, irq),
        sp=IRQ_STACK + 0x1F00,
        r11=TOP - len(frame + stack),
        pc=AT["generic_handle_arch_irq"] + 4,
    )
    rest = ["vfs_read", *CALLERS] if mode == 0x13 else []
    assert names(unwound.callchain) == ["generic_handle_arch_irq", "call_with_stack", entry, *rest]
    assert unwound.callchain.end is StackEnd.USER_ENTRY


def test_kernel_thread_and_new_task() -> None:
    kernel = Kernel()
    # ret_from_fork calls by "movne pc, r5".
    unwound = unwind(kernel, words(0, AT["ret_from_fork"] + 20), pc=AT["kthread"] + 4)
    assert names(unwound.callchain) == ["kthread", "ret_from_fork"]
    assert unwound.callchain.end is StackEnd.TASK_ROOT
    unwound = unwind(kernel, words(0, AT["ret_from_fork"]), pc=AT["kthread"] + 4)
    assert unwound.callchain.frames[-1].lookup_pc == AT["ret_from_fork"]
    assert unwound.callchain.end is StackEnd.TASK_ROOT


def test_idle_task() -> None:
    kernel = Kernel()
    unwound = unwind(kernel, words(0, kernel.call("secondary_start_kernel", "do_idle")), pc=AT["do_idle"] + 4)
    assert names(unwound.callchain) == ["do_idle", "secondary_start_kernel"]
    assert unwound.callchain.end is StackEnd.IDLE_ROOT


def test_a_function_whose_end_is_not_known() -> None:
    """The last one of a module's start; here of the kernel."""
    kernel = Kernel()
    stack = words(0, kernel.call("secondary_start_kernel", "do_idle"))
    unwound = unwind(kernel, stack, has_table=False, pc=AT["do_idle"] + 0x20)
    assert list(AT)[-1] == "do_idle"
    assert unwound.callchain.end is StackEnd.IDLE_ROOT


def test_notifiers_amid_a_switch() -> None:
    """``__switch_to`` calls them without having saved its return address: it has one caller, which has a frame pointer."""
    kernel = Kernel()
    kernel.call("__schedule", "__switch_to", 0x80)
    outer = words(0x11, kernel.call("kthread", "__schedule")) + words(0, AT["ret_from_fork"] + 20)
    notifier = words(0, kernel.call("__switch_to", "atomic_notifier_call_chain"))
    stack = notifier + bytes(16) + outer
    unwound = unwind(kernel, stack, pc=AT["atomic_notifier_call_chain"] + 4, r11=TOP - len(outer))
    assert names(unwound.callchain) == ["atomic_notifier_call_chain", "__switch_to", "__schedule", "kthread", "ret_from_fork"]
    assert unwound.callchain.end is StackEnd.TASK_ROOT
    kernel.call("__schedule", "__switch_to", 0x90)
    unwound = unwind(kernel, stack, pc=AT["atomic_notifier_call_chain"] + 4, r11=TOP - len(outer))
    assert not unwound.callchain.end.is_proper


@pytest.mark.parametrize(
    ("pc", "mode"),
    [(AT["__irq_svc"], 0x13), (AT["__switch_to"] + 8, 0x13), (0xFFFF_0018, 0x12), (0xFFFF_1040, 0x12)],
)
def test_entry_windows(pc: int, mode: int) -> None:
    unwound = unwind(Kernel(), system_call(), pc=pc, cpsr=0x6000_0180 | mode)
    assert unwound.callchain.end is StackEnd.ENTRY_WINDOW
    assert len(unwound.callchain.frames) == 1


def test_a_vcpu_that_ran_on_from_a_vector_has_saved_all_registers() -> None:
    """What it has interrupted is behind the vector, as if it had been halted there."""
    kernel = Kernel()
    link = kernel.call("sys_read", "vfs_read")
    stack = system_call()
    stack = saved(pc=AT["vfs_read"], sp=TOP - len(stack), lr=link, r11=0x11, cpsr=0x6000_0013) + bytes(8) + stack
    chain = unwind(kernel, stack, pc=0xFFFF_0018).callchain
    assert [frame.pc for frame in chain.frames][:3] == [0xFFFF_0018, AT["vfs_read"], link]
    assert chain.end is StackEnd.USER_ENTRY
    user = unwind(kernel, USER, pc=0xFFFF_0018)
    assert (len(user.callchain.frames), user.callchain.end) == (1, StackEnd.USER_ENTRY)
    assert user.user_registers is not None
    assert (user.user_registers["pc"], user.user_registers["sp"]) == (USER_PC, USER_SP)
    # The vector of system calls, which enter in that mode.
    assert unwind(kernel, USER, pc=0xFFFF_0008).callchain.end is StackEnd.ENTRY_WINDOW


@pytest.mark.parametrize(
    ("user", "end"),
    [
        (USER[:64] + words(0x6000_0013) + USER[68:], StackEnd.BAD_RETURN_ADDRESS),  # the kernel's mode, the user's addresses
        (USER[:-4], StackEnd.BAD_RETURN_ADDRESS),  # not at the top
        (b"", StackEnd.UNREADABLE_MEMORY),
    ],
)
def test_no_user_registers(user: bytes, end: StackEnd) -> None:
    unwound = unwind(Kernel(), words(0, AT["ret_fast_syscall"], 0, 0) + user, pc=AT["sys_read"] + 4)
    assert unwound.callchain.end is end


def test_a_return_address_without_a_call_is_none() -> None:
    unwound = unwind(Kernel(), words(0, AT["vfs_read"] + 0x40, 0, 0) + USER, pc=AT["sys_read"] + 4)
    assert names(unwound.callchain) == ["sys_read"]
    assert unwound.callchain.end is StackEnd.BAD_RETURN_ADDRESS
