"""x86-64: System V ABI, Linux 4.14 and later (arch/x86/include/asm)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from recording.model import Context
from unwind.arch import (
    Architecture,
    InterruptStacks,
    KernelCode,
    PageTables,
    PagingFormat,
    ReadMemory,
    Registers,
    RunningTask,
    StackLink,
    UnwindMethod,
)
from unwind.image_facts import ImageFacts, waits_behind, x86_exceptions
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_IMAGE = (_START_KERNEL_MAP, 0xFFFF_FFFF_C000_0000)
_INTERRUPT_TABLE = 0xFFFF_FE00_0000_0000
_CR0_PE = 1
_CR0_PG = 1 << 31
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10
_PTI_SWITCH_MASK = 0x1FFF
"""PCID and the bit that selects KPTI's user table (arch/x86/entry/calling.h): clear them for the kernel's table.

Without KPTI newer kernels (7.2) take a single page for the table, so that bit may be part of its address.
"""
_ENTRY_ADDRESS = 0x000F_FFFF_FFFF_F000


def _is_user(registers: Registers) -> bool:
    return registers["cs"] & 3 == 3 and bool(registers.get("cr0", _CR0_PE) & _CR0_PE)


def _is_32bit_kernel(registers: Registers) -> bool:
    return bool(registers["cr0"] & _CR0_PG) and not registers["efer"] & _EFER_LMA


def _roots(registers: Registers) -> tuple[int, ...]:
    table = registers["cr3"] & _ENTRY_ADDRESS
    return tuple(dict.fromkeys((table & ~_PTI_SWITCH_MASK, table)))


def _tables(registers: Registers) -> PageTables:
    """Intel SDM volume 3A, section 4.5: 512 entries a table; 2 MiB and 1 GiB may be mapped at once."""
    levels = 5 if registers["cr4"] & _CR4_LA57 else 4
    return PageTables(
        page_shift=12,
        index_bits=(9,) * levels,
        large_levels=(2, 3),
        present=1,
        large=(1 << 7, 1 << 7),
        address_mask=_ENTRY_ADDRESS,
        entry_size=8,
        byteorder="little",
    )


def _first_handler(_registers: Registers, read: ReadMemory) -> int | None:
    """The first handler in the interrupt table, which has a fixed address in all page tables; None where it is not set up.

    Gates: Intel SDM volume 3A, figure 6-8.
    """
    gate = read(_INTERRUPT_TABLE, 16)
    if gate is None:
        return None
    low, _selector, _attributes, middle, high = struct.unpack_from("<HHHHI", gate)
    handler = int(low | middle << 16 | high << 32)
    return handler if _IMAGE[0] <= handler < _IMAGE[1] and read(handler, 1) is not None else None


def _image_physical(address: int, numbers: Mapping[str, int]) -> int | None:
    base = numbers.get("phys_base")
    return None if base is None else address - _START_KERNEL_MAP + base


_KERNEL_CS = 0x10
_USER32_CS = 0x23
_USER_CS = frozenset({_USER32_CS, 0x33})
_KERNEL_SS = frozenset({0x00, 0x18})
_PAGE_MASK = 0xFFF
_FRED_PADDING = 16
"""Bytes that kernels with CONFIG_X86_FRED leave free at the top of a task's stack (TOP_OF_KERNEL_STACK_PADDING)."""
_OWN_CALL_REACH = 32
_CPU_ENTRY_AREA = (0xFFFF_FE00_0000_0000, 0xFFFF_FE80_0000_0000)


def _is_trap(registers: Registers) -> bool:
    """The selectors are the kernel's own (__KERNEL_CS 0x10, __USER32_CS 0x23, __USER_CS 0x33) and fit the addresses."""
    if registers["cs"] == _KERNEL_CS:
        return registers["rip"] >> 63 == 1 and registers["rsp"] >> 63 == 1 and registers["ss"] in _KERNEL_SS
    return registers["cs"] in _USER_CS and registers["ss"] & 3 == 3


def _is_trap_place(end: int) -> bool:
    """Registers of user mode are saved at the very top of a stack: of the task's, or of one in the CPU entry area."""
    return end & _PAGE_MASK in (0, _PAGE_MASK + 1 - _FRED_PADDING) or _CPU_ENTRY_AREA[0] < end <= _CPU_ENTRY_AREA[1]


def follows_call(before: bytes) -> bool:
    """``call rel32`` is e8 and 4 bytes; ``call r/m64`` is ff /2 with a ModRM byte, SIB byte and displacement as the mode says."""
    if len(before) != 7:
        return False
    if before[2] == 0xE8:
        return True
    if before[5] == 0xFF and before[6] & 0xF8 in (0xD0, 0x10) and before[6] not in (0x14, 0x15):
        return True
    if before[4] == 0xFF and (before[5] == 0x14 or (before[5] & 0xF8 == 0x50 and before[5] != 0x54)):
        return True
    if before[3] == 0xFF and before[4] == 0x54:
        return True
    if before[1] == 0xFF and (before[2] == 0x15 or (before[2] & 0xF8 == 0x90 and before[2] != 0x94)):
        return True
    return before[0] == 0xFF and before[1] in (0x94, 0x14)


def follows_own_call(before: bytes) -> bool:
    """``call 1f; int3; 1:`` and its kin: a displacement of a few bytes."""
    return len(before) == 7 and before[2] == 0xE8 and int.from_bytes(before[3:], "little") <= _OWN_CALL_REACH


def _pushed_words(before: bytes, after: bytes) -> int:
    """Between ``pushf; pop reg`` and ``push reg; popf``, which paravirt patches over a call (before 5.12 no ORC row knows)."""
    last, following = before[-1], after[0]
    if last == 0x9C and following & 0xF8 == 0x58:
        return 1
    return 1 if last & 0xF8 == 0x50 and following == 0x9D else 0


def _system_call_number(saved: Registers) -> int | None:
    """``orig_rax``, in which entry code other than that of system calls saves a negative number."""
    number = saved.get("orig_rax")
    return None if number is None else -1 if number >> 63 else number & 0xFFFF_FFFF


CONTEXTS = (
    # arch/x86/entry/entry_64.S, entry_32.S and asm/idtentry.h, whose names 5.8 introduced; before that the functions behind them.
    ("asm_exc_page_fault", Context.PAGE_FAULT),
    ("exc_page_fault", Context.PAGE_FAULT),
    ("asm_exc_", Context.EXCEPTION),
    ("exc_", Context.EXCEPTION),
    ("asm_common_interrupt", Context.HARD_IRQ),
    ("asm_sysvec_", Context.HARD_IRQ),
    ("asm_spurious_interrupt", Context.HARD_IRQ),
    ("common_interrupt", Context.HARD_IRQ),
    ("sysvec_", Context.HARD_IRQ),
    ("__sysvec_", Context.HARD_IRQ),
    ("__do_softirq", Context.SOFT_IRQ),
    ("handle_softirqs", Context.SOFT_IRQ),
    ("do_softirq", Context.SOFT_IRQ),
    ("entry_SYSCALL", Context.SYSTEM_CALL),
    ("entry_SYSENTER", Context.SYSTEM_CALL),
    ("entry_INT80", Context.SYSTEM_CALL),
    ("asm_int80_emulation", Context.SYSTEM_CALL),
    ("do_syscall_64", Context.SYSTEM_CALL),
    ("do_int80_", Context.SYSTEM_CALL),
    ("do_fast_syscall_32", Context.SYSTEM_CALL),
    ("do_SYSENTER_32", Context.SYSTEM_CALL),
)

_USER_ABIS = (
    UserAbi(
        # System V ABI, Intel386 supplement 1.1, table 2.14; the processor's registers keep their 64-bit names.
        name="i386",
        pointer_size=4,
        pc="rip",
        sp="rsp",
        fp="rbp",
        registers=("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "rip"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=True,
        address_bits=32,
        callee_saved=("rbx", "rbp", "rsi", "rdi"),
        return_column=8,
        red_zone=0,
        system_call_size=2,  # int $0x80, sysenter
        entry_size=40,
        signal_frame={},
        signal_code=(),
        go_clock_sp="rbp",  # Go's src/runtime/sys_linux_386.s
        init_code=None,
        decode=None,
        is_process=lambda registers: registers.get("cs") == _USER32_CS,
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
        # System V ABI, AMD64 supplement 1.0, figure 3.36 (DWARF numbers) and section 3.2.2 (red zone).
        name="x86-64",
        pointer_size=8,
        pc="rip",
        sp="rsp",
        fp="rbp",
        registers=tuple("rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()),
        frame_record=0,
        caller_slot=None,
        has_frames_above=True,
        address_bits=64,
        callee_saved=("rbx", "rbp", "r12", "r13", "r14", "r15"),
        return_column=16,
        red_zone=128,
        system_call_size=2,  # syscall
        entry_size=40,
        # struct rt_sigframe without its first word: ucontext's gregs are 40 bytes into it (asm/ucontext.h, asm/sigcontext.h).
        signal_frame={
            name: 40 + 8 * i for i, name in enumerate("r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip".split())
        },
        signal_code=(),
        go_clock_sp="r12",  # Go's src/runtime/sys_linux_amd64.s and time_linux_amd64.s
        init_code=(b"\x48\x83\xec\x08", b"\x48\x83\xc4\x08\xc3", 8),  # sub $8,%rsp; add $8,%rsp, ret
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

X86_64 = Architecture(
    name="x86_64",
    qemu_targets=("x86_64",),
    gdb_architectures=("i386:x86-64",),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=8,
    pc="rip",
    sp="rsp",
    fp="rbp",
    fixed_registers=(
        *((name, 8) for name in "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()),
        *((name, 4) for name in "eflags cs ss ds es fs gs".split()),
        *((name, 8) for name in "fs_base gs_base k_gs_base cr0 cr2 cr3 cr4 cr8 efer".split()),
    ),
    system_registers=(),
    is_user=_is_user,
    # With page tables of five levels; of four it begins higher, and nothing lies between.
    is_kernel_address=lambda address: address >= 0xFF00_0000_0000_0000,
    spaces_overlap=False,
    is_32bit_kernel=_is_32bit_kernel,
    paging=PagingFormat(
        roots=_roots,
        user_root=lambda registers: _roots(registers)[0],
        tables=_tables,
        kernel_tables=lambda tables, _variable: tables,
        is_shared=True,
        shows_own=False,
        enabled=lambda registers: bool(registers["cr0"] & _CR0_PG and registers["efer"] & _EFER_LMA),
        user_tables=None,
    ),
    page_table_symbol="init_top_pgt",
    image_start=("_text", "_stext"),
    code_start="_stext",
    kernel_image=_IMAGE,
    image_alignment=0x20_0000,
    image_mark=_first_handler,
    is_image_in_linear_map=False,
    image_mark_symbols=(),
    image_physical=_image_physical,
    stack_size=0x4000,
    entry_stacks=_CPU_ENTRY_AREA,
    cpu_base=("gs_base", "k_gs_base"),
    cpu_areas=None,
    interrupt_stacks=InterruptStacks(
        variable="hardirq_stack_ptr",
        container="pcpu_hot",  # 6.2 to 6.14 (arch/x86/include/asm/current.h)
        arrays=(),
        is_lowest=False,
        link=StackLink.TOP_WORD,  # arch/x86/include/asm/irq_stack.h
        exceptions="cea_exception_stacks",
        word_at=0,
    ),
    running_task=RunningTask(
        pointer=lambda _registers: None,
        variables=("current_task", "pcpu_hot.current_task"),  # arch/x86/include/asm/current.h
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=False,
    kernel_code=KernelCode(
        method=UnwindMethod.ORC,
        link=None,
        frame_record=0,
        chain=None,
        signature=0,
        trap=TrapFrame(
            size=168,
            full={
                **{name: 8 * i for i, name in enumerate("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi".split())},
                "orig_rax": 120,
                **{name: 128 + 8 * i for i, name in enumerate("rip cs eflags rsp ss".split())},
            },
            partial={name: 8 * i for i, name in enumerate("rip cs eflags rsp ss".split())},
            partial_at=128,
        ),
        is_trap=_is_trap,
        is_trap_place=_is_trap_place,
        user_trap_paddings=(0, _FRED_PADDING),
        call_size=7,
        follows_call=follows_call,
        sets_frame=lambda _code: False,  # there is no link register to ask for
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=lambda _before, _after: False,  # the unwind table says it
        machine_code=None,
        follows_own_call=follows_own_call,
        pushed_words=_pushed_words,
        return_labels=frozenset(),
        task_roots=frozenset({"ret_from_fork", "ret_from_fork_asm"}),
        idle_roots=frozenset(
            {
                "secondary_startup_64",
                "secondary_startup_64_no_verify",
                "common_startup_64",
                "startup_64",
                "x86_64_start_kernel",
                "x86_64_start_reservations",
                "start_cpu0",
            }
        ),
        thunks=("__x86_indirect_", "__x86_return_thunk", "srso_", "retbleed_", "zen_untrain_ret", "its_", "clear_bhb_loop"),
        entry_text=("__entry_text_start", "__entry_text_end"),
        entry_functions=frozenset(),
        entry_areas=(),
        entry_copies=(),
        name_copies=None,
        entry_places=None,
        saved_words={},
        taken_exception=lambda _name, _offset, _registers: None,  # the processor has pushed them
        module_area=(0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FF00_0000),
        has_only_code=True,
        module_reach=0,
        contexts=CONTEXTS,
        system_call_number=_system_call_number,
        is_32bit_process=lambda registers: registers["cs"] == _USER32_CS,
        system_call_tables={False: ("64", "sys_call_table"), True: ("32", "ia32_sys_call_table")},
        first_system_calls={"sys_call_table": ("__x64_sys_read", "__x64_sys_write", "__x64_sys_open")},
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
        machines=(62, 3),
        has_both_orders=False,
        roots=lambda registers: (registers["cr3"] & _ENTRY_ADDRESS,),
        is_waiting=waits_behind(b"\xf4"),
        pushed_exception=x86_exceptions("rip", "rsp"),
        leaving=None,
    ),
)
