"""``.gopclntab`` of a Go program becomes its functions: a stripped one (usual) has them nowhere else.

(Go's src/internal/abi/symtab.go, src/debug/gosym/pclntab.go: formats of Go 1.16, 1.18 and 1.20. The runtime needs the table for
stack traces, so that no linker option removes it.)
"""

from __future__ import annotations

import struct

from guest.elf.file import ElfFile
from guest.elf.header import MAX_TABLE
from guest.elf.partial import Partial, read_partial
from guest.elf.symbol_rows import MAX_SYMBOLS, Code, ElfSymbol
from guest.memory import Steps

_NAMES = (".gopclntab", ".data.rel.ro.gopclntab")
_GO_1_16, _GO_1_18, _GO_1_20 = 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
_PER_STEP = 1 << 9
_RANK = 200


def read_go_functions(file: ElfFile, code: Code) -> Steps[tuple[list[ElfSymbol], bool]]:
    """The functions of a Go program, and whether that is all that the table has. None for other files, and for unknown formats."""
    section = next((found for name in _NAMES if (found := file.section(name)) is not None), None)
    if section is None or section.size > MAX_TABLE:
        return [], True
    word_size, order = file.pointer_size, file.header.format.order
    header_size = 8 + 8 * word_size
    header = file.contents.read(section.offset, min(header_size, section.size))
    if header is None:
        return [], False
    if len(header) < header_size:
        return [], True
    magic, pad, _, pointer_size = struct.unpack_from(order + "IHBB", header)
    words = struct.unpack_from(f"{order}8{'Q' if word_size == 8 else 'I'}", header, 8)
    if magic not in {_GO_1_16, _GO_1_18, _GO_1_20} or pad or pointer_size != word_size:
        return [], True
    count = words[0]
    if magic == _GO_1_16:
        entry = struct.Struct(order + ("2Q" if word_size == 8 else "2I"))
        text, names_at, names_end, table_at = 0, words[2], words[3], words[6]
    else:
        entry = struct.Struct(order + "2I")
        text, names_at, names_end, table_at = words[2], words[3], words[4], words[7]
        if not text:
            # Addresses count from runtime.text, which the loader writes into a position-independent program: the file lacks it.
            return [], True
    if not 0 < count <= MAX_SYMBOLS or not names_at < names_end <= section.size or not table_at < section.size:
        return [], True
    names = yield from read_partial(file.contents, section.offset + names_at, names_end - names_at)
    table = yield from read_partial(file.contents, section.offset + table_at, section.size - table_at)
    functions = yield from _parse(table, names, entry, count, text, code, order)
    return functions, not names.missing and not table.missing


def _parse(
    table: Partial, names: Partial, entry: struct.Struct, count: int, text: int, code: Code, order: str
) -> Steps[list[ElfSymbol]]:
    """``table``: (address, place of the function's record) of each function, an end address, then the records."""
    found: list[ElfSymbol] = []
    half = entry.size // 2
    room = names.most_text
    next_address = struct.Struct(order + ("Q" if half == 8 else "I"))
    name_offset = struct.Struct(order + "I")
    count = min(count, (len(table.data) - half) // entry.size)
    for index in range(count):
        if not index % _PER_STEP:
            yield
        position = index * entry.size
        address, place = entry.unpack_from(table.data, position)
        if place + half + 4 > len(table.data):
            continue
        if table.missing and not (table.knows(position, entry.size + half) and table.knows(place, half + 4)):
            continue
        start, end = text + address, text + next_address.unpack_from(table.data, position + entry.size)[0]
        limit = code.end_at(start)
        name = names.name(name_offset.unpack_from(table.data, place + half)[0])
        room -= len(name or "")
        if room < 0:
            break
        if limit is not None and start < end and name:
            found.append(ElfSymbol(start, _RANK, name, min(end, limit), "t"))
    return found
