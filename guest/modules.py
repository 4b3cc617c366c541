"""The kernel's list of loaded modules becomes their code, names and unwind tables (include/linux/module.h, kernel/module/).

A module has its code in a few separate pieces (``mem[]``, 6.4) or in one for good and one for its start (``core_layout`` and
``init_layout`` before). Its own symbol table (``mod->kallsyms``) and ORC table (``mod->arch``) lie in its data.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter

from guest.kernel_lists import StructReader, StructValues, read_pointer, text_of, walk_list
from guest.memory import Steps
from guest.notes import NoteReader
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.symbol_rows import SymbolRows, arrange
from guest.text import TextImage, read_text
from recording.errors import BadImageError, GuestMemoryError
from recording.model import FrameKind
from recording.symbols import SymbolTable
from unwind.orc import OrcTable, OrcVersion

_MAX_MODULES = 4096
_MAX_CODE = 1 << 26
_MAX_SYMBOLS = 1 << 19
_MAX_STRINGS = 1 << 25
_MAX_ORC = 1 << 21
_READS_OF_A_MOVING_LIST = 4
_SYMBOLS_PER_STEP = 1 << 11
_SYMBOLS = {4: ("IIIBBH", (0, 5, 1)), 8: ("IBBHQQ", (0, 3, 4))}
"""By a pointer's size: members of ``Elf32_Sym``, ``Elf64_Sym`` (ELF gABI, "Symbol Table"); which are name, section and value."""
_NO_SECTION = 0
_PAGE = 4096
_LINKS = ("state", "list.next", "name", "kallsyms")


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded module. Addresses are run-time ones.

    address: of its ``struct module``. serial: one number from its loading to its unloading, also when its start-up code is freed.
    ranges: [start, end) of its code, that of its start included as long as it is there. symbols: of its code alone, names of its
    start's too if it was seen then. orc: None where it has no unwind table. text: code bytes as they were last read.
    """

    name: str
    address: int
    serial: int
    ranges: tuple[tuple[int, int], ...]
    build_id: str | None
    symbols: SymbolTable
    orc: OrcTable | None
    text: TextImage

    @property
    def kind(self) -> FrameKind:
        """What frames in it are called."""
        return FrameKind.MODULE


@dataclass(slots=True)
class _Known:
    """A module as it was read: ``identity`` tells it from another at its address, ``layout`` changes when its start is over."""

    identity: tuple[object, ...]
    layout: tuple[object, ...]
    module: Module


@dataclass(frozen=True, slots=True)
class _Seen:
    """A module of the list, as far as its struct tells."""

    address: int
    name: str
    ranges: tuple[tuple[int, int], ...]
    values: StructValues
    layout: tuple[object, ...] = field(default=())


class ModuleReader:
    """Reads the list of one kernel, each module's tables once. Knows by a stamp whether there is anything new."""

    def __init__(self, symbols: SymbolTable, structs: Structs, orc_version: OrcVersion | None) -> None:
        """Raises BadImageError where the kernel has no modules, or its types lack what is needed."""
        head = symbols.find("modules")
        if head is None:
            raise BadImageError("the kernel's symbols do not name its list of modules; its modules stay unknown")
        self._head = head.address
        self._orc_version = orc_version
        self._areas = _code_areas(structs)
        orc = ("arch.num_orcs", "arch.orc_unwind_ip", "arch.orc_unwind")
        self._has_orc = orc_version is not None and all(structs.field("module", name) for name in orc)
        self._notes = _note_reader(structs)
        own_id = structs.field("module", "build_id")
        members = [*_LINKS, *(name for area in self._areas for name in area)]
        members += [*(orc if self._has_orc else ()), *(("notes_attrs",) if self._notes else ()), *(("build_id",) if own_id else ())]
        self._struct = StructReader(structs, "module", tuple(members))
        self._tables = StructReader(structs, "mod_kallsyms", ("symtab", "num_symtab", "strtab"))
        self._has_own_id = own_id is not None
        self._unfinished_members = ["state", *(["build_id"] if own_id else ["notes_attrs"] if self._notes else [])]
        states = (structs.enumerator("module_state", name) for name in ("MODULE_STATE_UNFORMED", "MODULE_STATE_COMING"))
        self._unformed, self._coming = next(states), next(states)
        self._stamp_reads = [(self._head, 2 * structs.words.size)]
        # Counts up whenever a module is loaded, has finished its start, or is unloaded (mod_tree_insert and its kin).
        tree, sequence = symbols.find("mod_tree"), structs.field("mod_tree_root", "root.seq")
        if tree and sequence:
            self._stamp_reads.append((tree.address + sequence.offset, 4))
        self._known: dict[int, _Known] = {}
        self._unfinished: dict[int, tuple[bytes, ...]] = {}
        self._seen_stamp: tuple[bytes | None, ...] = ()
        self._serial = 0
        self._stamp_space: AddressSpace | None = None
        self._stamp_places: list[tuple[int, int]] = []

    def has_changed(self, space: AddressSpace) -> bool:
        """Whether ``read`` would find anything new. Takes microseconds, so it may be asked at every halt."""
        return self._stamp(space) != self._seen_stamp

    def _stamp(self, space: AddressSpace) -> tuple[bytes | None, ...]:
        """A few words that change whenever the list does, or the state or build ID of a module that is being loaded."""
        if self._stamp_space is not space:
            self._stamp_space = space
            reads = [*self._stamp_reads]
            for address, values in self._unfinished.items():
                members = zip(self._unfinished_members, values, strict=True)
                reads += [(address + self._struct.offset(name), len(value)) for name, value in members]
            # The image does not move, and a module that is freed changes the other words.
            self._stamp_places = [(space.translate(address) or 0, size) for address, size in reads]
        return tuple(space.memory.read_many(self._stamp_places))

    def read(self, space: AddressSpace, *, has_new_text: bool = False) -> Steps[tuple[Module, ...]]:
        """The modules now, newest first. Those that were read before are the same objects if nothing about them has changed.

        has_new_text: read code again also of known ones. What cannot be read of a module is left out of it.
        """
        seen: list[_Seen] = []
        is_whole = False
        for _attempt in range(_READS_OF_A_MOVING_LIST):
            # A module that came meanwhile may lie where nothing was mapped before.
            space.forget()
            before = self._stamp(space)[: len(self._stamp_reads)]
            seen, is_whole = yield from self._walk(space)
            self._seen_stamp = (*before, *chain.from_iterable(self._unfinished.values()))
            if is_whole and self._stamp(space)[: len(before)] == before:
                break
        modules = []
        for each in seen:
            known = self._known.get(each.address)
            if known is None or known.identity != _identity(each):
                self._serial += 1
                known = yield from self._load(space, each, self._serial)
            elif known.layout != each.layout or has_new_text:
                known = yield from self._update(space, each, known)
            if known.module.build_id is None and (build_id := self._read_build_id(space, each.values)) is not None:
                # A module comes into the list before that is filled in.
                known.module = replace(known.module, build_id=build_id)
            self._known[each.address] = known
            modules.append(known.module)
        present = {each.address for each in seen}
        if is_whole:
            self._known = {address: known for address, known in self._known.items() if address in present}
        else:
            # What lies behind the break is not known to be gone.
            modules += [known.module for address, known in self._known.items() if address not in present]
        return tuple(modules)

    def _walk(self, space: AddressSpace) -> Steps[tuple[list[_Seen], bool]]:
        """The modules of the list, and whether it led back to its head."""
        found = []
        last = self._head
        unfinished = {}
        link = self._struct.offset("list.next")
        for count, address in enumerate(walk_list(space, self._struct.words, self._head, link, _MAX_MODULES)):
            if count % 32 == 31:
                yield
            last = address + link
            values = self._struct.read(space, address)
            if values is None:
                continue
            state = values.number("state")
            if state in (self._unformed, self._coming):
                unfinished[address] = tuple([values.bytes(name) for name in self._unfinished_members])
            name = text_of(values.bytes("name"))
            ranges = tuple(self._ranges(values))
            if state == self._unformed or not name or not ranges:
                continue
            found.append(_Seen(address, name, ranges, values, (ranges, values.number("kallsyms"))))
        self._unfinished, self._stamp_space = unfinished, None
        return found, read_pointer(space, self._struct.words, last) == self._head

    def _ranges(self, values: StructValues) -> Iterator[tuple[int, int]]:
        for base_name, size_name in self._areas:
            base, size = values.number(base_name), values.number(size_name)
            if base and 0 < size <= _MAX_CODE and base + size - 1 <= self._struct.words.mask:
                yield base, base + size

    def _load(self, space: AddressSpace, seen: _Seen, serial: int) -> Steps[_Known]:
        symbols = yield from self._read_symbols(space, seen)
        orc = yield from self._read_orc(space, seen.values)
        text = yield from read_text(space, seen.ranges)
        build_id = self._read_build_id(space, seen.values)
        yield
        return _Known(
            _identity(seen), seen.layout, Module(seen.name, seen.address, serial, seen.ranges, build_id, symbols, orc, text)
        )

    def _update(self, space: AddressSpace, seen: _Seen, known: _Known) -> Steps[_Known]:
        """The same module later: its start is over, or its code was patched."""
        text = yield from read_text(space, seen.ranges)
        module = replace(known.module, ranges=seen.ranges, text=text)
        if not len(module.symbols):
            module = replace(module, symbols=(yield from self._read_symbols(space, seen)))
        return _Known(known.identity, seen.layout, module)

    def _read_orc(self, space: AddressSpace, values: StructValues) -> Steps[OrcTable | None]:
        if not self._has_orc or self._orc_version is None:
            return None
        count = values.number("arch.num_orcs")
        if not 0 < count <= _MAX_ORC:
            return None
        address = values.number("arch.orc_unwind_ip")
        try:
            places = yield from space.read_chunks(address, 4 * count)
            entries = yield from space.read_chunks(values.number("arch.orc_unwind"), 6 * count)
            return OrcTable.parse(places, address, entries, self._orc_version)
        except (GuestMemoryError, BadImageError):
            return None

    def _read_symbols(self, space: AddressSpace, seen: _Seen) -> Steps[SymbolTable]:
        """Names of the code in ``seen.ranges``; the table also has data, and before the end of its start what it imports."""
        rows = SymbolRows(array("Q"), b"", [])
        # Its tables move when its start is over: then they are asked for again.
        with suppress(GuestMemoryError):
            rows = yield from self._read_symbol_rows(space, seen)
        return (yield from arrange(rows)).table()

    def _read_symbol_rows(self, space: AddressSpace, seen: _Seen) -> Steps[SymbolRows]:
        rows = SymbolRows(array("Q"), b"", [])
        tables = self._tables.read(space, seen.values.number("kallsyms"))
        count = 0 if tables is None else tables.number("num_symtab")
        if tables is None or not 0 < count <= _MAX_SYMBOLS:
            return rows
        members, places = _SYMBOLS[self._struct.words.size]
        layout, chosen = struct.Struct(f"{self._struct.words.order}{members}"), itemgetter(*places)
        data = yield from space.read_chunks(tables.number("symtab"), layout.size * count)
        wanted: list[tuple[int, int]] = []
        for start in range(0, len(data), layout.size * _SYMBOLS_PER_STEP):
            part = list(map(chosen, layout.iter_unpack(data[start : start + layout.size * _SYMBOLS_PER_STEP])))
            for low, high in seen.ranges:
                wanted += [(value, name) for name, section, value in part if low <= value < high and section != _NO_SECTION]
            yield
        strings = yield from _read_strings(space, tables.number("strtab"), max((name for _value, name in wanted), default=0))
        named = []
        for start in range(0, len(wanted), _SYMBOLS_PER_STEP):
            for value, at in wanted[start : start + _SYMBOLS_PER_STEP]:
                name = text_of(strings[at : strings.find(b"\0", at) + 1])
                if name:
                    named.append((value, name))
            yield
        named.sort(key=lambda row: row[0])
        return SymbolRows(array("Q", [value for value, _name in named]), b"t" * len(named), [name for _value, name in named])

    def _read_build_id(self, space: AddressSpace, values: StructValues) -> str | None:
        if self._has_own_id:
            own_id = values.bytes("build_id")
            return own_id.hex() if any(own_id) else None
        return None if self._notes is None else self._notes.read_build_id(space, values.number("notes_attrs"))


def _identity(seen: _Seen) -> tuple[object, ...]:
    """Another module at the same address differs in this (or it is the same file at the same place, which is as good)."""
    return seen.name, seen.ranges[0]


def _code_areas(structs: Structs) -> tuple[tuple[str, str], ...]:
    """Members that say where code is and how long it is, the module's lasting code first."""
    if structs.field("module", "mem"):
        kinds = (structs.enumerator("mod_mem_type", name) for name in ("MOD_TEXT", "MOD_INIT_TEXT"))
        return tuple((f"mem[{kind}].base", f"mem[{kind}].size") for kind in kinds if kind is not None)
    return tuple((f"{layout}.base", f"{layout}.text_size") for layout in ("core_layout", "init_layout"))


def _note_reader(structs: Structs) -> NoteReader | None:
    try:
        structs.require("module", "notes_attrs")
        return NoteReader(structs)
    except BadImageError:
        return None


def _read_strings(space: AddressSpace, address: int, last: int) -> Steps[bytes]:
    """A string table up to the end of the string at ``last``. Raises GuestMemoryError."""
    if last > _MAX_STRINGS:
        raise GuestMemoryError(f"a module's string table at {address:#x} would have more than {last} bytes, which cannot be")
    whole = last + 1 + (-(address + last + 1) % _PAGE)
    data = yield from space.read_chunks(address, whole)
    if data.find(b"\0", last) < 0:
        data += space.read_many([(address + whole, _PAGE)])[0] or b"\0"
    return data
