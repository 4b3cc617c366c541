"""The functions of a Go program (``go_table.py``): a stripped one (usual) has them nowhere else."""

from __future__ import annotations

from guest.elf.file import ElfFile
from guest.elf.go_table import GoTable, find_go_table
from guest.elf.partial import read_partial
from guest.elf.symbol_rows import Code, ElfSymbol
from guest.memory import Steps

_PER_STEP = 1 << 9
_RANK = 200


def read_go_functions(file: ElfFile, code: Code) -> Steps[tuple[list[ElfSymbol], bool]]:
    """The functions of a Go program, and whether that is all that the table has. None for other files, and for unknown formats."""
    table = find_go_table(file)
    if not isinstance(table, GoTable):
        return [], table is None
    start, end = table.names
    names = yield from read_partial(file.contents, start, end - start)
    first = min(table.functions, table.records)
    rest = yield from read_partial(file.contents, first, table.end - first)
    found: list[ElfSymbol] = []
    room = names.most_text
    step, size = table.entry.size, table.entry.size * 3 // 2
    for index in range(table.count):
        if not index % _PER_STEP:
            yield
        at = table.functions - first + index * step
        place = table.records - first + table.entry.unpack_from(rest.data, at)[1]
        if place + table.record_size > len(rest.data):
            continue
        if rest.missing and not (rest.knows(at, size) and rest.knows(place, table.record_size)):
            continue
        function = table.function(rest.data[at : at + size], rest.data[place : place + table.record_size])
        if function is None:
            continue
        limit = code.end_at(function.start)
        name = names.name(function.name - start)
        room -= len(name or "")
        if room < 0:
            break
        if limit is not None and name:
            found.append(ElfSymbol(function.start, _RANK, name, min(function.end, limit), "t"))
    return found, not names.missing and not rest.missing
