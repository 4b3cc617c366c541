"""Rows for kernels that keep frame pointers and whose calls push the return address (i386: arch/x86/kernel/unwind_frame.c).

    body of a function      CFA = fp + 8, caller's fp = *(CFA - 8)
    before its frame        CFA = sp + 4
    after ``push %ebp``     CFA = sp + 8, caller's fp = *(CFA - 8)
    amid the prologue that aligns the stack pointer
                            CFA = ecx
    the frame is gone, or not made yet
                            as before it: see ``KernelUnwinder``, which asks whether the word at sp is the return address of a call
                            of this function
    entry code              calls C with the stack pointer at the trap frame (arch/x86/entry/entry_32.S); only exceptions encode
                            that in the frame pointer, and system calls leave the user's in it
    roots of tasks          END

Which part a PC is in is read from the function's code. GCC may make a frame late, behind a first test (shrink-wrapping).
"""

from __future__ import annotations

import re

from unwind.arch import Architecture
from unwind.rules import Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource, find_range

_FENTRY_SIZE = 5
"""A call, or a NOP of that size, with which a function begins that can be traced."""
_PUSH_FP = b"\x55"
_MOVE_FP = b"\x89\xe5"
_ALIGN = re.compile(rb"(?:\x57\x8d\x7c\x24\x08|(\x8d\x4c\x24\x04))\x83\xe4")
"""``lea 4(%esp),%ecx`` or ``push %edi; lea 8(%esp),%edi``, and ``and $-…,%esp``, behind which the return address is copied."""
_UNALIGN = re.compile(rb"\x8d(\x61\xfc|\x67\xf8)")
"""``lea -4(%ecx),%esp`` or ``lea -8(%edi),%esp; pop %edi`` before ``ret``."""
_LAST_POP = re.compile(rb"[\x58-\x5c\x5e\x5f]\xc3")
"""``pop`` of another register than the frame pointer before ``ret``: the frame is gone."""
_PUSHES = re.compile(rb"[\x50-\x57\x9c]+")
_LAST_POPS = re.compile(rb"([\x58-\x5f\x9d]*)(?:\xc3|(?<=[\x58-\x5f\x9d])[\xe9\xeb\xff])")
"""``pop`` and ``popf``, then ``ret`` or a jump."""
_LEA_SIZE, _ALIGN_SIZE = 4, 8
_COLD = ".cold"
"""GCC's suffix for a part of a function that lies elsewhere and is jumped to when the frame is there."""
_MAX_FUNCTION = 1 << 14


class PushedFrameRows:
    """Rows made from a function's code."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, text: TextSource) -> None:
        code, word, fp, sp = architecture.kernel_code, architecture.pointer_size, architecture.fp, architecture.sp
        self._word, self._fp, self._sp = word, fp, sp
        self._symbols = symbols
        self._text = text
        self._roots = code.task_roots | code.idle_roots
        self._entry_text = find_range(symbols, code.entry_text)
        saved = (Saved(fp, None, -2 * word),)
        self._at_call = Row(RowKind.CALL, sp, word, kept=(fp,))
        self._pushed = Row(RowKind.CALL, sp, 2 * word, saved=saved)
        self._one_left = Row(RowKind.CALL, sp, 2 * word, kept=(fp,))
        self._aligned = {name: Row(RowKind.CALL, name, 0, kept=(fp,)) for name in ("ecx", "edi")}
        # Not the caller's stack pointer where the prologue has aligned it.
        self._body = Row(RowKind.CALL, fp, 2 * word, saved=saved, leaf=self._at_call, is_bound=True)
        self._entry = Row(RowKind.TRAP_RECORD, sp)
        self._end = Row(RowKind.END)
        self._frames: dict[int, tuple[int, int] | None] = {}

    def find_row(self, lookup_pc: int) -> Row:
        """The row for an address in code."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is None or lookup_pc >= symbol.address + symbol.size:
            # The walker asks for nothing but code: that of a module which is not known.
            return self._body
        if symbol.name in self._roots:
            return self._end
        if self._entry_text[0] <= lookup_pc < self._entry_text[1]:
            return self._entry
        return self._body if _COLD in symbol.name else self._row_in(symbol.address, symbol.size, lookup_pc)

    def _row_in(self, start: int, size: int, lookup_pc: int) -> Row:
        """The row for an address in a function that begins at ``start``."""
        code = self._text.read(lookup_pc, 3)
        if code is None:
            # Boot code that was freed since.
            return self._body
        unaligned = _UNALIGN.match(code)
        if unaligned is not None:
            return self._aligned["ecx" if unaligned[1] == b"\x61\xfc" else "edi"]
        frame = self._find_frame(start, size)
        if frame is None:
            return self._without_frame(start, size, lookup_pc)
        if _LAST_POP.match(code):
            return self._one_left
        push, body = frame
        if lookup_pc >= body:
            return self._body
        return self._pushed if lookup_pc > push else self._before_frame(start, lookup_pc)

    def _before_frame(self, start: int, lookup_pc: int) -> Row:
        for head in (start, start + _FENTRY_SIZE):
            aligns = _ALIGN.match(self._text.read(head, _ALIGN_SIZE) or b"")
            if aligns is None:
                continue
            into = lookup_pc - head
            if aligns[1]:
                return self._aligned["ecx"] if into >= _LEA_SIZE else self._at_call
            return self._aligned["edi"] if into > _LEA_SIZE else self._one_left if into >= 1 else self._at_call
        return self._at_call

    def _without_frame(self, start: int, size: int, lookup_pc: int) -> Row:
        """In a function that makes no frame: what it pushes at its start, it pops before it returns or jumps elsewhere."""
        code = self._text.read(start, min(size, _MAX_FUNCTION)) or b""
        into = lookup_pc - start
        pushes = _PUSHES.match(code)
        last = _LAST_POPS.match(code, into)
        there = code[: min(into, pushes.end())] if pushes else b""
        count = len(last[1]) if last is not None and into >= len(there) else len(there)
        word = self._word
        if _PUSH_FP in there[:count]:
            saved = (Saved(self._fp, None, -(2 + there.index(_PUSH_FP)) * word),)
            return Row(RowKind.CALL, self._sp, (1 + count) * word, saved=saved)
        return Row(RowKind.CALL, self._sp, (1 + count) * word, kept=(self._fp,))

    def _find_frame(self, start: int, size: int) -> tuple[int, int] | None:
        """Where a function has ``push %ebp``, and where the instruction behind ``mov %esp,%ebp``; None if it makes no frame."""
        if start not in self._frames:
            code = self._text.read(start, min(size, _MAX_FUNCTION)) or b""
            move = code.find(_MOVE_FP)
            # GCC may put other instructions between the two.
            heads = [at for at in (0, _FENTRY_SIZE) if code.startswith(_PUSH_FP, at) and at < move]
            push = heads[0] if heads else code.rfind(_PUSH_FP, 0, max(move, 0))
            self._frames[start] = None if push < 0 else (start + push, start + move + len(_MOVE_FP))
        return self._frames[start]
