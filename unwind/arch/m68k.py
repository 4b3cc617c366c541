"""m68k: the System V ABI for Motorola 68000 family processors. Code of files (``--elf``) only; its Linux is not known."""

from __future__ import annotations

from unwind.arch import Architecture, no_linux
from unwind.image_facts import ImageFacts
from unwind.rules import ReadWord
from unwind.user_abi import UserAbi

_DATA = tuple(f"d{number}" for number in range(8))
_ADDRESS = (*(f"a{number}" for number in range(6)), "fp", "sp")
_SUPERVISOR = 1 << 13
"""Of the status register (M68000 Family Programmer's Reference Manual, 1.3.2)."""
_FORMATS = {0: 8, 1: 8, 2: 12, 3: 12, 4: 16, 7: 60}
"""Bytes of exception frames by their format (MC68040 User's Manual, 8.4)."""


def _follows_call(before: bytes) -> bool:
    """``jsr``: 4e80 to 4ebb with up to 4 bytes of address; ``bsr``: 61 with 0, 2 or 4 bytes of distance (Reference Manual, 4)."""
    if len(before) != 6:
        return False
    first, second, third = before[:2], before[2:4], before[4:]
    if third[0] == 0x4E and third[1] & 0xF8 == 0x90:  # jsr (An)
        return True
    if (second[0] == 0x4E and second[1] & 0xF8 in (0xA8, 0xB0)) or second in (b"\x4e\xb8", b"\x4e\xba", b"\x4e\xbb"):
        return True
    return first in (b"\x4e\xb9", b"\x61\xff") or second == b"\x61\x00" or (third[0] == 0x61 and third[1] not in (0, 0xFF))


def _pushed_exception(address: int, _word: int, _registers: object, read_word: ReadWord) -> dict[str, int] | None:
    """Status, pc, and the format with the vector (MC68040 User's Manual, 8.4); a word of memory has 4 bytes here."""
    first, second = read_word(address), read_word(address + 4)
    if first is None or second is None:
        return None
    status, pc = first >> 16, (first & 0xFFFF) << 16 | second >> 16
    size, vector = _FORMATS.get(second >> 12 & 0xF), second & 0xFFF
    if size is None or vector % 4 or vector < 8 or status & 0x58E0 or not status & _SUPERVISOR:
        return None
    return {"pc": pc, "sp": address + size}


_USER_ABIS = (
    UserAbi(
        # gcc/config/m68k/m68k.h: data, address and floating point registers, then the pc.
        name="m68k",
        pointer_size=4,
        pc="pc",
        sp="sp",
        fp="fp",
        registers=(*_DATA, *_ADDRESS, *(f"fp{number}" for number in range(8)), "pc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=True,
        address_bits=32,
        callee_saved=("d2", "d3", "d4", "d5", "d6", "d7", "a2", "a3", "a4", "a5", "fp"),
        return_column=24,
        red_zone=0,
        system_call_size=2,  # trap
        entry_size=32,
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
        return_offset=0,
        stack_bias=0,
        windowed=(),
    ),
)

M68K = Architecture(
    name="m68k",
    qemu_targets=("m68k",),
    gdb_architectures=("m68k",),
    byteorder="big",
    is_other_byteorder=lambda _registers: False,
    pointer_size=4,
    pc="pc",
    sp="sp",
    fp="fp",
    fixed_registers=(),  # QEMU describes them
    system_registers=(),
    is_user=lambda registers: not registers["ps"] & _SUPERVISOR,
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
    kernel_code=no_linux.kernel_code(6, _follows_call),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=lambda _registers: False,
    page_table_alignment=0,
    hidden=None,
    images=ImageFacts(
        machines=(4,),
        has_both_orders=False,
        roots=None,
        # stop waits with the pc behind it (QEMU's target/m68k/translate.c).
        is_waiting=lambda _registers, before: before[:2] == b"\x4e\x72",
        pushed_exception=_pushed_exception,
        leaving=None,
    ),
)
