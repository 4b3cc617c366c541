"""Which rows a kernel's code is unwound by: those of its own tables, of debug information, or those that follow from its code.

Debug information (DWARF's call frame information, in a file of this machine) is exact at each instruction of what was compiled, but
says nothing of assembler, and something wrong where inline assembler has changed to another stack. So what comes first is

    the kernel's own table      ORC everywhere, EHABI for calls
    words that lead on          back chains, for calls: they lead through changes of stacks, too
    entry code, roots of tasks  what their own rows say
    debug information           where it has a row that leads to where a call returns
    code, frame pointers        where it has none, or its row leads nowhere
"""

from __future__ import annotations

from dataclasses import replace

from unwind.arch import Architecture, UnwindMethod
from unwind.back_chain import BackChainRows
from unwind.ehabi import EhabiTable
from unwind.ehabi_rows import EhabiRows
from unwind.frame_pointer import FramePointerRows
from unwind.frame_record import FrameRecordRows
from unwind.prologue import PrologueRows
from unwind.pushed_frame import PushedFrameRows
from unwind.rules import Row, RowKind
from unwind.sources import DebugSource, RowSource, SymbolSource, TextSource
from unwind.stack_chain import StackChainRows


def frame_rows(architecture: Architecture, symbols: SymbolSource, text: TextSource, table: EhabiTable | None = None) -> RowSource:
    """Rows that follow from the kernel's code and symbols, and from a table that says nothing of what lies amid a function."""
    match architecture.kernel_code.method:
        case UnwindMethod.ORC:
            return FramePointerRows(symbols, text)
        case UnwindMethod.FRAME_RECORDS:
            return FrameRecordRows(architecture, symbols, text)
        case UnwindMethod.PUSHED_FRAMES:
            return PushedFrameRows(architecture, symbols, text)
        case UnwindMethod.STACK_CHAIN:
            return StackChainRows(architecture, symbols, text)
        case UnwindMethod.PROLOGUES:
            return PrologueRows(architecture, symbols, text)
        case UnwindMethod.EHABI:
            return EhabiRows(architecture, symbols, text, table)
        case UnwindMethod.BACK_CHAIN:
            return BackChainRows(architecture, symbols, text)


_UNDEFINED = Row(RowKind.UNDEFINED)


def choose_row(method: UnwindMethod, own: Row | None, debug: DebugSource, lookup_pc: int, *, has_table: bool) -> Row | None:
    """The row for an address by what the kernel itself tells (own) and debug information; has_table: it has ORC."""
    if own is not None and _is_certain(method, own, lookup_pc, has_table=has_table):
        return own
    row = debug.find_row(lookup_pc)
    if row is None or row.kind is not RowKind.CALL:
        return own
    if own is not None and own.register == row.register and own.offset != row.offset and debug.is_bare(lookup_pc):
        # MIPS' assembler has an entry for each function, but none says what the code has done to the stack (asm/asm.h, LEAF).
        return own
    return replace(row, otherwise=own if own is not None else _UNDEFINED)


def _is_certain(method: UnwindMethod, own: Row, lookup_pc: int, *, has_table: bool) -> bool:
    """Whether debug information cannot tell better."""
    if own.kind is not RowKind.CALL:
        return own.kind is not RowKind.UNDEFINED
    if own.expression is not None:
        # From one stack to another.
        return True
    match method:
        case UnwindMethod.ORC:
            return has_table and not own.guess
        case UnwindMethod.EHABI | UnwindMethod.STACK_CHAIN | UnwindMethod.BACK_CHAIN:
            # Where a call returns is looked up one byte before, which is no instruction's address.
            return lookup_pc % 2 == 1
    return False
