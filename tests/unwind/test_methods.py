"""Which row a kernel's code is unwound by, where debug information has one too; and walks by such rows, on arm64 and s390x."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from guest.text import TextImage
from recording.model import StackEnd
from recording.symbols import SymbolTable
from tests.unwind.test_frame_record import AT, CALLERS, STACK, TOP, Kernel, capture, names, system_call, words
from unwind.arch import UnwindMethod
from unwind.arch.arm64 import ARM64
from unwind.kernel import KernelUnwinder
from unwind.methods import choose_row, frame_rows
from unwind.rules import Expression, Operation, Operator, Row, RowKind, Saved

CODE = 0x1000
DEBUG = Row(RowKind.CALL, "sp", 32)
OWN = Row(RowKind.CALL, "fp", 16)
UNDEFINED = Row(RowKind.UNDEFINED)
CHAIN = Row(RowKind.CALL, expression=Expression((Operation(Operator.REGISTER, 0, "sp"), Operation(Operator.LOAD)), 8))


class Rows:
    """Rows by the code's own addresses, each until the next."""

    def __init__(self, rows: Mapping[int, Row | None], *, bare: bool = False) -> None:
        self.rows = rows
        self.bare = bare

    def find_row(self, lookup_pc: int) -> Row | None:
        starts = [start for start in self.rows if start <= lookup_pc]
        return self.rows[max(starts)] if starts else None

    def is_bare(self, _lookup_pc: int) -> bool:
        return self.bare


def chosen(method: UnwindMethod, own: Row | None, debug: Row | None, *, at: int = CODE, has_table: bool = False) -> Row | None:
    return choose_row(method, own, Rows({CODE: debug}), at, has_table=has_table)


@pytest.mark.parametrize("method", UnwindMethod)
def test_entry_code_roots_and_changes_of_stacks_stay(method: UnwindMethod) -> None:
    for kind in (RowKind.END, RowKind.TRAP, RowKind.TRAP_PARTIAL, RowKind.TRAP_RECORD, RowKind.TRAP_PUSHED):
        assert chosen(method, Row(kind), DEBUG) == Row(kind)
    assert chosen(method, CHAIN, DEBUG) is CHAIN


@pytest.mark.parametrize("method", UnwindMethod)
def test_debug_information_is_taken_where_there_is_nothing_else(method: UnwindMethod) -> None:
    for own in (None, UNDEFINED):
        row = chosen(method, own, DEBUG, has_table=True)
        assert row is not None
        assert (row.register, row.offset, row.otherwise) == ("sp", 32, UNDEFINED)


@pytest.mark.parametrize("method", UnwindMethod)
@pytest.mark.parametrize("debug", [None, UNDEFINED, Row(RowKind.END)])
def test_debug_information_that_says_nothing(method: UnwindMethod, debug: Row | None) -> None:
    for own in (None, UNDEFINED, OWN):
        assert chosen(method, own, debug) is own


@pytest.mark.parametrize(
    ("method", "has_table", "amid", "behind_call"),
    [
        (UnwindMethod.ORC, True, OWN, OWN),
        (UnwindMethod.ORC, False, DEBUG, DEBUG),
        (UnwindMethod.EHABI, False, DEBUG, OWN),
        (UnwindMethod.STACK_CHAIN, False, DEBUG, OWN),
        (UnwindMethod.BACK_CHAIN, False, DEBUG, OWN),
        (UnwindMethod.FRAME_RECORDS, False, DEBUG, DEBUG),
        (UnwindMethod.PUSHED_FRAMES, False, DEBUG, DEBUG),
        (UnwindMethod.PROLOGUES, False, DEBUG, DEBUG),
    ],
)
def test_what_is_better_known(method: UnwindMethod, has_table: bool, amid: Row, behind_call: Row) -> None:
    for at, expected in ((CODE + 4, amid), (CODE + 7, behind_call)):
        row = chosen(method, OWN, DEBUG, at=at, has_table=has_table)
        assert row is not None
        assert row.register == expected.register
        assert row.otherwise == (OWN if expected is DEBUG else None)


def test_assembler_whose_entry_does_not_follow_its_stack() -> None:
    own = Row(RowKind.CALL, "sp", 304)
    for other, expected in ((Row(RowKind.CALL, "sp", 0), own), (Row(RowKind.CALL, "sp", 304, kept=("s0",)), None)):
        row = choose_row(UnwindMethod.PROLOGUES, own, Rows({CODE: other}, bare=True), CODE, has_table=False)
        assert row is not None
        assert row == expected or row.otherwise is own
    assert chosen(UnwindMethod.PROLOGUES, own, Row(RowKind.CALL, "sp", 0)) != own


def test_a_guess_in_a_kernel_with_a_table() -> None:
    """A module without ORC."""
    row = chosen(UnwindMethod.ORC, Row(RowKind.CALL, "fp", 16, guess=True), DEBUG, has_table=True)
    assert row is not None
    assert row.register == "sp"
    assert not row.guess


def unwinder(kernel: Kernel, debug: Mapping[int, Row | None]) -> KernelUnwinder:
    """Of arm64, with rows of debug information."""
    symbols = SymbolTable.from_symbols([(address, "t", name) for name, address in AT.items()])
    text = TextImage([(TEXT, bytes(kernel.code))])
    own, rows = frame_rows(ARM64, symbols, text), Rows(debug)

    class Both:
        def find_row(self, lookup_pc: int) -> Row | None:
            return choose_row(UnwindMethod.FRAME_RECORDS, own.find_row(lookup_pc), rows, lookup_pc, has_table=False)

    return KernelUnwinder(ARM64, symbols, text, Both())


TEXT = min(AT.values())
IN_X9 = Row(RowKind.CALL, "sp", 16, kept=("x29",), return_address=Saved("pc", "x9", 0, is_value=True))
LINKED = Row(RowKind.CALL, "sp", 0, kept=("x29",), return_address=Saved("pc", "x30", 0, is_value=True))


def test_a_leaf_that_keeps_its_return_address_elsewhere() -> None:
    """The record alone would leave out its caller, whose own record it is."""
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "memcpy")
    halted = capture(words(0, 0) + stack, pc=AT["memcpy"] + 0x14, x29=record, x30=0, x9=link)
    without = kernel.unwinder().unwind(halted).callchain
    found = unwinder(kernel, {AT["memcpy"]: IN_X9, AT["memcpy"] + 0x40: None}).unwind(halted).callchain
    assert names(without) == ["memcpy", *CALLERS[1:]]
    assert (names(found), found.end) == (["memcpy", *CALLERS], StackEnd.USER_ENTRY)
    assert found.frames[1].pc == link


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(IN_X9, id="no return address there"),
        pytest.param(Row(RowKind.CALL, "x19", 8), id="a register that is not known"),
        pytest.param(Row(RowKind.CALL, "sp", -0x100000), id="memory that is not known"),
    ],
)
def test_a_row_that_leads_nowhere(row: Row) -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "memcpy")
    halted = capture(stack, pc=AT["memcpy"] + 0x14, x29=record, x30=link, x9=STACK)
    found = unwinder(kernel, {AT["memcpy"]: row, AT["memcpy"] + 0x40: None}).unwind(halted).callchain
    assert found == kernel.unwinder().unwind(halted).callchain
    assert (names(found), found.end) == (["memcpy", *CALLERS], StackEnd.USER_ENTRY)


def test_a_row_that_leads_down_the_stack() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "memcpy")
    below = words(0, kernel.call("el0_svc", "vfs_read", 0x30), 0, 0)
    halted = capture(below + stack, pc=AT["memcpy"] + 0x14, x29=record, x30=link, sp=TOP - len(stack))
    row = Row(RowKind.CALL, "sp", -16)
    found = unwinder(kernel, {AT["memcpy"]: row, AT["memcpy"] + 0x40: None}).unwind(halted).callchain
    assert (names(found), found.end) == (["memcpy", *CALLERS], StackEnd.USER_ENTRY)


def test_a_stack_pointer_that_is_only_a_bound() -> None:
    """``ksys_read`` has 96 bytes above its record: behind its frame's own row no row counts from the stack pointer."""
    kernel = Kernel()
    base = TOP - 336
    handler, svc, read = base - 48, base - 96, base - 144 - 96
    lie = kernel.call("el0_svc", "vfs_read", 0x30)
    stack = words(svc, kernel.call("el0_svc", "ksys_read"), *[lie] * 16)
    stack += words(handler, kernel.call("el0t_64_sync_handler", "el0_svc"), 0, 0, 0, 0)
    stack += words(base + 304, kernel.call("el0t_64_sync", "el0t_64_sync_handler"), 0, 0, 0, 0)
    stack += system_call(kernel)[0][-336:]
    halted = capture(stack, pc=AT["ksys_read"] + 0x14, x29=read, x30=kernel.call("ksys_read", "memcpy", 0x10))
    counted = Row(RowKind.CALL, "sp", 48, saved=(Saved("x29", None, -48),), return_address=Saved("pc", None, -40))
    found = unwinder(kernel, {AT["el0_svc"]: counted, AT["el0t_64_sync_handler"]: None}).unwind(halted).callchain
    assert names(found) == CALLERS
    pointed = Row(RowKind.CALL, "x29", 48, saved=(Saved("x29", None, -48),), return_address=Saved("pc", None, -40))
    again = unwinder(kernel, {AT["el0_svc"]: pointed, AT["el0t_64_sync_handler"]: counted, AT["memcpy"]: None})
    assert again.unwind(halted).callchain == found
    assert found.end is StackEnd.USER_ENTRY


def test_interrupted_code_has_its_stack_pointer_again() -> None:
    kernel = Kernel()
    stack, record = system_call(kernel)
    link = kernel.call("ksys_read", "memcpy")
    halted = capture(stack, pc=AT["memcpy"] + 0x14, x29=record, x30=link)
    found = unwinder(kernel, {AT["memcpy"]: LINKED, AT["memcpy"] + 0x40: None}).unwind(halted).callchain
    assert (names(found), found.end) == (["memcpy", *CALLERS], StackEnd.USER_ENTRY)
