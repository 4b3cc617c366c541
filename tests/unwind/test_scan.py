"""The last resort: guesses behind a walk that could not go on, and none behind any other."""

from __future__ import annotations

from recording.model import Frame, StackEnd
from tests.builders.tiny_kernel import STACK_TOP, TinyKernel, capture, pushed, user_regs, words
from unwind.capture import Capture
from unwind.outside import Unwound
from unwind.rules import Row, RowKind
from unwind.scan import scan_stack


def scanned(kernel: TinyKernel, halted: Capture) -> Unwound:
    unwinder = kernel.unwinder()
    return scan_stack(unwinder.unwind(halted), halted, 8, unwinder.return_address)


def test_words_behind_calls_are_guesses_and_the_end_stays() -> None:
    kernel = TinyKernel()
    unknown = kernel.function("assembler", None)
    first, second = kernel.call_in(kernel.function("vfs_read", pushed(0))), kernel.call_in(kernel.function("ksys_read", pushed(0)))
    not_behind_a_call = second + 0x20
    chain = scanned(kernel, capture(unknown + 8, words(1, first, not_behind_a_call, 2, second) + user_regs())).callchain
    assert chain.frames == (
        Frame(unknown + 8, unknown + 8),
        Frame(first, first - 1, guess=True),
        Frame(second, second - 1, guess=True),
    )
    assert chain.end is StackEnd.NO_UNWIND_INFO
    assert not chain.end.is_proper


def test_guesses_begin_where_the_walk_ended() -> None:
    """What lies below belongs to frames that are known."""
    kernel = TinyKernel()
    leaf, unknown = kernel.function("memcpy", pushed(2)), kernel.function("assembler", None)
    in_unknown, caller = kernel.call_in(unknown), kernel.call_in(kernel.function("vfs_read", pushed(0)))
    chain = scanned(kernel, capture(leaf + 8, words(caller, 2, in_unknown, 3, caller) + user_regs())).callchain
    assert [(frame.pc, frame.guess) for frame in chain.frames] == [(leaf + 8, False), (in_unknown, False), (caller, True)]


def test_whole_stacks_and_entry_windows_have_no_guesses() -> None:
    kernel = TinyKernel()
    kernel.markers = []
    entry = kernel.function("entry_SYSCALL_64", Row(RowKind.TRAP, "rsp", 0))
    caller = kernel.call_in(kernel.function("do_syscall_64", pushed(0)))
    whole = scanned(kernel, capture(entry, user_regs()))
    assert (len(whole.callchain.frames), whole.callchain.end) == (1, StackEnd.USER_ENTRY)
    kernel.markers = [(entry, "T", "__entry_text_start"), (entry + 0x100, "T", "__entry_text_end")]
    kernel.rows[entry] = Row(RowKind.END)
    window = scanned(kernel, capture(entry, words(caller)))
    assert (len(window.callchain.frames), window.callchain.end) == (1, StackEnd.ENTRY_WINDOW)


def test_the_scan_has_bounds() -> None:
    kernel = TinyKernel()
    unknown = kernel.function("assembler", None)
    caller = kernel.call_in(kernel.function("vfs_read", pushed(0)))
    chain = scanned(kernel, capture(unknown, words(*[caller] * 1000), top=STACK_TOP)).callchain
    assert len(chain.frames) == 1 + 32
    far = scanned(kernel, capture(unknown, words(*[0] * 600, caller), top=STACK_TOP)).callchain
    assert len(far.frames) == 1
