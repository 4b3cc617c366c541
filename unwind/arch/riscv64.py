"""riscv64: the RISC-V ELF psABI (LP64D), Linux 6.12 and later (arch/riscv/include/asm)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from recording.model import Context
from unwind.arch import (
    Architecture,
    Firmware,
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
from unwind.arch.riscv64_code import REGISTERS, decode, jump_offset, signed
from unwind.image_facts import ImageFacts, waits_behind
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_KERNEL_HALF = 1 << 63
"""Addresses are sign-extended (Privileged Architecture, 12.4.1)."""
_IMAGES = (0xFFFF_FFFF_8000_0000, 0x1_0000_0000_0000_0000)
"""The topmost 2 GiB (``KERNEL_LINK_ADDR``, asm/pgtable.h), in which KASLR moves the image."""
_LEVELS = {8: 3, 9: 4, 10: 5}
"""Levels of page tables by satp.MODE: Sv39, Sv48, Sv57 (Privileged Architecture, 12.1.11)."""
_SATP_MODE_SHIFT = 60
_SATP_PPN = (1 << 44) - 1
_PAGE_SHIFT = 12
_SPP = 1 << 8
_STATUS_ZERO = ~0x8000_0003_018D_E760 & (1 << 64) - 1
"""Bits of sstatus that are 0 on the way into the kernel: SIE, which an exception clears, and those without a meaning (12.1.1)."""
_UXL_SHIFT = 32
_MPP_SHIFT = 11
_MACHINE = 3
"""Mode in which firmware runs (Privileged Architecture, 1.2)."""
_ECALL = 8
"""scause of a system call (12.1.8)."""


def _is_user(registers: Registers) -> bool:
    """By the vCPU's mode; of saved registers by SPP, the mode before the exception (Privileged Architecture, 12.1.1)."""
    mode = registers.get("priv")
    return not registers["sstatus"] & _SPP if mode is None else mode & 3 == 0


def _levels(registers: Registers) -> int | None:
    return _LEVELS.get(registers.get("satp", 0) >> _SATP_MODE_SHIFT)


def _root(registers: Registers) -> int:
    return (registers.get("satp", 0) & _SATP_PPN) << _PAGE_SHIFT


@lru_cache(maxsize=8)
def _tables_of(levels: int) -> PageTables:
    """Privileged Architecture, 12.4 to 12.6: an entry above the last level that may be read maps memory itself."""
    return PageTables(
        page_shift=_PAGE_SHIFT,
        index_bits=(9,) * levels,
        large_levels=tuple(range(2, levels + 1)),
        present=1,
        large=(1 << 1, 1 << 1),
        address_mask=((1 << 54) - (1 << 10)),
        entry_size=8,
        byteorder="little",
        address_shift=2,
    )


def _no_mark(_registers: Registers, _read: ReadMemory) -> int | None:
    return None


def _image_physical(address: int, numbers: Mapping[str, int]) -> int | None:
    offset = numbers.get("va_kernel_pa_offset")
    return None if offset is None else address - offset & 0xFFFF_FFFF_FFFF_FFFF


_STACK_SIZE = 0x4000


def _is_trap(registers: Registers) -> bool:
    """Whether sstatus is one that an exception leaves, and fits the addresses."""
    status = registers["sstatus"]
    if status & _STATUS_ZERO or status >> _UXL_SHIFT & 3 == 3:
        return False
    if status & _SPP:
        return registers["pc"] >= _KERNEL_HALF and registers["sp"] >= _KERNEL_HALF
    return registers["pc"] < _KERNEL_HALF and registers["sp"] < _KERNEL_HALF


def _is_trap_place(end: int) -> bool:
    """Registers of user mode are saved at the very top of the task's stack (``task_pt_regs``, asm/processor.h)."""
    return end % _STACK_SIZE == 0


def _taken_exception(name: str, offset: int, registers: Registers) -> Mapping[str, int] | None:
    """At the first instruction of the handler the processor has changed nothing but the PC, which it saved in sepc (12.1.7)."""
    pc, status = registers.get("sepc"), registers.get("sstatus")
    if name != "handle_exception" or offset or pc is None or status is None:
        return None
    taken = {**{each: registers[each] for each in _GENERAL if each in registers}, "pc": pc, "sstatus": status}
    return taken if _is_trap(taken) else None


def _instructions(code: bytes) -> Iterator[int]:
    """They have two bytes, or four where the two lowest bits are set (Unprivileged Architecture, 1.5)."""
    at = 0
    while at < len(code):
        size = 4 if code[at] & 3 == 3 else 2
        yield int.from_bytes(code[at : at + size], "little")
        at += size


def _follows_call(before: bytes) -> bool:
    """``jal ra``, ``jalr ra``, ``c.jalr`` (Unprivileged Architecture, 2.5.1, 27.5)."""
    if len(before) < 4:
        return False
    instruction, short = int.from_bytes(before[-4:], "little"), int.from_bytes(before[-2:], "little")
    is_long = instruction & 0xFFF in (0x0EF, 0x0E7) and (instruction & 0x7F == 0x6F or not instruction >> 12 & 7)
    return is_long or (short & 0xF07F == 0x9002 and short != 0x9002)


def _call_target(address: int, code: bytes) -> int | None:
    """Of ``jal ra``, and of ``auipc ra`` with ``jalr ra`` behind it."""
    first, second = int.from_bytes(code[:4], "little"), int.from_bytes(code[4:8], "little")
    if second & 0xFFF == 0x0EF:
        return address + 4 + jump_offset(second) & 0xFFFF_FFFF_FFFF_FFFF
    if first & 0xFFF == 0x097 and second & 0xF_FFFF == 0x0_80E7:
        return address + signed(first & 0xFFFF_F000, 32) + signed(second >> 20, 12) & 0xFFFF_FFFF_FFFF_FFFF
    return None


def _frame_height(code: bytes) -> int | None:
    """The number of ``addi s0, sp, …`` in either length (Unprivileged Architecture, 2.4.1, 27.5)."""
    for instruction in _instructions(code):
        if instruction & 0xF_FFFF == 0x1_0413:
            return signed(instruction >> 20, 12)
        if instruction <= 0xFFFF and instruction & 0xE01F == 0 and instruction:
            high, low = instruction >> 7 & 0xF, instruction >> 11 & 3
            return high << 6 | low << 4 | (instruction >> 5 & 1) << 3 | (instruction >> 6 & 1) << 2
    return None


def _sets_frame(code: bytes) -> bool:
    return _frame_height(code) is not None


def _saves_link(code: bytes) -> bool:
    """``sd ra, …(sp)`` in either length (Unprivileged Architecture, 4.3, 27.3.1)."""
    return any(each & 0x01FF_F07F == 0x0011_3023 or (each <= 0xFFFF and each & 0xE07F == 0xE006) for each in _instructions(code))


def _current(registers: Registers) -> int | None:
    """In sscratch in user mode and until entry code has saved the registers, else in tp (arch/riscv/kernel/entry.S).

    Firmware leaves both as they are.
    """
    for name in ("sscratch", "tp"):
        if (task := registers.get(name, 0)) >= _KERNEL_HALF:
            return task
    return None


def _system_call_number(saved: Registers) -> int | None:
    """a7, where a system call led to the kernel (``do_trap_ecall_u``, arch/riscv/kernel/traps.c)."""
    cause, number = saved.get("scause"), saved.get("a7")
    if cause is None or number is None:
        return None
    return number & 0xFFFF_FFFF if cause == _ECALL and not number & 0x8000_0000 else -1


_GENERAL = REGISTERS[1:]

_USER_ABIS = (
    UserAbi(
        # RISC-V ELF psABI, 8.5 (DWARF numbers), 1.1 (callee-saved), 2.1 (no red zone).
        name="riscv64",
        pointer_size=8,
        pc="pc",
        sp="sp",
        fp="fp",
        registers=(*REGISTERS, *(f"f{number}" for number in range(32)), "pc"),
        frame_record=-16,
        caller_slot=None,
        has_frames_above=True,
        address_bits=64,
        callee_saved=("fp", "s1", *(f"s{number}" for number in range(2, 12))),
        return_column=1,
        red_zone=0,
        system_call_size=4,  # ecall
        entry_size=40,
        # struct rt_sigframe: siginfo, then ucontext's sc_regs at its 16-byte alignment (arch/riscv/kernel/signal.c).
        signal_frame={name: 304 + 8 * i for i, name in enumerate(("pc", *_GENERAL))},
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


def _firmwares_caller(saved: Registers) -> Mapping[str, int] | None:
    """In mstatus.MPP is the mode that made the call: the supervisor's (Privileged Architecture, 3.1.6)."""
    if saved["zero"] or saved["mstatus"] >> _MPP_SHIFT & 3 != 1 or min(saved["mepc"], saved["sp"]) < _KERNEL_HALF:
        return None
    return {**{name: saved[name] for name in _GENERAL}, "pc": saved["mepc"], "sstatus": _SPP}


def _firmware_entered_from(registers: Registers) -> Mapping[str, int] | None:
    """As long as the stack pointer is the kernel's, nothing but t0 and tp are firmware's."""
    return _firmwares_caller({name: registers.get(name, 0) for name in (*REGISTERS, "mepc", "mstatus")})


RISCV64 = Architecture(
    name="riscv64",
    qemu_targets=("riscv64",),
    gdb_architectures=("riscv:rv64",),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=8,
    pc="pc",
    sp="sp",
    fp="fp",
    fixed_registers=(),  # numbers of the control and status registers are told by the XML alone
    system_registers=(
        ("priv",),
        ("satp",),
        ("sscratch",),
        ("sepc",),
        ("sstatus",),
        ("mepc",),
        ("mstatus",),
    ),
    is_user=_is_user,
    is_kernel_address=lambda address: address >= _KERNEL_HALF,
    spaces_overlap=False,
    is_32bit_kernel=lambda _registers: False,
    paging=PagingFormat(
        roots=lambda registers: (_root(registers),),
        user_root=_root,
        tables=lambda registers: _tables_of(_levels(registers) or 3),
        kernel_tables=lambda tables, _variable: tables,
        is_shared=True,
        shows_own=False,
        enabled=lambda registers: _levels(registers) is not None,
        user_tables=None,
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_start",),
    code_start="_start",  # with the roots of idle tasks, arch/riscv/kernel/head.S
    kernel_image=_IMAGES,
    image_alignment=0x20_0000,
    image_mark=_no_mark,
    is_image_in_linear_map=False,
    image_mark_symbols=(),
    image_physical=_image_physical,
    stack_size=_STACK_SIZE,
    entry_stacks=(0, 0),
    cpu_base=(),  # per-CPU variables are found by the running task's CPU number
    cpu_areas=None,
    interrupt_stacks=InterruptStacks(
        variable="irq_stack_ptr",
        container="",
        arrays=(),
        is_lowest=True,  # arch/riscv/kernel/irq.c
        link=StackLink.FRAME_POINTER,  # call_on_irq_stack, arch/riscv/kernel/entry.S
        exceptions="",
        word_at=0,
    ),
    running_task=RunningTask(
        pointer=_current,
        variables=(),
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=True,
    kernel_code=KernelCode(
        method=UnwindMethod.FRAME_RECORDS,
        link=LinkRegister("ra", 8, _call_target),
        frame_record=-16,
        chain=None,
        signature=0,
        trap=TrapFrame(
            size=288,
            full={
                **{name: 8 * i for i, name in enumerate(("pc", *_GENERAL))},
                "sstatus": 256,
                "scause": 272,
            },
            partial={"pc": 0, "sp": 16, "sstatus": 256},
            partial_at=0,
            alignment=16,
            is_pushed=True,
        ),
        is_trap=_is_trap,
        is_trap_place=_is_trap_place,
        user_trap_paddings=(0,),
        call_size=4,
        follows_call=_follows_call,
        sets_frame=_sets_frame,
        saves_link=_saves_link,
        frame_height=_frame_height,
        task_switch=("__switch_to", "__schedule"),
        has_left_frame=lambda _before, _after: False,  # there is a link register to ask for
        machine_code=None,
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=frozenset({"ret_from_fork"}),
        idle_roots=frozenset({"_start_kernel", "secondary_start_sbi"}),
        thunks=(),
        entry_text=("handle_exception", "ret_from_exception_end"),
        entry_functions=frozenset(),
        entry_areas=(),
        entry_copies=(),
        name_copies=None,
        entry_places=None,
        saved_words={},
        taken_exception=_taken_exception,
        module_area=(0xFFFF_FFFF_0000_0000, _IMAGES[0]),
        has_only_code=True,
        module_reach=0,
        contexts=(
            # arch/riscv/kernel/traps.c, arch/riscv/mm/fault.c
            ("do_trap_ecall_u", Context.SYSTEM_CALL),
            ("do_page_fault", Context.PAGE_FAULT),
            ("handle_page_fault", Context.PAGE_FAULT),
            ("do_irq", Context.HARD_IRQ),
            ("__do_softirq", Context.SOFT_IRQ),
            ("handle_softirqs", Context.SOFT_IRQ),
            ("do_softirq", Context.SOFT_IRQ),
            ("do_trap_", Context.EXCEPTION),
        ),
        system_call_number=_system_call_number,
        is_32bit_process=lambda registers: registers.get("sstatus", 0) >> _UXL_SHIFT & 3 == 1,
        system_call_tables={False: ("64", "sys_call_table"), True: ("32", "compat_sys_call_table")},
        first_system_calls={"sys_call_table": ("__riscv_sys_io_setup", "__riscv_sys_io_destroy", "__riscv_sys_io_submit")},
        data_in_code={},
        frame_code=None,
        entry_ranges=(),
        in_entry=lambda _registers: False,
        has_saved=lambda _registers: False,
    ),
    user_abis=_USER_ABIS,
    firmware=Firmware(
        # OpenSBI: struct sbi_trap_regs, include/sbi/sbi_trap.h; firmware/fw_base.S, which gives tp back once it has saved it.
        is_running=lambda registers: registers.get("priv") == _MACHINE,
        depth=2048,
        frame={**{name: 8 * i for i, name in enumerate(REGISTERS)}, "mepc": 256, "mstatus": 264},
        size=272,
        kept="tp",
        caller=_firmwares_caller,
        entered_from=_firmware_entered_from,
    ),
    shows_image=lambda _registers: True,
    page_table_alignment=0,
    hidden=None,
    images=ImageFacts(
        machines=(243,),
        has_both_orders=False,
        roots=lambda registers: ((registers.get("satp", 0) & _SATP_PPN) << _PAGE_SHIFT,),
        is_waiting=waits_behind(b"\x73\x00\x50\x10"),
        pushed_exception=None,
        leaving=None,
    ),
)
