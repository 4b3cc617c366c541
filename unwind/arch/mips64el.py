"""mips64el: the n64 ABI, Linux 6.1 (arch/mips/include/asm). What it has in common with mipsel is in ``mips.py``."""

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

_XKPHYS, _XKSEG = 0x8000_0000_0000_0000, 0xC000_0000_0000_0000
"""Unmapped: physical memory once for each way of caching it; mapped (volume III, 4.3)."""
_CKSEG0, _CKSEG1, _CKSEG2 = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_C000_0000
"""The segments of 32-bit processors, sign-extended."""
_CACHE_SHIFT = 59
_PHYSICAL = 1 << 48
_KX = 1 << 7
"""Status: 64-bit addresses in kernel mode, as 64-bit kernels have them always (asm/stackframe.h)."""
_STACK_SIZE = 0x4000
_MODULES = (_CKSEG2, 0x1_0000_0000_0000_0000)
"""``MODULE_START`` (asm/pgtable-64.h)."""
_TABLES = PageTables(
    page_shift=12,
    index_bits=(9, 9, 10),
    large_levels=(2,),
    present=1,
    large=(1 << 4, 1 << 4),
    address_mask=0x3FFF_FFFF_FFFF_C000,  # ``_PFN_SHIFT`` is 14 (asm/pgtable-bits.h)
    entry_size=8,
    byteorder="little",
    address_shift=-2,
    has_pointers=True,
    linear=(
        (_CKSEG0, _CKSEG1, 0),
        (_CKSEG1, _CKSEG2, 0),
        *((_XKPHYS | way << _CACHE_SHIFT, (_XKPHYS | way << _CACHE_SHIFT) + _PHYSICAL, 0) for way in range(8)),
    ),
)


def _is_kernel_address(address: int) -> bool:
    return address >= _XKPHYS


_GENERAL = mips.registers_of(("a4", "a5", "a6", "a7", "t0", "t1", "t2", "t3"))
_TRAP = mips.trap_layout(_GENERAL, 8, 0)

_USER_ABIS = (
    UserAbi(
        # gdb's and GCC's numbers (gcc/config/mips/mips.h): general registers, floating point ones, HI and LO, a pc of its own.
        name="n64",
        pointer_size=8,
        pc="pc",
        sp="sp",
        fp="s8",
        registers=(*_GENERAL, *(f"f{number}" for number in range(32)), "hi", "lo", "pc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=64,
        callee_saved=(*mips.KEPT, "gp"),
        return_column=31,
        red_zone=0,
        system_call_size=4,  # syscall
        entry_size=96,
        signal_frame={},
        # __NR_64_rt_sigreturn: ``struct sigcontext`` is 192 bytes behind the beginning of ``struct rt_sigframe`` (kernel/signal.c).
        signal_code=(mips.signal_code(_GENERAL, 5211, 192 + 576, 192),),
        go_clock_sp="",
        init_code=None,
        decode=decoder(_GENERAL, 8),
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

MIPS64EL = Architecture(
    name="mips64el",
    qemu_targets=("mips64el",),
    gdb_architectures=(),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=8,
    pc="pc",
    sp="sp",
    fp="s8",
    fixed_registers=mips.fixed_registers(_GENERAL, 8),
    system_registers=(),  # QEMU shows none
    is_user=mips.is_user,
    is_kernel_address=_is_kernel_address,
    spaces_overlap=False,
    is_32bit_kernel=lambda registers: not registers["status"] & _KX,
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
    kernel_image=(_CKSEG0, _CKSEG0 + mips.SEGMENT),
    image_alignment=mips.ALIGNMENT,
    image_mark=mips.image_mark(_CKSEG0),
    is_image_in_linear_map=True,
    image_mark_symbols=(),
    image_physical=lambda address, _numbers: address - _CKSEG0,
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
            size=304,
            full=_TRAP,
            partial={name: _TRAP[name] for name in ("sp", "pc", mips.SAVED_STATUS)},
            partial_at=0,
            unsaved=frozenset({"at", "a6", "a7", *(f"t{number}" for number in range(4)), "t8", *mips.KEPT, "hi", "lo"}),
            is_partial=mips.is_partial,
        ),
        is_trap=mips.is_trap(_XKPHYS, _is_kernel_address),
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
        entry_places=mips.entry_places(8),
        saved_words={},
        taken_exception=mips.taken_exception,
        module_area=_MODULES,
        has_only_code=False,
        module_reach=0,
        contexts=mips.CONTEXTS,
        system_call_number=mips.system_call_number(5000),
        is_32bit_process=lambda registers: registers.get("v0", 0) < 5000,
        system_call_tables={False: ("n64", "sys_call_table"), True: ("o32", "sys32_call_table")},
        first_system_calls={},
        data_in_code=mips.DATA_IN_CODE,
        frame_code=mips.FRAME_CODE,
        entry_ranges=(
            *mips.ENTRY_RANGES,
            ("handle_sys64", "sys_call_table"),  # kernel/scall64-n64.S
            ("handle_sysn32", "sysn32_call_table"),
            ("handle_sys", "sys32_call_table"),
        ),
        in_entry=mips.in_entry,
        has_saved=lambda _registers: False,
    ),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=mips.shows_image(_CKSEG0),
    page_table_alignment=mips.PAGE_TABLE_ALIGNMENT,
    hidden=mips.monitor_registers(8),
    images=ImageFacts(
        machines=(8,),
        has_both_orders=False,
        roots=None,
        is_waiting=waits_behind(b"\x20\x00\x00\x42"),
        pushed_exception=None,
        leaving=None,
    ),
)
