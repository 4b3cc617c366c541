"""States of call frame instructions become rows of the rules."""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal

from recording.errors import BadImageError
from unwind.cfa_expression import parse_expression
from unwind.cfa_program import WINDOW, Cfa, Common, Rule, State, Where
from unwind.dwarf import Reader
from unwind.rules import Expression, Memory, Operator, Row, RowKind, Saved
from unwind.user_abi import UserAbi

_MAX_CACHED = 1 << 14


class Lowering:
    """Makes rows of states, the same row for the same state."""

    __slots__ = ("_abi", "_byteorder", "_rows")

    def __init__(self, abi: UserAbi, byteorder: Literal["little", "big"]) -> None:
        self._abi = abi
        self._byteorder: Literal["little", "big"] = byteorder
        self._rows: dict[tuple[State, int, bool], Row] = {}

    def lower(self, state: State, common: Common) -> Row:
        """The row; its kind is UNDEFINED where the rules cannot say it."""
        key = (state, common.return_column, common.is_signal)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= _MAX_CACHED:
                self._rows.clear()
            row = self._rows[key] = self._lower(state, common)
        return row

    def _lower(self, state: State, common: Common) -> Row:
        abi = self._abi
        cfa, rules = state[0], dict(state[1])
        where = rules.pop(common.return_column, (Rule.SAME, 0))
        if where[0] is Rule.UNDEFINED:
            return Row(RowKind.END)
        return_address = self._in_register(common.return_column) if where[0] is Rule.SAME else self._saved(abi.pc, where)
        base = self._lower_cfa(cfa)
        if return_address is None or base is None:
            return Row(RowKind.UNDEFINED)
        saved = [Saved(abi.sp, None, -abi.stack_bias, is_value=True)] if abi.stack_bias else []
        has_window = rules.pop(WINDOW, None) is not None
        kept = [name for name in abi.callee_saved if not has_window or name not in abi.windowed]
        for number, where in rules.items():
            if number >= len(abi.registers):
                continue
            name = abi.registers[number]
            if where[0] is Rule.SAME:
                if name not in kept:
                    kept.append(name)
                continue
            if name in kept:
                kept.remove(name)
            if (one := self._saved(name, where)) is not None:
                saved.append(one)
        register, offset, memory, expression = base
        is_usual = return_address == Saved(abi.pc, None, -abi.pointer_size)
        return Row(
            RowKind.CALL,
            register,
            offset,
            memory,
            tuple(saved),
            tuple(kept),
            return_address=None if is_usual else return_address,
            expression=expression,
            is_signal=common.is_signal,
        )

    def _in_register(self, column: int) -> Saved | None:
        """The return address where no row says otherwise: in the register that calls leave it in."""
        names = self._abi.registers
        is_link = column < len(names) and names[column] != self._abi.pc
        return Saved(self._abi.pc, names[column], 0, is_value=True) if is_link else None

    def _saved(self, name: str, where: Where) -> Saved | None:
        rule, what = where
        is_value = rule in (Rule.VALUE_OFFSET, Rule.VALUE_EXPRESSION, Rule.REGISTER)
        if isinstance(what, bytes):
            expression = self._parse(what)
            if expression is None:
                return None
            if [operation.operator for operation in expression.operations] == [Operator.REGISTER]:
                operation = expression.operations[0]
                return Saved(name, operation.register, operation.number, is_value)
            return Saved(name, expression, 0, is_value)
        if rule is Rule.REGISTER:
            return Saved(name, self._abi.registers[what], 0, is_value) if what < len(self._abi.registers) else None
        return Saved(name, None, what, is_value) if rule in (Rule.OFFSET, Rule.VALUE_OFFSET) else None

    def _lower_cfa(self, cfa: Cfa) -> tuple[str, int, Memory, Expression | None] | None:
        names = self._abi.registers
        if isinstance(cfa, tuple):
            return (names[cfa[0]], cfa[1], Memory.NONE, None) if cfa[0] < len(names) else None
        expression = None if cfa is None else self._parse(cfa)
        if expression is None:
            return None
        operators = [operation.operator for operation in expression.operations]
        if operators in ([Operator.REGISTER], [Operator.REGISTER, Operator.LOAD]):
            first = expression.operations[0]
            return first.register, first.number, Memory.NONE if len(operators) == 1 else Memory.BEFORE, None
        return "", 0, Memory.NONE, expression

    def _parse(self, code: bytes) -> Expression | None:
        try:
            return parse_expression(Reader(code, 0, self._abi.pointer_size, self._byteorder), self._abi.registers)
        except BadImageError:
            return None


class FunctionRows:
    """The rows of one function [start, end)."""

    __slots__ = ("_common", "_starts", "_states", "end", "start")

    def __init__(self, common: Common, start: int, end: int, rows: list[tuple[int, State]]) -> None:
        self._common = common
        self.start = start
        self.end = end
        self._starts = [address for address, _state in rows]
        self._states = [state for _address, state in rows]

    @property
    def is_bare(self) -> bool:
        """Whether its entry has nothing but what it builds upon: a leaf, or assembler whose author did not care."""
        return self._states == [self._common.initial]

    def find(self, address: int, lowering: Lowering) -> Row | None:
        """The row for an address, None outside of the function."""
        if not self.start <= address < self.end:
            return None
        index = bisect_right(self._starts, address) - 1
        return lowering.lower(self._states[index], self._common) if index >= 0 else None
