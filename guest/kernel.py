"""A found kernel becomes what sampling and unwinding need of it: symbols, code, unwind tables, page tables, per-CPU facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from guest.cache import KernelCache
from guest.cpus import Range, read_cpus, stack_size_of
from guest.data_symbols import add_data_symbols
from guest.debug_rows import DebugRows
from guest.ehabi_table import read_ehabi
from guest.finder import KernelLocation, spaces_of
from guest.identity import read_banner, read_build_id
from guest.kallsyms import KallsymsTables, decode_kallsyms, read_kallsyms
from guest.kallsyms_scan import MAX_IMAGE_SIZE
from guest.kernel_code import KernelCodeMap, LoadedCode
from guest.memory import Steps
from guest.modules import Module
from guest.orc_tables import OrcBytes, read_orc
from guest.own_table import find_own_table, find_pointer_table
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.symbol_rows import SymbolRows
from guest.text import TextImage, read_text
from guest.words import Words
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from unwind.arch import Architecture, PageTables, Registers, UnwindMethod
from unwind.ehabi import EhabiTable
from unwind.methods import frame_rows
from unwind.orc import OrcTable

_FREEING_INIT = 2
"""``system_state`` from which on boot code is, or may be, freed: SYSTEM_FREEING_INITMEM (5.13), before it SYSTEM_RUNNING."""
_SIGNATURE_SIZE = 64
_BEHIND_CODE = 1 << 24
"""Bytes that the image has behind its code and first task at most, as far as its own page tables are looked for."""
_BEHIND_INIT_TEXT = 1 << 16
"""Bytes that ``.altinstr_aux`` has at most."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A running kernel. Addresses are run-time virtual ones.

    found_by: how it was found, in words.
    text: its code (boot code as long as it is there).
    init_text: [start, end) of boot code, which is freed once it has run.
    orc, ehabi: its unwind table, or None and in ``orc_problem`` why.
    space: its page tables, read physically: its own, or early in boot those of the vCPU.
    is_settled: ``space`` is its own, boot code is gone and the CPUs are known; until then ``refresh_kernel`` now and then.
    irq_stacks, exception_stacks, cpu_offsets, cpu_areas: by CPU number, see ``CpuFacts``; empty before they are set up.
    structs: layouts of its structs, None before they were read, or where they cannot be, and in ``structs_problem`` why.
    unknown: what cannot be known of it, in a sentence; None where nothing of note.
    loaded: its modules and the code that it has made, none before they were read.
    debug: rows of this machine's files of its code, None where there are none.
    """

    release: str
    build_id: str | None
    banner: str
    found_by: str
    architecture: Architecture
    symbols: SymbolTable
    text: TextImage
    init_text: Range
    orc: OrcTable | None
    orc_problem: str | None
    space: AddressSpace
    is_settled: bool
    irq_stacks: tuple[Range, ...]
    exception_stacks: tuple[tuple[Range, ...], ...]
    cpu_offsets: tuple[int, ...]
    cpu_areas: tuple[int, ...] = ()
    structs: Structs | None = None
    structs_problem: str | None = None
    unknown: str | None = None
    ehabi: EhabiTable | None = None
    loaded: LoadedCode = LoadedCode()  # noqa: RUF009  (it never changes)
    debug: DebugRows | None = None

    @property
    def modules(self) -> tuple[Module, ...]:
        """Its loaded modules, newest first."""
        return self.loaded.modules

    @property
    def has_own_space(self) -> bool:
        """Whether ``space`` is the kernel's own top-level table, which stays."""
        table = self.symbols.find(self.architecture.page_table_symbol)
        if table is None:
            return self.is_settled
        return self.space.translate(table.address) == self.space.root

    @property
    def data_range(self) -> Range:
        """Addresses [start, end) in which the image has its data, and perhaps more; empty where that is not known."""
        start, end, data = (self.symbols.find(name) for name in ("_stext", "_etext", "init_task"))
        if start is None or end is None:
            return 0, 0
        # PowerPC has a gap between what is written to and what is not (STRICT_ALIGN_SIZE, kernel/vmlinux.lds.S).
        last = end.address if data is None else max(end.address, data.address)
        return end.address, min(last + _BEHIND_CODE, start.address + MAX_IMAGE_SIZE)

    @property
    def stack_size(self) -> int:
        """Bytes of a task's kernel stack."""
        return stack_size_of(self.symbols, self.architecture)

    def code_map(self) -> KernelCodeMap:
        """Code, names and unwind rows of the kernel and of what it has loaded, for its unwinder."""
        frames = partial(frame_rows, self.architecture, table=self.ehabi)
        method = self.architecture.kernel_code.method
        return KernelCodeMap(self.symbols, self.text, self.orc, self.loaded, frames, method, self.debug)


def load_kernel(architecture: Architecture, location: KernelLocation, cache: KernelCache) -> Steps[Kernel]:
    """Read a found kernel, through the page tables that found it.

    Raises BadImageError where its symbols are in no known format, GuestMemoryError where they cannot be read.
    """
    # The vCPU's top-level table may be a process's that ends while this goes on. What the search has read of it stays true for the
    # kernel's half, so nothing is read anew before the kernel's own table is known.
    space = location.space
    tables = yield from _read_tables(space, location)
    anchors = _anchors(location, architecture)
    sections = cache.load(tables.fingerprint()) or {}
    yield
    problem: str | None = None
    build_id: str | None
    orc_bytes: OrcBytes | None
    cached = yield from _from_cache(sections, space, architecture, anchors)
    if cached:
        symbols, banner, build_id, orc_bytes = cached
    else:
        rows = yield from decode_kallsyms(space, tables, anchors, Words.of(architecture))
        yield
        if rows.find("linux_banner") is None:
            rows = yield from add_data_symbols(space, location.image, rows, architecture)
        symbols = rows.table()
        banner, build_id = read_banner(space, symbols), read_build_id(space, symbols, Words.of(architecture))
        yield
        orc_bytes = None
        has_orc = architecture.kernel_code.method is UnwindMethod.ORC
        if has_orc:
            orc_bytes, problem = yield from _try_orc(space, symbols)
        if banner and (build_id or not _has_notes(symbols)) and (orc_bytes or not has_orc):
            yield from _save(cache, tables.fingerprint(), architecture, rows, (banner, build_id or "", orc_bytes))
    orc = None
    try:
        orc = orc_bytes.parse(symbols) if orc_bytes else None
    except BadImageError as error:
        problem = str(error)
    yield
    ehabi = None
    if architecture.kernel_code.method is UnwindMethod.EHABI:
        try:
            ehabi = yield from read_ehabi(space, symbols)
        except BadImageError as error:
            problem = str(error)
    kernel = Kernel(
        release=location.note.release if location.note else [*banner.split(), "", "", "unknown"][2],
        build_id=build_id or (location.note.build_id if location.note else None),
        banner=banner,
        found_by=location.found_by,
        architecture=architecture,
        symbols=symbols,
        text=TextImage(()),
        init_text=_init_text(symbols),
        orc=orc,
        orc_problem=problem,
        space=space,
        is_settled=False,
        irq_stacks=(),
        exception_stacks=(),
        cpu_offsets=(),
        ehabi=ehabi,
    )
    return (yield from _refreshed(kernel, space, has_new_text=True))


def _has_notes(symbols: SymbolTable) -> bool:
    """Whether the kernel tells where its build ID is; else the banner alone tells kernels with the same names apart."""
    return symbols.find("__start_notes") is not None


def _init_text(symbols: SymbolTable) -> Range:
    """[start, end) of boot code: ``.init.text``, and up to the next symbol ``.altinstr_aux``, which has none."""
    start, end = symbols.find("_sinittext"), symbols.find("_einittext")
    return _checked(start.address, end.address + min(end.size, _BEHIND_INIT_TEXT)) if start and end else (0, 0)


def refresh_kernel(kernel: Kernel, registers: Sequence[Registers], *, has_new_text: bool = False) -> Steps[Kernel]:
    """The kernel with what changes while it runs read anew: page tables, per-CPU facts, and its code where asked for.

    The code is also read again when the kernel settles: it has patched itself by then. Returns the kernel as it was where no vCPU
    has it mapped.
    """
    space = _current_space(kernel, registers)
    if space is None:
        return kernel
    return (yield from _refreshed(kernel, space, has_new_text=has_new_text))


def is_still_there(kernel: Kernel, registers: Registers) -> bool:
    """Whether a vCPU has this kernel mapped, by a few reads: after a reboot or kexec another one is there, or none."""
    if _current_space(kernel, (registers,)) is not None:
        return True
    memory, paging = kernel.space.memory, kernel.architecture.paging
    images = (
        extent
        for space in spaces_of(memory, kernel.architecture, (registers,))
        for extent in space.mapped(*kernel.architecture.kernel_image)
    )
    if not paging.enabled(registers) or not paging.is_shared or any(images):
        return False
    # No image at all: the guest ran on since the halt, and the table was a process's that has ended. The kernel's own must do.
    address, expected = _signature(kernel)
    own = AddressSpace(memory, kernel.space.tables, kernel.space.root)
    return own.read_many([(address, len(expected))])[0] == expected


def _current_space(kernel: Kernel, registers: Sequence[Registers]) -> AddressSpace | None:
    address, expected = _signature(kernel)
    for space in spaces_of(kernel.space.memory, kernel.architecture, registers):
        if space.read_many([(address, len(expected))])[0] == expected:
            return space
    return None


def _signature(kernel: Kernel) -> tuple[int, bytes]:
    """(address, bytes) that no other kernel has there: the banner, or the last code bytes of a kernel without that symbol."""
    symbol = kernel.symbols.find("linux_banner")
    if symbol:
        return symbol.address, kernel.banner.encode("ascii")
    start, end = kernel.text.ranges[0] if kernel.text.ranges else (0, 0)
    address = max(start, end - _SIGNATURE_SIZE)
    return address, kernel.text.read(address, end - address) or b""


def _anchors(location: KernelLocation, architecture: Architecture) -> dict[str, int]:
    """Symbols whose run-time addresses are known before any other."""
    stext = location.note.symbols.get("_stext") if location.note else None
    if stext:
        return {"_stext": stext}
    if location.mark is not None and architecture.image_mark_symbols:
        return dict.fromkeys(architecture.image_mark_symbols, location.mark)
    return dict.fromkeys(architecture.image_start, location.image)


def _read_tables(space: AddressSpace, location: KernelLocation) -> Steps[KallsymsTables]:
    if location.kallsyms is None:
        raise BadImageError(
            f"no symbol table was found in the kernel at {location.image:#x}; guestprof needs a kernel with CONFIG_KALLSYMS"
        )
    return (yield from read_kallsyms(space, location.kallsyms))


def _from_cache(
    sections: Mapping[str, bytes], space: AddressSpace, architecture: Architecture, anchors: Mapping[str, int]
) -> Steps[tuple[SymbolTable, str, str | None, OrcBytes | None] | None]:
    """Symbols where this boot has put them, banner, build ID and unwind tables; None where the cache has none that fit the image.

    The names are the image's, or the cache would not have been asked; build ID and banner at the cached addresses prove those.
    """
    has_orc = architecture.kernel_code.method is UnwindMethod.ORC
    orc = OrcBytes.from_sections(sections) if has_orc else None
    if (has_orc and orc is None) or not {"symbols", "banner", "build_id"} <= sections.keys():
        return None
    try:
        kept = SymbolRows.from_bytes(sections["symbols"])
        yield
        known = ((address, kept.find(name)) for name, address in anchors.items())
        slide = next(address - base for address, base in known if base is not None)
        symbols = kept.moved(slide, *architecture.kernel_image).table()
        yield
        banner, build_id = read_banner(space, symbols), read_build_id(space, symbols, Words.of(architecture))
    except (BadImageError, StopIteration):
        return None
    yield
    if build_id is None and (_has_notes(symbols) or not banner):
        return None
    if sections["banner"] != banner.encode("ascii") or sections["build_id"] != (build_id or "").encode("ascii"):
        return None
    return (symbols, banner, build_id, orc) if orc is None or orc.fits(symbols) else None


def _save(
    cache: KernelCache, key: str, architecture: Architecture, rows: SymbolRows, facts: tuple[str, str, OrcBytes | None]
) -> Steps[None]:
    """Keep what KASLR does not change: symbols with the image at the start of the range in which images lie."""
    first = next((address for name in architecture.image_start if (address := rows.find(name)) is not None), None)
    if first is None:
        return
    banner, build_id, orc = facts
    start, end = architecture.kernel_image
    kept = rows.moved(start - first, start, end).to_bytes()
    yield
    tables = {} if orc is None else orc.to_sections()
    cache.save(key, {"banner": banner.encode("ascii"), "build_id": build_id.encode("ascii"), "symbols": kept, **tables})
    yield


def _try_orc(space: AddressSpace, symbols: SymbolTable) -> Steps[tuple[OrcBytes | None, str | None]]:
    """The unwind tables, or why there are none."""
    try:
        tables = yield from read_orc(space, symbols)
    except BadImageError as error:
        return None, str(error)
    yield
    return tables, None


def _refreshed(kernel: Kernel, current: AddressSpace, *, has_new_text: bool) -> Steps[Kernel]:
    own = yield from _own_space(kernel, current)
    facts = read_cpus(own or current, kernel.symbols, kernel.architecture)
    if own and not facts.offsets:
        # The table maps the image from the start, but the rest of the kernel's half only when the kernel loads it.
        own = None
        facts = read_cpus(current, kernel.symbols, kernel.architecture)
    yield
    space = own or current
    is_init_there = _is_init_there(space, kernel.symbols)
    has_cpus = bool(facts.irq_stacks if kernel.architecture.interrupt_stacks.variable else facts.offsets)
    is_settled = own is not None and not is_init_there and has_cpus
    text = kernel.text
    if has_new_text or (is_settled and not kernel.is_settled):
        start, end = kernel.symbols.find(kernel.architecture.code_start), kernel.symbols.find("_etext")
        ranges = [_checked(start.address, end.address)] if start and end else []
        text = yield from read_text(space, [*ranges, *([kernel.init_text] if is_init_there else [])])
    space.forget()
    return replace(
        kernel,
        text=text,
        space=space,
        is_settled=is_settled,
        irq_stacks=facts.irq_stacks,
        exception_stacks=facts.exception_stacks,
        cpu_offsets=facts.offsets,
        cpu_areas=facts.areas,
    )


def _own_space(kernel: Kernel, current: AddressSpace) -> Steps[AddressSpace | None]:
    """The kernel's own page tables, or None while they do not map the image as the vCPU's do (early in boot)."""
    table = kernel.symbols.find(kernel.architecture.page_table_symbol)
    start = kernel.symbols.find("_stext")
    paging = kernel.architecture.paging
    if table is None and paging.shows_own:
        return current
    if start is None:
        return None
    words = Words.of(kernel.architecture)

    def variable(name: str) -> int | None:
        symbol = kernel.symbols.find(name)
        data = None if symbol is None else current.read_many([(symbol.address, words.size)])[0]
        return None if data is None else words.number(data)

    tables = paging.kernel_tables(current.tables, variable)
    root = current.translate(table.address) if table else (yield from _search_own_table(kernel, current, tables))
    if root is None:
        # With the hash MMU of older processors there is none: the image can be read, at least.
        is_enough = current.is_linear(start.address) and not kernel.architecture.page_table_alignment
        return current if is_enough else None
    own = AddressSpace(current.memory, tables, root)
    return own if own.translate(start.address) == current.translate(start.address) else None


def _search_own_table(kernel: Kernel, current: AddressSpace, tables: PageTables) -> Steps[int | None]:
    if kernel.is_settled:
        return kernel.space.root
    if kernel.architecture.page_table_alignment:
        return (yield from find_pointer_table(current, kernel.data_range, kernel.architecture.page_table_alignment))
    start, data = kernel.symbols.find("_stext"), kernel.symbols.find("init_task")
    if start is None or data is None:
        return None
    wanted = start.address, data.address
    return (yield from find_own_table(current, tables, kernel.data_range, wanted, kernel.architecture.kernel_image[0]))


def _is_init_there(space: AddressSpace, symbols: SymbolTable) -> bool:
    """Whether boot code is certain to be in memory still."""
    symbol = symbols.find("system_state")
    data = space.read_many([(symbol.address, 4)])[0] if symbol else None
    return data is not None and int.from_bytes(data, space.tables.byteorder) < _FREEING_INIT


def _checked(start: int, end: int) -> Range:
    """A range of code by two symbols, empty where they cannot be the ends of one."""
    return (start, end) if 0 <= end - start <= MAX_IMAGE_SIZE else (start, start)
