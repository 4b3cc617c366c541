"""Layouts for kernels without type information: where ``struct task_struct`` has its members is found by what they hold.

``init_task`` is exported by every kernel, named "swapper" and the head of the list of all processes (include/linux/sched.h):

    comm            the place of that name
    tasks           the longest ring through ``init_task`` whose links lie at one place of it and of every element, all of which
                    have a name
    pid, tgid       a pair that is the same number twice, a different one in each process, 0 in the first and 1 in the second
    group_leader    the process' own address
    stack           an aligned address, a different one in each process, with STACK_END_MAGIC a little above it
    mm, active_mm   a pair that is the same address twice, or nothing in the first: so in kernel threads, thus in pid 2, not pid 1
    flags           a number behind ``stack`` that has PF_KTHREAD in those without mm, and in no other
    mm_struct.pgd   an address in each mm of a page table that maps the kernel's image
    a CPU's task    where each CPU has a struct of its own (``unwind.arch.CpuAreas``), if its place is not known: an address in all
                    of them of a task, told by name and stack

Each is taken only where one place fits. What is found so is true; what is not stays unknown.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from guest.cpus import read_cpus
from guest.found_types import FoundTypes, Members, are_most, only, read_mapped
from guest.kernel_lists import walk_list
from guest.memory import Steps
from guest.paging import PAGE_SIZE, AddressSpace
from guest.structs import Structs
from guest.words import Words
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from unwind.arch import Architecture

UNKNOWN = (
    "the kernel has no type information (BTF): the code that it generates, control groups, and what processes have mapped, with the"
    " names of their functions, cannot be told"
)
"""What stays unknown of a kernel whose structs were searched."""
_TASK_SIZE = 0x2000
"""Bytes of a task in which its members are looked for: with pid, name and memory in the first 3,000 of stock kernels."""
_NAME_SIZE = 16
_FIRST_NAMES = (b"swapper/0\0", b"swapper\0")
_MAX_TASKS = 4096
_ATTEMPTS = 3
_LOOKS = 3
_USED_TASKS = 64
"""Processes that are enough to tell one place from another."""
_MIN_TASKS = 3
_STACK_END_MAGIC = 0x57AC_6E9D
_STACK_HEAD = 256
"""Bytes at a stack's bottom in which the magic number lies: behind ``struct thread_info`` where that is there, too."""
_BEHIND_STACK = 64
_BEHIND_PIDS = 16
"""Words in which parents, children and the main thread lie (include/linux/sched.h)."""
_PF_KTHREAD = 0x0020_0000
_MM_SIZE = 0x400
_AREA_SIZE = 0x1000
"""Bytes of a CPU's struct in which its task is looked for: in stock kernels it is among the first 2,000."""
_MAX_PID = 1 << 22


@dataclass(frozen=True, slots=True)
class _Task:
    """A process: its address, and its memory as pointers and as 32-bit numbers."""

    address: int
    data: bytes
    pointers: tuple[int, ...]
    numbers: tuple[int, ...]


def search_structs(space: AddressSpace, symbols: SymbolTable, architecture: Architecture) -> Steps[Structs]:
    """What can be found of the running kernel's structs. Raises BadImageError where that is not enough to tell tasks apart."""
    for _attempt in range(_ATTEMPTS - 1):
        # Tasks start and end meanwhile.
        with contextlib.suppress(BadImageError):
            return (yield from _search(space, symbols, architecture))
        yield
    return (yield from _search(space, symbols, architecture))


def _search(space: AddressSpace, symbols: SymbolTable, architecture: Architecture) -> Steps[Structs]:
    words = Words.of(architecture)
    first = symbols.find("init_task")
    if first is None:
        raise BadImageError("the kernel exports no init_task, and has no type information (BTF): its tasks cannot be told")
    name = _find_name(space, first.address)
    ring = None if name is None else (yield from _find_ring(space, words, first.address, name))
    if name is None or ring is None:
        raise BadImageError("the kernel has no type information (BTF), and its tasks are not there yet or of an unknown form")
    link, tasks = ring
    yield
    found: dict[str, tuple[int, int | Members]] = {"comm": (name, _NAME_SIZE), "tasks": (link, 2 * words.size)}
    search = _Search(space, words, architecture, tasks)
    pid = search.pid()
    stack = search.stack()
    yield
    if pid is None or stack is None:
        raise BadImageError("the kernel has no type information (BTF), and its tasks do not show yet where their pid and stack are")
    found |= {"pid": (pid, 4), "tgid": (pid + 4, 4), "stack": (stack, words.size)}
    leader, mm = search.leader(pid), search.mm()
    flags = None if mm is None else search.flags(stack, mm)
    if mm is None or flags is None:
        raise BadImageError("the kernel has no type information (BTF), and no process shows yet where its memory is")
    found |= {"mm": (mm, words.size), "flags": (flags, 4)}
    if leader is not None:
        found["group_leader"] = leader, words.size
    yield
    structs: dict[str, Members] = {"task_struct": found}
    image = symbols.find("_stext")
    table = None if image is None else search.page_table(mm, image.address)
    if table is not None:
        structs["mm_struct"] = {"pgd": (table, words.size)}
    yield
    own = architecture.cpu_areas
    for area, _, member in (each.partition(".") for each in architecture.running_task.variables):
        if own is None or area != own.struct or member in own.members:
            continue
        current = yield from search.current(read_cpus(space, symbols, architecture).areas, name, stack)
        if current is not None:
            structs[area] = {member: (current, words.size)}
    return Structs(FoundTypes(structs), words)


def _find_name(space: AddressSpace, first: int) -> int | None:
    data = read_mapped(space, first, _TASK_SIZE)
    places = {at for name in _FIRST_NAMES for at in _all_places(data, name.ljust(_NAME_SIZE, b"\0"))}
    return places.pop() if len(places) == 1 else None


def _all_places(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _find_ring(space: AddressSpace, words: Words, first: int, name: int) -> Steps[tuple[int, list[_Task]] | None]:
    """Where the links of the longest ring of processes lie in them, and those."""
    best: tuple[int, list[int]] = (0, [])
    pointers = words.pointers(read_mapped(space, first, _TASK_SIZE))
    for index, pointer in enumerate(pointers[:-1]):
        link = index * words.size
        if pointer in (0, first + link) or not _is_ring(space, words, first + link, pointer):
            continue
        yield
        addresses = [first]
        for element in walk_list(space, words, first + link, link, _MAX_TASKS):
            if not _is_name(space.read_many([(element + name & words.mask, _NAME_SIZE)])[0]):
                break
            addresses.append(element)
        else:
            if len(addresses) > len(best[1]):
                best = link, addresses
    link, addresses = best
    if len(addresses) < _MIN_TASKS:
        return None
    # Two tasks lie no nearer to each other than one is long. Those that were started last may just be made or ending.
    ordered = sorted(addresses)
    size = min(_TASK_SIZE, *(high - low for low, high in pairwise(ordered)))
    tasks = [task for address in addresses[:_USED_TASKS] if (task := _read_task(space, words, address, size)) is not None]
    # What has ended meanwhile may have been read as something else.
    alive = {first, *walk_list(space, words, first + link, link, _MAX_TASKS)}
    tasks = [task for task in tasks if task.address in alive]
    return (link, tasks) if len(tasks) >= _MIN_TASKS else None


def _is_ring(space: AddressSpace, words: Words, head: int, link: int) -> bool:
    """Whether the link behind the head leads back to it."""
    data = space.read_many([(link, 2 * words.size)])[0]
    return data is not None and words.pointers(data)[1] == head


def _is_name(data: bytes | None) -> bool:
    text = (data or b"").partition(b"\0")
    return bool(text[0]) and bool(text[1]) and text[0].isascii() and text[0].decode("ascii").isprintable()


def _read_task(space: AddressSpace, words: Words, address: int, size: int) -> _Task | None:
    data = read_mapped(space, address, size)
    if len(data) < _NAME_SIZE:
        return None
    numbers = struct.unpack_from(f"{words.order}{len(data) // 4}I", data)
    return _Task(address, data, words.pointers(data), numbers)


class _Search:
    """Looks for places in the same tasks."""

    def __init__(self, space: AddressSpace, words: Words, architecture: Architecture, tasks: list[_Task]) -> None:
        self._space = space
        self._words = words
        self._is_kernel = architecture.is_kernel_address
        self._stack_size = architecture.stack_size
        self._is_shared = architecture.paging.is_shared
        self._tasks = tasks
        self._pointers = min(len(task.pointers) for task in tasks)
        self._numbers = min(len(task.numbers) for task in tasks)

    def _pointer(self, fits: Callable[[int], bool], beyond: int = 1) -> int | None:
        index = only(range(self._pointers - beyond), fits)
        return None if index is None else index * self._words.size

    def pid(self) -> int | None:
        """Where the pid lies, with the tgid behind it."""

        def fits(index: int) -> bool:
            pids = [task.numbers[index] for task in self._tasks]
            if pids[:2] != [0, 1] or max(pids) > _MAX_PID or len(set(pids)) < len(pids):
                return False
            return pids == [task.numbers[index + 1] for task in self._tasks]

        index = only(range(self._numbers - 1), fits)
        return None if index is None else 4 * index

    def stack(self) -> int | None:
        """Where the lowest address of the kernel stack lies. A process that has ended has none, or another one has it by now."""

        def fits(index: int) -> bool:
            stacks = [task.pointers[index] for task in self._tasks]
            there = [stack for stack in stacks if stack]
            if 2 * len(there) < len(stacks) or not are_most(len(set(there)), len(there)):
                return False
            if any(stack % self._stack_size or not self._is_kernel(stack) for stack in there):
                return False
            heads = self._space.read_many([(stack, _STACK_HEAD) for stack in there])
            marked = [head for head in heads if head is not None and _STACK_END_MAGIC in self._words.pointers(head)]
            return are_most(len(marked), len(heads))

        return self._pointer(fits)

    def leader(self, pid: int) -> int | None:
        """Where, a little behind the pids, the process' main thread lies, which all that the list has are."""
        first = (pid + 8) // self._words.size

        def fits(index: int) -> bool:
            is_near = first <= index < first + _BEHIND_PIDS
            return is_near and all(task.pointers[index] == task.address for task in self._tasks)

        return self._pointer(fits)

    def mm(self) -> int | None:
        """Where the memory lies; kernel threads have none."""

        def fits(index: int) -> bool:
            pairs = [task.pointers[index : index + 2] for task in self._tasks]
            if not pairs[1][0] or pairs[0][0] or pairs[2][0] or self._space.translate(pairs[1][0]) is None:
                return False
            return all(not own or (own == active and self._is_object(own)) for own, active in pairs)

        return self._pointer(fits)

    def _is_object(self, address: int) -> bool:
        """Whether something can lie at an address: other numbers than pointers may look like kernel addresses, ~0 for one."""
        return self._is_kernel(address) and not address % self._words.size and self._space.translate(address) is not None

    def flags(self, stack: int, mm: int) -> int | None:
        """Where the flags lie: kernel threads have one that processes have not."""
        low, index = (stack + self._words.size) // 4, mm // self._words.size

        def fits(number: int) -> bool:
            marks = [bool(task.numbers[low + number] & _PF_KTHREAD) for task in self._tasks]
            # One that is ending has no memory any more.
            return marks[:3] == [True, False, True] and not any(
                mark and task.pointers[index] for mark, task in zip(marks, self._tasks, strict=True)
            )

        found = only(range(_BEHIND_STACK // 4), fits)
        return None if found is None else 4 * (low + found)

    def current(self, areas: Sequence[int], name: int, stack: int) -> Steps[int | None]:
        """Where the structs of the CPUs have the task that runs.

        Looked for several times, and all places count: a CPU that goes from one task to another may show none at its true place,
        and elsewhere the registers that an exception has saved, with a task among them.
        """
        fitting: set[int] = set()
        for _look in range(_LOOKS):
            found = [self._words.pointers(read_mapped(self._space, area, _AREA_SIZE)) for area in areas]
            count = min((len(pointers) for pointers in found), default=0)
            fitting |= {index for index in range(count) if all(self._is_task(pointers[index], name, stack) for pointers in found)}
            yield
        return fitting.pop() * self._words.size if len(fitting) == 1 else None

    def _is_task(self, address: int, name: int, stack: int) -> bool:
        if not self._is_kernel(address):
            return False
        text, pointer = self._space.read_many([(address + name, _NAME_SIZE), (address + stack, self._words.size)])
        if not _is_name(text) or pointer is None:
            return False
        head = self._space.read_many([(self._words.number(pointer), _STACK_HEAD)])[0]
        return head is not None and _STACK_END_MAGIC in self._words.pointers(head)

    def page_table(self, mm: int, image: int) -> int | None:
        """Where an mm has the kernel address of its page table.

        None where it cannot be told: page tables of processes neither map the kernel nor are full of pointers.
        """
        expected = self._space.translate(image)
        has_pointers = self._space.tables.has_pointers
        if not (self._is_shared or has_pointers) or expected is None:
            return None
        memories = dict.fromkeys(memory for task in self._tasks if (memory := task.pointers[mm // self._words.size]))
        read = [self._words.pointers(data) for data in (read_mapped(self._space, memory, _MM_SIZE) for memory in memories) if data]

        def fits(index: int) -> bool:
            tables = [pointers[index] for pointers in read]
            return all(self._has_pointers(table) if has_pointers else self._maps(table, image, expected) for table in tables)

        index = only(range(min((len(pointers) for pointers in read), default=0)), fits)
        return None if index is None else index * self._words.size

    def _maps(self, table: int, image: int, physical: int) -> bool:
        root = self._space.translate(table) if self._is_kernel(table) and not table % 32 else None
        return root is not None and AddressSpace(self._space.memory, self._space.tables, root).translate(image) == physical

    def _has_pointers(self, table: int) -> bool:
        """Whether a page has nothing but the kernel's addresses of pages, as a top-level table has."""
        data = self._space.read_many([(table, PAGE_SIZE)])[0] if self._is_kernel(table) and not table % PAGE_SIZE else None
        return data is not None and all(self._is_kernel(word) and not word % PAGE_SIZE for word in self._words.pointers(data))
