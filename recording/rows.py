"""Samples of several recordings become rows that these have in common: which rows a stack counts for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from recording.blocks import Cell
from recording.matching import UNNAMED, Key, function_key, module_name, task_name
from recording.model import FrameKind
from recording.names import Function
from recording.processes import Owner
from recording.views import context_owner, system_call_owner


class CompareBy(StrEnum):
    """What the rows of a comparison are."""

    FUNCTION = "function"
    PATH = "path"
    MODULE = "module"
    PROCESS = "process"
    THREAD = "thread"
    VCPU = "vcpu"
    CONTEXT = "context"
    SYSTEM_CALL = "system-call"

    @property
    def has_callees(self) -> bool:
        """Whether rows have time of their own beside that of what they called."""
        return self in {CompareBy.FUNCTION, CompareBy.PATH, CompareBy.MODULE}


class Rows:
    """Numbers rows in the order in which they are met.

    keys: what each is counted by. names: as the recordings have it, where they agree, else that of the key.
    parents: the row of the caller, -1 at a root (of a comparison by path).
    """

    def __init__(self, by: CompareBy, *, with_tasks: bool) -> None:
        """with_tasks: whether paths begin with the process."""
        self._by = by
        self._with_tasks = with_tasks
        self.keys: list[Key] = []
        self.names: list[str] = []
        self.parents: list[int] = []
        self._numbers: dict[tuple[int, Key], int] = {}
        self._keys: dict[int, Key] = {}
        self._places: dict[tuple[int, int], tuple[int, ...]] = {}

    def number_of(self, function: Function) -> int | None:
        """The row of a function (of a comparison by function), None where no sample has it."""
        return self._numbers.get((-1, function_key(function)))

    def place(self, cell: Cell) -> tuple[int, ...]:
        """The rows that a cell counts for, each once and the innermost last; none where it is no row's."""
        by = self._by
        if not by.has_callees:
            owner = _OWNERS[by](cell)
            return (
                () if owner is None else (self._number(-1, Key(task_name(owner.root_name), "", owner.kind), task_name(owner.name)),)
            )
        process = cell.origin.process if by is CompareBy.PATH and self._with_tasks else None
        known = (id(cell.stack), id(cell.origin) if process is not None else 0)
        if known not in self._places:
            self._places[known] = self._path(cell, process) if by is CompareBy.PATH else self._functions(cell)
        return self._places[known]

    def _functions(self, cell: Cell) -> tuple[int, ...]:
        of_module = self._by is CompareBy.MODULE
        numbers = []
        for function in cell.stack.functions:
            if of_module:
                name = module_name(function)
                numbers.append(self._number(-1, Key(name, "", function.kind), name))
            else:
                numbers.append(self._number(-1, self._key(function), function.name))
        innermost = numbers.pop()
        return (*dict.fromkeys(number for number in numbers if number != innermost), innermost)

    def _path(self, cell: Cell, process: Owner | None) -> tuple[int, ...]:
        numbers: list[int] = []
        if process is not None:
            name = task_name(process.root_name)
            numbers.append(self._number(-1, Key(name, "", process.kind), name))
        for function in cell.stack.functions:
            numbers.append(self._number(numbers[-1] if numbers else -1, self._key(function), function.name))
        return tuple(numbers)

    def _key(self, function: Function) -> Key:
        known = self._keys.get(id(function))
        if known is None:
            # It stays alive with its profile.
            known = self._keys[id(function)] = function_key(function)
        return known

    def _number(self, parent: int, key: Key, name: str) -> int:
        number = self._numbers.setdefault((parent, key), len(self.keys))
        if number == len(self.keys):
            self.keys.append(key)
            self.names.append(key.name if key.name == UNNAMED else name)
            self.parents.append(parent)
        elif self.names[number] != name:
            self.names[number] = key.name
        return number

    def path(self, number: int) -> tuple[str, ...]:
        """The names from the root to a row, itself included."""
        return tuple(self.names[row] for row in self._line(number))

    def path_keys(self, number: int) -> tuple[Key, ...]:
        """The same as keys."""
        return tuple(self.keys[row] for row in self._line(number))

    def _line(self, number: int) -> list[int]:
        line: list[int] = []
        while number >= 0:
            line.append(number)
            number = self.parents[number]
        return line[::-1]

    def implied(self, own: Iterable[int]) -> set[int]:
        """Rows of paths that only lead to one other, whose figures are theirs. own: the rows that some stack ends in."""
        children: dict[int, int] = {}
        for parent in self.parents:
            children[parent] = children.get(parent, 0) + 1
        return {number for number, count in children.items() if count == 1} - set(own) - {-1}


_OWNERS: dict[CompareBy, Callable[[Cell], Owner | None]] = {
    CompareBy.PROCESS: lambda cell: cell.origin.process,
    CompareBy.THREAD: lambda cell: cell.origin.thread,
    CompareBy.VCPU: lambda cell: Owner(f"vCPU {cell.vcpu}", None, FrameKind.UNKNOWN),
    CompareBy.CONTEXT: lambda cell: context_owner(cell.origin.context),
    CompareBy.SYSTEM_CALL: lambda cell: system_call_owner(cell.origin),
}
