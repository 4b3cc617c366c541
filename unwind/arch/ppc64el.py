"""ppc64el: 64-bit PowerPC, little endian: ELFv2 ABI, Power ISA 3.0, Linux 5.10 and later (arch/powerpc)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from recording.model import Context
from unwind.arch import (
    Architecture,
    CpuAreas,
    InterruptStacks,
    KernelCode,
    LinkRegister,
    PageTables,
    PagingFormat,
    Registers,
    RunningTask,
    StackLink,
    UnwindMethod,
)
from unwind.hidden import MonitorRegisters
from unwind.image_facts import ImageFacts, waits_behind
from unwind.machine_code import Flow, FrameState, MachineCode
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_KERNEL_HALF = 0xC000_0000_0000_0000
"""Quadrant 3 of effective addresses (Power ISA, III 6.7.7): the kernel's linear mapping of all RAM begins it."""
_LINEAR_END = 0xC000_1000_0000_0000
"""Modules and vmalloc areas begin here with the hash MMU and small pages, else higher (asm/book3s/64/hash-4k.h, radix.h)."""
_VIRTUAL_END = 0xC00F_FFFF_FFFF_FFFF
_IMAGE = (_KERNEL_HALF, _KERNEL_HALF + (1 << 27))
"""The image begins at physical 0; only a crash kernel is elsewhere."""
_MSR_SF, _MSR_PR, _MSR_IR, _MSR_DR, _MSR_LE = 1 << 63, 1 << 14, 1 << 5, 1 << 4, 1
"""Machine State Register (Power ISA, III 4.2.1): 64-bit mode, problem state, relocation of instructions and data, little endian."""
_NOWHERE = 1 << 62
"""A physical address at which there is no RAM."""
_PRESENT, _LEAF = 1 << 63, 1 << 62
_TABLE_ADDRESS = 0x001F_FFFF_FFFF_FF00
"""Radix page directory and page table entries (Power ISA, III 6.7.10.2), big endian in every kernel."""
_INDEX_SIZES = ("__pte_index_size", "__pmd_index_size", "__pud_index_size", "__pgd_index_size")


def _is_user(registers: Registers) -> bool:
    return bool(registers["msr"] & _MSR_PR)


def _is_relocated(registers: Registers) -> bool:
    """Firmware and the first code of the kernel run in real mode."""
    return registers["msr"] & (_MSR_IR | _MSR_DR) == _MSR_IR | _MSR_DR


def _is_32bit_kernel(registers: Registers) -> bool:
    return _is_relocated(registers) and not registers["msr"] & (_MSR_SF | _MSR_PR)


def _tables(page_shift: int, index_bits: tuple[int, ...]) -> PageTables:
    return PageTables(
        page_shift=page_shift,
        index_bits=index_bits,
        large_levels=(2, 3),
        present=_PRESENT,
        large=(_LEAF, _LEAF),
        address_mask=_TABLE_ADDRESS,
        entry_size=8,
        byteorder="big",
        linear=((_KERNEL_HALF, _LINEAR_END, 0),),
    )


_RADIX_4K = _tables(12, (9, 9, 9, 13))


def _kernel_tables(tables: PageTables, variable: Callable[[str], int | None]) -> PageTables:
    """Which of the shapes of asm/book3s/64/radix-4k.h and radix-64k.h the kernel uses it says in variables, from early boot on."""
    sizes = tuple(variable(name) or 0 for name in _INDEX_SIZES)
    page_shift = 52 - sum(sizes)
    return _tables(page_shift, sizes) if all(sizes) and page_shift in (12, 16) else tables


_LINK_SLOT = 16
"""Where in its caller's frame a function saves its return address (ELFv2 ABI 2.2.2.1)."""
_STACK_SIZE = 0x4000
"""From 6.2 on twice as much."""
_MARKERS = (0x5347_4552, 0x7265_6773_6865_7265)
"""What entry code stores in front of the registers that it saves, "REGS"; to 5.x "regshere" (STACK_FRAME_REGS_MARKER)."""
_GENERAL = tuple(f"r{number}" for number in range(32))


def _is_trap(registers: Registers) -> bool:
    """MSR is that of the mode which the addresses are of, and in front of registers of kernel mode the marker stands.

    Where a process was forked its registers were copied without one, in older kernels; these are told by their place.
    """
    msr, pc, sp = registers["msr"], registers["pc"], registers["r1"]
    if msr & (_MSR_SF | _MSR_LE) != _MSR_SF | _MSR_LE:
        return False
    if msr & _MSR_PR:
        return pc < _KERNEL_HALF and sp < _KERNEL_HALF
    return registers.get("marker", _MARKERS[0]) in _MARKERS and pc >= _KERNEL_HALF and sp >= _KERNEL_HALF


def _is_trap_place(end: int) -> bool:
    """Registers of user mode are saved at the very top of the task's stack (PACAKSAVE, arch/powerpc/kernel/entry_64.S)."""
    return end % _STACK_SIZE == 0


def _taken_exception(name: str, offset: int, registers: Registers) -> Mapping[str, int] | None:
    """At a vector (Power ISA, III 7.4.1) the processor has saved PC and MSR in SRR0 and SRR1; ``scv`` in LR and CTR.

    QEMU delivers an interrupt that is pending when it is asked to halt, so that a halt falls here far more often than time does.
    """
    # The end of what lies in front has the same address, and may be the name that is found.
    is_vectored_call = name.startswith("exc_virt_0x3000") or name == "end_real_trampolines"
    if offset or not (is_vectored_call or name.startswith("exc_virt_0x")):
        return None
    pc, msr = (registers.get(each) for each in (("lr", "ctr") if is_vectored_call else ("srr0", "srr1")))
    if pc is None or msr is None:
        return None
    taken = {**{each: registers[each] for each in (*_GENERAL, "lr", "ctr")}, "pc": pc, "msr": msr}
    return taken if _is_trap(taken) else None


def _is_virtual_vector(pc: int) -> bool:
    """Where exceptions begin that are taken with relocation on: 0x80 bytes each (asm/head-64.h)."""
    return _KERNEL_HALF + 0x4000 <= pc < _KERNEL_HALF + 0x6000 and not pc & 0x7F


def _follows_call(before: bytes) -> bool:
    """``bl``, ``bcl``; ``bctrl``, ``blrl`` (Power ISA, I 2.4). One form of ``bcl`` is not for calls, but asks for the pc."""
    instruction = int.from_bytes(before, "little")
    is_branch = instruction & 0xF400_0001 == 0x4000_0001 and instruction != 0x429F_0005
    return len(before) == 4 and (is_branch or instruction in (0x4E80_0421, 0x4E80_0021))


def _call_target(address: int, code: bytes) -> int | None:
    """Of ``bl``: the function's local entry point, which may lie behind its start (ELFv2 ABI, 3.4.1)."""
    instruction = int.from_bytes(code, "little")
    if instruction & 0xFC00_0003 != 0x4800_0001:
        return None
    return address + _signed(instruction & 0x03FF_FFFC, 26) & 0xFFFF_FFFF_FFFF_FFFF


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


_NEXT_CALLS = (0x4800_0005, 0x429F_0005)
"""``bl`` and ``bcl`` to the next instruction, which return to nobody: they fill the processor's link stack, or tell the pc."""


def _step(state: FrameState, code: bytes) -> FrameState:
    """What an instruction does to the frame (Power ISA, I 3.3.2, 3.3.9): of what compilers and entry code use for that."""
    word = int.from_bytes(code, "little")
    opcode, target, base = word >> 26, word >> 21 & 31, word >> 16 & 31
    match opcode:
        case 62 if word & 3 == 1 and target == 1:  # stdu r1
            if base == 1:
                return replace(state, pushed=state.pushed - _signed(word & 0xFFFC, 16))
            return replace(state, next_stack=base)
        case 58 if word & 3 == 0 and target == base == 1 and not word & 0xFFFC:  # ld r1, 0(r1)
            return replace(state, is_on_other=False) if state.is_on_other else replace(state, pushed=0)
        case 14 if target == 1 and not word & 0x8000:  # addi r1 up
            return replace(state, pushed=0)
        case 31 if word & 0x7FE == 444 << 1 and base == 1 and state.next_stack == target == word >> 11 & 31:  # mr r1
            return replace(state, is_on_other=True, next_stack=-1)
        case 62 | 58 | 31:
            return _step_link(state, word)
        case 18 | 16 if word in _NEXT_CALLS and not state.is_saved:
            return replace(state, is_link_used=True)
        case _:
            return state


def _step_link(state: FrameState, word: int) -> FrameState:
    """What an instruction does to the return address."""
    opcode, register, base = word >> 26, _GENERAL[word >> 21 & 31], word >> 16 & 31
    if opcode != 31:
        if word & 3 or base != 1 or word & 0xFFFC != _LINK_SLOT + state.pushed:
            return state
        return replace(state, is_saved=True) if opcode == 62 else replace(state, copy=register)  # std, ld
    if word & 0x001F_FFFF == 0x0008_02A6:  # mflr
        return state if state.is_saved or state.is_link_used else replace(state, copy=register)
    if (
        word & 0x001F_FFFF == 0x0008_03A6
    ):  # mtlr: before the end, where ways that have saved nothing may join; or for lack of others
        is_used = register != state.copy
        return replace(state, is_link_used=is_used, is_saved=state.is_saved and is_used)
    return state


def _flow(address: int, code: bytes) -> Flow:
    """Where execution goes on: ``b``, ``bc``, ``bclr``, ``bcctr``, ``rfid`` and kin (Power ISA, I 2.4; III 3.3.1)."""
    word = int.from_bytes(code, "little")
    opcode, is_call, always = word >> 26, bool(word & 1), word >> 21 & 0x14 == 0x14
    if word & 0xFFE0_0000 == 0x0FE0_0000 or word == 0x7FE0_0008:  # twi, tw on any condition: BUG, or WARN that goes on elsewhere
        return Flow(None, goes_on=False, is_trap=True)
    if opcode == 18 and not is_call:
        return Flow(address + _signed(word & 0x03FF_FFFC, 26), goes_on=False)
    if opcode == 16 and not is_call:
        return Flow(address + _signed(word & 0xFFFC, 16), goes_on=True)
    if opcode == 19 and not is_call:
        extended = word & 0x7FE
        if extended in (0x20, 0x420):
            return Flow(None, goes_on=not always, is_computed=extended == 0x420)
        if extended in (18 << 1, 82 << 1, 274 << 1):
            return Flow(None, goes_on=False)
    return Flow(None, goes_on=True)


def _fits(state: FrameState, code: bytes) -> bool:
    """Calls and loads of the return address come when it is saved, and what takes down a frame takes down all of it."""
    word = int.from_bytes(code, "little")
    opcode, target, base = word >> 26, word >> 21 & 31, word >> 16 & 31
    match opcode:
        case 16 | 18 | 19 if word & 1:
            return state.is_saved
        case 14 if target == base == 1 and not word & 0x8000:
            return state.pushed == word & 0xFFFF
        case 58 if not word & 3 and base == 1 and word & 0xFFFC == _LINK_SLOT + state.pushed:
            return state.is_saved
        case _:
            return True


_VENEER_END = re.compile(rb"(?s)(?:.{4})*?\x20\x04\x80\x4e(?:\0{4}){1,2}buts")
"""Up to ``bctr``, what is not used of seven instructions, STUB_MAGIC (arch/powerpc/kernel/module_64.c)."""


def _is_veneer(code: bytes) -> bool:
    """A ``struct ppc64_stub_entry`` of a module, from any of its instructions on."""
    return _VENEER_END.match(code, 0, 32) is not None


def _system_call_number(saved: Registers) -> int | None:
    """``r0`` at the system call; ``trap`` tells whether it was one (``sc`` 0xc00, ``scv`` 0x3000), flags below it."""
    number, trap = saved.get("r0"), saved.get("trap")
    if number is None or trap is None:
        return None
    return number & 0xFFFF_FFFF if trap & 0xFFF0 in (0xC00, 0x3000) else -1


_USER_ABIS = (
    UserAbi(
        # ELFv2 ABI 2.4, table 2.25 (DWARF numbers), 2.2.1.1 (callee-saved), 2.2.2.2 (red zone).
        name="ppc64el",
        pointer_size=8,
        pc="pc",
        sp="r1",
        fp="r1",
        registers=(*_GENERAL, *("",) * 33, "lr", "ctr", "", "cr", "", "", "", "", "", "", "", "xer", "pc"),
        frame_record=0,
        caller_slot=_LINK_SLOT,
        has_frames_above=True,
        address_bits=64,
        callee_saved=("r2", *_GENERAL[14:32]),
        return_column=65,
        red_zone=512,
        system_call_size=4,  # sc, scv
        entry_size=40,
        signal_frame={},
        signal_code=(),
        go_clock_sp="",
        init_code=None,
        decode=None,  # back chains do
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

PPC64EL = Architecture(
    name="ppc64el",
    qemu_targets=("ppc64",),
    gdb_architectures=("powerpc:common64",),
    byteorder="little",
    is_other_byteorder=lambda registers: not registers.get("msr", _MSR_LE) & _MSR_LE,  # ppc_maybe_bswap_register, QEMU
    pointer_size=8,
    pc="pc",
    sp="r1",
    fp="r1",
    fixed_registers=(),  # numbers of the special purpose registers are told by the XML alone
    system_registers=(
        ("srr0",),
        ("srr1",),
    ),
    is_user=_is_user,
    is_kernel_address=lambda address: address >= _KERNEL_HALF,
    spaces_overlap=False,
    is_32bit_kernel=_is_32bit_kernel,
    paging=PagingFormat(
        roots=lambda _registers: (_NOWHERE,),  # a table that only the hypervisor and the kernel know
        user_root=lambda _registers: None,
        tables=lambda _registers: _RADIX_4K,
        kernel_tables=_kernel_tables,
        is_shared=False,
        shows_own=False,
        enabled=lambda registers: _is_relocated(registers) and bool(registers["msr"] & _MSR_SF),
        user_tables=None,
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_text", "_stext"),
    code_start="_stext",
    kernel_image=_IMAGE,
    image_alignment=0x1_0000,
    image_mark=lambda _registers, _read: None,
    is_image_in_linear_map=False,
    image_mark_symbols=(),
    image_physical=lambda address, _numbers: address - _KERNEL_HALF,
    stack_size=_STACK_SIZE,
    entry_stacks=(0, 0),
    cpu_base=(),
    cpu_areas=CpuAreas("paca_ptrs", "paca_struct", is_pointer=True),  # arch/powerpc/kernel/paca.c
    interrupt_stacks=InterruptStacks(
        variable="",
        container="",
        arrays=("hardirq_ctx", "softirq_ctx"),  # arch/powerpc/kernel/irq.c
        is_lowest=True,
        link=StackLink.FRAME_POINTER,
        exceptions="",
        word_at=0,
    ),
    running_task=RunningTask(
        pointer=lambda _registers: None,
        variables=("paca_struct.__current",),  # asm/paca.h
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=True,
    kernel_code=KernelCode(
        method=UnwindMethod.BACK_CHAIN,
        link=LinkRegister("lr", 4, _call_target),
        frame_record=0,
        chain=None,
        signature=0,
        trap=TrapFrame(
            size=384,
            full={
                "marker": -16,
                **{name: 8 * i for i, name in enumerate((*_GENERAL, "pc", "msr"))},
                "ctr": 280,
                "lr": 288,
                "xer": 296,
                "cr": 304,
                "trap": 320,
            },
            partial={"r1": 0, "pc": 248, "msr": 256},
            partial_at=8,
            alignment=16,
            records=(-48, -112),  # STACK_INT_FRAME_REGS from 6.2 on; before it STACK_FRAME_OVERHEAD (asm/ptrace.h)
        ),
        is_trap=_is_trap,
        is_trap_place=_is_trap_place,
        user_trap_paddings=(0,),
        call_size=4,
        follows_call=_follows_call,
        sets_frame=lambda _code: False,  # all of the code is followed, see ``machine_code``
        saves_link=lambda _code: False,
        frame_height=lambda _code: None,
        task_switch=("", ""),
        has_left_frame=lambda _before, _after: False,  # the code that was followed says it
        machine_code=MachineCode(4, _step, _flow, _fits, _is_veneer, 32),
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset(),
        task_roots=frozenset(
            {"ret_from_fork", "ret_from_fork_scv", "ret_from_kernel_thread", "ret_from_kernel_user_thread", "start_kernel_thread"}
        ),
        idle_roots=frozenset({"start_here_common", "start_secondary_prolog", "start_secondary_resume"}),
        thunks=(),
        entry_text=("_stext", "__end_soft_masked"),
        entry_functions=frozenset({"load_up_vsx"}),  # arch/powerpc/kernel/vector.S
        entry_areas=(),
        entry_copies=(),
        name_copies=None,
        entry_places=None,
        saved_words={},
        taken_exception=_taken_exception,
        module_area=(_LINEAR_END, _VIRTUAL_END),
        has_only_code=False,
        module_reach=0,
        contexts=(
            # arch/powerpc/kernel/exceptions-64s.S and interrupt_64.S.
            ("system_call_", Context.SYSTEM_CALL),
            ("data_access", Context.PAGE_FAULT),
            ("instruction_access", Context.PAGE_FAULT),
            ("do_page_fault", Context.PAGE_FAULT),
            ("hash__do_page_fault", Context.PAGE_FAULT),
            ("hardware_interrupt", Context.HARD_IRQ),
            ("decrementer", Context.HARD_IRQ),
            ("doorbell_super", Context.HARD_IRQ),
            ("do_IRQ", Context.HARD_IRQ),
            ("__do_IRQ", Context.HARD_IRQ),
            ("timer_interrupt", Context.HARD_IRQ),
            ("__do_softirq", Context.SOFT_IRQ),
            ("handle_softirqs", Context.SOFT_IRQ),
            ("do_softirq", Context.SOFT_IRQ),
            ("performance_monitor", Context.EXCEPTION),
            ("program_check", Context.EXCEPTION),
            ("alignment_c", Context.EXCEPTION),
            ("fp_unavailable", Context.EXCEPTION),
            ("altivec_unavailable", Context.EXCEPTION),
            ("vsx_unavailable", Context.EXCEPTION),
            ("facility_unavailable", Context.EXCEPTION),
            ("emulation_assist", Context.EXCEPTION),
        ),
        system_call_number=_system_call_number,
        is_32bit_process=lambda registers: not registers["msr"] & _MSR_SF,
        system_call_tables={False: ("64", "sys_call_table"), True: ("32", "compat_sys_call_table")},
        first_system_calls={"sys_call_table": ("sys_restart_syscall", "sys_exit", "sys_fork", "sys_read")},
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
    hidden=MonitorRegisters(
        registers=(("srr0", 8), ("srr1", 8)),
        is_needed=lambda registers: "srr0" not in registers and _is_virtual_vector(registers["pc"]),
        commands=("cpu {vcpu}", "print /x $srr0", "print /x $srr1"),
        pattern=r"(?P<srr0>0x[0-9a-f]+)\s+(?P<srr1>0x[0-9a-f]+)",
    ),
    images=ImageFacts(
        machines=(21,),
        has_both_orders=True,
        roots=None,
        is_waiting=waits_behind(b"\x3c\x00\x00\x7c", b"\x7c\x00\x00\x3c", b"\xe4\x02\x00\x4c", b"\x4c\x00\x02\xe4"),
        pushed_exception=None,
        leaving=None,
    ),
)
