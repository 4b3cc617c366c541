"""The symbols of a file, from the best source that it has, become one table at link-time addresses.

``.symtab`` names all functions; a stripped file has the exported ones in ``.dynsym`` and, on some distributions, the others in
``.gnu_debugdata``; a Go program has them in a table of its own. A separate debug file (``--symbol-dir``) has the ``.symtab``
that was stripped off.
"""

from __future__ import annotations

from dataclasses import dataclass

from guest.elf.debugdata import read_debugdata
from guest.elf.dynamic import find_dynamic_symbols
from guest.elf.file import ElfFile, open_elf
from guest.elf.go_functions import read_go_functions
from guest.elf.header import MAX_TABLE, SHT_DYNSYM, SHT_SYMTAB, Section
from guest.elf.partial import Partial, read_partial
from guest.elf.plt import read_plt
from guest.elf.symbol_rows import ENTRY_RANK, Code, ElfSymbol, make_table, parse_symbols
from guest.memory import Steps
from recording.errors import BadImageError
from recording.symbols import SymbolTable

_ENTRY_REACH = 64
"""Bytes after the entry point that are taken for its function; glibc's has 34 or 38 on x86-64."""
_NOTHING = Partial(b"", ())


@dataclass(frozen=True, slots=True)
class ElfSymbols:
    """The functions of a file.

    table: at link-time addresses. Rows without a name are gaps where no function is known.
    is_complete: the file has no more. has_static: functions that it does not export are among them.
    """

    table: SymbolTable
    is_complete: bool
    has_static: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Functions of one source; is_complete: all that it has."""

    symbols: list[ElfSymbol]
    is_complete: bool


_NOT_THERE = _Found([], is_complete=True)


def read_symbols(file: ElfFile, debug: ElfFile | None = None) -> Steps[ElfSymbols]:
    """All that is known of a file's functions.

    debug: its separate debug file. Raises BadImageError where that belongs to another build; never for what ``file`` holds.
    """
    if debug is not None and (debug.build_id is None or debug.build_id != file.build_id):
        raise BadImageError(f"a debug file of build {debug.build_id} is not of the file of build {file.build_id}; remove it")
    code = file.code()
    static = yield from _read_symtab(file, code)
    if not static.symbols and debug is not None:
        static = yield from _read_symtab(debug, code)
    is_whole = bool(static.symbols) and static.is_complete
    if not static.symbols:
        static = yield from _read_debugdata(file, code)
    if not static.symbols and static.is_complete:
        static = _Found(*(yield from read_go_functions(file, code)))
    entries, names, is_complete = yield from _read_dynamic(file)
    stubs, is_plt_complete = yield from read_plt(file, entries, names)
    found = static.symbols + stubs
    if not is_whole:
        found += yield from parse_symbols(file.header, entries, names, code)
    if static.is_complete:
        found += _entry_point(file, code, found)
    table = yield from make_table(found, code)
    is_complete = is_complete and is_plt_complete and static.is_complete and file.sections is not None
    return ElfSymbols(table, is_complete, bool(static.symbols))


def _entry_point(file: ElfFile, code: Code, known: list[ElfSymbol]) -> list[ElfSymbol]:
    """The function in which a program begins. Nobody exports it, so that a stripped program does not name it.

    It is a label, so that a function that the table says is there counts more (``make_table``), and ends where the next one begins.
    """
    start = file.entry
    limit = None if start is None or not file.is_program else code.end_at(start)
    if start is None or limit is None:
        return []
    following = min((symbol.address for symbol in known if symbol.address > start), default=limit)
    return [ElfSymbol(start, ENTRY_RANK, "_start", min(start + _ENTRY_REACH, limit, following), "t")]


def _read_symtab(file: ElfFile, code: Code) -> Steps[_Found]:
    """The functions of .symtab."""
    found = file.symbol_sections(SHT_SYMTAB)
    if found is None:
        return _NOT_THERE
    entries, names = yield from _read_pair(file, *found)
    symbols = yield from parse_symbols(file.header, entries, names, code)
    return _Found(symbols, not entries.missing and not names.missing)


def _read_debugdata(file: ElfFile, code: Code) -> Steps[_Found]:
    """The functions of the file that is packed in .gnu_debugdata; a damaged one has none."""
    section = file.section(".gnu_debugdata")
    if section is None:
        return _NOT_THERE
    try:
        contents = yield from read_debugdata(file.contents, section.offset, section.size)
        packed = None if contents is None else open_elf(contents, is_final=True)
        if packed is None:
            return _Found([], is_complete=False)
        if packed.header.format != file.header.format:
            return _NOT_THERE
        return (yield from _read_symtab(packed, code))
    except BadImageError:
        return _NOT_THERE


def _read_dynamic(file: ElfFile) -> Steps[tuple[Partial, Partial, bool]]:
    """.dynsym and .dynstr, and whether that is all of them: by the section headers, or by what the loader goes by."""
    found = file.symbol_sections(SHT_DYNSYM)
    if found is not None:
        entries, names = yield from _read_pair(file, *found)
        return entries, names, not entries.missing and not names.missing
    if file.sections:
        return _NOTHING, _NOTHING, True
    place = yield from find_dynamic_symbols(file.contents, file.header, file.find_offset)
    if place is None or place.size > MAX_TABLE or place.names_size > MAX_TABLE:
        return _NOTHING, _NOTHING, file.is_final
    entries = yield from read_partial(file.contents, place.offset, place.size)
    names = yield from read_partial(file.contents, place.names_offset, place.names_size)
    return entries, names, place.is_complete and not entries.missing and not names.missing


def _read_pair(file: ElfFile, entries: Section, names: Section) -> Steps[tuple[Partial, Partial]]:
    table = yield from read_partial(file.contents, entries.offset, entries.size)
    return table, (yield from read_partial(file.contents, names.offset, names.size))
