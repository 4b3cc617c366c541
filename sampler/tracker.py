"""Which kernel the guest runs right now, found and kept up to date in small steps between two samples.

Nothing is searched for until a vCPU runs kernel code (or user code, which a kernel must have started): before that it is firmware
or a decompressor. A kernel that was found is believed until the registers contradict it (the boot CPU with paging off, code where
the kernel has none); then its place in memory is looked at again, and after a reboot the search starts anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from guest.btf import has_types, read_structs
from guest.cache import KernelCache
from guest.debug_rows import DebugFiles
from guest.finder import find_kernel, is_note_of
from guest.generated_code import GeneratedCode, GeneratedCodeReader
from guest.host_kernel import KernelFinder, KernelSource
from guest.identity import read_build_id
from guest.kernel import Kernel, is_still_there, load_kernel, refresh_kernel
from guest.kernel_code import LoadedCode, LoadedPiece
from guest.memory import PhysicalMemory, Steps, run_steps
from guest.module_search import search_modules
from guest.modules import ModuleReader
from guest.structs import Structs
from guest.system_call_filters import SystemCallFilters
from guest.task_search import UNKNOWN, search_structs
from guest.timekeeper import Timekeeper, find_timekeeper, has_named_timekeeper
from guest.user.struct_search import UNKNOWN as UNKNOWN_BUT_USER
from guest.user.struct_search import search_user_structs
from guest.vmcoreinfo import VmCoreInfo, scan_vmcoreinfo
from guest.words import Words
from recording.errors import BadImageError, GuestMemoryError
from recording.model import FrameKind, Image
from sampler.memory import ProcessMemory
from unwind.arch import Architecture, PageTables, Registers
from unwind.kernel import KernelUnwinder

_FIRST_RETRY_NS = 100_000_000
_LAST_RETRY_NS = 5_000_000_000
_REFRESH_NS = 500_000_000
_SETTLE_NS = 50_000_000
"""Between two looks at a kernel that is about to set up its CPUs' variables, or that has just begun to run programs and settles."""
_DOUBT_NS = 50_000_000
_MODULES_NS = 100_000_000
"""Between two looks at the list of modules where each of them costs a halt."""
_CLOCK_NS = 20_000_000
"""Between two looks at a kernel's clock that has a name and does not run yet."""
_FIRST_STRUCTS_RETRY_NS = 500_000_000
_LAST_STRUCTS_RETRY_NS = 60_000_000_000
_DATA_SYMBOL = "modules"
"""A variable that kernels have which name their data at all (CONFIG_KALLSYMS_ALL)."""
_BEHIND_LAST_SYMBOL = 1 << 16
_FIRST_SEARCH_NS = 250_000_000
"""Between two searches for what a kernel without type information has not shown yet; twice as long each time."""
_HURRIED_SEARCH_NS = 2_000_000_000
"""At most, while stacks go through code that is not known."""


def _ignore(*_arguments: object) -> None:
    pass


@dataclass(slots=True)
class _Search:
    """When to look for something again that shows only while the guest does certain things."""

    next_ns: int = 0
    every_ns: int = _FIRST_SEARCH_NS
    began_ns: int = 0

    def is_due(self, now_ns: int) -> bool:
        """Whether to look now. The next time is later."""
        if now_ns < self.next_ns:
            return False
        self.began_ns, self.next_ns = now_ns, now_ns + self.every_ns
        self.every_ns = min(2 * self.every_ns, _LAST_STRUCTS_RETRY_NS)
        return True

    def hurry(self) -> None:
        """There is a sign of it."""
        self.next_ns = min(self.next_ns, self.began_ns + _HURRIED_SEARCH_NS)


@dataclass(frozen=True, slots=True)
class TrackerEvents:
    """What to call when something becomes known: the kernel found (and the unwinder made for it), read anew, gone (why).

    refreshed: also when its ``structs`` were read, or not and ``structs_problem`` says why.
    clock: where the kernel's clock is read; that stays.
    modules: ``kernel.loaded`` is new: the modules and generated code that came since, and those that are gone. Both are empty where
        a module has only freed the code of its start. A module keeps ``address`` and ``serial`` from its loading to its unloading,
        though its ``Module`` is replaced.
    """

    found: Callable[[Kernel], None]
    refreshed: Callable[[Kernel], None]
    gone: Callable[[str], None]
    modules: Callable[[Sequence[LoadedPiece], Sequence[LoadedPiece]], None] = _ignore
    clock: Callable[[Timekeeper], None] = _ignore


class KernelTracker:
    """Feeds on the registers of each halt (``see``) and on spare time (``step``)."""

    def __init__(
        self,
        memory: PhysicalMemory,
        architecture: Architecture,
        cache: KernelCache,
        events: TrackerEvents,
        *,
        can_peek: bool | None = None,
        host: KernelFinder | None = None,
    ) -> None:
        """host: finds the kernel's file on this machine, asked for what the guest's memory does not say. can_peek: reading
        ``memory`` costs the guest nothing, so that modules can be looked for after every halt.

        None: that is so if it is QEMU's own.
        """
        self.kernel: Kernel | None = None
        self.unwinder: KernelUnwinder | None = None
        self.boot = 0
        self.problem: str | None = None
        self._memory = memory
        self._architecture = architecture
        self._cache = cache
        self._host = host
        self._debug: DebugFiles | None = None
        self._events = events
        self._work: Steps[None] | None = None
        self._registers: tuple[Registers, ...] = ()
        self._next_try_ns = 0
        self._retry_ns = _FIRST_RETRY_NS
        self._next_refresh_ns = 0
        self._next_doubt_ns = 0
        self._refresh_wanted = False
        can_peek = isinstance(memory, ProcessMemory) if can_peek is None else can_peek
        self._modules_every_ns = 0 if can_peek else _MODULES_NS
        self._next_modules_ns = 0
        self._next_structs_ns = 0
        self._structs_retry_ns = _FIRST_STRUCTS_RETRY_NS
        self._module_search, self._user_search, self._clock_search = _Search(), _Search(), _Search()
        self._has_pages = False
        self._modules: ModuleReader | None = None
        self._generated: GeneratedCodeReader | None = None
        self._filters: SystemCallFilters | None = None
        self._reads_modules = self._has_clock = False
        self._next_clock_ns = 0

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return self._work is not None

    @property
    def is_learnt(self) -> bool:
        """Whether it is known what processes are and have mapped, or was looked for in vain."""
        if self.kernel is None:
            return False
        if self.kernel.structs is None or (self._must_search_clock(self.kernel) and self._clock_search.next_ns == 0):
            return False
        return self.kernel.unknown is None or self._has_pages or (self._user_search.next_ns > 0 and not self.has_work)

    @property
    def has_new_modules(self) -> bool:
        """Whether the guest has loaded or unloaded code that is not read yet: its stacks are unwound better after ``step``."""
        return self._reads_modules and self._work is not None

    def module_at(self, address: int) -> LoadedPiece | None:
        """The module, or code that the kernel made, that has an address in its code now."""
        return None if self.kernel is None else self.kernel.loaded.at(address)

    def see(self, vcpus: Sequence[int], registers: Sequence[Registers], now_ns: int) -> None:
        """Take notice of a halt's registers: start a search, doubt a kernel that was found, or read it anew."""
        arch = self._architecture
        self._registers = tuple(registers)
        if self.kernel is None:
            if self._work is None and now_ns >= self._next_try_ns and any(map(self._runs_under_a_kernel, registers)):
                self._work = self._search()
                self._next_try_ns = now_ns + self._retry_ns
                self._retry_ns = min(2 * self._retry_ns, _LAST_RETRY_NS)
            return
        boot_cpu = registers[vcpus.index(0)] if 0 in vcpus else registers[0]
        if not arch.paging.enabled(boot_cpu):
            self.lose("the guest was reset: its boot CPU has paging off")
        elif now_ns >= self._next_doubt_ns and any(map(self._is_strange, registers)):
            self._next_doubt_ns = now_ns + _DOUBT_NS
            if not any(is_still_there(self.kernel, each) for each in registers if arch.paging.enabled(each)):
                self.lose("another kernel runs now: the one that was found is no longer mapped")
        elif not self._has_clock and now_ns >= self._next_clock_ns and has_named_timekeeper(self.kernel.symbols):
            # Whatever else there is to do: what was before its first reading is known less exactly.
            self._next_clock_ns = now_ns + _CLOCK_NS
            with contextlib.suppress(GuestMemoryError):
                run_steps(self._find_clock(self.kernel))
        elif self._work is None:
            self._work = self._find_work(self.kernel, any(map(arch.is_user, registers)), now_ns)

    def see_filter(self, newest: int) -> None:
        """A task was seen to run whose newest filter of system calls is at an address (0: it has none)."""
        if self._filters is not None:
            self._filters.see(newest)

    def _find_work(self, kernel: Kernel, runs_programs: bool, now_ns: int) -> Steps[None] | None:
        # These come ever more rarely, and go first: stacks through modules that are not known want a refresh again and again.
        if kernel.structs is None and now_ns >= self._next_structs_ns:
            self._next_structs_ns = now_ns + self._structs_retry_ns
            self._structs_retry_ns = min(2 * self._structs_retry_ns, _LAST_STRUCTS_RETRY_NS)
            return self._describe(kernel)
        if kernel.structs is not None and kernel.has_own_space:
            # It takes the least time of these searches, and tells the most.
            tables = self._user_tables(kernel) if kernel.unknown is not None and not self._has_pages else None
            if tables is not None and self._user_search.is_due(now_ns):
                return self._search_user(kernel, kernel.structs, tables)
        if self._must_search_clock(kernel) and self._clock_search.is_due(now_ns):
            return self._find_clock(kernel)
        if kernel.structs is not None and kernel.has_own_space:
            # The list has a name (of a System.map), and what its entries look like is not known.
            has_list = kernel.symbols.find("modules") is not None and kernel.unknown is None
            lacks_modules = self._modules is None and not has_list
            if lacks_modules and self._module_search.is_due(now_ns):
                return self._search_modules(kernel)
        if now_ns >= self._next_refresh_ns and (self._refresh_wanted or not kernel.is_settled):
            settles = not kernel.is_settled and (runs_programs or not kernel.cpu_offsets)
            self._next_refresh_ns = now_ns + (_SETTLE_NS if settles else _REFRESH_NS)
            has_new_text, self._refresh_wanted = self._refresh_wanted, False
            return self._refresh(kernel, has_new_text=has_new_text)
        knows_lists = self._modules is not None or self._generated is not None
        if knows_lists and now_ns >= self._next_modules_ns and kernel.has_own_space:
            self._next_modules_ns = now_ns + self._modules_every_ns
            if self._is_outdated(kernel):
                return self._read_loaded(kernel)
        return None

    def _must_search_clock(self, kernel: Kernel) -> bool:
        is_known = kernel.structs is not None or kernel.structs_problem is not None
        return not self._has_clock and is_known and not has_named_timekeeper(kernel.symbols)

    def _is_outdated(self, kernel: Kernel) -> bool:
        return (self._modules is not None and self._modules.has_changed(kernel.space)) or self._has_new_code(kernel)

    def _has_new_code(self, kernel: Kernel) -> bool:
        generated = self._generated is not None and self._generated.has_changed(kernel.space)
        return generated or (self._filters is not None and self._filters.has_new)

    def want_refresh(self) -> None:
        """A stack did not fit the kernel's code as it was read: it may have been patched since, or goes through a module."""
        self._refresh_wanted = True
        self._module_search.hurry()

    def lose(self, why: str) -> None:
        """The kernel is gone (a reset, a kexec): forget it and search for the next."""
        if self.kernel is None:
            # A search that a reset has overtaken would find what is no longer there.
            self._work = None
            return
        self._events.gone(why)
        self.kernel = self.unwinder = self._work = self._modules = self._generated = self._filters = self._debug = None
        self._reads_modules = self._has_clock = False
        self.boot += 1
        self._next_try_ns = self._next_structs_ns = self._next_modules_ns = 0
        self._structs_retry_ns = _FIRST_STRUCTS_RETRY_NS
        self._module_search, self._user_search, self._clock_search = _Search(), _Search(), _Search()
        self._has_pages = False
        self._retry_ns = _FIRST_RETRY_NS

    def step(self) -> None:
        """Do a few milliseconds of the work at hand. Raises UnsupportedTargetError for a kernel of another architecture."""
        if self._work is None:
            return
        work = self._work
        try:
            next(work)
        except StopIteration:
            if self._work is work:
                self._work = None
                self._reads_modules = False
        except (BadImageError, GuestMemoryError) as error:
            # Memory that changes under our eyes (early boot, a reset) is no kernel yet: the next try may find one.
            self.problem = str(error)
            self._work = None
            self._reads_modules = False

    def _runs_under_a_kernel(self, registers: Registers) -> bool:
        arch = self._architecture
        if arch.is_32bit_kernel(registers):
            return True
        if not arch.paging.enabled(registers) or not arch.shows_image(registers):
            return False
        return arch.is_user(registers) or arch.is_kernel_address(registers[arch.pc])

    def _is_strange(self, registers: Registers) -> bool:
        """Whether a vCPU runs code in the kernel's half where this kernel has none (or has it in a module, which may be)."""
        arch = self._architecture
        pc = registers[arch.pc]
        if self.kernel is None or arch.is_user(registers) or not arch.is_kernel_address(pc):
            return not arch.is_user(registers)
        code = arch.kernel_code
        areas = (self.kernel.init_text, *code.entry_areas, *((code.module_area,) if code.has_only_code else ()))
        if self.kernel.text.contains(pc) or any(low <= pc < high for low, high in areas):
            return False
        return code.has_only_code or self.kernel.loaded.at(pc) is None

    def _search(self) -> Steps[None]:
        location = yield from find_kernel(self._memory, self._architecture, self._registers)
        if location is None:
            return
        kernel = yield from load_kernel(self._architecture, location, self._cache)
        self.problem = kernel.orc_problem
        if self._host is not None and kernel.build_id is None:
            # Files are found by it, and told from those of other builds.
            kernel = yield from self._with_noted_build(kernel, location.image)
        host = self._host_of(kernel) if kernel.symbols.find(_DATA_SYMBOL) is None else None
        if host is not None:
            yield
            symbols = host.with_data(kernel.symbols) or kernel.symbols
            # Now it is known where the kernel has its build ID, too.
            build_id = kernel.build_id or read_build_id(kernel.space, symbols, Words.of(kernel.architecture))
            kernel = replace(kernel, symbols=symbols if host.fits(build_id) else kernel.symbols, build_id=build_id)
            yield
        finder = None if self._host is None else self._host.files(kernel.release)
        self._debug = None if finder is None else DebugFiles(finder, self._architecture)
        kernel = yield from self._with_debug_rows(kernel)
        self._adopt(kernel)
        self._events.found(kernel)
        yield
        yield from self._describe(kernel)

    def _with_noted_build(self, kernel: Kernel, image: int) -> Steps[Kernel]:
        """With the build ID that the kernel has written down for crash dumps, where no symbol leads to its own."""

        def is_its(note: VmCoreInfo) -> bool:
            return note.release == kernel.release and is_note_of(note, self._architecture, kernel.space, image)

        note = yield from scan_vmcoreinfo(self._memory, is_its)
        return kernel if note is None else replace(kernel, build_id=note.build_id)

    def _host_of(self, kernel: Kernel) -> KernelSource | None:
        """The file of this kernel on this machine."""
        return None if self._host is None else self._host.find(kernel.release, kernel.build_id, kernel.symbols)

    def _with_debug_rows(self, kernel: Kernel) -> Steps[Kernel]:
        """With what files of this machine tell of the stacks of its code as it is now."""
        if self._debug is None:
            return kernel
        images: list[tuple[object, Image]] = [(None, Image("vmlinux", FrameKind.KERNEL, 0, kernel.build_id, (), kernel.symbols))]
        images += [
            ((each.serial, each.build_id), Image(each.name, FrameKind.MODULE, 0, each.build_id, each.ranges, each.symbols))
            for each in kernel.modules
        ]
        return replace(kernel, debug=(yield from self._debug.read(images)))

    def _refresh(self, kernel: Kernel, *, has_new_text: bool) -> Steps[None]:
        fresh = yield from refresh_kernel(kernel, self._registers, has_new_text=has_new_text)
        if has_new_text and self._modules is not None and fresh.has_own_space:
            modules = yield from self._modules.read(fresh.space, has_new_text=True)
            fresh = yield from self._with_debug_rows(replace(fresh, loaded=LoadedCode(modules, fresh.loaded.generated)))
        self._adopt(fresh)
        self._events.refreshed(fresh)
        self._tell_changes(kernel.loaded, fresh.loaded)

    def _adopt(self, kernel: Kernel) -> None:
        self.kernel = kernel
        code = kernel.code_map()
        self.unwinder = KernelUnwinder(self._architecture, code, code, code, kernel.init_text, is_settled=kernel.is_settled)

    def _describe(self, kernel: Kernel) -> Steps[None]:
        """Read the layouts of the kernel's structs, then what they lead to."""
        self._reads_modules = True
        unknown = None
        host = None if has_types(kernel.symbols) else self._host_of(kernel)
        try:
            if host is not None and host.has_structs:
                structs = host.structs(Words.of(kernel.architecture), 1 << kernel.space.tables.page_shift)
            elif has_types(kernel.symbols):
                structs = yield from read_structs(kernel.space, kernel.symbols, Words.of(kernel.architecture))
            else:
                structs = yield from search_structs(kernel.space, kernel.symbols, kernel.architecture)
                unknown = UNKNOWN
        except BadImageError as error:
            is_news = kernel.structs_problem is None
            self.kernel = kernel = replace(kernel, structs_problem=str(error))
            if is_news:
                self._events.refreshed(kernel)
            return
        self.kernel = kernel = replace(kernel, structs=structs, structs_problem=None, unknown=unknown)
        self._generated = GeneratedCodeReader(kernel.symbols, structs, self._architecture)
        try:
            self._modules = ModuleReader(kernel.symbols, structs, kernel.orc.version if kernel.orc else None)
        except BadImageError as error:
            self.problem = str(error)
        # Kernels without seccomp have no such types.
        with contextlib.suppress(BadImageError):
            self._filters = SystemCallFilters(structs)
        yield
        self._events.refreshed(kernel)
        yield
        if kernel.has_own_space:
            yield from self._read_loaded(kernel)

    def _search_modules(self, kernel: Kernel) -> Steps[None]:
        """Look for the list of modules where no symbol says where it is: there is one to be found when a module is loaded."""
        last = kernel.symbols.find_at(Words.of(kernel.architecture).mask)
        start, end = kernel.data_range
        image = start, min(end, last.address + _BEHIND_LAST_SYMBOL) if last is not None else end
        found = yield from search_modules(kernel.space, image, self._architecture)
        if found is not None:
            self._modules = ModuleReader(found.symbols, found.structs, None)
            yield
            yield from self._read_loaded(kernel)

    def _user_tables(self, kernel: Kernel) -> PageTables | None:
        """The shape of processes' page tables, None where no vCPU shows it now."""
        find = self._architecture.paging.user_tables
        if find is None:
            return kernel.space.tables
        return next((find(registers) for registers in self._registers if self._architecture.is_user(registers)), None)

    def _search_user(self, kernel: Kernel, structs: Structs, tables: PageTables) -> Steps[None]:
        """Look for what processes have mapped where no types say it; until it also shows how the pages of files are kept."""
        found = yield from search_user_structs(kernel.space, kernel.symbols, structs, self._architecture, tables)
        self._has_pages = "vmemmap" in found.places
        if self._has_pages or kernel.unknown != UNKNOWN_BUT_USER:
            self.kernel = kernel = replace(kernel, structs=found, unknown=UNKNOWN_BUT_USER)
            yield
            self._events.refreshed(kernel)

    def _find_clock(self, kernel: Kernel) -> Steps[None]:
        """Look for the kernel's clock, which shows nothing before the kernel has started it."""
        found = yield from find_timekeeper(kernel.space, kernel.symbols, kernel.data_range, kernel.structs, self._architecture)
        if found is not None:
            self._has_clock = True
            self._events.clock(found)

    def _read_loaded(self, kernel: Kernel) -> Steps[None]:
        """Read what is new of modules and generated code. The unwinder keeps what it knows of the kernel's own code."""
        self._reads_modules = True
        before = kernel.loaded
        modules, generated = before.modules, before.generated
        if self._modules is not None and self._modules.has_changed(kernel.space):
            modules = yield from self._modules.read(kernel.space)
        if self._has_new_code(kernel):
            generated = yield from self._read_generated(kernel)
        self._reads_modules = False
        if (modules, generated) == (before.modules, before.generated):
            return
        self.kernel = kernel = yield from self._with_debug_rows(replace(kernel, loaded=LoadedCode(modules, generated)))
        code = kernel.code_map()
        if self.unwinder is not None:
            self.unwinder.replace_modules(code, code, code)
        self._tell_changes(before, kernel.loaded)

    def _read_generated(self, kernel: Kernel) -> Steps[tuple[GeneratedCode, ...]]:
        listed = () if self._generated is None else (yield from self._generated.read(kernel.space))
        filters = [] if self._filters is None else (yield from self._filters.read(kernel.space))
        return (*listed, *filters)

    def _tell_changes(self, before: LoadedCode, now: LoadedCode) -> None:
        if before is not now:
            self._events.modules(*_changes(before, now))


def _changes(before: LoadedCode, now: LoadedCode) -> tuple[list[LoadedPiece], list[LoadedPiece]]:
    """What is new, and what is gone."""
    old, new = _by_identity(before), _by_identity(now)
    return [code for key, code in new.items() if key not in old], [code for key, code in old.items() if key not in new]


def _by_identity(loaded: LoadedCode) -> dict[object, LoadedPiece]:
    modules: dict[object, LoadedPiece] = {module.serial: module for module in reversed(loaded.modules)}
    return {**modules, **{(piece.name, piece.start, piece.end): piece for piece in loaded.generated}}
