"""Which CPU a vCPU is, where the register that says so belongs to programs in user mode (i386); whole stacks of tasks (armhf)."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import cast

import pytest

from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from guest.paging import FreshSpace
from guest.tasks import TaskReader, TaskWords
from guest.words import Words
from recording.symbols import SymbolTable
from sampler.halt import HaltedState
from sampler.rsp.registers import RegisterFile
from sampler.user_stacks import TaskPlanner
from tests.builders.file_memory import BytesMemory
from unwind.arch.armhf import ARMHF
from unwind.arch.i386 import I386
from unwind.arch.riscv64 import RISCV64

FIRST, SECOND = 0x18B2_4000, 0x18B4_5000
KERNEL = {"cs": 0x60, "fs_base": SECOND}
USER = {"cs": 0x73, "fs_base": 0, "cr0": 0x8005_0033}


def kernel(*offsets: int) -> Kernel:
    space = SimpleNamespace(tables=I386.paging.tables({"cr4": 0x20}), root=0)
    return cast("Kernel", SimpleNamespace(stack_size=0x2000, space=space, cpu_offsets=offsets))


@pytest.fixture
def planner() -> TaskPlanner:
    memory: PhysicalMemory = BytesMemory({0: bytes(0x1000)})
    made = TaskPlanner(I386, memory, can_peek=True, user_stack_size=0)
    made.set_kernel(kernel(FIRST, SECOND), None)
    return made


def test_it_stays_what_it_was_seen_to_be_in_the_kernel(planner: TaskPlanner) -> None:
    assert planner.offset_of(0, USER) is None
    assert planner.offset_of(0, KERNEL) == SECOND
    assert planner.offset_of(0, USER) == SECOND
    assert planner.offset_of(1, USER) is None
    assert planner.offset_of(0, {**KERNEL, "fs_base": FIRST}) == FIRST
    # The kernel was read anew; then its CPUs' variables are somewhere else.
    planner.set_kernel(kernel(FIRST, SECOND), None)
    assert planner.offset_of(0, USER) == FIRST
    planner.set_kernel(kernel(FIRST, 0x1000), None)
    assert planner.offset_of(0, USER) is None


@pytest.mark.parametrize(
    ("tables", "expected"),
    [((0x2000, 0x6000), FIRST), ((0x6000, 0x2000), SECOND), ((0x2000, 0x2000), None), ((0x6000, 0), None)],
    ids=["first", "second", "threads of one process", "neither"],
)
def test_before_that_its_page_table_tells(planner: TaskPlanner, tables: tuple[int, int], expected: int | None) -> None:
    """CR3 is that of user mode, a page behind the kernel's."""

    class Tasks:
        words = Words.of(I386)

        def find_running(self, _read: object, _registers: object, offset: int | None, _stack: object) -> SimpleNamespace | None:
            return None if offset is None else SimpleNamespace(mm=tables[(FIRST, SECOND).index(offset)])

        def page_table_address(self, words: SimpleNamespace) -> int:
            return int(words.mm)

    class Space:
        tables = I386.paging.tables({"cr4": 0x20})

        def forget(self) -> None: ...

        def read(self, address: int, size: int) -> bytes:
            return (0xC000_0000 + address).to_bytes(size, "little")

        def translate(self, address: int) -> int:
            return address - 0xC000_0000

    planner.set_kernel(kernel(FIRST, SECOND), cast("TaskReader", Tasks()))
    planner._space = cast("FreshSpace", Space())
    values = cast("RegisterFile", {**USER, "cr3": 0x3000, "cr4": 0x20, "esp": 0, "eip": 0x0804_8000})
    planner.begin()
    planner.plan(HaltedState((0,), (values,), {}, 0, 0, 1))
    assert planner.offset_of(0, USER) == expected


def test_a_single_cpu_needs_no_telling(planner: TaskPlanner) -> None:
    planner.set_kernel(kernel(FIRST), None)
    assert planner.offset_of(0, USER) == FIRST
    planner.set_kernel(None, None)
    assert planner.offset_of(0, USER) is None


ROOT, STACK, OFFSET = 0x4000, 0xE081_4000, 0x1234_0000
IRQ_SP = 0xE080_0F00


def halted(sp: int, cpsr: int) -> HaltedState:
    registers = {"sp": sp, "pc": 0xC030_0000, "cpsr": cpsr, "TPIDRPRW": OFFSET}
    return HaltedState((0,), (cast("RegisterFile", registers),), {}, 0, 0, 1)


def armhf_planner(*, can_peek: bool) -> TaskPlanner:
    """A kernel thread's stack of two pages."""
    first = bytearray(0x4000)
    struct.pack_into("<I", first, 4 * (STACK >> 20), 0x10_0000 | 0x40E)
    memory = BytesMemory({ROOT: bytes(first), 0x11_4000: b"s" * 0x2000})
    words = TaskWords(0xC265_0000, 12, 12, "kthreadd", 0x20_0000, STACK, 0, 0, 0)
    tasks = SimpleNamespace(find_running=lambda *_arguments: words)
    space = SimpleNamespace(tables=ARMHF.paging.tables({}), root=ROOT)
    planner = TaskPlanner(ARMHF, memory, can_peek=can_peek, user_stack_size=0)
    planner.set_kernel(cast("Kernel", SimpleNamespace(space=space, cpu_offsets=(OFFSET,), stack_size=0x2000)), None)
    planner._tasks = cast("TaskReader", tasks)
    return planner


@pytest.mark.parametrize(("sp", "cpsr", "count"), [(IRQ_SP, 0x13, 2), (STACK + 0x1F00, 0x13, 0), (0xBEFF_0000, 0x10, 0)])
def test_on_another_stack_the_tasks_is_copied_whole(sp: int, cpsr: int, count: int) -> None:
    """``call_with_stack`` leads from the interrupt stack to the task's by a register that any function may have saved."""
    pages = [(STACK, 0x1000), (STACK + 0x1000, 0x1000)][:count]
    planner = armhf_planner(can_peek=True)
    planner.begin()
    assert planner.plan(halted(sp, cpsr)) == ((), True)
    assert [(address, len(data)) for address, data in planner.copied[0]] == pages
    planner = armhf_planner(can_peek=False)
    planner._stage = 1
    reads, _is_last = planner.plan(halted(sp, cpsr))
    assert [(read.address, read.size) for read in reads] == pages


def test_an_exception_that_has_just_left_user_code_leaves_its_registers_in_place() -> None:
    """riscv64: those on the kernel stack are of an earlier one, and would have another user stack copied."""
    handler, user_pc, user_sp = 0xFFFF_FFFF_80A8_1240, 0x1_2344, 0x3F_FFF0_1230
    made = TaskPlanner(RISCV64, BytesMemory({0: bytes(0x1000)}), can_peek=True, user_stack_size=4096)
    symbols = SymbolTable.from_symbols([(handler, "T", "handle_exception"), (handler + 0x156, "T", "ret_from_exception")])
    known = SimpleNamespace(
        space=SimpleNamespace(tables=RISCV64.paging.tables({}), root=0),
        cpu_offsets=(),
        stack_size=0x4000,
        symbols=symbols,
        loaded=SimpleNamespace(at=lambda _address: None),
    )
    made.set_kernel(cast("Kernel", known), None)
    live = {**dict.fromkeys(RISCV64.kernel_code.trap.full, 0), "priv": 1, "sepc": user_pc, "sstatus": 0x2_0000_0020, "sp": user_sp}
    taken = made._taken({**live, "pc": handler})
    assert taken is not None
    assert (taken["pc"], taken["sp"]) == (user_pc, user_sp)
    assert made._taken({**live, "pc": handler + 4}) is None
    assert (
        made._taken({**live, "pc": handler, "sp": 0xFF20_0000_0000_3F00, "sstatus": 0x2_0000_0120, "sepc": handler + 0x200}) is None
    )
