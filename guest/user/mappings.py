"""A process' ``struct mm_struct`` becomes what it has mapped where: as ``/proc/PID/maps`` shows it (fs/proc/task_mmu.c).

Files are only told of executable mappings, and of others of the same open file (so an ELF file's other segments too): they are what
code is found by, and each costs a walk along its path. Other mappings of files are "[file]".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from guest.memory import Steps, run_steps
from guest.paging import AddressSpace
from guest.records import Record, Values, read_records
from guest.remembered import Reads, Remembered
from guest.structs import Structs
from guest.user.files import FileIdentity, FileReader, OpenFile
from guest.user.maple_tree import MapleAreas, RedBlackAreas, TreeChangedError
from recording.errors import GuestMemoryError
from recording.symbols import SymbolTable

__all__ = ["FileIdentity", "Mapping", "MappingReader", "Mappings"]

_VM_EXEC = 4
_ATTEMPTS = 3
_MAX_NAME = 64
_VSYSCALL_NONE = 2
"""arch/x86/entry/vsyscall/vsyscall_64.c: EMULATE, XONLY, NONE"""
_START = attrgetter("start")


@dataclass(frozen=True, slots=True)
class Mapping:
    """[start, end) of a process' memory. offset: of its first byte in the file.

    path: the file's, from the root (bytes that are no UTF-8 are surrogates); or as in ``/proc/PID/maps`` "[vdso]", "[vsyscall]",
    "[stack]", "[heap]", and "[anon]" for no name; "[file]" where nobody asked for the file, "[unknown]" where it could not be read
    (file is None then). is_deleted: the file has no name any more.
    """

    start: int
    end: int
    offset: int
    is_executable: bool
    file: FileIdentity | None
    path: str
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Mappings:
    """All mappings of a process, ascending.

    stack_top: where its first stack begins, below arguments and environment. page_table: physical address of its top-level table.
    """

    mappings: tuple[Mapping, ...]
    stack_top: int
    page_table: int | None = None

    def find(self, address: int) -> Mapping | None:
        """The mapping at an address."""
        index = bisect_right(self.mappings, address, key=_START) - 1
        return self.mappings[index] if index >= 0 and address < self.mappings[index].end else None


@dataclass(frozen=True, slots=True)
class _Process:
    """Of ``struct mm_struct``: what tells whether mappings are the same as before, and what names some of them."""

    stamp: tuple[int, ...]
    root: int
    count: int
    page_table: int
    stack_top: int
    heap: tuple[int, int]
    vdso: int


class MappingReader:
    """Reads what processes have mapped, by a kernel's own structs; files are remembered."""

    def __init__(self, space: AddressSpace, symbols: SymbolTable, structs: Structs) -> None:
        """Raises BadImageError naming what the kernel's type information lacks."""
        self._space = space
        self._words = structs.words
        has_maple = structs.field("mm_struct", MapleAreas.root) is not None
        self._areas: MapleAreas | RedBlackAreas = MapleAreas(space, structs) if has_maple else RedBlackAreas(space, structs)
        # The sequence numbers change with every mapping or unmapping (mm_lock_seq: 6.4 and later, vmacache_seqnum: before 6.1).
        stamp = (
            "total_vm?",
            "exec_vm?",
            "start_code",
            "arg_start",
            "exe_file?",
            "vmacache_seqnum?",
            "mm_lock_seq.sequence|mm_lock_seq?",
        )
        words = (self._areas.root, "map_count", "pgd", "start_stack", "start_brk", "brk", "context.vdso?")
        self._mm = Record(structs, "mm_struct", (*words, *stamp))
        self._files = FileReader(space, structs)
        special = symbols.find("special_mapping_vmops")
        self._special_ops = special.address if special else structs.places.get("special_mapping_vmops")
        self._page_size = structs.page_size
        self._special = Record(structs, "vm_special_mapping", ("name",))
        self._special_names: Remembered[int, str] = Remembered(space, self._special_name)
        image = symbols.find("_text"), symbols.find("_end")
        self._image = range(image[0].address, image[1].address) if image[0] and image[1] else range(0)
        self._static_names: dict[int, str] = {}
        self._gate_area = Record(structs, "vm_area_struct", ("vm_start", "vm_end"))
        self._gate_symbols = symbols.find("gate_vma"), symbols.find("vsyscall_mode")
        self._gate: tuple[Mapping, ...] | None = None

    def stamp(self, mm: int) -> tuple[int, ...] | None:
        """Words that change when mappings do, or when the memory of ``mm`` becomes another process': one read."""
        process = self._read_process(mm)
        return None if process is None else process.stamp

    @staticmethod
    def is_same_process(stamp: tuple[int, ...], other: tuple[int, ...]) -> bool:
        """Whether two stamps of one ``mm`` are of one process that has not called execve in between."""
        _root, _count, *before = stamp
        _root, _count, *after = other
        page_table_and_stack, places = slice(0, 2), slice(4, 7)
        return before[page_table_and_stack] == after[page_table_and_stack] and before[places] == after[places]

    def read(self, mm: int) -> Mappings:
        """What a process has mapped. Raises GuestMemoryError where that cannot be read, or does not stand still."""
        return run_steps(self.read_in_steps(mm))

    def read_in_steps(self, mm: int) -> Steps[Mappings]:
        """As ``read``, for processes with thousands of mappings."""
        problem: GuestMemoryError | None = None
        earlier: list[Values] | None = None
        for _attempt in range(_ATTEMPTS):
            process = self._read_process(mm)
            if process is None:
                raise GuestMemoryError(f"the memory map at guest address {mm:#x} cannot be read")
            try:
                areas = yield from self._areas.read(process.root)
                _check(areas, mm)
            except TreeChangedError as error:
                problem = error
                continue
            mappings = self._describe(areas, process)
            again = self._read_process(mm)
            is_same = again is not None and again.stamp == process.stamp
            # In a guest that stands still amid a system call the count may differ from what is there. A process that has ended
            # leaves its count behind, and no areas.
            if is_same and (len(areas) == process.count or (areas and areas == earlier)):
                return Mappings((*mappings, *self._read_gate()), process.stack_top, self._space.translate(process.page_table))
            earlier = areas if is_same else None
        raise problem or GuestMemoryError(f"the mappings of the process at guest address {mm:#x} change too quickly to be read")

    def _read_process(self, mm: int) -> _Process | None:
        (values,) = read_records(self._space, [(self._mm, mm)])
        if values is None:
            return None
        root, count, pgd, stack, heap_start, heap_end, vdso, *_others = values
        stamp = (root, count, pgd, stack, *_others)
        return _Process(stamp, root, count, pgd, stack, (heap_start, heap_end), vdso)

    def _describe(self, areas: Sequence[Values], process: _Process) -> list[Mapping]:
        files = self._files.read([area[5] for area in areas if area[5] and area[3] & _VM_EXEC])
        special = self._read_special({area[7] for area in areas if area[7] and area[6] == self._special_ops})
        mappings = []
        for start, end, page, flags, _mm, file, operations, private in areas:
            known: OpenFile | None = None
            if file:
                known = files.get(file)
                name = "[unknown]" if file in files else "[file]"
            elif start == process.vdso:
                name = "[vdso]"
            else:
                name = (special.get(private) if operations == self._special_ops else None) or _anonymous_name(start, end, process)
            is_executable = bool(flags & _VM_EXEC)
            if known is None:
                mappings.append(Mapping(start, end, page * self._page_size if file else 0, is_executable, None, name))
            else:
                mappings.append(
                    Mapping(start, end, page * self._page_size, is_executable, known.identity, known.path, known.is_deleted)
                )
        return mappings

    def _read_special(self, wanted: set[int]) -> dict[int, str | None]:
        """Names of special mappings; those that are part of the kernel's image (all but uprobes') do not change."""
        found = self._special_names.read(wanted - self._static_names.keys())
        self._static_names |= {address: name for address, name in found.items() if name and address in self._image}
        return {**self._static_names, **found}

    def _special_name(self, mapping: int, reads: Reads) -> str:
        (name,) = reads.record(self._special, mapping)
        return reads.text(name, _MAX_NAME).decode("ascii", "backslashreplace")

    def _read_gate(self) -> tuple[Mapping, ...]:
        """The page that all processes see at the same address, if the kernel has one: it is in no process' tree."""
        if self._gate is None:
            area, mode = self._gate_symbols
            self._gate = ()
            if area is not None:
                data, number = self._space.read_many([self._gate_area.request(area.address), (mode.address if mode else 0, 4)])
                start, end = self._gate_area.values(data) if data else (0, 0)
                is_off = mode is not None and (number is None or self._words.number(number) == _VSYSCALL_NONE)
                if start < end and not is_off:
                    self._gate = (Mapping(start, end, 0, True, None, "[vsyscall]"),)
        return self._gate


def _check(areas: Sequence[Values], mm: int) -> None:
    """Raises TreeChangedError where areas cannot be those of a process."""
    end = 0
    for area in areas:
        if not end <= area[0] < area[1] or area[4] != mm:
            raise TreeChangedError(f"the mapping at {area[0]:#x} does not fit those around it")
        end = area[1]


def _anonymous_name(start: int, end: int, process: _Process) -> str:
    heap_start, heap_end = process.heap
    if start < heap_end and end > heap_start:
        return "[heap]"
    return "[stack]" if start <= process.stack_top <= end else "[anon]"
