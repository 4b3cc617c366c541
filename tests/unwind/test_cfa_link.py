"""Call frame information of programs whose calls leave the return address in a register (arm64)."""

from __future__ import annotations

from unwind.arch.arm64 import ARM64
from unwind.cfa_program import Common, Program
from unwind.cfa_rows import Lowering
from unwind.dwarf import Reader
from unwind.rules import Row, RowKind, Saved

ABI = next(abi for abi in ARM64.user_abis if abi.name == "aarch64")
COMMON = Common(4, -8, 30, 0x1B, has_data=True, is_signal=False, initial=((31, 0), ()))
KEPT = tuple(f"x{number}" for number in range(19, 30))


def rows(program: str) -> list[tuple[int, Row]]:
    lowering = Lowering(ABI, "little")
    states = Program(COMMON, Reader(bytes.fromhex(program), 0, 8, "little"), 0x1000).run()
    return [(address, lowering.lower(state, COMMON)) for address, state in states]


def test_a_functions_rows() -> None:
    """``paciasp; stp x29, x30, [sp, #-48]!; mov x29, sp; ... ; ldp; autiasp; ret`` as GCC describes it."""
    leaf = Row(RowKind.CALL, "sp", 0, kept=KEPT, return_address=Saved("pc", "x30", 0, is_value=True))
    pushed = Row(RowKind.CALL, "sp", 48, saved=(Saved("x29", None, -48),), kept=KEPT[:-1], return_address=Saved("pc", None, -40))
    assert rows("41 2d 41 0e30 9d06 9e05 48 de dd 0e00 41 2d") == [
        (0x1000, leaf),
        (0x1004, leaf),
        (0x1008, pushed),
        (0x1028, leaf),
        (0x102C, leaf),
    ]


def test_an_undefined_return_address_is_the_threads_start() -> None:
    assert rows("071e") == [(0x1000, Row(RowKind.END))]
