"""Rows of a kernel that is built with the unwind tables of the Arm EHABI.

    return address      by the table, which is made for calls; where it has nothing, by the code before the call
    interrupted         by the code, which knows prologues and epilogues; where it leaves a doubt, by the table
    entry code          registers of the interrupted code were saved at the stack pointer (arch/arm/kernel/entry-armv.S)
    __switch_to         which calls, but keeps nothing on the stack: behind the call of it in the scheduler
    roots of tasks      END

A return address is looked up one byte below itself, where no A32 instruction begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from recording.symbols import Symbol
from unwind.arch import Architecture
from unwind.arm_frame import State, frame_states
from unwind.ehabi import EhabiTable
from unwind.rules import Expression, Operation, Operator, Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource, find_range

_END = Row(RowKind.END)
_MAX_FUNCTION = 1 << 16
_MAX_UNKNOWN = 1 << 12
_UNKNOWN_STEP = 256
"""Bytes that are tried of a function of unknown size."""
_INSTRUCTION = 4
_KEPT = ("r6", "r8", "r9", "r10", "r11")
"""Those that ``__switch_to`` does not use before it takes over the next task's."""


class EhabiRows:
    """Rows for kernels without frame pointers whose code is A32."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, text: TextSource, table: EhabiTable | None) -> None:
        """table: None where the kernel has none that could be read."""
        code = architecture.kernel_code
        self._symbols = symbols
        self._text = text
        self._table = table
        self._roots = code.task_roots | code.idle_roots
        self._entry_text = find_range(symbols, code.entry_text)
        self._entry = Row(RowKind.TRAP_RECORD, architecture.sp)
        self._states: dict[int, Mapping[int, State]] = {}
        self._switch_name, scheduler = code.task_switch
        self._switch = self._return_row(symbols.find(self._switch_name), symbols.find(scheduler), architecture)

    def find_row(self, lookup_pc: int) -> Row | None:
        """The row for an address in code, None where neither table nor code tell."""
        symbol = self._symbols.find_at(lookup_pc)
        if symbol is not None and symbol.name in self._roots:
            return _END
        is_call = lookup_pc % _INSTRUCTION != 0
        if self._entry_text[0] <= lookup_pc < self._entry_text[1]:
            is_switch = is_call and symbol is not None and symbol.name == self._switch_name
            return self._switch if is_switch and self._switch is not None else self._entry
        row = self._table.find(lookup_pc)[1] if self._table is not None else None
        if symbol is None or (is_call and row is not None):
            return row
        state = self._states_of(symbol.address, symbol.size).get(lookup_pc & -_INSTRUCTION)
        if state is None:
            return row
        return (replace(state, has_link=False) if is_call else state).row() or row

    def _return_row(self, function: Symbol | None, caller: Symbol | None, architecture: Architecture) -> Row | None:
        """The row of a function that leaves the stack as it is and has one caller, None where that does not call it just once."""
        link = architecture.kernel_code.link
        code = None if caller is None else self._text.read(caller.address, min(caller.size, _MAX_FUNCTION))
        if function is None or caller is None or code is None or link is None:
            return None
        calls = [
            caller.address + at
            for at in range(0, len(code), _INSTRUCTION)
            if link.target(caller.address + at, code[at : at + _INSTRUCTION]) == function.address
        ]
        if len(calls) != 1:
            return None
        place = Expression((Operation(Operator.CONSTANT, calls[0] + _INSTRUCTION),), architecture.pointer_size)
        return Row(RowKind.CALL, architecture.sp, kept=_KEPT, return_address=Saved(architecture.pc, place, 0, is_value=True))

    def _states_of(self, start: int, size: int) -> Mapping[int, State]:
        if start not in self._states:
            # The last function of a module's start has no end that is known.
            sizes = (size,) if size else range(_MAX_UNKNOWN, 0, -_UNKNOWN_STEP)
            found = (self._text.read(start, each) for each in sizes if each <= _MAX_FUNCTION)
            code = next((code for code in found if code is not None), b"")
            self._states[start] = frame_states(start, code)
        return self._states[start]
