"""Frame records (AAPCS64 6.4.6) as rows: the frame pointer leads to two words, the caller's frame pointer and the return address.

    body of a function          CFA = fp + 16, caller's fp = *(CFA - 16), return address = *(CFA - 8)
    its return address is still in the link register
                                CFA = sp, nothing is saved
    entry code                  the record is part of the trap frame that the entry code has made (arch/arm64/kernel/entry.S)
    roots of tasks              END

The record lies at the lower end of a frame, so that the CFA is no more than a lower bound of the caller's stack pointer.
"""

from __future__ import annotations

from unwind.arch import Architecture
from unwind.kernel import SymbolSource, TextSource
from unwind.rules import Row, RowKind, Saved

_END = Row(RowKind.END)


class FrameRecordRows:
    """Rows for kernels that keep frame records everywhere."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, _text: TextSource) -> None:
        code, word = architecture.kernel_code, architecture.pointer_size
        self._symbols = symbols
        self._roots = code.task_roots | code.idle_roots
        low, high = (symbols.find(name) for name in code.entry_text)
        self._entry_text = (low.address, high.address) if low is not None and high is not None else (0, 0)
        leaf = None
        if code.link is not None:
            in_link = Saved(architecture.pc, code.link.name, 0, is_value=True)
            leaf = Row(RowKind.CALL, architecture.sp, kept=(architecture.fp,), return_address=in_link)
        self._body = Row(RowKind.CALL, architecture.fp, 2 * word, saved=(Saved(architecture.fp, None, -2 * word),), leaf=leaf)
        self._entry = Row(RowKind.TRAP_RECORD, architecture.fp)

    def find_row(self, lookup_pc: int) -> Row:
        """The row for an address in code."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is None:
            # A module begins with the veneers of its far calls (arch/arm64/kernel/module-plts.c), which no symbol names; and whole
            # modules may be unknown. The walker asks for nothing but code.
            return self._body
        if symbol.name in self._roots:
            return _END
        return self._entry if self._entry_text[0] <= lookup_pc < self._entry_text[1] else self._body
