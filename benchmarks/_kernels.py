"""What gdb must be told of each architecture to walk the kernel's stacks to their ends: by the kernel's source, not by guestprof.

Assembler code has no DWARF, so gdb stops at the code by which the processor enters the kernel. Where that has interrupted the
kernel, gdb is set on again with the registers that were saved there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks._gdb import GdbLayout

ReadWord = Callable[[int], "int | None"]
"""Eight bytes at an address, None where they cannot be read."""


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """An architecture's entry code.

    layout: gdb's. pc: its name of the program counter. functions: entry code by the beginnings of its symbols' names.
    entry_text: symbols around entry code, ("", "") where its functions are told by name alone.
    roots: functions that a task's stack begins in.
    saved: addresses of ``struct pt_regs`` that a frame of entry code may mean, by the registers of ``layout.kept``.
    switch: assembler that changes to the interrupt stack, and the registers behind it by those of its frame.
    undefined: what gdb says at a function of which DWARF says that it has no caller: ``switch`` leads on from there, too.
    places: where registers lie in it. mode: the one by which kernel and user mode are told, and which bits say user mode where
    they have a value.
    """

    layout: GdbLayout
    pc: str
    entry_text: tuple[str, str]
    functions: tuple[str, ...]
    roots: frozenset[str]
    saved: Callable[[Mapping[str, int], ReadWord], int | None]
    switch: tuple[str, Callable[[Mapping[str, int], ReadWord], Mapping[str, int | None]]]
    undefined: str
    places: Mapping[str, int]
    mode: tuple[str, int, int]


def _registers(prefix: str, count: int, size: int = 8) -> tuple[tuple[str, int], ...]:
    return tuple((f"{prefix}{number}", size) for number in range(count))


_RISCV = (
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1", *(f"a{number}" for number in range(8))),
    *(f"s{number}" for number in range(2, 12)),
    *(f"t{number}" for number in range(3, 7)),
)
_PPC_MARKERS = ((32, 48), (96, 112))
"""Where the mark "regshere" and ``struct pt_regs`` lie in a frame: since 6.2, before (arch/powerpc/include/asm/ptrace.h)."""
_PPC_MARKS = (0x5347_4552, 0x7265_6773_6865_7265)
"""``STACK_FRAME_REGS_MARKER``, since 6.2 and before."""


def _powerpc_saved(frame: Mapping[str, int], read_word: ReadWord) -> int | None:
    return next((frame["r1"] + at for mark, at in _PPC_MARKERS if read_word(frame["r1"] + mark) in _PPC_MARKS), None)


def _powerpc_switch(frame: Mapping[str, int], read_word: ReadWord) -> Mapping[str, int | None]:
    """By back chains from the end of an interrupt stack, to which inline assembler has changed (kernel/irq.c, call_do_softirq)."""
    caller = read_word(read_word(frame["r1"]) or 0) or 0
    return {"r1": caller, "pc": read_word(caller + 16)}


def _s390_switch(frame: Mapping[str, int], read_word: ReadWord) -> Mapping[str, int | None]:
    """By the back chain of packed stacks (asm/stacktrace.h)."""
    caller = read_word(frame["r15"] + 152)
    return {"r15": caller, "pswa": None if caller is None else read_word(caller + 136)}


def _mips_saved(frame: Mapping[str, int], read_word: ReadWord) -> int | None:
    """At the stack pointer, where $0 is the first that was saved, or where the first word of an interrupt stack leads to."""
    first = read_word(frame["sp"])
    return frame["sp"] if first == 0 else first


_MIPS = (
    *("zero", "at", "v0", "v1", *(f"a{number}" for number in range(8)), "t0", "t1", "t2", "t3"),
    *(*(f"s{number}" for number in range(8)), "t8", "t9", "k0", "k1", "gp", "sp", "s8", "ra"),
)

KERNELS = {
    # arch/arm64/kernel/entry.S: kernel_entry makes the record of ``stackframe`` in struct pt_regs, to 6.12 at 304.
    "arm64": KernelEntry(
        layout=GdbLayout(
            "gdb-multiarch", "aarch64", "little", (*_registers("x", 31), ("sp", 8), ("pc", 8), ("cpsr", 4)), ("sp", "x29", "x30")
        ),
        pc="pc",
        entry_text=("__entry_text_start", "__entry_text_end"),
        functions=(),
        roots=frozenset({"ret_from_fork", "__primary_switched", "__secondary_switched"}),
        saved=lambda frame, _read: frame["x29"] - 304,
        switch=(
            "call_on_irq_stack",
            lambda frame, read: {"x29": read(frame["x29"]), "pc": read(frame["x29"] + 8), "sp": frame["x29"] + 16},
        ),
        undefined="",
        places={**{f"x{number}": 8 * number for number in range(31)}, "sp": 248, "pc": 256, "cpsr": 264},
        mode=("cpsr", 0xF, 0),
    ),
    # arch/riscv/kernel/entry.S: the stack pointer of handle_exception is the address of struct pt_regs; SR_SPP in its status.
    "riscv64": KernelEntry(
        layout=GdbLayout("gdb-multiarch", "riscv:rv64", "little", (*((name, 8) for name in _RISCV), ("pc", 8)), ("sp", "fp", "ra")),
        pc="pc",
        entry_text=("", ""),
        functions=("handle_exception", "ret_from_exception"),
        roots=frozenset(
            {"ret_from_fork", "ret_from_fork_kernel_asm", "ret_from_fork_user_asm", "_start_kernel", "secondary_start_common"}
        ),
        saved=lambda frame, _read: frame["sp"],
        switch=(
            "call_on_irq_stack",
            lambda frame, read: {"fp": read(frame["fp"] - 16), "pc": read(frame["fp"] - 8), "sp": frame["fp"]},
        ),
        undefined="",
        places={**{name: 8 * number for number, name in enumerate(_RISCV) if number}, "pc": 0, "status": 256},
        mode=("status", 1 << 8, 0),
    ),
    # arch/powerpc/kernel/exceptions-64s.S, interrupt_64.S.
    "ppc64el": KernelEntry(
        layout=GdbLayout(
            "gdb-multiarch",
            "powerpc:common64",
            "little",
            (
                *_registers("r", 32),
                *_registers("f", 32),
                *(("pc", 8), ("msr", 8), ("cr", 4), ("lr", 8), ("ctr", 8), ("xer", 4), ("fpscr", 4)),
            ),
            ("r1", "lr"),
        ),
        pc="pc",
        entry_text=("", ""),
        functions=(
            *(
                "system_call_common",
                "system_call_vectored_",
                "interrupt_return",
                "hardware_interrupt_",
                "decrementer_",
                "data_access_",
                "instruction_access_",
            ),
            *(
                "program_check_",
                "doorbell_",
                "ret_from_",
                "alignment_",
                "performance_monitor_",
                "h_data_storage_",
                "fp_unavailable_",
            ),
            *("altivec_unavailable_", "vsx_unavailable_", "facility_unavailable_", "data_access_slb_", "instruction_access_slb_"),
        ),
        roots=frozenset(
            {
                "ret_from_fork",
                "ret_from_kernel_thread",
                "ret_from_kernel_user_thread",
                "start_here_common",
                "start_secondary_prolog",
            }
        ),
        saved=_powerpc_saved,
        switch=("\0", _powerpc_switch),
        undefined="did not save the PC",
        places={
            **{f"r{number}": 8 * number for number in range(32)},
            "pc": 256,
            "msr": 264,
            "ctr": 280,
            "lr": 288,
            "xer": 296,
            "cr": 304,
        },
        mode=("msr", 1 << 14, 1 << 14),
    ),
    # arch/mips/kernel/genex.S, entry.S, scall64-n64.S; asm/ptrace.h, asm/stackframe.h.
    "mips64el": KernelEntry(
        layout=GdbLayout(
            "gdb-multiarch",
            "mips:isa64r2",
            "little",
            tuple((name, 8) for name in (*_MIPS, "status", "lo", "hi", "badvaddr", "cause", "pc")),
            ("sp", "s8", "ra"),
        ),
        pc="pc",
        entry_text=("", ""),
        functions=(
            *(
                "handle_int",
                "rollback_handle_int",
                "handle_sys",
                "handle_tlb",
                "tlb_do_page_fault",
                "syscall_common",
                "syscall_exit",
            ),
            *("syscall_trace_entry", "ret_from_", "resume_userspace", "resume_kernel", "restore_", "work_", "except_vec"),
            *(
                "handle_ade",
                "handle_ibe",
                "handle_dbe",
                "handle_bp",
                "handle_ri",
                "handle_cpu",
                "handle_ov",
                "handle_tr",
                "handle_fpe",
            ),
        ),
        roots=frozenset({"ret_from_fork", "ret_from_kernel_thread", "start_kernel", "arch_call_rest_init", "start_secondary"}),
        saved=_mips_saved,
        switch=("\0", lambda _frame, _read: {}),
        undefined="",
        places={
            **{name: 8 * number for number, name in enumerate(_MIPS) if name not in ("zero", "k0", "k1")},
            "status": 256,
            "hi": 264,
            "lo": 272,
            "pc": 296,
        },
        mode=("status", 3 << 3, 2 << 3),
    ),
    # arch/s390/kernel/entry.S: struct pt_regs behind a stack frame of 160 bytes.
    "s390x": KernelEntry(
        layout=GdbLayout(
            "gdb-multiarch", "s390:64-bit", "big", (("pswm", 8), ("pswa", 8), *_registers("r", 16)), ("r15", "r14", "r11")
        ),
        pc="pswa",
        entry_text=("__entry_text_start", "__entry_text_end"),
        functions=("system_call", "pgm_check_handler", "io_int_handler", "ext_int_handler", "mcck_int_handler"),
        roots=frozenset({"ret_from_fork", "startup_continue", "kernel_thread_starter"}),
        saved=lambda frame, _read: frame["r15"] + 160,
        # Functions that entry code calls, and those on a stack of their own (call_on_stack), are marked so.
        switch=("\0", _s390_switch),
        undefined="PC not saved",
        places={**{f"r{number}": 24 + 8 * number for number in range(16)}, "pswm": 8, "pswa": 16},
        mode=("pswm", 1 << 48, 1 << 48),
    ),
}
