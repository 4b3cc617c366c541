"""System call numbers become names, by the kernel's own tables of entry points.

``sys_call_table`` holds the addresses of functions such as ``__x64_sys_read`` (arch/x86/entry/syscall_64.c); kernels that no longer
call through it keep it for tracing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from guest.paging import AddressSpace
from guest.words import Words
from recording.model import SystemCall
from recording.symbols import SymbolTable

_MAX_NUMBER = 1024
_PREFIX = re.compile(r"^(?:__[a-z0-9]+_(?:compat_)?|__se_|__do_)?(?:compat_)?(?:ksys_|sys_)")
_NOT_IMPLEMENTED = "ni_syscall"


class SystemCalls:
    """Names system calls; every answer is remembered."""

    def __init__(self, space: AddressSpace, symbols: SymbolTable, tables: Mapping[str, str], words: Words) -> None:
        """``tables``: the name of a table as recordings show it -> the kernel's symbol."""
        self._space = space
        self._words = words
        self._symbols = symbols
        found = ((name, symbols.find(symbol)) for name, symbol in tables.items())
        self._tables = {
            name: (symbol.address, min(_MAX_NUMBER, symbol.size // words.size)) for name, symbol in found if symbol is not None
        }
        self._known: dict[tuple[str, int], SystemCall] = {}

    def find(self, table: str, number: int) -> SystemCall | None:
        """The system call of a number, without a name where the table cannot be read; None for a number that none has."""
        known = self._known.get((table, number))
        if known is not None:
            return known
        if not 0 <= number < _MAX_NUMBER:
            return None
        call = self._known[table, number] = SystemCall(table, number, self._name(table, number))
        return call

    def _name(self, table: str, number: int) -> str | None:
        address, count = self._tables.get(table, (0, 0))
        size = self._words.size
        data = self._space.read_many([(address + size * number, size)])[0] if number < count else None
        symbol = None if data is None else self._symbols.find_at(self._words.number(data))
        if symbol is None:
            return None
        name = _PREFIX.sub("", symbol.name)
        return None if name in {symbol.name, _NOT_IMPLEMENTED} else name
