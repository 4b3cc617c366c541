"""s390x: ELF ABI s390x supplement, Linux 5.16 and later (arch/s390/include/asm)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from recording.model import Context
from unwind.arch import (
    Architecture,
    CpuAreas,
    InterruptStacks,
    KernelCode,
    PageTables,
    PagingFormat,
    ReadMemory,
    Registers,
    RunningTask,
    StackChain,
    StackLink,
    UnwindMethod,
)
from unwind.arch.s390x_code import GENERAL, decode
from unwind.image_facts import ImageFacts
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_PSW_DAT = 0x0400_0000_0000_0000
_PSW_PROBLEM = 0x0001_0000_0000_0000
_PSW_WAIT = 0x0002_0000_0000_0000
_PSW_SPACE = 0x0000_C000_0000_0000
_PSW_KEY = 0x00F0_0000_0000_0000
_PSW_64BIT = 0x0000_0001_8000_0000
_PSW_31BIT = 0x0000_0000_8000_0000
_PSW_RESERVED = 0xB808_00FE_7FFF_FFFF
"""Bits of the program status word that are 0 (Principles of Operation, SA22-7832, chapter 4)."""
_TABLE_ADDRESS = 0xFFFF_FFFF_FFFF_F000
_ENTRY_ADDRESS = 0xFFFF_FFFF_FFFF_F800
_SEGMENT_LEVEL = 2
_TABLE_TYPES = 0xC
_INVALID = 0x20
_PRESENT = 1
"""Of a page-table entry: ``_PAGE_PRESENT``, a bit that is the kernel's to use (asm/pgtable.h). The processor's own bit says that
pages are invalid which nobody has touched lately, or since a fork, too.
"""
_PROGRAM_NEW_PSW = 0x1D0


def _is_user(registers: Registers) -> bool:
    return bool(registers["pswm"] & _PSW_PROBLEM)


@lru_cache(maxsize=8)
def _tables_of(levels: int) -> PageTables:
    """Principles of Operation, chapter 3, "Dynamic Address Translation": an entry tells the type of its table itself."""
    return PageTables(
        page_shift=12,
        index_bits=(8, *(11,) * (levels - 1)),
        large_levels=(2, 3),
        present=-1,
        large=(0x400, 0x400),
        address_mask=_ENTRY_ADDRESS,
        entry_size=8,
        byteorder="big",
        valid=((_PRESENT, _PRESENT), *((_INVALID | _TABLE_TYPES, kind << 2) for kind in range(levels - 1))),
    )


def _tables(element: int) -> PageTables:
    """By the address-space-control element of a space: the type of its top-level table."""
    return _tables_of((element >> 2 & 3) + _SEGMENT_LEVEL)


def _first_handler(_registers: Registers, read: ReadMemory) -> int | None:
    """The handler of program checks in the absolute lowcore, which the boot CPU used at its start (arch/s390/kernel/early.c)."""
    word = read(_PROGRAM_NEW_PSW, 16)
    return None if word is None else int.from_bytes(word[8:], "big")


_STACK_SIZE = 0x4000
_BACK_CHAIN = 152
"""``back_chain`` of struct stack_frame (asm/stacktrace.h)."""
_TRAP_SIZE, _FRAME_SIZE = 200, 160
"""Of struct pt_regs and struct stack_frame, which a stack begins with (STACK_INIT_OFFSET, asm/thread_info.h)."""
_SYSTEM_CALL = 1
"""PIF_SYSCALL (asm/ptrace.h)"""


def _is_trap(registers: Registers) -> bool:
    """Kernel code runs in the home space with key 0, programs in another one (asm/ptrace.h)."""
    mask = registers["pswm"]
    if mask & _PSW_RESERVED or not mask & _PSW_DAT or registers["pswa"] & 1:
        return False
    is_home = mask & _PSW_SPACE == _PSW_SPACE
    if mask & _PSW_PROBLEM:
        return not is_home and mask & _PSW_64BIT in (_PSW_64BIT, _PSW_31BIT)
    return is_home and mask & _PSW_64BIT == _PSW_64BIT and not mask & _PSW_KEY


def _is_trap_place(end: int) -> bool:
    """Registers of user mode are saved at the very top of the task's stack (``task_pt_regs``, asm/processor.h)."""
    return end % _STACK_SIZE == 0


_OLD_PSWS = {"ext_int_handler": 0x130, "system_call": 0x140, "pgm_check_handler": 0x150, "io_int_handler": 0x170}
"""Where the processor saves the PSW that it leaves (Principles of Operation, chapter 3, "Assigned Storage Locations")."""
_RETURNS = {"return_lpswe": (0x400, 0x404), "return_mcck_lpswe": (0x404, 0x408)}
"""The kernel's last instruction, also behind a machine check, lies in the lowcore (asm/lowcore.h)."""
_RETURN_CODE, _RETURN_PSW = _RETURNS["return_lpswe"][0], 0x290
"""``return_lpswe``, and the PSW that it loads."""
_SAVED_WORDS = {
    f"{name}@{place:x}": place + offset
    for place in (*_OLD_PSWS.values(), _RETURN_PSW)
    for offset, name in ((0, "pswm"), (8, "pswa"))
}


def _taken_exception(name: str, offset: int, registers: Registers) -> Mapping[str, int] | None:
    """At the first instruction of a handler, and at the last one of the way out, only the PSW is another one.

    QEMU delivers an interrupt that is pending when it is asked to halt, so that a halt falls here far more often than time does.
    """
    place = _RETURN_PSW if registers["pswa"] == _RETURN_CODE else None if offset else _OLD_PSWS.get(name)
    mask, address = (registers.get(f"{word}@{place or 0:x}") for word in ("pswm", "pswa"))
    if mask is None or address is None:
        return None
    taken = {**{each: registers[each] for each in GENERAL}, "pswm": mask, "pswa": address}
    return taken if _is_trap(taken) else None


def _follows_call(before: bytes) -> bool:
    """``brasl``, ``bras``, ``basr`` with the link in %r14."""
    if len(before) != 6:
        return False
    return before[:2] == b"\xc0\xe5" or before[2:4] == b"\xa7\xe5" or (before[4] == 0x0D and before[5] >> 4 == 0xE)


def _system_call_number(saved: Registers) -> int | None:
    """``int_code`` has it in its lower half, where a flag says that a system call led here (arch/s390/kernel/syscall.c)."""
    flags, code = saved.get("flags"), saved.get("int_code")
    if flags is None or code is None:
        return None
    return code >> 32 & 0xFFFF if flags & _SYSTEM_CALL else -1


_FLOATS = tuple(f"f{number}" for number in (0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15))
_DWARF = (*GENERAL, *_FLOATS, *(f"cr{i}" for i in range(16)), *(f"acr{i}" for i in range(16)), "pswm", "pswa")

_USER_ABIS = (
    UserAbi(
        # S/390 ELF ABI supplement. Addresses have 31 bits.
        name="s390",
        pointer_size=4,
        pc="pswa",
        sp="r15",
        fp="",
        registers=_DWARF,
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=31,
        callee_saved=(*GENERAL[6:14], "r15"),
        return_column=14,
        red_zone=0,
        system_call_size=2,  # svc
        entry_size=40,
        signal_frame={},
        signal_code=(),
        go_clock_sp="",
        init_code=None,
        decode=None,
        is_process=lambda registers: not registers.get("pswm", _PSW_64BIT) & (_PSW_64BIT ^ _PSW_31BIT),
        mode_flag=None,
        index_segment=0,
        known_row=None,
        follows_call=None,
        kernel_code=None,
        return_offset=0,
        stack_bias=0,
        windowed=(),
    ),
    UserAbi(
        # s390x ELF ABI supplement 1.6: DWARF numbers, callee-saved registers; there is no frame pointer.
        name="s390x",
        pointer_size=8,
        pc="pswa",
        sp="r15",
        fp="",
        registers=_DWARF,
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=64,
        callee_saved=(*GENERAL[6:14], "r15"),
        return_column=14,
        red_zone=0,
        system_call_size=2,  # svc
        entry_size=40,
        # struct rt_sigframe: an area for registers, svc, siginfo, then what ucontext has of them (arch/s390/kernel/signal.c).
        signal_frame={
            "pswm": 160 + 8 + 128 + 40,
            "pswa": 160 + 8 + 128 + 48,
            **{name: 160 + 8 + 128 + 56 + 8 * i for i, name in enumerate(GENERAL)},
        },
        signal_code=(),
        go_clock_sp="",
        init_code=None,
        decode=decode,
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

S390X = Architecture(
    name="s390x",
    qemu_targets=("s390x",),
    gdb_architectures=("s390:64-bit",),
    byteorder="big",
    is_other_byteorder=lambda _registers: False,
    pointer_size=8,
    pc="pswa",
    sp="r15",
    fp="r11",
    fixed_registers=(),  # numbers of the control registers are told by the XML alone
    system_registers=(
        ("cr1",),
        ("cr7",),
        ("cr13",),
    ),
    is_user=_is_user,
    is_kernel_address=lambda address: 0 < address < 1 << 53,
    spaces_overlap=True,
    is_32bit_kernel=lambda _registers: False,
    paging=PagingFormat(
        roots=lambda registers: (registers["cr13"] & _TABLE_ADDRESS,),
        user_root=lambda registers: registers["cr7"] & _TABLE_ADDRESS,
        tables=lambda registers: _tables(registers["cr13"]),
        kernel_tables=lambda tables, _variable: tables,
        is_shared=False,
        shows_own=True,
        enabled=lambda registers: bool(registers["pswm"] & _PSW_DAT),
        user_tables=lambda registers: _tables(registers["cr7"]),
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_text", "_stext"),
    code_start="_stext",
    kernel_image=(0, 1 << 53),
    image_alignment=0x1_0000,
    image_mark=_first_handler,
    is_image_in_linear_map=False,  # older kernels are, but do not begin at a step
    image_mark_symbols=("pgm_check_handler", "early_pgm_check_handler"),
    image_physical=lambda _address, _numbers: None,
    stack_size=_STACK_SIZE,
    entry_stacks=(0, 0),
    cpu_base=(),
    cpu_areas=CpuAreas(
        "lowcore_ptr", "lowcore", members={"current_task": 0x340}
    ),  # the processor's prefix leads there (asm/lowcore.h)
    interrupt_stacks=InterruptStacks(
        variable="",
        container="",
        arrays=(),
        is_lowest=False,
        link=StackLink.BOTTOM_WORD,  # the chain of its first frame (call_on_stack, asm/stacktrace.h); 0 in that of a task's stack
        exceptions="",
        word_at=_STACK_SIZE - _TRAP_SIZE - _FRAME_SIZE + _BACK_CHAIN,
    ),
    running_task=RunningTask(
        pointer=lambda _registers: None,
        variables=("lowcore.current_task",),  # asm/lowcore.h
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=True,
    kernel_code=KernelCode(
        method=UnwindMethod.STACK_CHAIN,
        link=None,
        frame_record=0,
        chain=StackChain(
            word=_BACK_CHAIN,
            link="r14",
            return_address=136,
            trap=_FRAME_SIZE,
            alignment=2,
            decode=decode,
            switches=("__switch_to_asm", "__switch_to"),
            called=("psw_idle", "psw_idle_exit"),
        ),
        signature=0,
        trap=TrapFrame(
            size=_TRAP_SIZE,
            full={
                **{name: 8 + 8 * i for i, name in enumerate(("pswm", "pswa", *GENERAL))},
                "int_code": 160,
                "flags": 176,
            },
            partial={"pswm": 0, "pswa": 8, "r15": 136},
            partial_at=8,
        ),
        is_trap=_is_trap,
        is_trap_place=_is_trap_place,
        user_trap_paddings=(0,),
        call_size=6,
        follows_call=_follows_call,
        sets_frame=lambda _code: False,  # there is no frame pointer
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=lambda _before, _after: False,  # calls leave return addresses in a register
        machine_code=None,  # see ``chain``
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=frozenset({"ret_from_fork"}),
        idle_roots=frozenset({"startup_continue", "arch_call_rest_init", "smp_start_secondary"}),
        thunks=(),
        entry_text=("system_call", "__irqentry_text_end"),
        entry_functions=frozenset(),
        entry_areas=((0, 0x2000),),  # the lowcore
        entry_copies=(),
        name_copies=None,
        entry_places=lambda _find, _read: ((name, *place) for name, place in _RETURNS.items()),
        saved_words=_SAVED_WORDS,
        taken_exception=_taken_exception,
        module_area=(0, 1 << 64),
        has_only_code=False,
        module_reach=0,
        contexts=(
            # arch/s390/kernel/entry.S, syscall.c, irq.c, traps.c, whose names 5.12 introduced.
            ("__do_syscall", Context.SYSTEM_CALL),
            ("system_call", Context.SYSTEM_CALL),
            ("do_dat_exception", Context.PAGE_FAULT),
            ("do_exception", Context.PAGE_FAULT),  # in mm/fault.c, which the others end with a jump to
            ("do_protection_exception", Context.PAGE_FAULT),
            ("__do_pgm_check", Context.EXCEPTION),
            ("pgm_check_handler", Context.EXCEPTION),
            ("do_io_irq", Context.HARD_IRQ),
            ("do_ext_irq", Context.HARD_IRQ),
            ("io_int_handler", Context.HARD_IRQ),
            ("ext_int_handler", Context.HARD_IRQ),
            ("s390_do_machine_check", Context.EXCEPTION),
            ("mcck_int_handler", Context.EXCEPTION),
            ("__do_softirq", Context.SOFT_IRQ),
            ("handle_softirqs", Context.SOFT_IRQ),
            ("do_softirq", Context.SOFT_IRQ),
        ),
        system_call_number=_system_call_number,
        is_32bit_process=lambda registers: not registers["pswm"] & (_PSW_64BIT ^ _PSW_31BIT),
        system_call_tables={False: ("64", "sys_call_table"), True: ("32", "sys_call_table_emu")},
        first_system_calls={"sys_call_table": ("__s390x_sys_ni_syscall", "__s390x_sys_exit", "__s390x_sys_fork")},
        data_in_code={},
        frame_code=None,
        entry_ranges=(),
        in_entry=lambda _registers: False,
        has_saved=lambda _registers: False,
    ),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=lambda _registers: True,
    page_table_alignment=0,
    hidden=None,
    images=ImageFacts(
        machines=(22,),
        has_both_orders=False,
        roots=lambda registers: tuple(registers[name] & _TABLE_ADDRESS for name in ("cr1", "cr7", "cr13")),
        is_waiting=lambda registers, _before: bool(registers["pswm"] & _PSW_WAIT),
        pushed_exception=None,
        leaving=None,
    ),
)
