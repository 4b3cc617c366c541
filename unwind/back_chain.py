"""Back chains (ELFv2 ABI 2.2.2.1) as rows: the word at the stack pointer is the caller's, whose frame has the return address.

    behind a call               CFA = *sp, return address = *(CFA + 2 words)
    amid a function             the same; CFA = sp before it has made its frame and after it has taken it down; the return address
                                is in the link register, or another one, until it is saved
    on another stack            that function switched to (call_do_irq, arch/powerpc/kernel/irq.c), whose first frame leads back to
                                the function's own: CFA = **sp
    entry code                  the frame is one that it has made to save registers in; a marker tells
    roots of tasks              END

What a halted function has done so far its code tells (``unwind/code_flow.py``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from unwind.arch import Architecture
from unwind.code_flow import FollowedCode, follow_code
from unwind.machine_code import FrameState
from unwind.rules import Expression, Memory, Operation, Operator, Row, RowKind, Saved
from unwind.sources import SymbolSource, TextSource, find_range

_END = Row(RowKind.END)
_MAX_FUNCTION = 1 << 16
_MAX_KEPT = 1 << 10
_SWITCH_STEPS = 3
"""Instructions that link and enter another stack, and what compilers put between them."""
_COLD = ".cold"
"""GCC's suffix for a part of a function that lies elsewhere."""
_ENTERED = FrameState()
_IN_BODY = FrameState(pushed=1, is_saved=True)
_SWITCHED = FrameState(pushed=1, is_saved=True, is_on_other=True)
_NOTHING = FollowedCode({}, {})


class BackChainRows:
    """Rows for kernels that keep back chains everywhere."""

    def __init__(self, architecture: Architecture, symbols: SymbolSource, text: TextSource) -> None:
        code, machine = architecture.kernel_code, architecture.kernel_code.machine_code
        if machine is None:
            raise ValueError(f"{architecture.name} names a method that needs to follow its code, but not how")
        self._symbols, self._text, self._machine = symbols, text, machine
        self._roots = code.task_roots | code.idle_roots
        self._entry_text = find_range(symbols, code.entry_text)
        self._entry_functions = code.entry_functions
        self._entry = Row(RowKind.TRAP_RECORD, architecture.sp)
        self._followed: OrderedDict[int, FollowedCode] = OrderedDict()
        self._rows: dict[FrameState, Row] = {}
        self._sp, self._word = architecture.sp, architecture.pointer_size
        self._saved = Saved(architecture.pc, None, 2 * self._word)
        self._linked = Saved(architecture.pc, code.link.name, 0, is_value=True) if code.link is not None else self._saved

    def find_row(self, lookup_pc: int) -> Row:
        """The row for an instruction in code, or for the call that ends behind an address within one."""
        symbol = self._symbols.find_at(lookup_pc)
        size = self._machine.size
        if symbol is not None:
            if symbol.name in self._roots:
                return _END
            if self._entry_text[0] <= lookup_pc < self._entry_text[1] or symbol.name in self._entry_functions:
                return self._entry
        if lookup_pc % size:
            return self._row(self._behind_call(lookup_pc - lookup_pc % size))
        if symbol is None or self._machine.is_veneer(self._text.read(lookup_pc, self._machine.veneer_size) or b""):
            # No symbol names the veneers of a module's far calls; they lie behind its last function.
            return self._row(_ENTERED)
        followed = self._follow(symbol.address, symbol.size, symbol.name)
        return self._row(followed.states.get(lookup_pc, _IN_BODY))

    def _behind_call(self, call: int) -> FrameState:
        """In front of a call on another stack, and only there, the stack pointer is set from a register."""
        size = self._machine.size
        before = self._text.read(call - _SWITCH_STEPS * size, _SWITCH_STEPS * size)
        if before is None:
            return _IN_BODY
        state = _IN_BODY
        for at in range(0, len(before), size):
            state = self._machine.step(state, before[at : at + size])
        return _SWITCHED if state.is_on_other else _IN_BODY

    def _row(self, state: FrameState) -> Row:
        row = self._rows.get(state)
        if row is None:
            place = self._saved if state.is_saved else self._linked
            if state.is_link_used and not state.is_saved and state.copy:
                place = replace(self._linked, base=state.copy)
            if state.is_on_other:
                load = Operation(Operator.LOAD)
                chain = Expression((Operation(Operator.REGISTER, 0, self._sp), load, load), self._word)
                row = Row(RowKind.CALL, return_address=place, expression=chain)
            else:
                memory = Memory.BEFORE if state.pushed else Memory.NONE
                row = Row(RowKind.CALL, self._sp, memory=memory, return_address=place)
            self._rows[state] = row
        return row

    def _follow(self, start: int, size: int, name: str) -> FollowedCode:
        known = self._followed.get(start)
        if known is None:
            known = self._follow_anew(start, size, name)
            self._followed[start] = known
            if len(self._followed) > _MAX_KEPT:
                self._followed.popitem(last=False)
        return known

    def _follow_anew(self, start: int, size: int, name: str) -> FollowedCode:
        code = self._text.read(start, min(size, _MAX_FUNCTION))
        if code is None:
            return _NOTHING
        entry = _ENTERED
        if _COLD in name:
            parent = self._symbols.find(name.partition(_COLD)[0])
            main = _NOTHING if parent is None else self._follow(parent.address, parent.size, parent.name)
            exits = [state for address, state in main.exits.items() if start <= address < start + len(code)]
            entry = exits[0] if exits else _IN_BODY
        return follow_code(self._machine, start, code, entry)
