"""Frame-pointer rows from a function's code, and a walk over a chain with an encoded trap frame."""

from __future__ import annotations

import pytest

from recording.model import Callchain, Frame, StackEnd
from recording.symbols import SymbolTable
from tests.builders.tiny_kernel import STACK_TOP, TEXT, TinyKernel, capture, user_regs, words
from unwind.arch.x86_64 import X86_64
from unwind.frame_pointer import FramePointerRows, keeps_frame_pointers
from unwind.kernel import KernelUnwinder
from unwind.rules import Row, RowKind, Saved

BODY = Row(RowKind.CALL, "rbp", 16, saved=(Saved("rbp", None, -16),), tagged=True, is_bound=True)
AT_CALL = Row(RowKind.CALL, "rsp", 8, kept=("rbp",))
PUSHED = Row(RowKind.CALL, "rsp", 16, saved=(Saved("rbp", None, -16),))

PLAIN = b"\x55\x48\x89\xe5\x90\x90\x90\x90" + b"\x90" * 16 + b"\x5d\xc3"
TRACED = b"\xf3\x0f\x1e\xfa\x0f\x1f\x44\x00\x00\x55\x48\x89\xe5" + b"\x90" * 11 + b"\x5d\xc3"
LEAF = b"\x31\xc0" + b"\x90" * 22 + b"\x90\xc3"


@pytest.mark.parametrize(
    ("code", "offset", "row"),
    [
        (PLAIN, 0, AT_CALL),
        (PLAIN, 1, PUSHED),
        (PLAIN, 4, BODY),
        (PLAIN, 20, BODY),
        (PLAIN, 25, AT_CALL),
        (TRACED, 0, AT_CALL),
        (TRACED, 4, AT_CALL),
        (TRACED, 9, AT_CALL),
        (TRACED, 10, PUSHED),
        (TRACED, 13, BODY),
        (LEAF, 0, AT_CALL),
    ],
)
def test_row_by_prologue(code: bytes, offset: int, row: Row) -> None:
    kernel = TinyKernel()
    address = kernel.function("f", None)
    kernel.code[: len(code)] = code
    assert FramePointerRows(kernel.symbols(), kernel).find_row(address + offset) == row


def test_no_row_below_the_first_symbol() -> None:
    kernel = TinyKernel()
    assert FramePointerRows(SymbolTable.from_symbols([(TEXT + 0x100, "t", "f")]), kernel).find_row(TEXT) is None


def test_walk_ends_at_the_encoded_user_registers() -> None:
    kernel = TinyKernel()
    leaf, middle = kernel.function("leaf", None), kernel.function("middle", None)
    entry = kernel.function("entry", None)
    kernel.code[: len(PLAIN)] = PLAIN
    kernel.code[0x100 : 0x100 + len(PLAIN)] = PLAIN
    in_middle, in_entry = kernel.call_in(middle), kernel.call_in(entry, 0x40)
    regs_at = STACK_TOP - 168
    stack = words(regs_at - 16, in_middle, regs_at | 1, in_entry) + user_regs()
    frame = STACK_TOP - len(stack)
    rows = FramePointerRows(kernel.symbols(), kernel)
    chain = KernelUnwinder(X86_64, kernel.symbols(), kernel, rows).unwind(capture(leaf + 8, stack, rbp=frame)).callchain
    assert chain == Callchain(
        (Frame(leaf + 8, leaf + 8), Frame(in_middle, in_middle - 1), Frame(in_entry, in_entry - 1)), StackEnd.USER_ENTRY
    )


@pytest.mark.parametrize(("codes", "expected"), [([PLAIN, TRACED, LEAF], True), ([LEAF, LEAF, PLAIN], False), ([], False)])
def test_whether_a_kernel_keeps_frame_pointers(codes: list[bytes], *, expected: bool) -> None:
    kernel = TinyKernel()
    for index, code in enumerate(codes):
        at = kernel.function(f"f{index}", None) - TEXT
        kernel.code[at : at + len(code)] = code
    assert keeps_frame_pointers(kernel.symbols(), kernel) is expected
