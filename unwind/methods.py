"""The unwinding method that an architecture names becomes rows for a kernel that has no unwind table."""

from __future__ import annotations

from unwind.arch import Architecture, UnwindMethod
from unwind.back_chain import BackChainRows
from unwind.ehabi import EhabiTable
from unwind.ehabi_rows import EhabiRows
from unwind.frame_pointer import FramePointerRows
from unwind.frame_record import FrameRecordRows
from unwind.prologue import PrologueRows
from unwind.pushed_frame import PushedFrameRows
from unwind.sources import RowSource, SymbolSource, TextSource
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
