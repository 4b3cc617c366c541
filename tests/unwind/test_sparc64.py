"""SPARC V9: frames without register windows word by word, what gcc's tables leave out, and windows, which memory does not tell."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from recording.model import Space, StackEnd
from unwind.arch.registry import find_architecture
from unwind.arch.sparc import SPARC
from unwind.arch.sparc64 import SPARC64
from unwind.capture import Capture
from unwind.cfa_program import Common, Program, State
from unwind.cfa_rows import Lowering
from unwind.dwarf import Reader
from unwind.images import ImageCode, unwind_image
from unwind.rules import Row, RowKind, Saved
from unwind.user import Region

ABI = SPARC64.user_abis[0]
COMMON = Common(4, -8, 15, 0, has_data=False, is_signal=False, initial=((14, 2047), ()))
STAYS = Saved("sp", None, -2047, is_value=True)
LINK, KEPT_LINK = Saved("pc", "o7", 0, is_value=True), Saved("pc", "i7", 0, is_value=True)
LOCALS = tuple(f"l{number}" for number in range(8))
INS = ("i0", "i1", "i2", "i3", "i4", "i5", "fp", "i7")


def last_row(program: str) -> Row:
    reader = Reader(bytes.fromhex(program), 0, 8, "big")
    states: list[tuple[int, State]] = Program(COMMON, reader, 0x1000).run()
    return Lowering(ABI, "big").lower(states[-1][1], COMMON)


LEAF = last_row("")
FLAT = last_row("42 0eaf11 111f71 41 090f1f")
WINDOW = last_row("41 0d1e 2d 090f1f")


def test_rows_speak_of_biased_stack_pointers() -> None:
    assert Row(RowKind.CALL, "sp", 2047, saved=(STAYS,), kept=(*LOCALS, *INS), return_address=LINK) == LEAF


def test_rows_of_a_function_without_a_window() -> None:
    """As ``gcc -mflat`` makes it: ``stx %i7, [%sp + 0x877]; add %sp, -176, %sp; mov %o7, %i7``."""
    assert (FLAT.register, FLAT.offset, FLAT.return_address) == ("sp", 2223, KEPT_LINK)
    assert FLAT.saved == (STAYS, Saved("i7", None, 120))
    assert FLAT.kept == (*LOCALS, *INS[:-1])


def test_a_window_of_its_own_hides_the_callers_registers() -> None:
    assert (WINDOW.register, WINDOW.offset, WINDOW.return_address) == ("fp", 2047, KEPT_LINK)
    assert (WINDOW.saved, WINDOW.kept) == ((STAYS,), ())


class Rows:
    """What begins in front of 0x1100 has no caller; functions of 0x100 bytes, one kind after the other."""

    KINDS = (LEAF, FLAT, WINDOW)

    def find_row(self, address: int) -> Row | None:
        return Row(RowKind.END) if address < 0x1100 else self.KINDS[(address >> 8) % 3]

    def find_start(self, address: int) -> int | None:
        return address & -0x100


REGION = Region(0x1000, 0x2000, image=0, rows=Rows())
SP = 0x8000 - 2047
NOP = bytes.fromhex("01000000")
IN_LEAF, IN_FLAT, IN_WINDOW = 0x1210, 0x1310, 0x1410


def walk(registers: dict[str, int], stack: dict[int, int], code: str = "", before: bytes = NOP) -> tuple[list[int], StackEnd]:
    """The pcs of a stack whose words are at these addresses; ``code``: at the innermost."""
    pc = registers["pc"]
    given = {"sp": SP, "npc": pc + 4, "state": 0x400, **dict.fromkeys((*LOCALS, *INS), 0), **registers}
    after = (bytes.fromhex(code) + NOP * 16)[:64]
    images = ImageCode(
        find_region=lambda address: REGION if 0x1000 <= address < 0x2000 else None,
        spaces={0: Space.KERNEL},
        abi=ABI,
        byteorder="big",
        read=lambda address, size: (before if address == pc - 4 else after)[:size],
    )
    memory = b"".join(struct.pack(">Q", stack.get(address, 0)) for address in range(0x8000, 0x9000, 8))
    chain = unwind_image(SPARC64, Capture(0, given, ((0x8000, memory),)), images).callchain
    return [frame.pc for frame in chain.frames], chain.end


def test_calls_return_behind_their_delay_slot() -> None:
    """A leaf, two functions without windows, the first of all: each saved %i7 lies 120 bytes above its function's frame."""
    registers = {"pc": IN_LEAF, "o7": 0x1310, "i7": 0x1340}
    pcs, end = walk(registers, {0x8000 + 120 + 176: 0x1020})
    assert pcs == [0x1210, 0x1318, 0x1348, 0x1028]
    assert end is StackEnd.TASK_ROOT


def test_a_return_address_of_zero_is_a_root() -> None:
    assert walk({"pc": IN_LEAF, "o7": 0}, {}) == ([0x1210], StackEnd.TASK_ROOT)


EPILOGUE = "9e10001f fe5ba927 81c3e008 9c03a0b0"
"""``mov %i7, %o7; ldx [%sp + 0x927], %i7; retl; add %sp, 176, %sp``"""


@pytest.mark.parametrize(
    ("skipped", "loaded"),
    [(0, False), (1, False), (2, True), (3, True)],
)
def test_an_epilogue_that_no_table_follows(skipped: int, loaded: bool) -> None:
    """Both calls are found wherever it was interrupted, before and after %i7 is the caller's again."""
    code = bytes.fromhex(EPILOGUE)
    registers = {
        "pc": IN_FLAT,
        "o7": 0x1310 if skipped else 0xDEAD,
        "i7": 0x1020 if loaded else 0x1310,
        "npc": 0x1318 if skipped == 3 else IN_FLAT + 4,
    }
    before = code[4 * skipped - 4 : 4 * skipped] if skipped else NOP
    found = walk(registers, {0x8000 + 120 + 176: 0x1020}, code[4 * skipped :].hex(), before)
    assert found[0][:2] == [0x1310, 0x1318]
    assert found[0][2] == 0x1028
    assert found[1] is StackEnd.TASK_ROOT


def test_memory_is_not_asked_for_the_windows_of_callers() -> None:
    """Older ones may lie there: the stack ends after the caller, whose own window is in the processor."""
    stale = {0x8100 + 112: 0x8200 - 2047, 0x8100 + 120: 0x1420}
    assert walk({"pc": IN_WINDOW, "i7": 0x1420, "fp": 0x8100 - 2047}, stale) == ([0x1410, 0x1428], StackEnd.NO_UNWIND_INFO)


def test_behind_a_return_the_callers_window_is_in_use() -> None:
    """``return %i7 + 8`` has brought it back, and the instruction behind it is done in it."""
    registers = {"pc": IN_WINDOW, "npc": 0x1428, "i7": 0x1020, "fp": 0x8100 - 2047}
    assert walk(registers, {}, before=bytes.fromhex("81cfe008")) == ([0x1410, 0x1428, 0x1028], StackEnd.TASK_ROOT)


@pytest.mark.parametrize(
    ("before", "follows"),
    [
        ("40000010 01000000", True),  # call
        ("9fc04000 01000000", True),  # call %g1
        ("81c3e008 01000000", False),  # retl
        ("01000000 40000010", False),
        ("40000010", False),
    ],
)
def test_follows_call(before: str, follows: bool) -> None:
    assert SPARC64.kernel_code.follows_call(bytes.fromhex(before)) is follows


def test_registers() -> None:
    assert sum(size for _name, size in SPARC64.fixed_registers) == 560
    assert not SPARC64.is_user({"state": 0x1400})
    assert SPARC64.is_user({"state": 0x1000})


def test_sparc_of_32_bits_has_no_bias() -> None:
    assert find_architecture("sparc") is SPARC
    assert sum(size for _name, size in SPARC.fixed_registers) == 288
    reader = Reader(b"", 0, 4, "big")
    common = replace(COMMON, data_alignment=-4, initial=((14, 0), ()))
    row = Lowering(SPARC.user_abis[0], "big").lower(Program(common, reader, 0x1000).run()[-1][1], common)
    assert (row.register, row.offset, row.saved, row.return_address) == ("sp", 0, (), LINK)
