"""Layouts of what a process has mapped, for kernels without type information: found by what the structs hold.

``include/linux/mm_types.h``; the kernel has put numbers into ``struct mm_struct`` that are known from elsewhere:

    saved_auxv        pairs of which one says the page size (AT_PAGESZ); the words before it are, in all versions, the ends of the
                      program's code, data, heap, arguments and environment, and where its stack began
    mm_mt.ma_root     a maple tree whose values are structs that begin with the addresses that the tree gives them
    map_count         as many as the tree has values, in all processes; total_vm, exec_vm: pages of these, as flags say
    pgd               an address of a page table by which something that the program was told of is in memory
    context.vdso      the address that the program was told of (AT_SYSINFO_EHDR)
    vm_mm             the process' own mm
    vm_flags          may be read and run where the program begins (AT_ENTRY); grows down where the stack is
    vm_file           an object where the program begins, nothing where the stack is; in front of it the page of the file, and the
                      operations, which there are or are not in the same way

Each is taken only where one place fits in most processes: some change what they have mapped, or end, while they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from operator import itemgetter

from guest.found_types import FoundTypes, Members, are_most, most, only, read_mapped
from guest.kernel_lists import walk_list
from guest.memory import Steps
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.user.maple_tree import MapleTree, TreeChangedError
from guest.words import Words
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from unwind.arch import Architecture, PageTables

_MM_SIZE = 0x500
"""Bytes of an mm in which its members are looked for: the furthest that is wanted is in the first 900."""
_ROOT_SIZE = 0x100
_MAX_TASKS = 4096
_USED = 64
"""Processes that are enough to tell one place from another."""
_MAX_AREAS = 1024
"""Mappings of one process that are looked at."""
_AREA_WORDS = 24
_AT_MAX = 64
_AT_PAGESZ, _AT_ENTRY, _AT_SYSINFO_EHDR = 6, 9, 33
"""include/uapi/linux/auxvec.h"""
_PLACES_TOLD = (3, _AT_ENTRY, 25)
"""Addresses of the program's own: AT_PHDR, AT_ENTRY, AT_RANDOM."""
_PLACES = (
    "start_code",
    "end_code",
    "start_data",
    "end_data",
    "start_brk",
    "brk",
    "start_stack",
    "arg_start",
    "arg_end",
    "env_start",
    "env_end",
)
"""In front of ``saved_auxv``."""
_READ, _WRITE, _EXEC, _GROWS_DOWN = 1, 2, 4, 0x100
_PAGE_SHIFT_MAX = 16
_MAX_FILE_PAGE = 1 << 24
"""Pages of the largest file that programs run code of; less than any kernel's pointers."""
_LEAST_TABLE = 32
"""Bytes: the smallest top-level table, of PAE."""
_MAPLE_SLOTS = {8: (16, 10), 4: (32, 21)}
"""By the size of a pointer: slots of a node with ranges, and of one with gaps (include/linux/maple_tree.h)."""


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping: [start, end), and its struct's first words."""

    start: int
    end: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """A process: the address of its mm and its words, what the kernel told the program and at which word, its mappings."""

    mm: int
    words: tuple[int, ...]
    told: dict[int, int]
    told_at: int
    areas: tuple[Area, ...] = ()

    @property
    def page_size(self) -> int:
        """Bytes of a page, as the program was told."""
        return self.told[_AT_PAGESZ]

    def area_at(self, address: int | None) -> Area | None:
        """The mapping at an address."""
        return None if address is None else next((area for area in self.areas if area.start <= address < area.end), None)


@dataclass(frozen=True, slots=True)
class AreaLayout:
    """Where the members lie of ``struct mm_struct`` and ``vm_area_struct``; ``flags``, ``file``: the words' numbers in the latter.

    special_operations: of mappings that the kernel has made (``special_mapping_vmops``), None where no process shows them.
    """

    mm: Members
    area: Members
    flags: int
    file: int
    special_operations: int | None

    def files(self, processes: Sequence[Process]) -> list[int]:
        """Addresses of the open files that processes have mapped."""
        return list(
            dict.fromkeys(area.words[self.file] for process in processes for area in process.areas if area.words[self.file])
        )

    def ends(self, processes: Sequence[Process], page_size: int) -> dict[int, int]:
        """By file a size that it has at least: mappings reach into its last page."""
        ends: dict[int, int] = {}
        for process in processes:
            for area in process.areas:
                end = area.words[self.file - 1] * page_size + area.end - area.start - page_size
                ends[area.words[self.file]] = max(end, ends.get(area.words[self.file], 0))
        return ends

    def page_table(self, process: Process, word: int) -> int | None:
        """Kernel address of a process' page table, where the place is known. word: bytes of one."""
        place = self.mm.get("pgd")
        return None if place is None else process.words[place[0] // word]


def maple_layouts(word: int) -> dict[str, Members]:
    """The structs of a maple tree's nodes, which depend on nothing else."""
    ranges, gaps = _MAPLE_SLOTS[word]
    # In a node with ranges the last slot's place may have the metadata; one with gaps has it behind these.
    at, gaps_at = word * (2 * ranges - 1), word * 3 * gaps
    return {
        "maple_range_64": {
            "pivot": (word, word * (ranges - 1)),
            "slot": (word * ranges, word * ranges),
            "meta": (at, {"end": (0, 1)}),
        },
        "maple_arange_64": {
            "pivot": (word, word * (gaps - 1)),
            "slot": (word * gaps, word * gaps),
            "meta": (gaps_at, {"end": (0, 1)}),
        },
    }


def is_code(flags: int) -> bool:
    """Whether a process may run a mapping with such flags, and not write to it."""
    return flags & (_READ | _WRITE | _EXEC) == _READ | _EXEC


def read_processes(space: AddressSpace, symbols: SymbolTable, structs: Structs) -> list[Process]:
    """Those whose mm has what the kernel told their programs, at the place that most of them have it at.

    Raises BadImageError where there is none.
    """
    words = structs.words
    first = symbols.find("init_task")
    link, mm = (structs.require("task_struct", name).offset for name in ("tasks", "mm"))
    tasks = [] if first is None else list(walk_list(space, words, first.address + link, link, _MAX_TASKS))
    answers = space.read_many([(task + mm & words.mask, words.size) for task in tasks])
    addresses = dict.fromkeys(number for data in answers if data is not None and (number := words.number(data)))
    # Two of them lie no nearer to each other than one is long.
    ordered = sorted(addresses)
    size = min((high - low for low, high in pairwise(ordered)), default=_MM_SIZE)
    blocks = {address: words.pointers(read_mapped(space, address, min(size, _MM_SIZE))) for address in list(addresses)[:_USED]}
    page_sizes = range(space.tables.page_shift, _PAGE_SHIFT_MAX + 1)
    found = {address: _find_told(block, {1 << shift for shift in page_sizes}) for address, block in blocks.items()}
    places = [place for place in found.values() if place is not None]
    place = max(set(places), key=places.count) if places else None
    if place is None or place < len(_PLACES):
        raise BadImageError("no process shows yet what the kernel has told its program")
    return [
        Process(address, block, dict(takewhile(itemgetter(0), zip(block[place::2], block[place + 1 :: 2], strict=False))), place)
        for address, block in blocks.items()
        if found[address] == place
    ]


def _find_told(block: Sequence[int], page_sizes: set[int]) -> int | None:
    """The first word of ``saved_auxv``."""
    at = next((at for at in range(len(block) - 1) if block[at] == _AT_PAGESZ and block[at + 1] in page_sizes), None)
    while at is not None and at >= 2 and 0 < block[at - 2] < _AT_MAX:
        at -= 2
    return at


def search_areas(
    space: AddressSpace, words: Words, architecture: Architecture, tables: PageTables, processes: Sequence[Process]
) -> Steps[tuple[AreaLayout, list[Process]]]:
    """The layouts, and the processes with their mappings. tables: the shape of those of processes.

    Raises BadImageError where they cannot be told.
    """
    search = _Search(space, words, architecture, tables, processes)
    root = yield from search.find_root()
    yield
    members, areas, flags, file = search.find_members(root)
    special = search.special_operations(file)
    return AreaLayout(members, areas, flags, file, special), search.processes


class _Search:
    def __init__(
        self, space: AddressSpace, words: Words, architecture: Architecture, tables: PageTables, processes: Sequence[Process]
    ) -> None:
        self._space = space
        self._tables = tables
        self._words = words
        self._is_kernel = architecture.is_kernel_address
        self.processes = list(processes)

    def find_root(self) -> Steps[int]:
        """The word of an mm that is its tree's root; its mappings become known."""
        tree = MapleTree(self._space, Structs(FoundTypes(maple_layouts(self._words.size)), self._words))
        fits = []
        for index in range(_ROOT_SIZE // self._words.size):
            with_areas = []
            for process in self.processes:
                areas = yield from self._read_areas(tree, process.words[index])
                if areas:
                    with_areas.append(replace(process, areas=areas))
                elif len(with_areas) < len(self.processes) // 8:
                    break
            if with_areas and are_most(len(with_areas), len(self.processes)):
                fits.append((index, with_areas))
        if len(fits) != 1:
            raise BadImageError("no process shows where the kernel keeps what it has mapped")
        index, self.processes = fits[0]
        return index

    def _read_areas(self, tree: MapleTree, root: int) -> Steps[tuple[Area, ...]]:
        """The mappings by a tree's root, nothing where it is none."""
        if root & 3 != 2 or not self._is_kernel(root):
            return ()
        try:
            spans = yield from tree.read(root)
        except TreeChangedError:
            return ()
        spans = spans[:_MAX_AREAS]
        blocks = self._space.read_many([(span.entry, self._words.size * _AREA_WORDS) for span in spans])
        areas = []
        for span, data in zip(spans, blocks, strict=True):
            words = () if data is None else self._words.pointers(data)
            if words[:2] != (span.first, span.last + 1):
                return ()
            areas.append(Area(span.first, span.last + 1, words))
        return tuple(areas)

    def find_members(self, root: int) -> tuple[dict[str, tuple[int, int | Members]], Members, int, int]:
        """Of an mm, of a mapping; and the numbers of the words with a mapping's flags and file."""
        size = self._words.size
        begins = [area for process in self.processes if (area := process.area_at(process.told.get(_AT_ENTRY))) is not None]
        place = self.processes[0].told_at
        stacks = [
            area
            for process in self.processes
            if (area := process.area_at(process.words[place - len(_PLACES) + _PLACES.index("start_stack")])) is not None
        ]
        if not begins or not stacks:
            raise BadImageError("no process shows where its program begins and where its stack is")
        all_areas = [(process.mm, area) for process in self.processes for area in process.areas]
        owner = only(range(2, _AREA_WORDS), lambda index: most(area.words[index] == mm for mm, area in all_areas))
        flags = only(
            range(2, _AREA_WORDS),
            lambda index: (
                most(is_code(area.words[index]) for area in begins)
                and most(area.words[index] & (_GROWS_DOWN | 3) == _GROWS_DOWN | _READ | _WRITE for area in stacks)
            ),
        )
        areas = [area for _mm, area in all_areas]
        file = only(range(4, _AREA_WORDS - 1), lambda index: self._is_file(index, areas, begins, stacks))
        if owner is None or flags is None or file is None:
            raise BadImageError("the mappings of processes do not show where their flags and files are")
        members: dict[str, tuple[int, int | Members]] = {
            name: ((place - len(_PLACES) + number) * size, size) for number, name in enumerate(_PLACES)
        }
        members["mm_mt"] = 0, {"ma_root": (root * size, size)}
        for name, fits in self._countings(flags).items():
            found = only(range(root + 1, place - len(_PLACES)), fits)
            if found is not None:
                members[name] = found * size, size
        if "map_count" not in members:
            number = self._find_count(root, place)
            if number is None:
                raise BadImageError("no process shows where the kernel counts its mappings")
            members["map_count"] = number, 4
        vdso = only(range(place, self._length()), lambda index: self._is_vdso(index, place))
        if vdso is not None:
            members["context"] = 0, {"vdso": (vdso * size, size)}
        table = only(range(root + 1, place - len(_PLACES)), self._is_page_table)
        if table is not None:
            members["pgd"] = table * size, size
        files = {
            "vm_start": (0, size),
            "vm_end": (size, size),
            "vm_mm": (owner * size, size),
            "vm_flags": (flags * size, size),
            "vm_ops": ((file - 2) * size, size),
            "vm_pgoff": ((file - 1) * size, size),
            "vm_file": (file * size, size),
            "vm_private_data": ((file + 1) * size, size),
        }
        return members, files, flags, file

    def _length(self) -> int:
        return min(len(process.words) for process in self.processes)

    def _is_vdso(self, index: int, place: int) -> bool:
        """Whether a word is the address of the kernel's own library, behind where programs are told of it."""
        if (index - place) % 2 and self.processes[0].words[index - 1] == _AT_SYSINFO_EHDR:
            return False
        told = [(process.words[index], process.told.get(_AT_SYSINFO_EHDR)) for process in self.processes]
        return most(here == there for here, there in told)

    def _is_page_table(self, index: int) -> bool:
        """Whether a word is the address of a table by which something that programs were told of is there."""
        return most(self._has_pages(process, process.words[index]) for process in self.processes)

    def _has_pages(self, process: Process, table: int) -> bool:
        root = self._space.translate(table) if self._is_kernel(table) and not table % _LEAST_TABLE else None
        if root is None:
            return False
        own = AddressSpace(self._space.memory, self._tables, root)
        return any(own.translate(process.told[what]) is not None for what in _PLACES_TOLD if what in process.told)

    def _countings(self, flags: int) -> dict[str, Callable[[int], bool]]:
        """By the member's name: whether a word of all mm has so many pages as the mappings with some flags."""

        def pages(process: Process, mask: int, value: int) -> int:
            return sum((area.end - area.start) // process.page_size for area in process.areas if area.words[flags] & mask == value)

        def counts(mask: int, value: int) -> Callable[[int], bool]:
            expected = [pages(process, mask, value) for process in self.processes]
            return lambda index: most(
                process.words[index] == number for process, number in zip(self.processes, expected, strict=True)
            )

        return {"total_vm": counts(0, 0), "exec_vm": counts(_EXEC | _WRITE | _GROWS_DOWN, _EXEC)}

    def _find_count(self, root: int, place: int) -> int | None:
        """Where the number of mappings lies, an int."""
        per_word = self._words.size // 4

        def number(process: Process, index: int) -> int:
            word = process.words[index // per_word]
            if per_word == 1:
                return word
            is_high = (index % 2 == 1) == (self._words.byteorder == "little")
            return word >> 32 if is_high else word & 0xFFFF_FFFF

        low, high = (root + 1) * per_word, (place - len(_PLACES)) * per_word
        found = only(
            range(low, high), lambda index: most(number(process, index) == len(process.areas) for process in self.processes)
        )
        return None if found is None else 4 * found

    def _is_file(self, index: int, areas: Sequence[Area], begins: Sequence[Area], stacks: Sequence[Area]) -> bool:
        def has_file(area: Area) -> bool:
            operations, page, file = area.words[index - 2 : index + 1]
            is_object = self._is_kernel(file) and not file % self._words.size
            return is_object and self._is_kernel(operations) and page < _MAX_FILE_PAGE

        return (
            most(map(has_file, begins))
            and most(not area.words[index] and not area.words[index - 2] for area in stacks)
            and most(has_file(area) for area in areas if area.words[index])
        )

    def special_operations(self, file: int) -> int | None:
        """The operations of the mapping at which the kernel has put its own library."""
        found = {
            area.words[file - 2]
            for process in self.processes
            if (area := process.area_at(process.told.get(_AT_SYSINFO_EHDR))) is not None
        }
        return found.pop() if len(found) == 1 else None
