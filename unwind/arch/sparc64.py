"""SPARC V9 (The SPARC Architecture Manual, version 9; SPARC Compliance Definition 2.4). Code of files (``--elf``) only.

Callers' windows are in the processor, of which QEMU's stub shows the one in use alone. Where they lie in memory once the processor
has needed the room there may be those of earlier calls as well, so that nothing is taken from there: a stack of code with windows
ends after the caller of the function that made the last one. Code without (``-mflat``) is followed to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from unwind.arch import Architecture, no_linux
from unwind.image_facts import ImageFacts
from unwind.rules import Row, RowKind, Saved
from unwind.user_abi import UserAbi

_OUT = (*(f"o{number}" for number in range(6)), "sp", "o7")
_LOCAL = tuple(f"l{number}" for number in range(8))
_IN = (*(f"i{number}" for number in range(6)), "fp", "i7")
GENERAL = (*(f"g{number}" for number in range(8)), *_OUT, *_LOCAL, *_IN)
_STACK_BIAS = 2047
_RETURN_OFFSET = 8
"""A call leaves its own address; behind it there is its delay slot."""
_PRIVILEGED = 1 << 10
"""PSTATE.PRIV, which QEMU shifts left by 8 beside other parts of ``state``, as a trap does (TSTATE: manual, 5.2.8)."""


def _follows_call(before: bytes) -> bool:
    """``call``, or ``jmpl`` that leaves its address in %o7, and a delay slot (manual, A.8 and A.24)."""
    if len(before) != 8:
        return False
    word = int.from_bytes(before[:4], "big")
    return word >> 30 == 1 or word & 0xFFF8_0000 == 0x9FC0_0000


_RETURN_LEAF = 0x81C3_E008
"""``jmpl %o7 + 8, %g0``"""
_LINK_BACK = 0x9E10_001F
"""``mov %i7, %o7``"""


def _is_return_of_window(word: int) -> bool:
    """``return``: the caller's window is in use at once, and the instruction behind it is done in that (manual, A.43)."""
    return word & 0xC1F8_0000 == 0x81C8_0000


def _is_transfer(word: int) -> bool:
    """Of control: branches, ``call``, ``jmpl``, ``return``, traps, ``done``, ``retry`` (manual, E.2)."""
    kind, operation = word >> 30, word >> 19 & 0x3F
    return (kind == 0 and word >> 22 & 7 != 4) or kind == 1 or (kind == 2 and operation in (0x38, 0x39, 0x3A, 0x3E))


_LOADS = (0xC05B_A000, 0xC003_A000)
"""``ldx [%sp + number], register`` and ``ld``, without these two."""


def _loaded(word: int) -> str | None:
    """What such an instruction loads."""
    return GENERAL[word >> 25 & 0x1F] if word & 0xC1FF_E000 in _LOADS else None


def _leaving(row: Row, registers: Mapping[str, int], before: bytes, after: bytes) -> Row:
    """Gcc's tables do not follow epilogues: neither what these load back, nor that the return address is in %o7 again."""
    previous = int.from_bytes(before, "big")
    words = [int.from_bytes(after[at : at + 4], "big") for at in range(0, len(after) - 3, 4)]
    is_in_slot = registers.get("npc") != registers["pc"] + 4
    if is_in_slot and _is_return_of_window(previous):
        link = Saved("pc", "npc", -_RETURN_OFFSET, is_value=True)
        return Row(RowKind.CALL, "sp", 0, kept=(*_LOCAL, *_IN), return_address=link)
    if is_in_slot and previous == _RETURN_LEAF:
        ahead: list[int] = []
    else:
        end = next((index for index, word in enumerate(words) if _is_transfer(word)), None)
        if end is None or words[end] != _RETURN_LEAF:
            return row
        ahead = words[: end + 2]
    if _LINK_BACK in ahead or row.return_address is None:
        return row
    loads = {_loaded(word) for word in ahead} | {"sp"}
    done = tuple(each.register for each in row.saved if each.register not in loads)
    return replace(
        row,
        return_address=Saved("pc", "o7", 0, is_value=True),
        saved=tuple(each for each in row.saved if each.register in loads),
        kept=(*row.kept, *done),
    )


_USER_ABIS = (
    UserAbi(
        # gcc/config/sparc/sparc.h: whole, floating point and condition registers.
        name="sparc64",
        pointer_size=8,
        pc="pc",
        sp="sp",
        fp="",  # where it leads there may be words of earlier calls
        registers=(*GENERAL, *("",) * 70, "pc", "npc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=64,
        callee_saved=(*_LOCAL, *_IN),
        return_column=15,
        red_zone=0,
        system_call_size=4,  # ta
        entry_size=64,
        signal_frame={},
        signal_code=(),
        go_clock_sp="",
        init_code=None,
        decode=None,
        is_process=lambda _registers: True,
        mode_flag=None,
        index_segment=0,
        known_row=None,
        follows_call=None,
        kernel_code=None,
        return_offset=_RETURN_OFFSET,
        stack_bias=_STACK_BIAS,
        windowed=(*_LOCAL, *_IN),
    ),
)

SPARC64 = Architecture(
    name="sparc64",
    qemu_targets=("sparc64",),
    gdb_architectures=(),  # QEMU describes nothing
    byteorder="big",
    is_other_byteorder=lambda _registers: False,
    pointer_size=8,
    pc="pc",
    sp="sp",
    fp="fp",
    fixed_registers=(
        # QEMU's target/sparc/gdbstub.c
        *((name, 8) for name in GENERAL),
        *((f"f{number}", 4) for number in range(32)),
        *((f"f{number}", 8) for number in range(32, 64, 2)),
        *((name, 8) for name in ("pc", "npc", "state", "fsr", "fprs", "y")),
    ),
    system_registers=(),
    is_user=lambda registers: not registers["state"] & _PRIVILEGED,
    is_kernel_address=lambda _address: False,
    spaces_overlap=True,
    is_32bit_kernel=lambda _registers: False,
    paging=no_linux.paging("big"),
    page_table_symbol="",
    image_start=(),
    code_start="",
    kernel_image=(0, 0),
    image_alignment=0x1000,
    image_mark=lambda _registers, _read: None,
    is_image_in_linear_map=False,
    image_mark_symbols=(),
    image_physical=lambda _address, _numbers: None,
    stack_size=0x2000,
    entry_stacks=(0, 0),
    cpu_base=(),
    cpu_areas=None,
    interrupt_stacks=no_linux.INTERRUPT_STACKS,
    running_task=no_linux.RUNNING_TASK,
    hides_kernel=False,
    kernel_code=no_linux.kernel_code(8, _follows_call),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=lambda _registers: False,
    page_table_alignment=0,
    hidden=None,
    images=ImageFacts(
        machines=(43,),
        has_both_orders=False,
        roots=None,
        is_waiting=lambda _registers, _before: False,  # no instruction waits
        pushed_exception=None,
        leaving=_leaving,
    ),
)
