"""PowerPC of 32 bits, big endian (Power Architecture 32-bit ABI Supplement 1.0). Code of files (``--elf``) only."""

from __future__ import annotations

from unwind.arch import Architecture, no_linux
from unwind.image_facts import ImageFacts
from unwind.user_abi import UserAbi

_GENERAL = tuple(f"r{number}" for number in range(32))
_MSR_PR, _MSR_POW = 1 << 14, 1 << 18
"""Of the machine state register: user mode, and that the processor waits (Power ISA 2.07 Book III-S, 3.2.1; WE of Book III-E)."""
_WAIT = bytes.fromhex("7c00007c")


def _follows_call(before: bytes) -> bool:
    """Branches that set the link register: ``b``, ``bc``, ``bclr`` and ``bcctr`` (Power ISA 2.07 Book I, 2.4)."""
    if len(before) != 4 or not before[3] & 1:
        return False
    word = int.from_bytes(before, "big")
    return word >> 26 in (16, 18) or (word >> 26 == 19 and word >> 1 & 0x3FF in (16, 528))


_USER_ABIS = (
    UserAbi(
        # Power Architecture 32-bit ABI Supplement 1.0: 3.2.1 (callee-saved), 3.3.2 (back chain), 3.8 (DWARF numbers).
        name="powerpc",
        pointer_size=4,
        pc="pc",
        sp="r1",
        fp="r1",
        registers=(*_GENERAL, *("",) * 33, "lr", "ctr", "pc"),
        frame_record=0,
        caller_slot=4,
        has_frames_above=True,
        address_bits=32,
        callee_saved=("r2", *_GENERAL[13:32]),
        return_column=65,
        red_zone=0,
        system_call_size=4,  # sc
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

POWERPC = Architecture(
    name="powerpc",
    qemu_targets=("ppc",),
    gdb_architectures=("powerpc:common",),
    byteorder="big",
    is_other_byteorder=lambda _registers: False,
    pointer_size=4,
    pc="pc",
    sp="r1",
    fp="r1",
    fixed_registers=(),  # QEMU describes them
    system_registers=(),
    is_user=lambda registers: bool(registers["msr"] & _MSR_PR),
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
    kernel_code=no_linux.kernel_code(4, _follows_call),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=lambda _registers: False,
    page_table_alignment=0,
    hidden=None,
    images=ImageFacts(
        machines=(20,),
        has_both_orders=False,
        roots=None,
        is_waiting=lambda registers, before: bool(registers["msr"] & _MSR_POW) or before == _WAIT,
        pushed_exception=None,
        leaving=None,
    ),
)
