"""Which stacks are copied in a halt where the chain of frame pointers leads from the interrupt stack to the task's."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest

from guest.kernel import Kernel
from guest.paging import AddressSpace
from recording.symbols import SymbolTable
from sampler.halt import HaltedState, Read
from sampler.rsp.registers import RegisterFile
from sampler.stacks import StackPlanner
from tests.builders.file_memory import BytesMemory
from unwind.arch.arm64 import ARM64
from unwind.arch.i386 import I386
from unwind.arch.ppc64el import PPC64EL
from unwind.arch.riscv64 import RISCV64
from unwind.arch.s390x import S390X

IRQ, TASK = 0xFFFF_8000_0000_8000, 0xFFFF_8000_0A00_0000
TOP = IRQ + 0x4000
KERNEL_PC = 0xFFFF_8000_8001_0000


class Space:
    memory, tables, root = None, RISCV64.paging.tables({}), 0

    def __init__(self, words: Mapping[int, int], word: int = 8) -> None:
        self.words = words
        self.word = word

    def read_many(self, requests: list[tuple[int, int]]) -> list[bytes | None]:
        return [self.words[address].to_bytes(self.word, "little") if address in self.words else None for address, _size in requests]


def planner(words: Mapping[int, int], *, can_peek: bool) -> StackPlanner:
    found = StackPlanner(ARM64, can_peek=can_peek)
    kernel = SimpleNamespace(space=Space(words), irq_stacks=((IRQ, TOP),), exception_stacks=(), cpu_offsets=(), stack_size=0x4000)
    found.set_kernel(cast("Kernel", kernel))
    return found


def state(reads: dict[Read, bytes | None] | None = None, **registers: int) -> HaltedState:
    values = {"pc": KERNEL_PC, "cpsr": 5, **registers}
    return HaltedState((0,), (cast("RegisterFile", values),), reads or {}, 0, 0, 1)


def covers(reads: list[Read], address: int) -> bool:
    return any(read.address <= address < read.address + read.size for read in reads)


def test_a_tasks_stack_alone() -> None:
    reads, is_last = planner({}, can_peek=True).plan(state(sp=TASK + 0x3E00, x29=TASK + 0x3E40))
    assert is_last
    assert covers(list(reads), TASK + 0x3FF8)
    assert not any(read.address >= TASK + 0x4000 for read in reads)


CHAIN = {TOP - 0x60: TOP - 0x20, TOP - 0x20: TASK + 0x3D00}


def test_the_interrupt_stack_leads_on_by_its_records() -> None:
    reads, is_last = planner(CHAIN, can_peek=True).plan(state(sp=TOP - 0x80, x29=TOP - 0x60))
    assert is_last
    for address in (TOP - 8, TASK + 0x3D00, TASK + 0x3FF8):
        assert covers(list(reads), address)


def test_through_the_stub_that_takes_another_trip() -> None:
    own = planner({}, can_peek=False)
    first, is_last = own.plan(state(sp=TOP - 0x80, x29=TOP - 0x60))
    assert not is_last
    copied = {}
    for read in first:
        data = bytearray(read.size)
        for address, value in CHAIN.items():
            if read.address <= address < read.address + read.size:
                data[address - read.address : address - read.address + 8] = value.to_bytes(8, "little")
        copied[read] = bytes(data)
    second, is_last = own.plan(state(cast("dict[Read, bytes | None]", copied), sp=TOP - 0x80, x29=TOP - 0x60))
    assert is_last
    assert covers(list(second), TASK + 0x3D00)
    assert covers(list(second), TASK + 0x3FF8)


def test_an_interrupt_stack_that_was_left_already() -> None:
    reads, _is_last = planner({}, can_peek=True).plan(state(sp=TOP, x29=TASK + 0x3D00))
    assert covers(list(reads), TASK + 0x3FF8)


@pytest.mark.parametrize("fp", [0, 0xAAAA_0000, TOP - 0x60])
def test_chains_that_lead_nowhere(fp: int) -> None:
    circle = {TOP - 0x60: TOP - 0x60}
    reads, _is_last = planner(circle, can_peek=True).plan(state(sp=TOP - 0x80, x29=fp))
    assert covers(list(reads), TOP - 8)


def test_an_interrupt_that_hit_an_interrupt_stack() -> None:
    """riscv64: the record of what entry code has called holds the interrupted stack pointer instead of a frame pointer."""
    entry = 0xFFFF_FFFF_80A8_1240
    symbols = [(entry, "T", "handle_exception"), (entry + 0x1BA, "T", "ret_from_exception_end")]
    hit = TOP - 0x200
    words = {
        TOP - 0x600 - 16: TOP - 0x580,
        TOP - 0x600 - 8: KERNEL_PC,
        TOP - 0x580 - 16: hit,
        TOP - 0x580 - 8: entry + 0x128,
        hit - 288 + 64: TOP,
        hit - 16: 0x2_0000_0120,
        TOP - 16: TASK + 0x3D00,
        TOP - 8: KERNEL_PC,
    }
    own = StackPlanner(RISCV64, can_peek=True)
    kernel = SimpleNamespace(
        space=Space(words),
        irq_stacks=((IRQ, TOP),),
        exception_stacks=(),
        cpu_offsets=(),
        stack_size=0x4000,
        symbols=SymbolTable.from_symbols(symbols),
    )
    own.set_kernel(cast("Kernel", kernel))
    reads, is_last = own.plan(state(sp=TOP - 0x640, fp=TOP - 0x600, priv=1))
    assert is_last
    for address in (TOP - 8, TASK + 0x3D00 - 16, TASK + 0x3FF8):
        assert covers(list(reads), address)


HARD, SOFT, OWN = 0xC110_6000, 0xC11B_0000, 0xC1C7_6000
BOTTOMS = {HARD: SOFT + 0x1F80, SOFT: OWN + 0x1E00, OWN: 0x57AC_6E9D}


def i386_planner(words: Mapping[int, int], *, can_peek: bool) -> StackPlanner:
    found = StackPlanner(I386, can_peek=can_peek)
    kernel = SimpleNamespace(stack_size=0x2000, space=Space(words, 4), irq_stacks=(), exception_stacks=(), cpu_offsets=())
    found.set_kernel(cast("Kernel", kernel))
    return found


def i386_state(sp: int, reads: dict[Read, bytes | None] | None = None) -> HaltedState:
    values = {"eip": 0xC600_1000, "esp": sp, "ebp": sp, "cs": 0x60}
    return HaltedState((0,), (cast("RegisterFile", values),), reads or {}, 0, 0, 1)


@pytest.mark.parametrize(
    ("sp", "covered"),
    [(HARD + 0x1F00, (HARD, SOFT, OWN)), (SOFT + 0x1F00, (SOFT, OWN)), (SOFT + 0x2000, (SOFT, OWN)), (OWN + 0x1E00, (OWN,))],
)
@pytest.mark.parametrize("can_peek", [True, False])
def test_lowest_words_lead_on(sp: int, covered: tuple[int, ...], can_peek: bool) -> None:
    """The magic number at the bottom of a task's stack leads nowhere. Through the stub each stack takes a trip."""
    own = i386_planner(BOTTOMS, can_peek=can_peek)
    own.probes()
    reads: list[Read] = []
    trips, is_last = 0, False
    while not is_last:
        copied: dict[Read, bytes | None] = {
            read: BOTTOMS[read.address].to_bytes(4, "little") if read.address in BOTTOMS else bytes(read.size) for read in reads
        }
        wanted, is_last = own.plan(i386_state(sp, copied))
        reads += wanted
        trips += 1
    for stack in (HARD, SOFT, OWN):
        assert covers(reads, stack + 0x1FFC) is (stack in covered)
    assert not covers(reads, SOFT + 0x2000)
    assert trips == (1 if can_peek else len(covered) + (len(covered) < 3))


def test_lowest_words_before_the_kernel_is_known() -> None:
    own = StackPlanner(I386, can_peek=True)
    own.probes()
    reads, is_last = own.plan(i386_state(SOFT + 0x1F00))
    assert not is_last
    copied: dict[Read, bytes | None] = {
        read: BOTTOMS[SOFT].to_bytes(4, "little") if read.address == SOFT else bytes(read.size) for read in reads
    }
    reads, _is_last = own.plan(i386_state(SOFT + 0x1F00, copied))
    assert covers(list(reads), OWN + 0x1FFC)


def test_lowest_words_that_lead_in_a_circle() -> None:
    reads, is_last = i386_planner({HARD: SOFT + 8, SOFT: HARD + 8}, can_peek=True).plan(i386_state(HARD + 0x1F00))
    assert is_last
    assert len(reads) < 16


def test_an_entry_stack_is_copied_alone() -> None:
    reads, is_last = i386_planner({0xFF40_4000: OWN}, can_peek=True).plan(i386_state(0xFF40_5FC0))
    assert is_last
    assert {read.address // 0x1000 for read in reads} == {0xFF405}


S390X_IRQ, S390X_TASK = 0x1FDE_0000, 0x37F_FE9A_4000
S390X_LINK = S390X_IRQ + 0x4000 - 208
"""The chain of the first frame on the interrupt stack."""


class BigSpace(Space):
    def read_many(self, requests: list[tuple[int, int]]) -> list[bytes | None]:
        return [self.words[address].to_bytes(8, "big") if address in self.words else None for address, _size in requests]


def s390x_state(reads: dict[Read, bytes | None] | None = None, **registers: int) -> HaltedState:
    values = {"pswm": 0x0404_C001_8000_0000, "pswa": 0x3FF_FF40_0000, **registers}
    return HaltedState((0,), (cast("RegisterFile", values),), reads or {}, 0, 0, 1)


def test_a_first_frames_chain_leads_on_from_an_interrupt_stack() -> None:
    """s390x: and the words in which the processor saves what it interrupts are copied."""
    found = StackPlanner(S390X, can_peek=True)
    words = {S390X_LINK: S390X_TASK + 0x3000, S390X_TASK + 0x4000 - 208: 0}
    found.set_kernel(
        cast(
            "Kernel", SimpleNamespace(space=BigSpace(words), irq_stacks=(), exception_stacks=(), cpu_offsets=(), stack_size=0x4000)
        )
    )
    reads, is_last = found.plan(s390x_state(r15=S390X_IRQ + 0x3800))
    assert is_last
    for address in (S390X_IRQ + 0x3800, S390X_LINK, S390X_TASK + 0x3000, S390X_TASK + 0x3FF8, 0x130, 0x29F):
        assert covers(list(reads), address)
    reads, _is_last = found.plan(s390x_state(r15=S390X_TASK + 0x3800))
    assert covers(list(reads), S390X_TASK + 0x3FF8)
    assert not any(read.address >= S390X_TASK + 0x4000 or S390X_IRQ <= read.address < S390X_TASK for read in reads)


def test_a_first_frames_chain_through_the_stub() -> None:
    found = StackPlanner(S390X, can_peek=False)
    found.probes()
    first, is_last = found.plan(s390x_state(r15=S390X_IRQ + 0x3800))
    assert not is_last
    link = next(read for read in first if read.address == S390X_LINK)
    second, _is_last = found.plan(s390x_state({link: (S390X_TASK + 0x3000).to_bytes(8, "big")}, r15=S390X_IRQ + 0x3800))
    assert covers(list(second), S390X_TASK + 0x3000)


@pytest.mark.parametrize("sp", [0, 0xB, 0x100, (1 << 64) - 8])
def test_stack_pointers_of_programs_that_are_read_as_the_kernels(sp: int) -> None:
    reads, _is_last = StackPlanner(S390X, can_peek=False).plan(s390x_state(r15=sp))
    assert all(read.address >= 0 and read.address + read.size <= 1 << 64 for read in reads)


def test_firmware_leads_to_the_stack_of_the_kernel_that_called_it() -> None:
    """The vCPU itself would take kernel addresses for physical ones: the pages are found in the kernel's tables."""
    root, stack, m_stack, tp = 0x8100_0000, 0xFF20_0000_0001_0000, 0x8004_2E80, 0xFF60_0000_0234_5000
    tables = bytearray(0x5000)
    for level in range(4):
        index = stack >> 12 + 9 * (4 - level) & 511
        struct.pack_into("<Q", tables, 0x1000 * level + 8 * index, (root + 0x1000 * (level + 1)) >> 12 << 10 | 1)
    for page in range(4):
        struct.pack_into("<Q", tables, 0x4000 + 8 * ((stack >> 12 & 511) + page), (0x9000_0000 - 0x1000 * page) >> 12 << 10 | 0xC7)
    saved = bytearray(280)
    assert RISCV64.firmware is not None
    values = {"tp": tp, "sp": stack + 0x2F00, "fp": stack + 0x2F40, "mepc": KERNEL_PC, "mstatus": 0x800}
    for name, value in values.items():
        struct.pack_into("<Q", saved, RISCV64.firmware.frame[name], value)
    memory = BytesMemory({root: bytes(tables), m_stack: (bytes(128) + saved).ljust(2048, b"\0")})
    space = AddressSpace(memory, RISCV64.paging.tables({"satp": 10 << 60}), root)
    kernel = SimpleNamespace(
        stack_size=0x4000,
        space=space,
        irq_stacks=((IRQ, TOP),),
        exception_stacks=(),
        cpu_offsets=(),
        symbols=SymbolTable.from_symbols([]),
    )
    registers = {"pc": 0x8000_72AE, "sp": m_stack, "fp": m_stack + 64, "tp": tp, "priv": 3}
    for can_peek in (True, False):
        own = StackPlanner(RISCV64, can_peek=can_peek)
        own.set_kernel(cast("Kernel", kernel))
        own.probes()
        reads, is_last = own.plan(state(None, **registers))
        assert is_last
        pages = {read.address & -0x1000: (read.physical or 0) & -0x1000 for read in reads}
        expected = {m_stack & -0x1000: m_stack & -0x1000, stack + 0x2000: 0x8FFF_E000, stack + 0x3000: 0x8FFF_D000}
        assert pages == (expected if can_peek else {})
    own.probes()


def test_chains_lead_through_all_stacks_that_no_variable_tells() -> None:
    """ppc64el: an exception's stack, then that of soft interrupts, then the task's, whose chain ends in user mode."""
    nmi, soft, task = 0xC000_0000_1FF0_0000, 0xC000_0000_1FF1_0000, 0xC000_0000_0300_0000
    chain = (nmi + 0x7C00, nmi + 0x7D30, soft + 0x7F00, soft + 0x7F90, task + 0x7D00, task + 0x7E50, 0x3FFF_F000_0000)
    for known, expected in ((6, [nmi, soft, task]), (3, [nmi, soft]), (0, [nmi])):
        words = dict(list(pairwise(chain))[:known])
        found = StackPlanner(PPC64EL, can_peek=True)
        kernel = SimpleNamespace(
            stack_size=0x8000, space=Space(words), irq_stacks=((soft, soft + 0x8000),), exception_stacks=(), cpu_offsets=()
        )
        found.set_kernel(cast("Kernel", kernel))
        values = {"pc": 0xC000_0000_0003_3C48, "msr": 0x8000_0000_0000_1033, "r1": chain[0]}
        reads, is_last = found.plan(HaltedState((0,), (cast("RegisterFile", values),), {}, 0, 0, 1))
        assert is_last
        assert [stack for stack in (nmi, soft, task) if covers(list(reads), stack + 0x7FF0)] == expected
