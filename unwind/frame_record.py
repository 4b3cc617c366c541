"""Frame records as rows: the frame pointer leads to two words, the caller's frame pointer and the return address.

    body of a function          CFA = behind the record, caller's fp = *(CFA - 16), return address = *(CFA - 8)
    its return address is still in the link register
                                CFA = sp, nothing is saved; or the record lacks nothing but that
    entry code                  the record is part of the trap frame that the entry code has made (arch/arm64/kernel/entry.S),
                                or the frame is at CFA = sp, and the frame pointer is the stack pointer that it was pushed at
                                (arch/riscv/kernel/entry.S)
    the switch from task to task
                                CFA = sp, caller's fp = CFA + what the caller's code says, the return address is in the register
    roots of tasks              END

arm64's record (AAPCS64 6.4.6) lies at the lower end of a frame, so that the CFA is no more than a lower bound of the caller's stack
pointer; riscv64's (ELF psABI, 2.2) at the upper end, but for functions with variable arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from recording.symbols import Symbol
from unwind.arch import Architecture
from unwind.rules import Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource, find_range

_END = Row(RowKind.END)
_PROLOGUE = 64
"""Bytes of a function in which it sets its frame pointer."""


class FrameRecordRows:
    """Rows for kernels that keep frame records everywhere."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, text: TextSource) -> None:
        code, word = architecture.kernel_code, architecture.pointer_size
        self._symbols = symbols
        self._roots = code.task_roots | code.idle_roots
        self._entry_text = find_range(symbols, code.entry_text)
        leaf = in_link = None
        if code.link is not None:
            in_link = Saved(architecture.pc, code.link.name, 0, is_value=True)
            leaf = Row(RowKind.CALL, architecture.sp, kept=(architecture.fp,), return_address=in_link)
        saved_fp = Saved(architecture.fp, None, -2 * word)
        offset = code.frame_record + 2 * word
        in_frame = Row(RowKind.CALL, architecture.fp, offset, saved=(saved_fp,), return_address=in_link, is_bound=True)
        self._body = replace(in_frame, return_address=None, leaf=leaf, leaf_in_frame=in_frame)
        is_record = bool(code.trap.records)
        self._entry = Row(RowKind.TRAP_RECORD, architecture.fp) if is_record else Row(RowKind.TRAP_PUSHED, architecture.sp)
        self._switch_name, caller = code.task_switch
        self._switch = self._body
        height = self._frame_height(symbols.find(caller), text, code.frame_height) if caller else None
        if height is not None:
            own_fp = Saved(architecture.fp, None, height, is_value=True)
            self._switch = Row(RowKind.CALL, architecture.sp, saved=(own_fp,), return_address=in_link)

    @staticmethod
    def _frame_height(function: Symbol | None, text: TextSource, height_of: Callable[[bytes], int | None]) -> int | None:
        code = None if function is None else text.read(function.address, min(function.size, _PROLOGUE))
        return None if code is None else height_of(code)

    def find_row(self, lookup_pc: int) -> Row:
        """The row for an address in code."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is None:
            # A module begins with the veneers of its far calls (arch/arm64/kernel/module-plts.c), which no symbol names; and whole
            # modules may be unknown. The walker asks for nothing but code.
            return self._body
        if symbol.name in self._roots:
            return _END
        if symbol.name == self._switch_name:
            return self._switch
        return self._entry if self._entry_text[0] <= lookup_pc < self._entry_text[1] else self._body
