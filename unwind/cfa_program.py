"""Call frame instructions become a table of states by address (DWARF 5, 6.4.2; GNU extensions: LSB Core 5.0, 10.5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from recording.errors import BadImageError
from unwind.dwarf import Reader

WINDOW = -1
"""Stands for the register window in a state's rules: one means that the function has a window of its own."""
_MAX_REMEMBERED = 256
_MAX_RULES = 256
_MAX_CELLS = 1 << 16
"""Of a function's table: rows by registers that have a rule."""


class Rule(Enum):
    """Where a register's value in the caller is."""

    UNDEFINED = auto()
    SAME = auto()
    OFFSET = auto()
    """At CFA + number."""
    VALUE_OFFSET = auto()
    """CFA + number itself."""
    REGISTER = auto()
    """In the register of that number."""
    EXPRESSION = auto()
    """At the address that an expression yields."""
    VALUE_EXPRESSION = auto()


Where = tuple[Rule, "int | bytes"]
Cfa = tuple[int, int] | bytes | None
"""Register and offset, or an expression."""
State = tuple[Cfa, tuple[tuple[int, Where], ...]]
"""One row of the table: the CFA and the rules of the registers that have one."""


@dataclass(frozen=True, slots=True)
class Common:
    """What the entries of functions have in common (a "common information entry").

    pointer_encoding: DW_EH_PE of the addresses in them. has_data: they hold augmentation data, its size first.
    """

    code_alignment: int
    data_alignment: int
    return_column: int
    pointer_encoding: int
    has_data: bool
    is_signal: bool
    initial: State = (None, ())


class Program:
    """Runs call frame instructions; its public methods are what these can do, on operands from the reader."""

    __slots__ = ("_cells", "_cfa", "_common", "_initial", "_location", "_remembered", "_rows", "_rules", "reader")

    def __init__(self, common: Common, reader: Reader, start: int) -> None:
        """``reader``: from the instructions to their end. ``start``: address of the function."""
        self._common = common
        self.reader = reader
        self._location = start
        self._cfa, rules = common.initial
        self._initial = dict(rules)
        self._rules: dict[int, Where] = dict(rules)
        self._remembered: list[tuple[Cfa, dict[int, Where]]] = []
        self._rows: list[tuple[int, State]] = []
        self._cells = 0

    def run(self) -> list[tuple[int, State]]:
        """The rows as (first address, state), ascending. Raises BadImageError for a damaged program."""
        reader = self.reader
        while reader.position < reader.end:
            code = reader.byte()
            low = code & 0x3F
            match code >> 6:
                case 1:
                    self.advance(low)
                case 2:
                    self._rules[low] = (Rule.OFFSET, reader.uleb() * self._common.data_alignment)
                case 3:
                    self.restore(low)
                case _:
                    operation = _OPERATIONS.get(low)
                    if operation is None:
                        raise BadImageError(f"the unwind table at {reader.address:#x} has the unknown instruction {low:#x}")
                    operation(self)
        self._finish_row()
        return self._rows

    def _finish_row(self) -> None:
        self._rows.append((self._location, (self._cfa, tuple(self._rules.items()))))
        self._cells += 1 + len(self._rules)
        if self._cells > _MAX_CELLS:
            raise BadImageError(f"the unwind table at {self.reader.address:#x} has too many rows for one function")

    def advance(self, delta: int) -> None:
        """Further rows begin this much later."""
        if delta:
            self._finish_row()
            self._location += delta * self._common.code_alignment

    def set_location(self) -> None:
        """Further rows begin at an address."""
        location = self.reader.pointer(self._common.pointer_encoding)
        if location < self._location:
            raise BadImageError(f"the rows of the unwind table at {self.reader.address:#x} are not in order")
        self.advance((location - self._location) // (self._common.code_alignment or 1))

    def restore(self, register: int) -> None:
        """A register's rule is the one that it had at the beginning."""
        if register in self._initial:
            self._rules[register] = self._initial[register]
        else:
            self._rules.pop(register, None)

    def remember(self) -> None:
        """Keep the row for ``recall``."""
        if len(self._remembered) >= _MAX_REMEMBERED or len(self._rules) > _MAX_RULES:
            raise BadImageError(f"the unwind table at {self.reader.address:#x} remembers too many states")
        self._remembered.append((self._cfa, dict(self._rules)))

    def recall(self) -> None:
        """The row is the one that was kept last."""
        if not self._remembered:
            raise BadImageError(f"the unwind table at {self.reader.address:#x} restores a state that it never remembered")
        self._cfa, self._rules = self._remembered.pop()

    def set_rule(self, rule: Rule, *, factor: int = 0, signed: bool = False) -> None:
        """A register's rule. factor: what the number that follows is multiplied by, 0 if none follows."""
        reader = self.reader
        register = reader.uleb()
        number = 0 if not factor else (reader.sleb() if signed else reader.uleb()) * factor
        self._rules[register] = (rule, number)

    def set_offset(self, rule: Rule, *, signed: bool = False, negative: bool = False) -> None:
        """A register lies at, or is, the CFA plus a multiple of the alignment."""
        alignment = self._common.data_alignment
        self.set_rule(rule, factor=(-alignment if negative else alignment) or 1, signed=signed)

    def set_expression(self, rule: Rule) -> None:
        """An expression says where a register is."""
        register = self.reader.uleb()
        self._rules[register] = (rule, self.reader.block(self.reader.uleb()))

    def define_cfa(self, *, signed: bool = False) -> None:
        """Another register and offset for the CFA."""
        register = self.reader.uleb()
        self._cfa = (register, self._cfa_offset(signed=signed))

    def define_cfa_register(self) -> None:
        """Another register for the CFA."""
        register = self.reader.uleb()
        self._cfa = (register, self._cfa[1] if isinstance(self._cfa, tuple) else 0)

    def define_cfa_offset(self, *, signed: bool = False) -> None:
        """Another offset for the CFA."""
        if not isinstance(self._cfa, tuple):
            raise BadImageError(f"the unwind table at {self.reader.address:#x} moves a CFA that has no register")
        self._cfa = (self._cfa[0], self._cfa_offset(signed=signed))

    def _cfa_offset(self, *, signed: bool) -> int:
        return self.reader.sleb() * self._common.data_alignment if signed else self.reader.uleb()

    def define_cfa_expression(self) -> None:
        """An expression for the CFA."""
        self._cfa = self.reader.block(self.reader.uleb())

    def save_window(self) -> None:
        """The function has a register window of its own (SPARC), or the return address is signed or no longer signed (arm64).

        Whoever uses a signed one takes the signature away.
        """
        self._rules[WINDOW] = (Rule.SAME, 0)

    def skip_number(self) -> None:
        """An operand that means nothing for the row."""
        self.reader.uleb()


def _advance_by(size: int) -> Callable[[Program], None]:
    return lambda program: program.advance(program.reader.number(size))


_OPERATIONS: Mapping[int, Callable[[Program], None]] = {
    0x00: lambda _program: None,  # nop
    0x01: Program.set_location,
    0x02: _advance_by(1),
    0x03: _advance_by(2),
    0x04: _advance_by(4),
    0x05: lambda program: program.set_offset(Rule.OFFSET),
    0x06: lambda program: program.restore(program.reader.uleb()),
    0x07: lambda program: program.set_rule(Rule.UNDEFINED),
    0x08: lambda program: program.set_rule(Rule.SAME),
    0x09: lambda program: program.set_rule(Rule.REGISTER, factor=1),
    0x0A: Program.remember,
    0x0B: Program.recall,
    0x0C: Program.define_cfa,
    0x0D: Program.define_cfa_register,
    0x0E: Program.define_cfa_offset,
    0x0F: Program.define_cfa_expression,
    0x10: lambda program: program.set_expression(Rule.EXPRESSION),
    0x11: lambda program: program.set_offset(Rule.OFFSET, signed=True),
    0x12: lambda program: program.define_cfa(signed=True),
    0x13: lambda program: program.define_cfa_offset(signed=True),
    0x14: lambda program: program.set_offset(Rule.VALUE_OFFSET),
    0x15: lambda program: program.set_offset(Rule.VALUE_OFFSET, signed=True),
    0x16: lambda program: program.set_expression(Rule.VALUE_EXPRESSION),
    0x1D: _advance_by(8),  # MIPS_advance_loc8
    0x2D: Program.save_window,  # GNU_window_save, AARCH64_negate_ra_state
    0x2E: Program.skip_number,  # GNU_args_size
    0x2F: lambda program: program.set_offset(Rule.OFFSET, negative=True),  # GNU_negative_offset_extended
}
