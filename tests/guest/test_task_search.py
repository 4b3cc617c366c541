"""Layouts that are found by what tasks hold: hand-made tasks of either byte order and pointer size."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.structs import Field, Structs
from guest.task_search import search_structs
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from unwind.arch import Architecture, CpuAreas, PageTables, RunningTask
from unwind.arch.i386 import I386

LOW = 0xC000_0000
SIZE = 0x10_0000
TASK_SIZE = 0x400
TABLES = PageTables(12, (10, 10), (2,), 1, (0x80, 0x80), 0xFFFF_F000, 4, "little", linear=((LOW, LOW + SIZE, 0),))
FIRST, STEXT = LOW + 0x8_0000, LOW + 0x1000
KTHREAD = 0x0020_0000
PROCESSES = (
    ("swapper/0", 0, True),
    ("init", 1, False),
    ("kthreadd", 2, True),
    ("rcu_gp", 3, True),
    ("kworker/0:0", 5, True),
    ("ksoftirqd/0", 12, True),
    ("sh", 40, False),
    ("dd", 57, False),
)


class Tasks:
    """Tasks in memory: at each place something that only one rule takes for a member."""

    def __init__(self, architecture: Architecture = I386) -> None:
        self.word = architecture.pointer_size
        self.order = "<" if architecture.byteorder == "little" else ">"
        self.architecture = architecture
        self.memory = bytearray(SIZE)
        w = self.word
        self.at = {
            "stack": 2 * w,
            "flags": 3 * w + 8,
            "tasks": 0x80,
            "mm": 0x90 + w,
            "pid": 0xB0,
            "leader": 0xC0 + w,
            "comm": 0x1C0,
        }
        self.addresses = [FIRST, *(FIRST + 0x1000 + TASK_SIZE * number for number in range(1, len(PROCESSES)))]
        links = [address + self.at["tasks"] for address in self.addresses]
        for number, (address, (comm, pid, is_kernel)) in enumerate(zip(self.addresses, PROCESSES, strict=True)):
            stack = LOW + 0x2_0000 + 0x2000 * number
            self.pointer(address + self.at["stack"], stack)
            self.pointer(stack, 0x57AC_6E9D)
            self.number(address + self.at["flags"], 0x40 | (KTHREAD if is_kernel else 0))
            self.pointer(address + self.at["tasks"], links[(number + 1) % len(links)])
            self.pointer(address + self.at["tasks"] + w, links[number - 1])
            mm = 0 if is_kernel else LOW + 0x4_0000 + 0x400 * number
            self.pointer(address + self.at["mm"], mm)
            self.pointer(address + self.at["mm"] + w, mm or (LOW + 0x4_1800 if pid == 3 else 0))
            self.number(address + self.at["pid"], pid)
            self.number(address + self.at["pid"] + 4, pid)
            self.pointer(address + self.at["leader"], address)
            if not is_kernel:
                # Floating-point registers of programs.
                for at in (0x150, 0x150 + w):
                    self.pointer(address + at, 0xFFFF_FFFF if w == 4 else 0xFFFF_FFFF_FFFF_FFFF)
            # real_cred and cred: the same twice, in all of them. A list of its own. A parent.
            self.pointer(address + 0xE0, LOW + 0x5_0000 + 16 * number)
            self.pointer(address + 0xE0 + w, LOW + 0x5_0000 + 16 * number)
            self.pointer(address + 0x100, address + 0x100)
            self.pointer(address + 0x100 + w, address + 0x100)
            self.pointer(address + 0x110, FIRST)
            self.bytes(address + self.at["comm"], comm.encode() + b"\0")
            if mm:
                table = LOW + 0x6_0000 + 0x1000 * number
                self.pointer(mm + 0x20, table)
                self.bytes(table + 4 * (STEXT >> 22), struct.pack("<I", 0x83))
        # Children of the first: a ring whose links lie elsewhere in them than in their parent.
        one, two = (address + 0x130 for address in self.addresses[1:3])
        head = FIRST + 0x120
        for place, following, before in ((head, one, two), (one, two, head), (two, head, one)):
            self.pointer(place, following)
            self.pointer(place + w, before)

    def bytes(self, address: int, data: bytes) -> None:
        self.memory[address - LOW : address - LOW + len(data)] = data

    def pointer(self, address: int, value: int) -> None:
        self.bytes(address, struct.pack(f"{self.order}{'I' if self.word == 4 else 'Q'}", value))

    def number(self, address: int, value: int) -> None:
        self.bytes(address, struct.pack(f"{self.order}I", value))

    def search(self, tables: PageTables = TABLES, more: Sequence[tuple[int, str, str]] = ()) -> Structs:
        space = AddressSpace(BytesMemory({0: bytes(self.memory)}), tables, 0)
        symbols = SymbolTable.from_symbols(sorted([(FIRST, "D", "init_task"), (STEXT, "T", "_stext"), *more]))
        return run_steps(search_structs(space, symbols, self.architecture))


WIDE = replace(I386, pointer_size=8)
BIG = replace(I386, byteorder="big", paging=replace(I386.paging, is_shared=False))


@pytest.mark.parametrize("architecture", [I386, WIDE, BIG], ids=["4 bytes", "8 bytes", "big endian"])
def test_members_are_found(architecture: Architecture) -> None:
    tasks = Tasks(architecture)
    word, at = tasks.word, tasks.at
    found = tasks.search()
    expected = {
        "comm": Field(at["comm"], 16),
        "tasks": Field(at["tasks"], 2 * word),
        "pid": Field(at["pid"], 4),
        "tgid": Field(at["pid"] + 4, 4),
        "stack": Field(at["stack"], word),
        "mm": Field(at["mm"], word),
        "flags": Field(at["flags"], 4),
        "group_leader": Field(at["leader"], word),
        "cgroups": None,
    }
    assert {name: found.field("task_struct", name) for name in expected} == expected
    # Where processes' page tables do not map the kernel, nothing proves that a page is one.
    assert found.field("mm_struct", "pgd") == (Field(0x20, word) if architecture.paging.is_shared else None)
    assert found.enumerator("pid_type", "PIDTYPE_PID") is None
    assert list(found.variables(".data..percpu")) == []


def lose_stacks(tasks: Tasks) -> None:
    tasks.pointer(LOW + 0x2_0000, 0)
    tasks.pointer(LOW + 0x2_2000, 0)


def double_pid(tasks: Tasks) -> None:
    for address in tasks.addresses:
        for at in (0x140, 0x144):
            tasks.bytes(address + at, bytes(tasks.memory[address + tasks.at["pid"] - LOW :][:4]))


def no_program_yet(tasks: Tasks) -> None:
    for at in (tasks.at["mm"], tasks.at["mm"] + tasks.word):
        tasks.pointer(tasks.addresses[1] + at, 0)


def break_ring(tasks: Tasks) -> None:
    tasks.pointer(tasks.addresses[3] + tasks.at["tasks"], 0x1234)


def two_names(tasks: Tasks) -> None:
    tasks.bytes(FIRST + 0x200, b"swapper/0\0")


@pytest.mark.parametrize("change", [lose_stacks, double_pid, no_program_yet, two_names, break_ring])
def test_what_is_not_certain_is_not_taken(change: Callable[[Tasks], None]) -> None:
    tasks = Tasks()
    change(tasks)
    with pytest.raises(BadImageError, match="no type information"):
        tasks.search()


def test_a_process_that_has_ended_has_neither_stack_nor_memory() -> None:
    tasks = Tasks()
    for at in (tasks.at["stack"], tasks.at["mm"], tasks.at["mm"] + tasks.word):
        tasks.pointer(tasks.addresses[-1] + at, 0)
    found = tasks.search()
    assert found.field("task_struct", "stack") == Field(tasks.at["stack"], 4)
    assert found.field("task_struct", "flags") == Field(tasks.at["flags"], 4)


def test_a_process_that_ended_while_it_was_read_has_left_its_stack_to_another() -> None:
    tasks = Tasks()
    tasks.pointer(tasks.addresses[-1] + tasks.at["stack"], LOW + 0x2_0000)
    assert tasks.search().field("task_struct", "stack") == Field(tasks.at["stack"], 4)


def test_the_same_twice_that_is_no_address() -> None:
    tasks = Tasks(WIDE)
    for address, (_comm, _pid, is_kernel) in zip(tasks.addresses, PROCESSES, strict=True):
        for at in (0x180, 0x188):
            tasks.pointer(address + at, 0 if is_kernel else 0xFFFF_FFFF_FFFF_FFFF)
    assert tasks.search().field("task_struct", "mm") == Field(tasks.at["mm"], 8)


AREAS = LOW + 0x7_0000, LOW + 0x7_2000


class CpuTasks(Tasks):
    """Two CPUs, each with a struct of its own that has the task which runs, and something that looks like one on the first."""

    def __init__(self, **members: int) -> None:
        running = RunningTask(pointer=lambda _registers: None, variables=("area.current",), head=lambda _registers: None, stacks="")
        super().__init__(replace(WIDE, cpu_areas=CpuAreas("areas", "area", is_pointer=True, members=members), running_task=running))
        for place, area in zip((0x7_4000, 0x7_4008), AREAS, strict=True):
            self.pointer(LOW + place, area)
        for place, value in ((0x7_4010, 0x1000), (0x7_4018, 0x2000), (0x7_4020, LOW + 0x7_4000)):
            self.pointer(LOW + place, value)
        for area, task, other in zip(AREAS, (FIRST, self.addresses[-1]), (self.addresses[1], 0), strict=True):
            self.pointer(area + 0x40, task)
            self.pointer(area + 0x48, other)
            self.pointer(area + 0x50, LOW + 0x2_0000)

    def current(self, other: Tasks | None = None) -> Field | None:
        """Where it is found; other: memory that the second look at the first CPU's struct sees instead."""
        damaged = BytesMemory({0: bytes((other or self).memory)})

        class Memory(BytesMemory):
            looks = 0

            def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
                self.looks += any(address <= AREAS[0] - LOW < address + size for address, size in requests)
                return damaged.read_many(requests) if self.looks == 1 else super().read_many(requests)

        space = AddressSpace(Memory({0: bytes(self.memory)}), TABLES, 0)
        names = [(FIRST, "D", "init_task"), (STEXT, "T", "_stext"), (LOW + 0x7_4010, "D", "__per_cpu_offset")]
        symbols = SymbolTable.from_symbols(sorted([*names, (LOW + 0x7_4020, "D", "areas")]))
        return run_steps(search_structs(space, symbols, self.architecture)).field("area", "current")


def test_the_running_task_is_in_the_struct_of_each_cpu() -> None:
    tasks = CpuTasks()
    assert tasks.current() == Field(0x40, 8)
    for area in AREAS:
        tasks.pointer(area + 0x58, FIRST)
    assert tasks.current() is None


def test_the_running_task_is_not_searched_for_where_its_place_is_known() -> None:
    assert CpuTasks(current=0x48).current() is None


def test_one_look_amid_a_switch_does_not_take_saved_registers_for_the_running_task() -> None:
    tasks, amid = CpuTasks(), CpuTasks()
    for area in AREAS:
        amid.pointer(area + 0x40, 0)
        amid.pointer(area + 0x58, FIRST)
    assert tasks.current(amid) is None


def test_without_a_leader_the_rest_stays() -> None:
    tasks = Tasks()
    tasks.pointer(tasks.addresses[2] + tasks.at["leader"], FIRST)
    found = tasks.search()
    assert found.field("task_struct", "group_leader") is None
    assert found.field("task_struct", "pid") == Field(tasks.at["pid"], 4)


def test_a_kernel_that_does_not_export_its_first_task() -> None:
    space = AddressSpace(BytesMemory({0: bytes(SIZE)}), TABLES, 0)
    with pytest.raises(BadImageError, match="no init_task"):
        run_steps(search_structs(space, SymbolTable.from_symbols([]), I386))
    symbols = SymbolTable.from_symbols([(FIRST, "D", "init_task")])
    with pytest.raises(BadImageError, match="not there yet"):
        run_steps(search_structs(space, symbols, I386))


def test_tasks_that_change_while_they_are_looked_at() -> None:
    """The first look at the first task finds two names."""
    tasks, damaged = Tasks(), Tasks()
    two_names(damaged)

    class Memory(BytesMemory):
        looks = 0

        def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
            self.looks += 1
            if self.looks == 1:
                return BytesMemory({0: bytes(damaged.memory)}).read_many(requests)
            return super().read_many(requests)

    space = AddressSpace(Memory({0: bytes(tasks.memory)}), TABLES, 0)
    symbols = SymbolTable.from_symbols([(FIRST, "D", "init_task"), (STEXT, "T", "_stext")])
    assert run_steps(search_structs(space, symbols, I386)).field("task_struct", "pid") == Field(tasks.at["pid"], 4)
