"""Frame-pointer rows for kernels without a usable unwind table (x86-64: arch/x86/kernel/unwind_frame.c).

    body of a function      CFA = fp + 16, caller's fp = *(CFA - 16)
    before ``push %rbp``    CFA = sp + 8
    after it, before the new frame pointer is set
                            CFA = sp + 16, caller's fp = *(CFA - 16)
    at ``ret``              CFA = sp + 8

Which part a PC is in is read from the function's first bytes. In a kernel that keeps no frame pointers the walk meets a word that
is no return address and ends there.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from recording.symbols import Symbol
from unwind.rules import Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource

_ENDBR = b"\xf3\x0f\x1e\xfa"
_FENTRY_CALL = 0xE8
_FENTRY_NOP = b"\x0f\x1f\x44\x00\x00"
_PUSH_FP = b"\x55"
_MOVE_FP = b"\x48\x89\xe5"
_RETURN = b"\xc3"
_CALL = b"\xe8"
_PROLOGUE_BYTES = 16
_LOOKED_AT = 512
"""Functions. Those that need no frame at all are few; without frame pointers nearly none has one."""

_BODY = Row(RowKind.CALL, "rbp", 16, saved=(Saved("rbp", None, -16),), tagged=True, is_bound=True)
_AT_CALL = Row(RowKind.CALL, "rsp", 8, kept=("rbp",))
_PUSHED = Row(RowKind.CALL, "rsp", 16, saved=(Saved("rbp", None, -16),))


def keeps_frame_pointers(functions: Iterable[Symbol], text: TextSource) -> bool:
    """Whether a kernel was built with frame pointers, by how some of its functions begin."""
    codes = (text.read(function.address, _PROLOGUE_BYTES) for function in functions if function.size >= _PROLOGUE_BYTES)
    with_frame = [_PUSH_FP + _MOVE_FP in code for code in islice((code for code in codes if code), _LOOKED_AT)]
    return 2 * sum(with_frame) > len(with_frame)


class FramePointerRows:
    """Rows made from a function's code, for kernels that keep frame pointers."""

    def __init__(self, symbols: SymbolSource, text: TextSource) -> None:
        self._symbols = symbols
        self._text = text

    def find_row(self, lookup_pc: int) -> Row | None:
        """The row for an address in a known function, else None."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is None:
            return None
        if self._text.read(lookup_pc, 1) == _RETURN and self._text.read(lookup_pc - 4, 1) != _CALL:
            # Of a return address the last byte of a call is looked up, which may look like a return.
            return _AT_CALL
        into = lookup_pc - symbol.address
        if into >= _PROLOGUE_BYTES:
            return _BODY
        code = self._text.read(symbol.address, _PROLOGUE_BYTES)
        if code is None:
            return _BODY
        push = len(_ENDBR) if code.startswith(_ENDBR) else 0
        if code[push] == _FENTRY_CALL or code.startswith(_FENTRY_NOP, push):
            push += len(_FENTRY_NOP)
        if code[push : push + 1] != _PUSH_FP:
            # The BPF compiler puts an instruction or two before it (arch/x86/net/bpf_jit_comp.c, emit_prologue).
            push = max(push, code.find(_PUSH_FP + _MOVE_FP, push))
        if code[push : push + 1] != _PUSH_FP:
            return _BODY if into > push else _AT_CALL
        if into <= push:
            return _AT_CALL
        return _PUSHED if code.startswith(_MOVE_FP, push + 1) and into < push + 1 + len(_MOVE_FP) else _BODY
