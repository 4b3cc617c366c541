"""mipsel: the o32 ABI, Linux 6.1 (arch/mips/include/asm). What it has in common with mips64el is in ``mips.py``."""

from __future__ import annotations

from unwind.arch import (
    Architecture,
    InterruptStacks,
    KernelCode,
    PageTables,
    PagingFormat,
    RunningTask,
    StackLink,
    UnwindMethod,
    mips,
)
from unwind.arch.mips_code import decoder
from unwind.image_facts import ImageFacts, waits_behind
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_KSEG0, _KSEG1, _KSEG2 = 0x8000_0000, 0xA000_0000, 0xC000_0000
"""Unmapped, the same uncached, mapped (volume III, 4.4)."""
_STACK_SIZE = 0x2000
_MODULES = (_KSEG2, 0x1_0000_0000)
_TABLES = PageTables(
    page_shift=12,
    index_bits=(10, 10),
    large_levels=(),
    present=1,
    large=(0, 1),
    address_mask=0xFFFF_F000,  # ``_PFN_SHIFT`` (asm/pgtable-bits.h)
    entry_size=4,
    byteorder="little",
    has_pointers=True,
    linear=((_KSEG0, _KSEG1, 0), (_KSEG1, _KSEG2, 0)),
)


def _is_kernel_address(address: int) -> bool:
    return address >= _KSEG0


_GENERAL = mips.registers_of(tuple(f"t{number}" for number in range(8)))
_TRAP = mips.trap_layout(_GENERAL, 4, 32)  # below it is room for the arguments of the functions that entry code calls

_USER_ABIS = (
    UserAbi(
        # gdb's and GCC's numbers (gcc/config/mips/mips.h): general registers, floating point ones, HI and LO, a pc of its own.
        name="o32",
        pointer_size=4,
        pc="pc",
        sp="sp",
        fp="s8",
        registers=(*_GENERAL, *(f"f{number}" for number in range(32)), "hi", "lo", "pc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=32,
        callee_saved=mips.KEPT,
        return_column=31,
        red_zone=0,
        system_call_size=4,  # syscall
        entry_size=96,
        signal_frame={},
        signal_code=(
            # __NR_O32_sigreturn, __NR_O32_rt_sigreturn: ``struct sigframe``, ``struct rt_sigframe`` (kernel/signal.c), with
            # ``struct sigcontext`` 24 and 176 bytes behind their beginning.
            mips.signal_code(_GENERAL, 4119, 24 + 8, 24 + 16),
            mips.signal_code(_GENERAL, 4193, 176 + 8, 176 + 16),
        ),
        go_clock_sp="",
        init_code=None,
        decode=decoder(_GENERAL, 4),
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

MIPSEL = Architecture(
    name="mipsel",
    qemu_targets=("mipsel",),
    gdb_architectures=(),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=4,
    pc="pc",
    sp="sp",
    fp="s8",
    fixed_registers=mips.fixed_registers(_GENERAL, 4),
    system_registers=(),  # QEMU shows none
    is_user=mips.is_user,
    is_kernel_address=_is_kernel_address,
    spaces_overlap=False,
    is_32bit_kernel=lambda _registers: False,
    paging=PagingFormat(
        roots=lambda _registers: (mips.NO_TABLE,),
        user_root=lambda _registers: mips.NO_TABLE,
        tables=lambda _registers: _TABLES,
        kernel_tables=lambda tables, _variable: tables,
        is_shared=False,
        shows_own=False,
        enabled=lambda _registers: True,
        user_tables=None,
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_stext",),
    code_start="_stext",
    kernel_image=(_KSEG0, _KSEG0 + mips.SEGMENT),
    image_alignment=mips.ALIGNMENT,
    image_mark=mips.image_mark(_KSEG0),
    is_image_in_linear_map=True,
    image_mark_symbols=(),
    image_physical=lambda address, _numbers: address - _KSEG0,
    stack_size=_STACK_SIZE,
    entry_stacks=(0, 0),
    cpu_base=(),  # vCPUs are numbered as the kernel's CPUs are
    cpu_areas=None,
    interrupt_stacks=InterruptStacks(
        variable="",  # they are aligned as those of tasks are (init_IRQ, kernel/irq.c)
        container="",
        arrays=(),
        is_lowest=True,
        link=StackLink.BOTTOM_WORD,  # handle_int, arch/mips/kernel/genex.S
        exceptions="",
        word_at=_STACK_SIZE - mips.FIRST_WORD,
    ),
    running_task=RunningTask(
        pointer=lambda _registers: None,
        variables=(),
        head=mips.thread_info,
        stacks=mips.KERNEL_STACKS,
    ),
    hides_kernel=True,
    kernel_code=KernelCode(
        method=UnwindMethod.PROLOGUES,
        link=None,
        frame_record=0,
        chain=None,
        signature=0,
        trap=TrapFrame(
            size=184,
            full=_TRAP,
            partial={name: _TRAP[name] for name in ("sp", "pc", mips.SAVED_STATUS)},
            partial_at=0,
            unsaved=frozenset({"at", *(f"t{number}" for number in range(9)), *mips.KEPT, "hi", "lo"}),
            is_partial=mips.is_partial,
        ),
        is_trap=mips.is_trap(_KSEG0, _is_kernel_address),
        is_trap_place=mips.is_trap_place(_STACK_SIZE),
        user_trap_paddings=mips.USER_TRAP_PADDINGS,
        call_size=8,
        follows_call=mips.follows_call,
        sets_frame=lambda _code: False,  # the frame's code tells it all
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=lambda _before, _after: False,
        machine_code=None,
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=mips.TASK_ROOTS,
        idle_roots=mips.IDLE_ROOTS,
        thunks=(),
        entry_text=("", ""),
        entry_functions=frozenset(),
        entry_areas=(),
        entry_copies=(),
        name_copies=None,
        entry_places=mips.entry_places(4),
        saved_words={},
        taken_exception=mips.taken_exception,
        module_area=_MODULES,
        has_only_code=False,
        module_reach=0,
        contexts=mips.CONTEXTS,
        system_call_number=mips.system_call_number(4000),
        is_32bit_process=lambda _registers: False,
        system_call_tables={False: ("o32", "sys_call_table")},
        first_system_calls={},
        data_in_code=mips.DATA_IN_CODE,
        frame_code=mips.FRAME_CODE,
        entry_ranges=(
            *mips.ENTRY_RANGES,
            ("handle_sys", "sys_syscall"),  # kernel/scall32-o32.S
        ),
        in_entry=mips.in_entry,
        has_saved=lambda _registers: False,
    ),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=mips.shows_image(_KSEG0),
    page_table_alignment=mips.PAGE_TABLE_ALIGNMENT,
    hidden=mips.monitor_registers(4),
    images=ImageFacts(
        machines=(8,),
        has_both_orders=False,
        roots=None,
        is_waiting=waits_behind(b"\x20\x00\x00\x42"),
        pushed_exception=None,
        leaving=None,
    ),
)
