"""The judge of the accuracy benchmark: where gdb's chain ends, how it is helped on, and which differences are whose fault."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks._gdb import GdbFrame, GdbWalk, ReadPage, encode_registers
from benchmarks._truth import Reach, Truth, TruthFinder, TruthFrame
from benchmarks._verdict import Comparison, Verdict, compare_chains
from benchmarks._vmlinux import Vmlinux, frame_ranges
from recording.model import Callchain, Frame, StackEnd
from recording.symbols import SymbolTable

TEXT = 0xFFFF_FFFF_8100_0000
ENTRY = 0xFFFF_FFFF_8200_0000
SLIDE = 0x0080_0000
TASK_STACK = 0xFFFF_C900_0000_0000
IRQ_STACK = 0xFFFF_C900_0010_0000
SYMBOLS = [
    (TEXT, "T", "ret_from_fork_asm"),
    (TEXT + 0x100, "T", "leaf"),
    (TEXT + 0x200, "T", "caller"),
    (TEXT + 0x300, "T", "do_syscall_64"),
    (TEXT + 0x400, "T", "memset"),
    (ENTRY, "T", "__entry_text_start"),
    (ENTRY + 0x10, "T", "entry_SYSCALL_64"),
    (ENTRY + 0x100, "T", "asm_sysvec_apic_timer_interrupt"),
    (ENTRY + 0x200, "T", "error_entry"),
    (ENTRY + 0x1000, "T", "__entry_text_end"),
]
VMLINUX = Vmlinux(Path("vmlinux"), "", SymbolTable.from_symbols(SYMBOLS), (TEXT + 0x100,), (TEXT + 0x400,))
LEAF, CALLER, SYSCALL, MEMSET = (TEXT + SLIDE + offset for offset in (0x110, 0x210, 0x310, 0x410))
ENTERED, INTERRUPTED, ERROR = (ENTRY + SLIDE + offset for offset in (0x40, 0x120, 0x220))
GARBAGE = 0x286


class ScriptedGdb:
    """Answers each walk with the next scripted one, and keeps what it was asked."""

    def __init__(self, *walks: list[tuple[int, int]]) -> None:
        self.walks = list(walks)
        self.asked: list[bytes] = []

    def walk(self, registers: bytes, read_page: ReadPage) -> GdbWalk:
        self.asked.append(registers)
        frames = tuple(GdbFrame(pc, "", (sp, 1, 2, 3, 4, 5, 6)) for pc, sp in self.walks.pop(0))
        return GdbWalk(frames, "no reason")


def pages(words: dict[int, int]) -> ReadPage:
    def read_page(address: int) -> bytes | None:
        page = bytearray(4096)
        for at, word in words.items():
            if at - at % 4096 == address:
                struct.pack_into("<Q", page, at % 4096, word)
        return bytes(page) if address in (TASK_STACK, IRQ_STACK) else None

    return read_page


def find(gdb: ScriptedGdb, words: dict[int, int] | None = None, pc: int = LEAF) -> Truth:
    return TruthFinder(gdb, VMLINUX, SLIDE).find(encode_registers({"rip": pc}), pages(words or {}))


def test_what_gdb_invents_behind_the_entry_code_is_cut_off() -> None:
    truth = find(
        ScriptedGdb([(LEAF, TASK_STACK), (SYSCALL, TASK_STACK + 8), (ENTERED, TASK_STACK + 16), (GARBAGE, TASK_STACK + 24)])
    )
    assert (truth.reach, truth.where) == (Reach.END, "entry_SYSCALL_64")
    assert [frame.pc for frame in truth.frames] == [LEAF, SYSCALL, ENTERED]


def test_a_new_task_ends_at_the_start_of_its_first_code() -> None:
    truth = find(ScriptedGdb([(LEAF, TASK_STACK), (TEXT + SLIDE, TASK_STACK + 8), (GARBAGE, TASK_STACK + 16)]))
    assert truth.reach is Reach.END
    assert [frame.pc for frame in truth.frames] == [LEAF, TEXT + SLIDE]


def test_a_chain_without_entry_code_is_no_truth() -> None:
    truth = find(ScriptedGdb([(LEAF, TASK_STACK), (MEMSET, TASK_STACK + 8), (GARBAGE, TASK_STACK + 16)]))
    assert (truth.reach, truth.where) == (Reach.LOST, "memset: no reason")


def test_a_vcpu_in_entry_code_is_not_compared() -> None:
    gdb = ScriptedGdb()
    assert find(gdb, pc=ERROR).reach is Reach.ENTRY_CODE
    assert gdb.asked == []


def test_an_interrupted_kernel_goes_on_with_the_saved_registers() -> None:
    saved = TASK_STACK + 0x100
    words = {
        saved + 8 * 16: CALLER,
        saved + 8 * 17: 0x10,
        saved + 8 * 18: 0x246,
        saved + 8 * 19: TASK_STACK + 0x200,
        saved + 8 * 4: 77,
    }
    gdb = ScriptedGdb(
        [(LEAF, TASK_STACK), (INTERRUPTED, saved)],
        [(CALLER, TASK_STACK + 0x200), (SYSCALL, TASK_STACK + 0x208), (ENTERED, TASK_STACK + 0x210)],
    )
    truth = find(gdb, words)
    assert (truth.reach, truth.traps, truth.switches) == (Reach.HELPED, 1, 0)
    assert [frame.pc for frame in truth.frames] == [LEAF, INTERRUPTED, CALLER, SYSCALL, ENTERED]
    assert gdb.asked[1] == encode_registers({"rip": CALLER, "rsp": TASK_STACK + 0x200, "rbp": 77, "eflags": 0x246})


def test_interrupted_user_code_is_the_end() -> None:
    saved = TASK_STACK + 0x100
    words = {saved + 8 * 16: 0x40_1000, saved + 8 * 17: 0x33}
    truth = find(ScriptedGdb([(LEAF, TASK_STACK), (INTERRUPTED, saved)]), words)
    assert (truth.reach, truth.where, truth.traps) == (Reach.END, "asm_sysvec_apic_timer_interrupt", 0)


def test_a_change_to_the_interrupt_stack_is_undone() -> None:
    top = IRQ_STACK + 0xFF8
    gdb = ScriptedGdb(
        [(LEAF, top - 8), (CALLER, top), (GARBAGE, top + 8)],
        [(CALLER, TASK_STACK + 0x20), (SYSCALL, TASK_STACK + 0x28), (ENTERED, TASK_STACK + 0x30)],
    )
    truth = find(gdb, {top: TASK_STACK + 0x20})
    assert (truth.reach, truth.traps, truth.switches) == (Reach.HELPED, 0, 1)
    assert [frame.pc for frame in truth.frames] == [LEAF, CALLER, SYSCALL, ENTERED]
    kept = {"rbp": 1, "rbx": 2, "r12": 3, "r13": 4, "r14": 5, "r15": 6}
    assert gdb.asked[1] == encode_registers({"rip": CALLER, "rsp": TASK_STACK + 0x20, **kept})


def chain(*pcs: int, end: StackEnd = StackEnd.USER_ENTRY) -> Callchain:
    return Callchain(tuple(Frame(pc, pc) for pc in pcs), end)


def truth_of(*pcs: int, reach: Reach = Reach.END) -> Truth:
    frames = tuple(
        TruthFrame(pc, f"{pc:#x}", has_dwarf=TEXT + 0x100 <= pc - SLIDE < TEXT + 0x400, is_entry=pc - SLIDE >= ENTRY) for pc in pcs
    )
    return Truth(frames, reach, "", 0, 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((LEAF, SYSCALL, ENTERED), (LEAF, SYSCALL, ENTERED), Verdict.EQUAL),
        ((MEMSET, LEAF, SYSCALL, ENTERED), (MEMSET, GARBAGE, LEAF, SYSCALL, ENTERED), Verdict.GDB_INVENTED),
        ((LEAF, ERROR), (LEAF, ERROR, INTERRUPTED), Verdict.ENTRY_FRAME),
        ((LEAF, SYSCALL), (LEAF, SYSCALL, ENTERED), Verdict.TRUNCATED),
        ((LEAF, SYSCALL, ENTERED), (LEAF, CALLER, SYSCALL, ENTERED), Verdict.DIFFERENT),
        ((LEAF, CALLER, SYSCALL, ENTERED), (LEAF, SYSCALL, ENTERED), Verdict.DIFFERENT),
        # gdb had to guess behind memset, but what it guessed is not shown to be wrong.
        ((MEMSET, CALLER, SYSCALL, ENTERED), (MEMSET, LEAF, SYSCALL, ENTERED), Verdict.DIFFERENT),
        ((MEMSET, SYSCALL, ENTERED), (MEMSET, LEAF, CALLER, ENTERED), Verdict.DIFFERENT),
        ((CALLER,), (LEAF, SYSCALL, ENTERED), Verdict.DIFFERENT),
    ],
)
def test_each_class_of_difference(ours: tuple[int, ...], theirs: tuple[int, ...], expected: Verdict) -> None:
    assert compare_chains(chain(*ours), truth_of(*theirs)).verdict is expected


def test_a_difference_names_the_last_function_that_is_equal() -> None:
    assert compare_chains(chain(LEAF, CALLER), truth_of(LEAF, CALLER, ENTERED)) == Comparison(Verdict.TRUNCATED, f"{CALLER:#x}")


def test_what_gdb_does_not_finish_is_not_compared() -> None:
    assert compare_chains(chain(LEAF), truth_of(LEAF, reach=Reach.LOST)) == Comparison(Verdict.NOT_COMPARED)


def test_frame_ranges_are_those_of_the_fdes() -> None:
    cie = struct.pack("<II", 20, 0xFFFF_FFFF) + bytes(16)
    fde = struct.pack("<IIQQ", 28, 0, TEXT, 0x40) + bytes(8)
    assert frame_ranges(cie + fde + cie + fde, "<") == [(TEXT, TEXT + 0x40), (TEXT, TEXT + 0x40)]
