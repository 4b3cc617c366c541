"""i386: System V ABI, Linux 5.8 and later built with frame pointers (arch/x86/include/asm)."""

from __future__ import annotations

import struct

from unwind.arch import (
    Architecture,
    InterruptStacks,
    KernelCode,
    LinkRegister,
    PageTables,
    PagingFormat,
    ReadMemory,
    Registers,
    RunningTask,
    StackLink,
    UnwindMethod,
)
from unwind.arch.x86_64 import CONTEXTS, follows_call, follows_own_call
from unwind.arch.x86_code import decoder
from unwind.image_facts import ImageFacts, waits_behind, x86_exceptions
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_PAGE_OFFSET = 0xC000_0000
"""CONFIG_VMSPLIT_3G: all of the kernel, its image too, lies in the mapping of RAM from here on (asm/page_32_types.h)."""
_CPU_ENTRY_AREA = (0xFF40_0000, 0xFFC0_0000)
"""It begins with the interrupt table (asm/cpu_entry_area.h, asm/pgtable_32_areas.h)."""
_FIRMWARE = 0xFFFC_0000
"""From here on the PC's firmware runs before there is a kernel; then nothing but a few pages for data lies there (asm/fixmap.h)."""
_CR0_PE, _CR0_PG = 1 << 0, 1 << 31
_CR4_PAE = 1 << 5
_PTI_SWITCH = 0x1000
"""The bit that selects PTI's user table, which is behind the kernel's (arch/x86/entry/calling.h)."""
_MODULES = (0xD000_0000, 0xFF40_0000)
"""Modules lie among what vmalloc gives, behind the mapping of RAM, which ends at 0xF7FF_E000 at the latest (pgtable_32_areas.h)."""


def _is_user(registers: Registers) -> bool:
    """Privilege level 3. In real mode a selector is no selector (Intel SDM volume 3A, section 20.1.1)."""
    return registers["cs"] & 3 == 3 and bool(registers.get("cr0", _CR0_PE) & _CR0_PE)


def _roots(registers: Registers) -> tuple[int, ...]:
    """The kernel's table beside that of PTI, and the table itself: without PTI it may lie anywhere."""
    table = registers["cr3"] & (0xFFFF_FFE0 if registers["cr4"] & _CR4_PAE else 0xFFFF_F000)
    return tuple(dict.fromkeys((table & ~_PTI_SWITCH, table)))


_PAE = PageTables(
    # Intel SDM volume 3A, section 4.4: 4, 512 and 512 entries of 8 bytes; 2 MiB may be mapped at once.
    page_shift=12,
    index_bits=(9, 9, 2),
    large_levels=(2,),
    present=1,
    large=(1 << 7, 1 << 7),
    address_mask=0x000F_FFFF_FFFF_F000,
    entry_size=8,
    byteorder="little",
)
_PLAIN = PageTables(
    # Intel SDM volume 3A, section 4.3: 1024 entries of 4 bytes a table; 4 MiB may be mapped at once.
    page_shift=12,
    index_bits=(10, 10),
    large_levels=(2,),
    present=1,
    large=(1 << 7, 1 << 7),
    address_mask=0xFFFF_F000,
    entry_size=4,
    byteorder="little",
)


def _first_handler(_registers: Registers, read: ReadMemory) -> int | None:
    """The first handler in the interrupt table, which has a fixed address in all page tables; None where it is not set up.

    Gates: Intel SDM volume 3A, figure 6-2.
    """
    gate = read(_CPU_ENTRY_AREA[0], 8)
    if gate is None:
        return None
    low, _selector, _attributes, high = struct.unpack("<HHHH", gate)
    handler = int(low | high << 16)
    return handler if handler >= _PAGE_OFFSET and read(handler, 1) is not None else None


_KERNEL_CS, _USER_CS = 0x60, 0x73
_KERNEL_SS, _USER_SS = 0x68, 0x7B
_SELECTOR = 0xFFFF
"""Entry code keeps flags of its own above ``cs`` (arch/x86/entry/entry_32.S, CS_FROM_KERNEL and others)."""
_STACK_SIZE = 0x2000
_PAGE_SIZE = 0x1000
_PADDINGS = (8, 16)
"""Bytes that are free at the top of a task's stack; 16 with CONFIG_VM86 (TOP_OF_KERNEL_STACK_PADDING, asm/thread_info.h)."""


def _is_trap(registers: Registers) -> bool:
    """The selectors are the kernel's own and fit the addresses (asm/segment.h)."""
    code, stack = registers["cs"] & _SELECTOR, registers["ss"] & _SELECTOR
    if code == _KERNEL_CS:
        return registers["eip"] >= _PAGE_OFFSET and registers["esp"] >= _PAGE_OFFSET and stack == _KERNEL_SS
    return code == _USER_CS and stack == _USER_SS and registers["eip"] < _PAGE_OFFSET


def _is_trap_place(end: int) -> bool:
    """Registers of user mode are saved at the top of the task's stack, or at that of an entry stack, which is a page."""
    return _STACK_SIZE - end % _STACK_SIZE in _PADDINGS or (_CPU_ENTRY_AREA[0] < end <= _CPU_ENTRY_AREA[1] and not end % _PAGE_SIZE)


def _call_target(address: int, code: bytes) -> int | None:
    """Of ``call rel32`` (Intel SDM volume 2A, CALL)."""
    if len(code) != 5 or code[0] != 0xE8:
        return None
    return address + 5 + int.from_bytes(code[1:], "little") & 0xFFFF_FFFF


def _has_left_frame(before: bytes, after: bytes) -> bool:
    """At ``ret``; or at a jump behind ``pop %ebp`` or ``leave`` (Intel SDM volume 2, JMP, LEAVE, POP, RET)."""
    return after == b"\xc3" or (before in (b"\x5d", b"\xc9") and after in (b"\xe9", b"\xeb", b"\xff"))


def _system_call_number(saved: Registers) -> int | None:
    """``orig_ax``, in which entry code other than that of system calls saves a negative number."""
    number = saved.get("orig_eax")
    return None if number is None else -1 if number >> 31 else number


_GENERAL = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")

_USER_ABIS = (
    UserAbi(
        # System V ABI, Intel386 supplement 1.1, table 2.14.
        name="i386",
        pointer_size=4,
        pc="eip",
        sp="esp",
        fp="ebp",
        registers=(*_GENERAL, "eip"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=True,
        address_bits=32,
        callee_saved=("ebx", "ebp", "esi", "edi"),
        return_column=8,
        red_zone=0,
        system_call_size=2,  # int $0x80, sysenter
        entry_size=40,
        signal_frame={},
        signal_code=(),
        go_clock_sp="ebp",  # Go's src/runtime/sys_linux_386.s
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

I386 = Architecture(
    name="i386",
    qemu_targets=("i386",),
    gdb_architectures=("i386",),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=4,
    pc="eip",
    sp="esp",
    fp="ebp",
    fixed_registers=(),  # QEMU describes them (i386-32bit.xml)
    system_registers=(),
    is_user=_is_user,
    is_kernel_address=lambda address: _PAGE_OFFSET <= address < _FIRMWARE,
    spaces_overlap=False,
    is_32bit_kernel=lambda _registers: False,  # it is meant to be one
    paging=PagingFormat(
        roots=_roots,
        user_root=lambda registers: _roots(registers)[-1],  # PTI's table of user mode maps programs, too
        tables=lambda registers: _PAE if registers["cr4"] & _CR4_PAE else _PLAIN,
        kernel_tables=lambda tables, _variable: tables,
        is_shared=True,
        shows_own=False,
        enabled=lambda registers: bool(registers["cr0"] & _CR0_PG),
        user_tables=None,
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_text", "_stext"),
    code_start="_stext",
    kernel_image=(_PAGE_OFFSET, 0xF800_0000),
    image_alignment=0x100_0000,  # CONFIG_PHYSICAL_ALIGN of stock kernels
    image_mark=_first_handler,
    is_image_in_linear_map=True,
    image_mark_symbols=(),
    image_physical=lambda address, _numbers: address - _PAGE_OFFSET,
    stack_size=_STACK_SIZE,
    entry_stacks=_CPU_ENTRY_AREA,
    cpu_base=("fs_base",),
    cpu_areas=None,
    interrupt_stacks=InterruptStacks(
        variable="",  # they are aligned as those of tasks are (irq_init_percpu_irqstack, arch/x86/kernel/irq_32.c)
        container="",
        arrays=(),
        is_lowest=True,
        link=StackLink.BOTTOM_WORD,  # execute_on_irq_stack, do_softirq_own_stack
        exceptions="",
        word_at=0,
    ),
    running_task=RunningTask(
        pointer=lambda _registers: None,
        variables=("current_task", "pcpu_hot.current_task"),  # arch/x86/include/asm/current.h
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=True,  # PTI: by the table of user mode
    kernel_code=KernelCode(
        method=UnwindMethod.PUSHED_FRAMES,
        link=LinkRegister("", 5, _call_target),
        frame_record=0,
        chain=None,
        signature=0,
        trap=TrapFrame(
            size=68,
            # ``struct pt_regs``, which since 5.3 is whole also for the kernel's own registers (FIXUP_FRAME, entry_32.S).
            full={
                **{name: 4 * i for i, name in enumerate("ebx ecx edx esi edi ebp eax ds es fs gs orig_eax".split())},
                **{name: 48 + 4 * i for i, name in enumerate("eip cs eflags esp ss".split())},
            },
            partial={name: 4 * i for i, name in enumerate("eip cs eflags esp ss".split())},
            partial_at=48,
            records=(0,),
        ),
        is_trap=_is_trap,
        is_trap_place=_is_trap_place,
        user_trap_paddings=_PADDINGS,
        call_size=7,
        follows_call=follows_call,
        sets_frame=lambda _code: False,  # there is no link register to ask for
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=_has_left_frame,
        machine_code=None,
        follows_own_call=follows_own_call,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=frozenset({"ret_from_fork"}),
        idle_roots=frozenset({"i386_start_kernel", "start_secondary", "startup_32_smp"}),
        thunks=("__x86_indirect_", "__x86_return_thunk"),
        entry_text=("__entry_text_start", "__entry_text_end"),
        entry_functions=frozenset(),
        entry_areas=(),
        entry_copies=(),
        name_copies=None,
        entry_places=None,
        saved_words={},
        taken_exception=lambda _name, _offset, _registers: None,  # the processor has pushed them
        module_area=_MODULES,
        has_only_code=True,
        module_reach=0,
        contexts=CONTEXTS,
        system_call_number=_system_call_number,
        is_32bit_process=lambda _registers: False,
        system_call_tables={False: ("i386", "sys_call_table")},
        first_system_calls={"sys_call_table": ("__ia32_sys_restart_syscall", "__ia32_sys_exit", "__ia32_sys_fork")},
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
        machines=(3,),
        has_both_orders=False,
        roots=lambda registers: (registers["cr3"] & (0xFFFF_FFE0 if registers["cr4"] & _CR4_PAE else 0xFFFF_F000),),
        is_waiting=waits_behind(b"\xf4"),
        pushed_exception=x86_exceptions("eip", "esp"),
        leaving=None,
    ),
)
