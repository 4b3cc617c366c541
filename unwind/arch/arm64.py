"""arm64: AAPCS64, Linux 5.10 and later (arch/arm64/include/asm)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from recording.model import Context
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
from unwind.image_facts import ImageFacts, waits_behind
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_KERNEL_HALF = 0xFFF0_0000_0000_0000
"""The kernel's half begins here with 52-bit addresses, higher up with fewer (Documentation/arch/arm64/memory.rst)."""
_IMAGES = (0xFFFF_8000_0000_0000, 0xFFFF_FC00_0000_0000)
"""Image, modules and vmalloc areas: from the middle of the 48-bit half on (``_PAGE_END(VA_BITS_MIN)``, asm/memory.h)."""
_SCTLR_M = 1 << 0
_TCR_T1SZ_SHIFT = 16
_TCR_TG1_SHIFT = 30
_TCR_DS = 1 << 59
_TABLE_ADDRESS = 0x0000_FFFF_FFFF_FFC0
"""BADDR of a TTBR without the ASID above it and CnP below (Arm ARM, D19.2.147)."""
_PAGE_SHIFTS = {1: 14, 2: 12, 3: 16}
"""Page sizes by TCR_EL1.TG1; TG0 has other numbers for the same (Arm ARM, D19.2.139)."""
_LARGE_LEVELS = {12: (2, 3), 14: (2,), 16: (2,)}
_SMALLEST_HALF, _LARGEST_HALF = 12, 39
_SWAPPER_BEHIND_TRAMPOLINE = 2
"""Pages: ``tramp_pg_dir``, ``reserved_pg_dir``, ``swapper_pg_dir`` follow one another (asm/memory.h, kernel/vmlinux.lds.S)."""


def _mode(registers: Registers) -> int:
    """Exception level and stack pointer, or an AArch32 mode (Arm ARM, C5.2.19)."""
    return registers["cpsr"] & 0x1F


def _is_user(registers: Registers) -> bool:
    return _mode(registers) in (_EL0, _USER32)


def _is_32bit_kernel(registers: Registers) -> bool:
    return bool(_mode(registers) & 0x10) and _mode(registers) != _USER32


def _page_shift(registers: Registers) -> int:
    return _PAGE_SHIFTS.get(registers.get("TCR_EL1", 0) >> _TCR_TG1_SHIFT & 3, 12)


def _roots(registers: Registers) -> tuple[int, ...]:
    """The kernel's table, or while user code and the trampoline run with KPTI, another one in front of it."""
    table = registers.get("TTBR1_EL1", 0) & _TABLE_ADDRESS
    return table, table + (_SWAPPER_BEHIND_TRAMPOLINE << _page_shift(registers))


def _tables(registers: Registers) -> PageTables:
    control = registers.get("TCR_EL1", 0)
    free = min(max(control >> _TCR_T1SZ_SHIFT & 0x3F, _SMALLEST_HALF), _LARGEST_HALF)
    return _tables_of(_page_shift(registers), 64 - free, is_lpa2=bool(control & _TCR_DS))


@lru_cache(maxsize=64)
def _tables_of(page_shift: int, address_bits: int, *, is_lpa2: bool) -> PageTables:
    """Arm ARM, D8.2 and D8.3: a table fills a page, but the first one, which has what bits are left."""
    bits, left = [], address_bits - page_shift
    while left > 0:
        bits.append(min(left, page_shift - 3))
        left -= page_shift - 3
    top = 50 if is_lpa2 else 48
    return PageTables(
        page_shift=page_shift,
        index_bits=tuple(bits),
        large_levels=_LARGE_LEVELS[page_shift],
        present=1,
        large=(1 << 1, 0),
        address_mask=(1 << top) - (1 << page_shift),
        entry_size=8,
        byteorder="little",
    )


def _vectors(registers: Registers, _read: ReadMemory) -> int | None:
    """The exception vectors: in the image, or in the trampoline, which is a few of its pages mapped once more."""
    return registers.get("VBAR_EL1", 0)


def _image_physical(address: int, numbers: Mapping[str, int]) -> int | None:
    offset = numbers.get("kimage_voffset")
    return None if offset is None else address - offset & 0xFFFF_FFFF_FFFF_FFFF


_EL0, _EL1_MODES, _USER32 = 0b0_0000, (0b0_0100, 0b0_0101), 0b1_0000
_STACK_SIZE = 0x4000
_TRAMPOLINES = ((0xFFFF_FBFF_F000_0000, 0xFFFF_FC00_0000_0000), (0xFFFF_FFFF_FF00_0000, 0x1_0000_0000_0000_0000))
"""The fixmap with KPTI's trampoline (asm/fixmap.h): to 6.11 below the array of pages, since then at the very top."""
_VECTORS_SIZE = 0x800
_EL1_VECTORS_SIZE = 0x400
_NEWER_TRAP = 16
"""Bytes that ``struct pt_regs`` is shorter in kernels with generic entry code."""


def _trampoline(text: bytes) -> Iterator[tuple[str, int, int]]:
    """``.entry.tramp.text`` (kernel/entry.S): vectors for each mitigation, of which those for EL1 are empty; then the way out."""
    end = 0
    while end < len(text) and not any(text[end : end + _EL1_VECTORS_SIZE]) and any(text[end : end + _VECTORS_SIZE]):
        end += _VECTORS_SIZE
    if end:
        yield "tramp_vectors", 0, end
        yield "tramp_exit", end, len(text)


def _is_trap(registers: Registers) -> bool:
    """PSTATE is that of EL0 or EL1 and fits the addresses; its upper half is 0."""
    if registers["cpsr"] >> 33:
        return False
    mode = _mode(registers)
    if mode in _EL1_MODES:
        return registers["pc"] >= _KERNEL_HALF and registers["sp"] >= _KERNEL_HALF
    return mode in (_EL0, _USER32) and registers["pc"] < _KERNEL_HALF and registers["sp"] < _KERNEL_HALF


def _is_trap_place(end: int) -> bool:
    """Registers of user mode are saved at the very top of the task's stack (``task_pt_regs``, asm/processor.h)."""
    return end % _STACK_SIZE in (0, _NEWER_TRAP)


def _taken_exception(name: str, offset: int, registers: Registers) -> Mapping[str, int] | None:
    """At the start of a vector, 128 bytes each (Arm ARM, D1.3.1.5), the processor has saved PC and PSTATE in registers.

    QEMU delivers an interrupt that is pending when it is asked to halt, so that a halt falls here far more often than time does.
    Further on, code at the vectors for EL0 uses x30 and, while it looks whether the kernel's stack overflows, x0; the trampoline
    uses x30 on the way in, and x29 on the way out (``kernel_ventry``, ``tramp_ventry``, ``tramp_exit``, arch/arm64/kernel/entry.S).
    """
    pc, pstate, at = registers.get("ELR_EL1"), registers.get("SPSR_EL1"), registers["pc"]
    if name != "vectors":
        offset = at - registers.get("VBAR_EL1", 0)
    is_vector, is_trampoline = 0 <= offset < _VECTORS_SIZE, any(low <= at < high for low, high in _TRAMPOLINES)
    if pc is None or pstate is None or not (is_vector or is_trampoline):
        return None
    is_kernel = pstate & 0x1F == _EL1_MODES[1]
    is_first = is_vector and not offset % 0x80
    taken = {
        **{each: registers[each] for each in (_GENERAL if is_first else _GENERAL[1:30] if is_vector else _GENERAL[:29])},
        "pc": pc,
        "sp": registers["sp"] if is_kernel else registers.get("SP_EL0", 0),
        "cpsr": pstate,
    }
    # The second group of four vectors is for EL1 with its own stack pointer, the other two behind it are for EL0.
    is_from_kernel = is_first and offset & 0x600 == 0x200
    fits = is_kernel if is_from_kernel else _is_user(taken) and (is_trampoline or bool(offset & 0x400))
    return taken if fits and _is_trap(taken) else None


def _follows_call(before: bytes) -> bool:
    """``bl``; ``blr``, also its forms that authenticate the address (Arm ARM, C4.1.93)."""
    instruction = int.from_bytes(before, "little")
    return len(before) == 4 and (
        instruction & 0xFC00_0000 == 0x9400_0000
        or instruction & 0xFFFF_FC1F == 0xD63F_0000
        or instruction & 0xFEFF_F800 == 0xD63F_0800
    )


def _call_target(address: int, code: bytes) -> int | None:
    """Of ``bl`` (Arm ARM, C6.2.34)."""
    instruction = int.from_bytes(code, "little")
    if instruction & 0xFC00_0000 != 0x9400_0000:
        return None
    words = instruction & 0x03FF_FFFF
    return address + 4 * (words - (words >> 25 << 26)) & 0xFFFF_FFFF_FFFF_FFFF


def _sets_frame(code: bytes) -> bool:
    """``mov x29, sp``, which is ``add x29, sp, #0``, or with another number (Arm ARM, C6.2.4)."""
    instructions = (int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code), 4))
    return any(instruction & 0xFF80_03FF == 0x9100_03FD for instruction in instructions)


def _current(registers: Registers) -> int | None:
    """SP_EL0 in the kernel; in user mode, and in the first instructions behind it, it is the user's stack pointer."""
    task = registers.get("SP_EL0", 0)
    return task if task >= _KERNEL_HALF and not _is_user(registers) else None


def _system_call_number(saved: Registers) -> int | None:
    """``syscallno`` is a signed 32-bit number, NO_SYSCALL (-1) where an exception led to the kernel."""
    number = saved.get("syscallno")
    if number is None:
        return None
    return -1 if number & 0x8000_0000 else number & 0xFFFF_FFFF


_GENERAL = tuple(f"x{number}" for number in range(31))

_USER_ABIS = (
    UserAbi(
        # DWARF for the Arm 32-bit Architecture, table 1. A64 sees r13 as x13, r14 as x14 (Arm ARM, D1.6.1).
        name="aarch32",
        pointer_size=4,
        pc="pc",
        sp="x13",
        fp="x11",
        registers=(*_GENERAL[:15], "pc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=32,
        callee_saved=tuple(_GENERAL[4:12]),
        return_column=14,
        red_zone=0,
        system_call_size=4,  # svc
        entry_size=40,
        signal_frame={},
        signal_code=(),
        go_clock_sp="",
        init_code=None,
        decode=None,
        is_process=lambda registers: registers.get("cpsr", 0) & 0x1F == _USER32,
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
        # DWARF for the Arm 64-bit Architecture, table 1; AAPCS64 6.1.1 (callee-saved), 6.4.5 (no red zone).
        name="aarch64",
        pointer_size=8,
        pc="pc",
        sp="sp",
        fp="x29",
        registers=(*_GENERAL, "sp", "pc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=48,  # more only where a program asks for it (Documentation/arch/arm64/memory.rst)
        callee_saved=tuple(_GENERAL[19:30]),
        return_column=30,
        red_zone=0,
        system_call_size=4,  # svc
        entry_size=40,
        # struct rt_sigframe: siginfo, then ucontext's sigcontext at its 16-byte alignment (arch/arm64/kernel/signal.c).
        signal_frame={name: 312 + 8 * i for i, name in enumerate((*_GENERAL, "sp", "pc"))},
        signal_code=(),
        go_clock_sp="x20",  # Go's src/runtime/sys_linux_arm64.s
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

ARM64 = Architecture(
    name="arm64",
    qemu_targets=("aarch64",),
    gdb_architectures=("aarch64",),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=8,
    pc="pc",
    sp="sp",
    fp="x29",
    fixed_registers=(),  # numbers of the system registers are told by the XML alone
    system_registers=(
        ("SCTLR", "SCTLR_EL1"),
        ("TCR_EL1",),
        ("TTBR0_EL1",),
        ("TTBR1_EL1",),
        ("VBAR_EL1", "VBAR"),
        ("SP_EL0",),
        ("TPIDR_EL1",),
        ("ELR_EL1",),
        ("SPSR_EL1",),
    ),
    is_user=_is_user,
    is_kernel_address=lambda address: address >= _KERNEL_HALF,
    spaces_overlap=False,
    is_32bit_kernel=_is_32bit_kernel,
    paging=PagingFormat(
        roots=_roots,
        user_root=lambda registers: registers.get("TTBR0_EL1", 0) & _TABLE_ADDRESS,
        tables=_tables,
        kernel_tables=lambda tables, _variable: tables,
        is_shared=False,
        shows_own=True,
        enabled=lambda registers: bool(registers.get("SCTLR", 0) & _SCTLR_M),
        user_tables=None,
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_text", "_stext"),
    code_start="_stext",
    kernel_image=_IMAGES,
    image_alignment=0x1_0000,
    image_mark=_vectors,
    is_image_in_linear_map=False,
    image_mark_symbols=(),
    image_physical=_image_physical,
    stack_size=_STACK_SIZE,
    entry_stacks=(0, 0),
    cpu_base=("TPIDR_EL1",),
    cpu_areas=None,
    interrupt_stacks=InterruptStacks(
        variable="irq_stack_ptr",
        container="",
        arrays=(),
        is_lowest=True,  # arch/arm64/kernel/irq.c
        link=StackLink.FRAME_POINTER,  # call_on_irq_stack, arch/arm64/kernel/entry.S
        exceptions="",
        word_at=0,
    ),
    running_task=RunningTask(
        pointer=_current,
        variables=("__entry_task",),  # arch/arm64/kernel/process.c
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=True,
    kernel_code=KernelCode(
        method=UnwindMethod.FRAME_RECORDS,
        link=LinkRegister("x30", 4, _call_target),
        frame_record=0,
        chain=None,
        signature=0xFFFF_0000_0000_0000,
        trap=TrapFrame(
            size=336,
            full={
                **{name: 8 * i for i, name in enumerate((*_GENERAL, "sp", "pc", "cpsr"))},
                "syscallno": 280,
            },
            partial={name: 8 * i for i, name in enumerate(("sp", "pc", "cpsr"))},
            partial_at=248,
            alignment=16,
            records=(304, 296),  # ``stackframe`` to 6.12; from 6.13 on (asm/ptrace.h)
        ),
        is_trap=_is_trap,
        is_trap_place=_is_trap_place,
        user_trap_paddings=(0, -_NEWER_TRAP),
        call_size=4,
        follows_call=_follows_call,
        sets_frame=_sets_frame,
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=lambda _before, _after: False,  # there is a link register to ask for
        machine_code=None,
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=frozenset({"ret_from_fork"}),
        idle_roots=frozenset({"__primary_switched", "__secondary_switched"}),
        thunks=(),
        entry_text=("__entry_text_start", "__entry_text_end"),
        entry_functions=frozenset(),
        entry_areas=_TRAMPOLINES,
        entry_copies=("tramp_vectors", "tramp_exit"),
        name_copies=_trampoline,
        entry_places=None,
        saved_words={},
        taken_exception=_taken_exception,
        module_area=(_IMAGES[0], 0x1_0000_0000_0000_0000),
        has_only_code=False,
        module_reach=1 << 31,  # as far as ``adrp`` of a module reaches (module_alloc, arch/arm64/kernel/module.c)
        contexts=(
            # arch/arm64/kernel/entry-common.c, whose names 5.12 introduced.
            ("el0_svc", Context.SYSTEM_CALL),
            ("do_el0_svc", Context.SYSTEM_CALL),
            ("invoke_syscall", Context.SYSTEM_CALL),
            ("el0_da", Context.PAGE_FAULT),
            ("el0_ia", Context.PAGE_FAULT),
            ("el1_abort", Context.PAGE_FAULT),
            ("do_mem_abort", Context.PAGE_FAULT),
            ("do_page_fault", Context.PAGE_FAULT),
            ("el0_interrupt", Context.HARD_IRQ),
            ("el1_interrupt", Context.HARD_IRQ),
            ("el0t_64_irq", Context.HARD_IRQ),
            ("el0t_64_fiq", Context.HARD_IRQ),
            ("el0t_32_irq", Context.HARD_IRQ),
            ("el1h_64_irq", Context.HARD_IRQ),
            ("el1h_64_fiq", Context.HARD_IRQ),
            ("__do_softirq", Context.SOFT_IRQ),
            ("handle_softirqs", Context.SOFT_IRQ),
            ("do_softirq", Context.SOFT_IRQ),
            ("el0_", Context.EXCEPTION),
            ("el1_", Context.EXCEPTION),
            ("el0t_", Context.EXCEPTION),
            ("el1h_", Context.EXCEPTION),
        ),
        system_call_number=_system_call_number,
        is_32bit_process=lambda registers: _mode(registers) == _USER32,
        system_call_tables={False: ("64", "sys_call_table"), True: ("32", "compat_sys_call_table")},
        first_system_calls={"sys_call_table": ("__arm64_sys_io_setup", "__arm64_sys_io_destroy", "__arm64_sys_io_submit")},
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
        machines=(183,),
        has_both_orders=False,
        roots=lambda registers: tuple(registers.get(name, 0) & _TABLE_ADDRESS for name in ("TTBR0_EL1", "TTBR1_EL1")),
        is_waiting=waits_behind(b"\x7f\x20\x03\xd5", b"\x5f\x20\x03\xd5"),
        pushed_exception=None,
        leaving=None,
    ),
)
