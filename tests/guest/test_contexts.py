from __future__ import annotations

import pytest

from guest.contexts import ContextFinder
from recording.model import Callchain, Context, Frame, Space, StackEnd, Task
from unwind.arch.x86_64 import X86_64

NAMES = {
    1: "vfs_read",
    2: "do_syscall_64",
    3: "entry_SYSCALL_64_after_hwframe",
    4: "asm_sysvec_apic_timer_interrupt",
    5: "handle_softirqs",
    6: "asm_exc_page_fault",
    7: "asm_exc_nmi",
    8: "pv_native_safe_halt",
    9: "default_idle",
    10: "do_idle",
    11: "cpu_startup_entry",
    12: "kthread",
    13: "ret_from_fork_asm",
    14: "start_kernel",
    15: "net_rx_action",
    16: "asm_int80_emulation",
    17: "do_int80_syscall_32",
}
SHELL = Task(42, 42, "sh", "sh", is_kernel_thread=False)
KTHREAD = Task(7, 7, "kworker/0:1", "kworker/0:1", is_kernel_thread=True)
IDLE = Task(0, 0, "swapper/0", "swapper/0", is_kernel_thread=True)


@pytest.mark.parametrize(
    ("leaf_first", "end", "task", "expected"),
    [
        ((1, 2, 3), StackEnd.USER_ENTRY, SHELL, (Context.SYSTEM_CALL, True)),
        ((17, 16), StackEnd.USER_ENTRY, SHELL, (Context.SYSTEM_CALL, True)),
        ((4, 1, 2, 3), StackEnd.USER_ENTRY, SHELL, (Context.HARD_IRQ, True)),
        ((15, 5, 4, 1, 2, 3), StackEnd.USER_ENTRY, SHELL, (Context.SOFT_IRQ, True)),
        ((4, 15, 5, 4, 1, 2, 3), StackEnd.USER_ENTRY, SHELL, (Context.HARD_IRQ, True)),
        ((1, 6), StackEnd.USER_ENTRY, SHELL, (Context.PAGE_FAULT, False)),
        ((1, 6, 1, 2, 3), StackEnd.USER_ENTRY, SHELL, (Context.PAGE_FAULT, True)),
        ((1, 7), StackEnd.USER_ENTRY, SHELL, (Context.EXCEPTION, False)),
        ((8, 9, 10, 11, 14), StackEnd.IDLE_ROOT, IDLE, (Context.IDLE, False)),
        ((8, 9, 10, 11, 14), StackEnd.IDLE_ROOT, None, (Context.IDLE, False)),
        ((4, 8, 9, 10, 11, 14), StackEnd.IDLE_ROOT, IDLE, (Context.HARD_IRQ, False)),
        ((10, 11, 14), StackEnd.IDLE_ROOT, KTHREAD, (Context.KERNEL_THREAD, False)),
        ((1, 14), StackEnd.IDLE_ROOT, IDLE, (Context.KERNEL_THREAD, False)),
        ((1, 12, 13), StackEnd.TASK_ROOT, KTHREAD, (Context.KERNEL_THREAD, False)),
        ((13,), StackEnd.TASK_ROOT, SHELL, (Context.SYSTEM_CALL, True)),
        ((1,), StackEnd.UNREADABLE_MEMORY, SHELL, (Context.UNKNOWN, False)),
        ((1,), StackEnd.UNREADABLE_MEMORY, None, (Context.UNKNOWN, False)),
        ((3,), StackEnd.ENTRY_WINDOW, SHELL, (Context.SYSTEM_CALL, True)),
    ],
)
def test_context_is_the_innermost(
    leaf_first: tuple[int, ...], end: StackEnd, task: Task | None, expected: tuple[Context, bool]
) -> None:
    chain = Callchain(tuple(Frame(pc, pc) for pc in leaf_first), end)
    assert ContextFinder(X86_64, NAMES.get).find(chain, task, None) == expected


def test_registers_tell_a_system_call_from_an_exception_where_no_function_does() -> None:
    finder = ContextFinder(X86_64, NAMES.get)
    chain = Callchain((Frame(1, 1),), StackEnd.USER_ENTRY)
    assert finder.find(chain, SHELL, {"orig_rax": 39})[0] is Context.SYSTEM_CALL
    assert finder.find(chain, SHELL, {"orig_rax": 0xFFFF_FFFF_FFFF_FFFF})[0] is Context.EXCEPTION


def test_without_a_kernel_stack() -> None:
    finder = ContextFinder(X86_64, NAMES.get)
    user = Callchain((Frame(1, 1, Space.USER),), StackEnd.USER_MODE)
    assert finder.find(user, SHELL, {}) == (Context.USER, False)
    firmware = Callchain((Frame(1, 1, Space.FIRMWARE),), StackEnd.FIRMWARE)
    assert ContextFinder.without_kernel(firmware) == (Context.FIRMWARE, False)
    assert ContextFinder.without_kernel(Callchain((Frame(1, 1),), StackEnd.NO_KERNEL)) == (Context.UNKNOWN, False)
