"""Code that the kernel makes at run time becomes names and ranges: BPF programs, trampolines of ftrace, pages of kprobes.

No symbol table has it; the kernel keeps lists: ``bpf_kallsyms`` (kernel/bpf/core.c), ``ftrace_ops_trampoline_list``
(kernel/trace/ftrace.c), ``kprobe_insn_slots`` and ``kprobe_optinsn_slots`` (kernel/kprobes.c). A kernel that lacks a list
lacks that code. Entry code that is mapped outside of the image, too, is in none; page tables tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from guest.kernel_lists import StructReader, StructValues, text_of, walk_list
from guest.memory import Steps
from guest.paging import AddressSpace
from guest.structs import Structs
from recording.errors import BadImageError
from recording.model import FrameKind
from recording.symbols import SymbolTable
from unwind.arch import Architecture

_MAX_PIECES = 8192
_MAX_CODE = 1 << 22
_MAX_TOTAL = 1 << 25
_PAGE = 4096
_PIECES_PER_STEP = 16
_LOOKS_FOR_COPIES = 1 << 7
_MAX_COPY = 1 << 13
_MAX_COPIES = 1 << 14
"""Bytes of one function, and of all that lies beside each other."""
_SAVES_REGISTERS = 1 << 2
"""FTRACE_OPS_FL_SAVE_REGS (include/linux/ftrace.h): the trampoline is a copy of the function that saves all registers."""


@dataclass(frozen=True, slots=True)
class GeneratedCode:
    """A piece of code that was made at run time: [start, end).

    kind: BPF, or KERNEL for what the kernel's tracing makes. has_frame_pointer: it keeps one, as all code of the BPF compiler does.
    copy_of: address of the function that it is a copy of, whose unwind rows fit it. text: its bytes, empty where not known.
    """

    name: str
    start: int
    end: int
    kind: FrameKind
    text: bytes = b""
    has_frame_pointer: bool = False
    copy_of: int | None = None

    @property
    def address(self) -> int:
        """What tells it from others of the same time, as a module's does."""
        return self.start

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """As a module's."""
        return ((self.start, self.end),)

    @property
    def build_id(self) -> None:
        """It comes from no file."""
        return None

    @property
    def symbols(self) -> SymbolTable:
        """Its one name."""
        return SymbolTable.from_symbols([(self.start, "t", self.name)])


@dataclass(frozen=True, slots=True)
class _Source:
    """One of the kernel's lists: address of its head, offset of the link in an element, and what an element says."""

    head: int
    link: int
    struct: StructReader
    describe: Callable[[StructValues], GeneratedCode]


class GeneratedCodeReader:
    """Reads the lists of one kernel, as many of them as it has, and knows by a stamp whether there may be anything new."""

    def __init__(self, symbols: SymbolTable, structs: Structs, architecture: Architecture) -> None:
        """Never fails: a kernel may have none of the lists."""
        code = architecture.kernel_code
        self._entry_areas = code.entry_areas
        self._find_places = code.entry_places
        self._find = symbols.find
        self._name_copies = code.name_copies
        self._entry_copies = tuple([found for name in code.entry_copies if (found := symbols.find(name))])
        self._looks = 0
        self._has_copies = not code.entry_copies
        self._has_places = self._find_places is None
        self._sources: list[_Source] = []
        self._stamp_reads: list[tuple[int, int]] = []
        self._known: dict[tuple[str, int, int], GeneratedCode] = {}
        self._seen_stamp: tuple[bytes | None, ...] | None = None
        self._stamp_space: AddressSpace | None = None
        self._stamp_places: list[tuple[int, int]] = []
        self._copied = {
            is_full: found.address if (found := symbols.find(name)) else None
            for is_full, name in ((False, "ftrace_caller"), (True, "ftrace_regs_caller"))
        }
        self._add(symbols, structs, "bpf_kallsyms", 0, "bpf_ksym", "lnode", ("start", "end", "name"), _describe_bpf)
        self._add(
            symbols,
            structs,
            "ftrace_ops_trampoline_list",
            0,
            "ftrace_ops",
            "list",
            ("trampoline", "trampoline_size", "flags"),
            self._describe_trampoline,
        )
        pages = structs.field("kprobe_insn_cache", "pages")
        for head, name in (("kprobe_insn_slots", "kprobe_insn_page"), ("kprobe_optinsn_slots", "kprobe_optinsn_page")):
            if pages:
                self._add(symbols, structs, head, pages.offset, "kprobe_insn_page", "list", ("insns",), _page_describer(name))
        # Lists alone would hide a program that goes while another comes.
        tree, sequence = symbols.find("bpf_tree"), structs.field("latch_tree_root", "seq")
        if tree and sequence:
            self._stamp_reads.append((tree.address + sequence.offset, 4))

    def _add(
        self,
        symbols: SymbolTable,
        structs: Structs,
        head: str,
        offset: int,
        struct: str,
        link: str,
        members: tuple[str, ...],
        describe: Callable[[StructValues], GeneratedCode],
    ) -> None:
        found = symbols.find(head)
        if found is None:
            return
        try:
            reader = StructReader(structs, struct, (link, *members))
        except BadImageError:
            return
        self._stamp_reads.append((found.address + offset, 2 * structs.words.size))
        self._sources.append(_Source(found.address + offset, reader.offset(link), reader, describe))

    def has_changed(self, space: AddressSpace) -> bool:
        """Whether ``read`` would find anything new. Takes microseconds, so it may be asked at every halt."""
        if not (self._has_copies and self._has_places):
            # They are made some time during boot, or never, which no list says.
            self._looks += 1
            if not self._looks % _LOOKS_FOR_COPIES:
                return True
        return self._stamp(space) != self._seen_stamp

    def _stamp(self, space: AddressSpace) -> tuple[bytes | None, ...]:
        """A few words that change whenever there is other code."""
        if self._stamp_space is not space:
            self._stamp_space = space
            self._stamp_places = [(space.translate(address) or 0, size) for address, size in self._stamp_reads]
        return tuple(space.memory.read_many(self._stamp_places))

    def read(self, space: AddressSpace) -> Steps[tuple[GeneratedCode, ...]]:
        """All pieces by address. Those that were read before are the same objects."""
        space.forget()
        self._stamp_space = None
        self._seen_stamp = self._stamp(space)
        found: dict[tuple[str, int, int], GeneratedCode] = {}
        total = 0
        for source in self._sources:
            for count, address in enumerate(walk_list(space, source.struct.words, source.head, source.link, _MAX_PIECES)):
                values = source.struct.read(space, address)
                if values is None:
                    continue
                piece = source.describe(values)
                size = piece.end - piece.start
                if not (piece.start and piece.name and 0 < size <= _MAX_CODE and total + size <= _MAX_TOTAL):
                    continue
                total += size
                key = (piece.name, piece.start, piece.end)
                known = self._known.get(key)
                if known is None:
                    known = replace(piece, text=space.read_many([(piece.start, size)])[0] or b"")
                found[key] = known
                if count % _PIECES_PER_STEP == _PIECES_PER_STEP - 1:
                    yield
            yield
        for piece in self._read_entry_copies(space):
            found[piece.name, piece.start, piece.end] = piece
            self._has_copies = True
        for piece in self._read_entry_places(space):
            found[piece.name, piece.start, piece.end] = piece
            self._has_places = True
        yield
        self._known = found
        return tuple(sorted(found.values(), key=lambda piece: piece.start))

    def _read_entry_places(self, space: AddressSpace) -> Iterator[GeneratedCode]:
        """Entry code that has no symbols."""
        if self._find_places is None:
            return

        def address(name: str) -> int | None:
            symbol = self._find(name)
            return None if symbol is None else symbol.address

        for name, start, end in self._find_places(address, lambda place, size: space.read_many([(place, size)])[0]):
            yield self._known.get((name, start, end)) or GeneratedCode(name, start, end, FrameKind.KERNEL)

    def _read_entry_copies(self, space: AddressSpace) -> Iterator[GeneratedCode]:
        """The image's entry code where it is mapped once more: KPTI's trampoline."""
        places = [(symbol, space.translate(symbol.address)) for symbol in self._entry_copies]
        image = self._image(space) if not places and self._name_copies is not None else range(0)
        for low, high in self._entry_areas:
            for extent in space.mapped(low, high):
                if extent is None:
                    continue
                for symbol, physical in places:
                    offset = -1 if physical is None else physical - extent.physical
                    if 0 <= offset < extent.size:
                        size = min(symbol.size, extent.size - offset, _MAX_COPY)
                        yield self._copy(space, symbol.name, extent.address + offset, size)
                if extent.physical in image and self._name_copies is not None:
                    text = space.read_many([(extent.address, min(extent.size, _MAX_COPIES))])[0] or b""
                    for name, start, end in self._name_copies(text):
                        yield self._copy(space, name, extent.address + start, end - start)

    def _copy(self, space: AddressSpace, name: str, start: int, size: int) -> GeneratedCode:
        known = self._known.get((name, start, start + size))
        return known or GeneratedCode(name, start, start + size, FrameKind.KERNEL, space.read_many([(start, size)])[0] or b"")

    def _image(self, space: AddressSpace) -> range:
        """Where the image's code and constants are in physical memory."""
        symbols = self._find("_stext"), self._find("init_task")
        start, end = (None if symbol is None else space.translate(symbol.address) for symbol in symbols)
        return range(0) if start is None or end is None else range(start, end)

    def _describe_trampoline(self, values: StructValues) -> GeneratedCode:
        start = values.number("trampoline")
        copied = self._copied[bool(values.number("flags") & _SAVES_REGISTERS)]
        return GeneratedCode("ftrace_trampoline", start, start + values.number("trampoline_size"), FrameKind.KERNEL, copy_of=copied)


def _describe_bpf(values: StructValues) -> GeneratedCode:
    name = text_of(values.bytes("name"))
    return GeneratedCode(name, values.number("start"), values.number("end"), FrameKind.BPF, has_frame_pointer=True)


def _page_describer(name: str) -> Callable[[StructValues], GeneratedCode]:
    def describe(values: StructValues) -> GeneratedCode:
        start = values.number("insns")
        return GeneratedCode(name, start, start + _PAGE, FrameKind.KERNEL)

    return describe
