"""The kernel's file on this machine as a source of what the guest's memory lacks: names of data, and layouts of structs.

Kernels without CONFIG_KALLSYMS_ALL name only code, and without CONFIG_DEBUG_INFO_BTF they describe no struct; their
``vmlinux`` with debug information does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol, TypeAlias

from guest.elf.debug_file import DebugFile
from guest.elf.dwarf_types import DwarfTypes
from guest.elf.dwarf_units import Dwarf
from guest.elf.placement import find_anchors, find_placement
from guest.host_files import HostFinder
from guest.structs import Structs
from guest.words import Words
from recording.model import FrameKind, Image
from recording.symbols import SymbolTable

_USERS = (
    # Functions whose units use all structs that are asked for: tasks, modules, mappings, files, the page cache, BPF, seccomp.
    *("schedule", "kernel_clone", "load_module", "do_mmap", "vfs_read", "filemap_read", "d_path", "mnt_get_count"),
    *("cgroup_path_ns", "__seccomp_filter", "bpf_prog_alloc", "bpf_ksym_find", "mas_walk", "xas_load", "task_work_run"),
    *("page_cache_ra_unbounded", "mod_sysfs_setup", "register_kprobe", "sysfs_create_bin_file"),
)


FinderOf: TypeAlias = Callable[[str], HostFinder]
"""By a kernel's release."""


class KernelSource(Protocol):
    """What tells more of a kernel than the guest's memory: see ``HostKernel``."""

    @property
    def build_id(self) -> str | None:
        """That a guest's kernel must have, in hex; None where any will do."""

    @property
    def has_structs(self) -> bool:
        """Whether ``structs`` gives any."""

    def fits(self, build_id: str | None, /) -> bool:
        """Whether it is of a kernel, as far as build IDs tell."""

    def with_data(self, symbols: SymbolTable) -> SymbolTable | None:
        """Symbols with the names of data; None where it is of another kernel."""

    def structs(self, words: Words, page_size: int, /) -> Structs:
        """Layouts of its structs."""


class KernelFinder(Protocol):
    """What finds the file of a guest's kernel."""

    @property
    def build_id(self) -> str | None:
        """That any guest's kernel must have, in hex; None where any will do."""

    def find(self, release: str, build_id: str | None, symbols: SymbolTable, /) -> KernelSource | None:
        """The file of a kernel, as far as its build ID, if that is known, and its symbols tell; None where there is none."""

    def files(self, release: str, /) -> HostFinder | None:
        """What finds files of a kernel and of its modules while it is sampled; None where nothing does."""


class NamedKernel:
    """The one file that ``--vmlinux`` names."""

    def __init__(self, source: KernelSource, finder_of: FinderOf | None = None) -> None:
        """finder_of: see ``files``, by the kernel's release."""
        self._source = source
        self._finder_of = finder_of
        self.build_id = source.build_id

    def find(self, _release: str, build_id: str | None, _symbols: SymbolTable) -> KernelSource | None:
        """See ``KernelFinder``."""
        return self._source if self._source.fits(build_id) else None

    def files(self, release: str) -> HostFinder | None:
        """See ``KernelFinder``."""
        return None if self._finder_of is None else self._finder_of(release)


class SearchedKernel:
    """Files of the directories and servers that are named, looked at when a kernel needs one. They stay open."""

    build_id: str | None = None

    def __init__(self, finder_of: FinderOf, *, files: FinderOf | None = None, any_build: bool = False) -> None:
        """finder_of: what finds the kernel's file. files: likewise, while it is sampled. any_build: see ``HostKernel``."""
        self._finder_of = finder_of
        self._files = files
        self._any_build = any_build
        self._found: dict[tuple[str, str | None], KernelSource | None] = {}

    def find(self, release: str, build_id: str | None, symbols: SymbolTable) -> KernelSource | None:
        """See ``KernelFinder``. Looking takes up to a second, once for each kernel."""
        opened = (source for (name, _), source in self._found.items() if name == release and source is not None)
        fitting = next((source for source in opened if source.fits(build_id)), None)
        if fitting is None and (release, build_id) not in self._found:
            image = Image("vmlinux", FrameKind.KERNEL, 0, build_id, (), symbols)
            # Whoever wants lines at the recording's end is told of files that do not fit.
            match = self._finder_of(release).find(image, lambda _line: None)
            fitting = None if match is None else HostKernel(match.file, any_build=self._any_build)
            self._found[release, build_id] = fitting
        return fitting

    def files(self, release: str) -> HostFinder | None:
        """See ``KernelFinder``."""
        return None if self._files is None else self._files(release)


class HostKernel:
    """A kernel's file, opened; it stays open as long as structs of it are asked for."""

    def __init__(self, file: DebugFile, *, any_build: bool = False) -> None:
        """any_build: it is taken for kernels of another build ID, too."""
        self._file = file
        self._any_build = any_build

    @property
    def build_id(self) -> str | None:
        """That a guest's kernel must have, in hex; None where any will do."""
        return None if self._any_build else self._file.build_id

    def fits(self, build_id: str | None) -> bool:
        """Whether it is of a kernel, as far as build IDs tell."""
        return self._any_build or None in (build_id, self._file.build_id) or build_id == self._file.build_id

    def with_data(self, symbols: SymbolTable) -> SymbolTable | None:
        """A running kernel's symbols and, where these lack it, the names of its data; None where the file is of another kernel."""
        placement = find_placement(symbols, self._file, find_anchors(self._file))
        if placement is None:
            return None
        bias = placement.parts[0][2]
        mask = (1 << 64) - 1
        rows = [(symbol.address, symbol.kind, symbol.name) for symbol in symbols]
        known = {name for _, _, name in rows}
        for section in self._file.data_sections():
            # The per-CPU section of some architectures begins at 0 and is not moved.
            moved = bias if section.start else 0
            rows += [
                (symbol.address + moved & mask, "d", symbol.name)
                for symbol in self._file.data_symbols(section)
                if symbol.name not in known
            ]
        return SymbolTable.from_symbols(rows)

    @cached_property
    def _types(self) -> DwarfTypes:
        addresses = {symbol.name: symbol.address for symbol in self._file.symbols()}
        return DwarfTypes(Dwarf(self._file), [addresses[name] for name in _USERS if name in addresses], self._variables)

    def _variables(self, name: str) -> Iterator[tuple[str, int]]:
        for section in self._file.data_sections():
            if section.name == name:
                yield from ((symbol.name, symbol.address - section.start) for symbol in self._file.data_symbols(section))

    def prepare(self) -> None:
        """Read now what takes half a second, rather than while the guest is sampled, where its kernel does not describe its
        structs.

        Raises BadImageError where the file is damaged.
        """
        if self._file.has_lines and not self._file.section(".BTF").size:
            _ = self._types

    @property
    def has_structs(self) -> bool:
        """Whether the file has debug information at all."""
        return self._file.has_lines

    def structs(self, words: Words, page_size: int) -> Structs:
        """Layouts of its structs. Raises BadImageError where the debug information is damaged."""
        return Structs(self._types, words, page_size)
