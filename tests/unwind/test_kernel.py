"""Kernel stack walks on hand-made stacks: each way a walk can go, and each way a naive one goes wrong."""

from __future__ import annotations

import pytest

from recording.model import Callchain, Frame, Space, StackEnd
from recording.symbols import SymbolTable
from tests.builders.tiny_kernel import (
    AT_CALL,
    SAVED_RBP,
    STACK,
    STACK_TOP,
    TEXT,
    TinyKernel,
    capture,
    pt_regs,
    pushed,
    user_regs,
    words,
)
from unwind.arch.x86_64 import X86_64
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.outside import classify_outside_kernel
from unwind.rules import Memory, Row, RowKind

TRAP = Row(RowKind.TRAP, "rsp", 0)
PARTIAL = Row(RowKind.TRAP_PARTIAL, "rsp", 0)
END = Row(RowKind.END)
UNDEFINED = Row(RowKind.UNDEFINED)


def pcs(chain: Callchain) -> list[int]:
    return [frame.pc for frame in chain.frames]


def test_system_call_ends_at_the_user_registers() -> None:
    kernel = TinyKernel()
    read = kernel.function("vfs_read", pushed(2))
    syscall = kernel.function("do_syscall_64", pushed(1))
    entry = kernel.function("entry_SYSCALL_64", TRAP)
    in_syscall, in_entry = kernel.call_in(syscall), kernel.call_in(entry)
    stack = words(1, 2, in_syscall, 3, in_entry) + user_regs()
    unwound = kernel.unwinder().unwind(capture(read + 8, stack))
    assert unwound.callchain == Callchain(
        (Frame(read + 8, read + 8), Frame(in_syscall, in_syscall - 1), Frame(in_entry, in_entry - 1)), StackEnd.USER_ENTRY
    )
    assert unwound.user_registers is not None
    assert unwound.user_registers["rip"] == 0x7F00_0000_1000
    assert unwound.user_registers["rsp"] == 0x7FFD_0000_0000
    assert unwound.user_registers["rdi"] == 3


def test_user_registers_that_do_not_lie_at_a_stacks_top_are_not_believed() -> None:
    kernel = TinyKernel()
    entry = kernel.function("entry_SYSCALL_64", TRAP)
    unwound = kernel.unwinder().unwind(capture(entry, user_regs() + words(0)))
    assert unwound.callchain.end is StackEnd.BAD_RETURN_ADDRESS


def test_fred_padding_above_the_user_registers() -> None:
    kernel = TinyKernel()
    entry = kernel.function("entry_SYSCALL_64", TRAP)
    assert kernel.unwinder().unwind(capture(entry, user_regs() + words(0, 0))).callchain.end is StackEnd.USER_ENTRY


def test_interrupt_in_the_kernel_goes_on_with_the_interrupted_function() -> None:
    kernel = TinyKernel()
    handler = kernel.function("timer_interrupt", AT_CALL)
    entry = kernel.function("asm_sysvec_apic_timer_interrupt", TRAP)
    work = kernel.function("work", pushed(0))
    root = kernel.function("ret_from_fork", END)
    in_entry, in_root = kernel.call_in(entry), kernel.call_in(root)
    saved = pt_regs(rip=work + 4, cs=0x10, eflags=0x246, rsp=STACK_TOP - 8, ss=0x18)
    unwound = kernel.unwinder().unwind(capture(handler, words(in_entry) + saved + words(in_root)))
    assert unwound.callchain == Callchain(
        (
            Frame(handler, handler),
            Frame(in_entry, in_entry - 1),
            Frame(work + 4, work + 4),
            Frame(in_root, in_root - 1),
        ),
        StackEnd.TASK_ROOT,
    )
    assert unwound.user_registers is None


def test_interrupt_stack_leads_back_to_the_tasks_stack() -> None:
    kernel = TinyKernel()
    handler = kernel.function("handle_irq", AT_CALL)
    switch = kernel.function("common_interrupt", Row(RowKind.CALL, "rsp", 8, Memory.AFTER, kept=("rbp",)))
    entry = kernel.function("asm_common_interrupt", TRAP)
    in_switch, in_entry = kernel.call_in(switch), kernel.call_in(entry)
    task = words(in_entry) + user_regs()
    irq_top = STACK + 0x20_0000
    link = STACK_TOP - len(task)
    irq = words(in_switch, link)
    # The link word is *(SP) when the handler has returned: CFA = link + 8.
    unwound = kernel.unwinder().unwind(
        Capture(
            0,
            {"rip": handler, "rsp": irq_top - len(irq), "rbp": 0, "cs": 0x10},
            ((link, task), (irq_top - len(irq), irq)),
        )
    )
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert pcs(unwound.callchain) == [handler, in_switch, in_entry]


def test_frame_pointer_register_is_carried_through_frames() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", SAVED_RBP)
    middle = kernel.function("middle", Row(RowKind.CALL, "rbp", 16))
    root = kernel.function("ret_from_fork_asm", END)
    in_middle, in_root = kernel.call_in(middle), kernel.call_in(root)
    frame = STACK_TOP - 16
    stack = words(frame, in_middle, 7, 0, in_root)
    unwound = kernel.unwinder().unwind(capture(leaf, stack))
    assert unwound.callchain.end is StackEnd.TASK_ROOT
    assert pcs(unwound.callchain) == [leaf, in_middle, in_root]


def test_new_task_returns_to_the_start_of_its_root() -> None:
    """The byte before belongs to another function, whose row would send the walk astray."""
    kernel = TinyKernel()
    schedule = kernel.function("__schedule", AT_CALL)
    kernel.function("some_function_before", pushed(5))
    root = kernel.function("ret_from_fork_asm", END)
    unwound = kernel.unwinder().unwind(capture(schedule, words(root) + user_regs()))
    assert unwound.callchain == Callchain((Frame(schedule, schedule), Frame(root, root)), StackEnd.TASK_ROOT)


def test_thunk_is_not_the_end_of_the_stack() -> None:
    """In the first ORC version a thunk's row says END: a naive walk calls one frame a whole stack."""
    for row in (END, UNDEFINED):
        kernel = TinyKernel()
        thunk = kernel.function("__x86_indirect_thunk_rax", row)
        caller = kernel.function("caller", AT_CALL)
        root = kernel.function("ret_from_fork", END)
        in_caller, in_root = kernel.call_in(caller), kernel.call_in(root)
        unwound = kernel.unwinder().unwind(capture(thunk, words(in_caller, in_root)))
        assert pcs(unwound.callchain) == [thunk, in_caller, in_root]
        assert unwound.callchain.end is StackEnd.TASK_ROOT


def test_thunk_with_a_call_of_its_own_and_a_pending_target() -> None:
    kernel = TinyKernel()
    thunk = kernel.function("__x86_indirect_thunk_array", UNDEFINED)
    target = kernel.function("target", AT_CALL)
    caller = kernel.function("caller", AT_CALL)
    root = kernel.function("ret_from_fork", END)
    in_thunk, in_caller, in_root = kernel.call_in(thunk), kernel.call_in(caller), kernel.call_in(root)
    own_call = kernel.unwinder().unwind(capture(thunk + 0x30, words(in_thunk, in_caller, in_root)))
    assert pcs(own_call.callchain) == [thunk + 0x30, in_caller, in_root]
    pending = kernel.unwinder().unwind(capture(thunk + 0x38, words(target, in_caller, in_root)))
    assert pending.callchain == Callchain(
        (
            Frame(thunk + 0x38, thunk + 0x38),
            Frame(target, target),
            Frame(in_caller, in_caller - 1),
            Frame(in_root, in_root - 1),
        ),
        StackEnd.TASK_ROOT,
    )


def test_thunk_without_a_return_address_ends_with_a_reason() -> None:
    kernel = TinyKernel()
    thunk = kernel.function("srso_return_thunk", END)
    kernel.function("function", AT_CALL)
    unwound = kernel.unwinder().unwind(capture(thunk, words(0x1234, 0, 0, 0)))
    assert unwound.callchain == Callchain((Frame(thunk, thunk),), StackEnd.BAD_RETURN_ADDRESS)


def test_exception_entry_whose_row_says_partial_but_all_registers_are_saved() -> None:
    """Between ``call error_entry`` and ``mov %rax,%rsp``: the row counts an error code, everything lies at the stack pointer."""
    kernel = TinyKernel()
    entry = kernel.function("asm_exc_page_fault", Row(RowKind.TRAP_PARTIAL, "rsp", 8))
    unwound = kernel.unwinder().unwind(capture(entry + 9, user_regs()))
    assert unwound.callchain.end is StackEnd.USER_ENTRY
    assert unwound.user_registers is not None
    assert unwound.user_registers["rdi"] == 3


def test_exception_entry_with_what_the_processor_saved_keeps_the_live_registers() -> None:
    kernel = TinyKernel()
    entry = kernel.function("asm_exc_page_fault", PARTIAL)
    frame = words(0x7F00_0000_2000, 0x33, 0x246, 0x7FFD_0000_1000, 0x2B)
    unwound = kernel.unwinder().unwind(capture(entry, frame, rbp=0x77, r12=0x88))
    assert unwound.callchain == Callchain((Frame(entry, entry),), StackEnd.USER_ENTRY)
    assert unwound.user_registers is not None
    assert {name: unwound.user_registers[name] for name in ("rip", "rsp", "rbp", "r12")} == {
        "rip": 0x7F00_0000_2000,
        "rsp": 0x7FFD_0000_1000,
        "rbp": 0x77,
        "r12": 0x88,
    }


def test_trap_frame_with_selectors_that_no_processor_wrote() -> None:
    kernel = TinyKernel()
    entry = kernel.function("asm_exc_page_fault", TRAP)
    broken = pt_regs(rip=TEXT, cs=0x12345, rsp=STACK_TOP, ss=0x18)
    assert kernel.unwinder().unwind(capture(entry, broken)).callchain.end is StackEnd.BAD_RETURN_ADDRESS


def test_entry_code_without_a_stack_is_an_entry_window() -> None:
    kernel = TinyKernel()
    entry = kernel.function("entry_SYSCALL_64", END)
    undefined = kernel.function("swapgs_restore_regs_and_return_to_usermode", UNDEFINED)
    after = kernel.function("vfs_read", END)
    kernel.markers = [(entry, "T", "__entry_text_start"), (after, "T", "__entry_text_end")]
    # The function names must win over the markers at the same address.
    kernel.markers = [(address - 1, kind, name) for address, kind, name in kernel.markers]
    for pc in (entry, undefined):
        assert kernel.unwinder().unwind(capture(pc, words(0))).callchain == Callchain((Frame(pc, pc),), StackEnd.ENTRY_WINDOW)
    assert kernel.unwinder().unwind(capture(after + 1, words(0))).callchain.end is StackEnd.NO_UNWIND_INFO


def test_end_in_a_caller_that_is_no_root_is_not_a_whole_stack() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", AT_CALL)
    other = kernel.function("other", END)
    unwound = kernel.unwinder().unwind(capture(leaf, words(kernel.call_in(other))))
    assert unwound.callchain.end is StackEnd.NO_UNWIND_INFO


def test_idle_root() -> None:
    kernel = TinyKernel()
    idle = kernel.function("do_idle", AT_CALL)
    root = kernel.function("secondary_startup_64_no_verify", END)
    behind_the_far_return = root + 0x60
    chain = kernel.unwinder().unwind(capture(idle, words(behind_the_far_return))).callchain
    assert chain == Callchain((Frame(idle, idle), Frame(root + 0x60, root + 0x5F)), StackEnd.IDLE_ROOT)


def test_return_addresses_of_a_functions_calls_to_itself_are_skipped() -> None:
    """``FILL_RETURN_BUFFER`` in ``__switch_to_asm``: no row counts them, and each looks like a recursion."""
    kernel = TinyKernel()
    switch = kernel.function("__switch_to_asm", pushed(1))
    root = kernel.function("ret_from_fork", END)
    inside, in_root = kernel.call_in(switch), kernel.call_in(root)
    kernel.code[inside - 4 - TEXT : inside - TEXT] = b"\x01\x00\x00\x00"
    unwound = kernel.unwinder().unwind(capture(switch + 0x40, words(inside, inside, inside, 0, in_root)))
    assert unwound.callchain == Callchain((Frame(switch + 0x40, switch + 0x40), Frame(in_root, in_root - 1)), StackEnd.TASK_ROOT)


def test_row_of_an_alternative_that_is_not_there() -> None:
    """In 5.10 the rows of ``__switch_to_asm`` count a push too many for four bytes; those before and behind are right."""
    kernel = TinyKernel()
    switch = kernel.function("__switch_to_asm", pushed(1))
    root = kernel.function("ret_from_fork", END)
    in_root = kernel.call_in(root)
    for offset in range(0x2E, 0x32):
        kernel.rows[switch + offset] = pushed(2)
    chain = kernel.unwinder().unwind(capture(switch + 0x2F, words(0, in_root, 1, 2, 3))).callchain
    assert chain == Callchain((Frame(switch + 0x2F, switch + 0x2F), Frame(in_root, in_root - 1, guess=True)), StackEnd.TASK_ROOT)
    for offset in range(0x32, 0x60):
        kernel.rows[switch + offset] = pushed(3)
    chain = kernel.unwinder().unwind(capture(switch + 0x2F, words(0, in_root, 1, 2, 3))).callchain
    assert chain == Callchain((Frame(switch + 0x2F, switch + 0x2F),), StackEnd.BAD_RETURN_ADDRESS)


def test_entry_code_that_keeps_its_return_address_in_a_register() -> None:
    kernel = TinyKernel()
    entry = kernel.function("error_entry", AT_CALL)
    kernel.markers = [(entry - 1, "T", "__entry_text_start"), (entry + 0x100, "T", "__entry_text_end")]
    chain = kernel.unwinder().unwind(capture(entry + 0x1B, words(0x1234, 0))).callchain
    assert chain == Callchain((Frame(entry + 0x1B, entry + 0x1B),), StackEnd.ENTRY_WINDOW)


def test_pushf_pop_pair_that_paravirt_patched_in() -> None:
    kernel = TinyKernel()
    function = kernel.function("save_flags", AT_CALL)
    root = kernel.function("ret_from_fork", END)
    in_root = kernel.call_in(root)
    kernel.code[0x10:0x12] = b"\x9c\x58"
    between = function + 0x11
    assert kernel.unwinder().unwind(capture(between, words(0x246, in_root))).callchain == Callchain(
        (Frame(between, between), Frame(in_root, in_root - 1, guess=True)), StackEnd.TASK_ROOT
    )
    elsewhere = kernel.unwinder().unwind(capture(function + 0x30, words(0x246, in_root)))
    assert elsewhere.callchain == Callchain((Frame(function + 0x30, function + 0x30),), StackEnd.BAD_RETURN_ADDRESS)


def test_return_address_that_follows_no_call() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", AT_CALL)
    other = kernel.function("other", AT_CALL)
    assert kernel.unwinder().unwind(capture(leaf, words(other + 0x33, 0))).callchain == Callchain(
        (Frame(leaf, leaf),), StackEnd.BAD_RETURN_ADDRESS
    )


def test_call_that_the_kernel_has_patched_away_since() -> None:
    """Early in boot ``call __fentry__`` still ran; the code that was read later has a NOP there."""
    kernel = TinyKernel()
    leaf = kernel.function("__fentry__", AT_CALL)
    caller = kernel.function("caller", AT_CALL)
    kernel.function("ret_from_fork", END)
    stack = words(caller + 9, TEXT + 0x200)
    settled = kernel.unwinder().unwind(capture(leaf, stack)).callchain
    assert settled == Callchain((Frame(leaf, leaf),), StackEnd.BAD_RETURN_ADDRESS)
    unwinder = KernelUnwinder(X86_64, kernel.symbols(), kernel, kernel, is_settled=False)
    assert unwinder.unwind(capture(leaf, stack)).callchain == Callchain(
        (Frame(leaf, leaf), Frame(caller + 9, caller + 8), Frame(TEXT + 0x200, TEXT + 0x200)), StackEnd.TASK_ROOT
    )


def test_start_of_the_text_is_no_return_address() -> None:
    """No byte stands before it, so no call does."""
    kernel = TinyKernel()
    first = kernel.function("first", AT_CALL)
    leaf = kernel.function("leaf", AT_CALL)
    chain = kernel.unwinder().unwind(capture(leaf, words(first, 0))).callchain
    assert chain == Callchain((Frame(leaf, leaf),), StackEnd.BAD_RETURN_ADDRESS)


def test_stack_word_that_was_not_copied() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", pushed(3))
    assert kernel.unwinder().unwind(capture(leaf, words(1, 2))).callchain.end is StackEnd.UNREADABLE_MEMORY


def test_row_that_does_not_advance() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", Row(RowKind.CALL, "rbp", 0, kept=("rbp",)))
    in_leaf = kernel.call_in(leaf)
    stack = words(in_leaf, 0, 0, 0)
    chain = kernel.unwinder().unwind(capture(leaf, stack, rbp=STACK_TOP - 24)).callchain
    assert chain.end is StackEnd.DID_NOT_ADVANCE


def test_endless_stack_stops_at_the_depth_limit() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", AT_CALL)
    in_leaf = kernel.call_in(leaf)
    chain = kernel.unwinder().unwind(capture(leaf, words(*[in_leaf] * 300))).callchain
    assert chain.end is StackEnd.DEPTH_LIMIT
    assert len(chain.frames) == 256


def test_module_code_is_named_as_far_as_it_is_reached() -> None:
    kernel = TinyKernel()
    leaf = kernel.function("leaf", AT_CALL)
    module = 0xFFFF_FFFF_C012_3456
    chain = kernel.unwinder().unwind(capture(leaf, words(module, 0))).callchain
    assert chain == Callchain((Frame(leaf, leaf), Frame(module, module - 1)), StackEnd.NO_UNWIND_INFO)


def test_freed_boot_code_counts_as_code_whose_bytes_are_unknown() -> None:
    """The idle task of the boot CPU returns into ``start_kernel``, whose code is gone."""
    kernel = TinyKernel()
    idle = kernel.function("do_idle", AT_CALL)
    gone = TEXT + 0x10_0000
    kernel.rows[gone] = END
    symbols = SymbolTable.from_symbols([(idle, "t", "do_idle"), (gone, "t", "x86_64_start_kernel")])
    unwinder = KernelUnwinder(X86_64, symbols, kernel, kernel, (gone, gone + 0x1000))
    chain = unwinder.unwind(capture(idle, words(gone + 0x55))).callchain
    assert chain == Callchain((Frame(idle, idle), Frame(gone + 0x55, gone + 0x54)), StackEnd.IDLE_ROOT)


def test_user_and_firmware_code_have_no_kernel_stack() -> None:
    user = classify_outside_kernel(X86_64, {"rip": 0x40_1000, "cs": 0x33})
    assert user is not None
    assert user.callchain == Callchain((Frame(0x40_1000, 0x40_1000, Space.USER),), StackEnd.USER_MODE)
    assert user.user_registers == {"rip": 0x40_1000, "cs": 0x33}
    firmware = classify_outside_kernel(X86_64, {"rip": 0xFFF0, "cs": 0xF000})
    assert firmware is not None
    assert firmware.callchain == Callchain((Frame(0xFFF0, 0xFFF0, Space.FIRMWARE),), StackEnd.FIRMWARE)
    assert classify_outside_kernel(X86_64, {"rip": TEXT, "cs": 0x10}) is None


@pytest.mark.parametrize(
    ("registers", "address"),
    [
        ({"rip": 0xFFF0, "cs": 0xF000, "cr0": 0x10}, 0xF_FFF0),
        ({"rip": 0x1234, "cs": 0xC333, "cr0": 0x10}, 0xC_4564),
        ({"rip": 0xEC40, "cs": 0xF000, "cr0": 0x11}, 0xF_EC40),
        ({"rip": 0xEC40, "cs": 0x8, "cr0": 0x11}, 0xEC40),
        ({"rip": 0x7FF_0000, "cs": 0x10, "cr0": 0x11}, 0x7FF_0000),
    ],
)
def test_code_of_real_mode_lies_behind_its_segment(registers: dict[str, int], address: int) -> None:
    outside = classify_outside_kernel(X86_64, registers)
    assert outside is not None
    assert outside.callchain == Callchain((Frame(address, address, Space.FIRMWARE),), StackEnd.FIRMWARE)
