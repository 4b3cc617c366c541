"""Which task each CPU runs: the words that a halt copies become pid, names, address space and control group.

Linux keeps the running task in a register or a per-CPU variable (``unwind.arch.RunningTask``). Its facts lie close together in
``struct task_struct``, so a halt copies one slice of it; what follows from its pointers is read when the guest runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from guest.cgroups import CgroupReader
from guest.cpus import MAX_CPUS
from guest.paging import AddressSpace
from guest.structs import Field, Structs
from guest.words import Words
from recording.errors import BadImageError
from recording.model import Task
from recording.symbols import SymbolTable
from unwind.arch import Architecture, Registers

_PF_KTHREAD = 0x0020_0000
"""include/linux/sched.h"""
_MAX_SLICE = 8192
"""Bytes between the first and the last member that is wanted; in Debian's kernels about 3,000."""
_MAX_NAMES = 65536
_MEMBERS = ("flags", "stack", "mm", "pid", "tgid", "comm")
_FILTER = "seccomp.filter"
_MAYBE = ("group_leader", "cgroups", _FILTER)
"""Members that kernels may lack (CONFIG_SECCOMP), or that are not known without type information."""
_CPU = "thread_info.cpu"
"""Its number says whose per-CPU variables are the running CPU's where no register does."""
_NO_AREAS: Mapping[int, int] = MappingProxyType({})
_NAME_LIFE_NS = 1_000_000_000
"""A process' name, which threads show with theirs, is read again after this: it may change (execve, prctl)."""


@dataclass(frozen=True, slots=True)
class TaskWords:
    """A task as a halt found it. Addresses are kernel virtual ones.

    stack: lowest address of its kernel stack. mm: 0 for kernel threads. leader: the main thread of its process, 0 if not known.
    filter: its newest filter of system calls, 0 where it has none. cpu: the number of the CPU that it runs on, where it says so.
    """

    address: int
    pid: int
    tgid: int
    comm: str
    flags: int
    stack: int
    mm: int
    leader: int
    cgroups: int
    filter: int = 0
    cpu: int = 0

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it has no user part (idle tasks neither)."""
        return bool(self.flags & _PF_KTHREAD) or self.pid == 0


class TaskReader:
    """Knows where a kernel keeps its running tasks and what about them; and describes them, remembering names."""

    def __init__(
        self,
        space: AddressSpace,
        symbols: SymbolTable,
        structs: Structs,
        architecture: Architecture,
        areas: Mapping[int, int] = _NO_AREAS,
    ) -> None:
        """areas: address of each CPU's area by its per-CPU offset. Raises BadImageError where types lack what is needed."""
        self._space = space
        self.words = Words.of(architecture)
        self._pointer, self._head = architecture.running_task.pointer, architecture.running_task.head
        self._stacks = symbols.find(architecture.running_task.stacks) if architecture.running_task.stacks else None
        self._stack_size = architecture.stack_size
        self._has_cpu_base = bool(architecture.cpu_base) or architecture.cpu_areas is not None
        fields = {name: structs.require("task_struct", name) for name in _MEMBERS}
        fields |= {name: field for name in _MAYBE if (field := structs.field("task_struct", name)) is not None}
        has_stacks = bool(architecture.running_task.stacks)
        if not self._has_cpu_base and not has_stacks:
            fields[_CPU] = structs.require("task_struct", _CPU)
        self._fields: Mapping[str, Field] = fields
        low = min(field.offset for field in self._fields.values())
        high = max(field.offset + field.size for field in self._fields.values())
        if high - low > _MAX_SLICE:
            raise BadImageError(f"struct task_struct has its members {high - low} bytes apart; report this kernel")
        self._low, self._size = low, high - low
        self._areas = areas
        self._member = _find_member(structs, architecture)
        queues, running = symbols.find("runqueues"), structs.field("rq", "curr")
        scheduled = queues.address + running.offset if queues and running else None
        if has_stacks:
            self._current = self._stacks.address if self._stacks is not None else 0
        else:
            self._current = 0 if self._member is not None else _find_current(symbols, structs, architecture, scheduled)
        self._scheduled = scheduled
        offsets = symbols.find("__per_cpu_offset")
        self._cpu_offsets = None if offsets is None else offsets.address
        table = structs.field("mm_struct", "pgd")
        self._page_table = None if table is None else table.offset
        self._groups = _cgroup_reader(space, symbols, structs)
        self._names: dict[tuple[int, int], tuple[int, str]] = {}

    def stacks_offset(self, cpu: int) -> int | None:
        """What stands for a CPU's per-CPU offset where the kernel has an array that leads to the tasks, else None."""
        return None if self._stacks is None else cpu * self.words.size

    def current_address(self, cpu_offset: int) -> int:
        """Where the pointer to the running task, or into its stack, lies of the CPU with that per-CPU offset."""
        if self._member is not None:
            return self._areas.get(cpu_offset, 0) + self._member
        return self._current + cpu_offset & self.words.mask

    def scheduled_address(self, cpu_offset: int) -> int:
        """Where the scheduler's pointer to the task lies that it has chosen for a CPU: a little ahead of ``current_address``."""
        return self.current_address(cpu_offset) if self._scheduled is None else self._scheduled + cpu_offset & self.words.mask

    def page_table_address(self, words: TaskWords) -> int | None:
        """Where the kernel address of a process' top-level page table lies, None where that is not known.

        It has one only where ``words.mm`` is not 0.
        """
        return None if self._page_table is None else words.mm + self._page_table & self.words.mask

    def slice_of(self, task: int) -> tuple[int, int]:
        """(address, size) of what a halt copies of a task."""
        return task + self._low & self.words.mask, self._size

    def parse(self, task: int, data: bytes) -> TaskWords:
        """The facts of a task at an address, from its slice."""
        values = {}
        for name, field in self._fields.items():
            start = field.offset - self._low
            values[name] = data[start : start + field.size]
        number = {name: self.words.number(value) for name, value in values.items()}
        return TaskWords(
            task,
            number["pid"],
            number["tgid"],
            _text(values["comm"]),
            number["flags"],
            number["stack"],
            number["mm"],
            number.get("group_leader", 0),
            number.get("cgroups", 0),
            number.get(_FILTER, 0),
            number.get(_CPU, 0),
        )

    def find_running(
        self, read: Callable[[int, int], bytes | None], registers: Registers, cpu_offset: int | None, stack: tuple[int, int] | None
    ) -> TaskWords | None:
        """The task that the CPU with these registers runs, from words that ``read`` gives; None where it does not.

        cpu_offset: None where no register has told it. stack: the CPU's stack pointer and the size of a stack, None in user mode.
        In the middle of a switch from one task to another the stack is the next task's already and the pointer to the running one
        is not (arch/x86/entry/entry_64.S, ``__switch_to_asm``): whose stack it is decides.
        """
        if cpu_offset is None and self._has_cpu_base:
            return None
        task = self._pointer(registers)
        head = self._head(registers)
        if head is not None:
            task = self._read_pointer(read, head)
        words = None if task is None else self._parse_from(read, task)
        if words is None and cpu_offset is not None:
            words = self._read_task(read, self.current_address(cpu_offset))
        if words is None or stack is None or 0 <= stack[0] - words.stack < stack[1]:
            return words
        if cpu_offset is None:
            cpu_offset = self._read_offset(read, words.cpu)
            if cpu_offset is None:
                return words
        scheduled = self._read_task(read, self.scheduled_address(cpu_offset))
        return scheduled if scheduled is not None and 0 <= stack[0] - scheduled.stack < stack[1] else words

    def _read_offset(self, read: Callable[[int, int], bytes | None], cpu: int) -> int | None:
        if self._cpu_offsets is None or cpu >= MAX_CPUS:
            return None
        data = read(self._cpu_offsets + cpu * self.words.size, self.words.size)
        return None if data is None else self.words.number(data)

    def _read_task(self, read: Callable[[int, int], bytes | None], where: int) -> TaskWords | None:
        pointer = self._read_pointer(read, where)
        if pointer is not None and self._stacks is not None:
            pointer = self._read_pointer(read, pointer & -self._stack_size)
        return self._parse_from(read, pointer) if pointer else None

    def _read_pointer(self, read: Callable[[int, int], bytes | None], where: int) -> int | None:
        data = read(where, self.words.size)
        return None if data is None else self.words.number(data)

    def _parse_from(self, read: Callable[[int, int], bytes | None], task: int) -> TaskWords | None:
        data = read(*self.slice_of(task))
        return None if data is None else self.parse(task, data)

    def describe(self, words: TaskWords, now_ns: int) -> Task:
        """A task with the name of its process and its control group; ``now_ns``: any clock, for how long a name is believed."""
        process = words.comm if words.leader in (0, words.address) else self._leader_name(words, now_ns)
        group = self._groups.path(words.cgroups) if self._groups is not None and words.cgroups else None
        return Task(words.pid, words.tgid, words.comm, process, words.is_kernel_thread, group)

    def _leader_name(self, words: TaskWords, now_ns: int) -> str:
        key = (words.leader, words.tgid)
        known = self._names.get(key)
        if known is not None and now_ns - known[0] < _NAME_LIFE_NS:
            return known[1]
        data = self._space.read_many([self.slice_of(words.leader)])[0]
        leader = None if data is None else self.parse(words.leader, data)
        # The leader may have ended and its memory have become another task's.
        name = leader.comm if leader is not None and leader.pid == words.tgid else known[1] if known else words.comm
        if len(self._names) >= _MAX_NAMES:
            self._names.clear()
        self._names[key] = (now_ns, name)
        return name


def _text(data: bytes) -> str:
    """A name of bytes that a guest may choose as it likes."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _find_member(structs: Structs, architecture: Architecture) -> int | None:
    """Where in a CPU's area the pointer to the running task is, None where none has it."""
    areas = architecture.cpu_areas
    if areas is None:
        return None
    for variable in architecture.running_task.variables:
        struct, _, member = variable.partition(".")
        field = structs.field(struct, member) if struct == areas.struct else None
        if field is not None:
            return field.offset
        if struct == areas.struct and member in areas.members:
            return areas.members[member]
    return None


def _find_current(symbols: SymbolTable, structs: Structs, architecture: Architecture, scheduled: int | None) -> int:
    """The variable that points to the running task; where the architecture has none, the scheduler's."""
    variables = architecture.running_task.variables
    if not variables and scheduled is not None:
        return scheduled
    for variable in variables:
        name, _, member = variable.partition(".")
        symbol = symbols.find(name)
        field = structs.field(name, member) if member else Field(0, 0)
        if symbol is not None and field is not None:
            return symbol.address + field.offset
    named = " nor ".join(variable.partition(".")[0] for variable in variables or ("runqueues",))
    neither = "neither " if len(variables) > 1 else "no "
    raise BadImageError(f"the kernel has {neither}{named}: the running task cannot be told; report this kernel")


def _cgroup_reader(space: AddressSpace, symbols: SymbolTable, structs: Structs) -> CgroupReader | None:
    try:
        return CgroupReader(space, symbols, structs)
    except BadImageError:
        return None
