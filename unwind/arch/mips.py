"""What mips64el and mipsel share: MIPS release 2, the o32 and n64 ABIs, Linux 6.1 (arch/mips). Numbers: volumes II and III of
"MIPS Architecture For Programmers", revision 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from recording.model import Context
from unwind.arch import CodeStep, FindVariable, FrameCode, ReadMemory, Registers
from unwind.hidden import MonitorRegisters

ALIGNMENT = 0x400
"""KASLR moves the image in steps of 64 KiB (``determine_relocation_address``, kernel/relocate.c); in front of its code this much
is empty (kernel/head.S)."""
_STEP = 0x1_0000
_MAX_CODE = 1 << 24
_IE, _EXL, _ERL, _USER, _MODE, _CU0 = 1 << 0, 1 << 1, 1 << 2, 2 << 3, 3 << 3, 1 << 28
"""Status: interrupts enabled, exception level, error level, user mode of KSU (volume III, 9.32); Linux sets CU0 in the kernel."""
_SYSCALL = 8
"""Cause.ExcCode of a system call (volume III, table 9.53)."""
SP, FP, RA = 29, 30, 31
_STACK_PADDING = 32
"""Bytes above the registers of user mode at the top of a task's stack (``__KSTK_TOS``, asm/processor.h)."""
FIRST_WORD = 16
"""``IRQ_STACK_START`` (asm/irq.h)."""
SAVED_STATUS = "saved_status"
"""The status in a trap frame: an exception has set EXL in it."""


def registers_of(temporaries: tuple[str, ...]) -> tuple[str, ...]:
    """Of $0 to $31, as gdb calls them; the ABIs call $8 to $15 differently."""
    return (
        *("zero", "at", "v0", "v1", "a0", "a1", "a2", "a3", *temporaries),
        *(f"s{number}" for number in range(8)),
        *("t8", "t9", "k0", "k1", "gp", "sp", "s8", "ra"),
    )


def fixed_registers(general: tuple[str, ...], size: int) -> tuple[tuple[str, int], ...]:
    """QEMU's ``mips_cpu_gdb_read_register`` (target/mips/gdbstub.c)."""
    floats = (*(f"f{number}" for number in range(32)), "fcsr", "fir", "")
    return tuple((name, size) for name in (*general, "status", "lo", "hi", "badvaddr", "cause", "pc", *floats))


def is_user(registers: Registers) -> bool:
    """User mode, unless an exception has just been taken; of saved registers, whether they are those of user mode."""
    saved = registers.get(SAVED_STATUS)
    if saved is not None:
        return saved & _MODE == _USER
    return registers["status"] & (_MODE | _EXL | _ERL) == _USER


def in_entry(registers: Registers) -> bool:
    """EXL is set by every exception, also at the vectors and in TLB handlers, until the kernel has saved all registers; the kernel

    sets it again before it restores the last ones (SAVE_ALL, CLI, RESTORE_SOME in asm/stackframe.h).
    """
    return bool(registers.get("status", 0) & (_EXL | _ERL))


def shows_image(base: int) -> Callable[[Registers], bool]:
    """Whether the pc is in the image that runs. What that was before KASLR moved it stays in memory.

    Interrupts are enabled after that, and never in other code of the segment: vectors, firmware, decompressor.
    """
    return lambda registers: registers["status"] & (_MODE | _EXL | _ERL | _IE) == _IE and base <= registers["pc"] < base + SEGMENT


def image_mark(base: int) -> Callable[[Registers, ReadMemory], int | None]:
    """The first code of the image that runs: below the pc, behind the empty bytes. ``base``: of the unmapped, cached segment."""

    def find(registers: Registers, read: ReadMemory) -> int | None:
        if not shows_image(base)(registers):
            return None
        pc = registers["pc"]
        lowest = max(base, pc - _MAX_CODE)
        for image in range(pc & -_STEP, lowest - 1, -_STEP):
            edge = read(image + ALIGNMENT - 4, 8)
            if edge is not None and not any(edge[:4]) and any(edge[4:]):
                head = read(image, ALIGNMENT)
                if head is not None and not any(head):
                    return image + ALIGNMENT
        return None

    return find


NO_TABLE = 1 << 56
"""Where no RAM is: the page tables are the kernel's own affair, and no register tells where they are."""
PAGE_TABLE_ALIGNMENT = 0x1_0000
"""``swapper_pg_dir`` is the first of ``.bss`` (kernel/vmlinux.lds.S, ``BSS_FIRST_SECTIONS``)."""
SEGMENT = 0x2000_0000
"""Bytes of KSEG0 and KSEG1, both of which show the first physical memory (volume III, 4.4)."""


def is_trap(user_end: int, is_kernel: Callable[[int], bool]) -> Callable[[Registers], bool]:
    """Whether saved registers fit each other: status, and where the pc and the stack are."""

    def fits(registers: Registers) -> bool:
        status, pc, sp = registers[SAVED_STATUS], registers["pc"], registers["sp"]
        if status >> 32 or pc & 3:
            return False
        if status & _MODE == _USER:
            return not status & _CU0 and pc < user_end and sp < user_end
        return not status & _MODE and bool(status & _CU0) and is_kernel(pc) and is_kernel(sp)

    return fits


def is_trap_place(stack_size: int) -> Callable[[int], bool]:
    """Registers of user mode end a little below the top of the task's stack (``task_pt_regs``, asm/processor.h)."""
    return lambda end: end % stack_size == stack_size - _STACK_PADDING


USER_TRAP_PADDINGS = (_STACK_PADDING,)


def trap_layout(general: tuple[str, ...], word: int, padding: int) -> dict[str, int]:
    """``struct pt_regs`` (asm/ptrace.h). $k0 and $k1 belong to the kernel's entry code."""
    names = (*general, SAVED_STATUS, "hi", "lo", "badvaddr", "cause", "pc")
    return {name: padding + word * index for index, name in enumerate(names) if name not in ("zero", "k0", "k1")}


def is_partial(saved: Registers) -> bool:
    """A system call saves few registers (``SAVE_SOME``, asm/stackframe.h); the functions that it calls keep the others."""
    return saved["cause"] >> 2 & 0x1F == _SYSCALL


def system_call_number(first: int) -> Callable[[Registers], int | None]:
    """$v0, where the exception was a system call; ``first``: the ABI's lowest number, in o32 4000 (uapi/asm/unistd.h)."""

    def number(saved: Registers) -> int | None:
        cause, value = saved.get("cause"), saved.get("v0")
        if cause is None or value is None:
            return None
        base = first if value >= first else _O32_FIRST
        return value - base if cause >> 2 & 0x1F == _SYSCALL and base <= value < base + 1000 else -1

    return number


_O32_FIRST = 4000


def follows_call(before: bytes) -> bool:
    """``jal``, ``jalr``, ``bal`` and the like, and what is in their delay slot."""
    return len(before) == 8 and decode(0, int.from_bytes(before[:4], "little")).is_call


def decode(address: int, word: int) -> CodeStep:
    """An instruction (volume II). Loads and stores of less than a word are none of interest."""
    operation, rs, rt, rd, function = word >> 26, word >> 21 & 31, word >> 16 & 31, word >> 11 & 31, word & 63
    immediate = (word & 0xFFFF) - (word << 1 & 0x1_0000)
    branch = address + 4 + 4 * immediate & _ADDRESS_MASK
    if operation == 0:
        return _decode_special(rs, rt, rd, function)
    if operation == 1 and rt in _REGIMM:
        is_call = bool(rt & 0x10)
        return CodeStep(target=None if is_call else branch, is_call=is_call, has_slot=True, skips_slot=bool(rt & 2))
    if operation in (2, 3):
        target = address + 4 & ~0x0FFF_FFFF | (word & 0x03FF_FFFF) << 2
        return CodeStep(target=target, goes_on=False, has_slot=True) if operation == 2 else CodeStep(is_call=True, has_slot=True)
    if operation in _BRANCHES:
        always = operation & 0xF == 4 and rs == rt
        return CodeStep(target=branch, goes_on=not always, has_slot=True, skips_slot=operation >= 0x14)
    if operation == 0x11 and rs == 8:  # bc1f, bc1t
        return CodeStep(target=branch, has_slot=True, skips_slot=bool(rt & 2))
    if word == _ERET:
        return CodeStep(goes_on=False)
    return _decode_data(operation, rs, rt, immediate)


def _decode_data(operation: int, rs: int, rt: int, immediate: int) -> CodeStep:
    if operation in _ADD_IMMEDIATE:
        return _decode_add(rs, rt, immediate)
    if operation in _STORES and rs == SP:
        return CodeStep(saves=(_name(rt), immediate))
    if operation in _LOADS and rs == SP:
        return CodeStep(loads=(_name(rt), immediate))
    # A load of the stack pointer is the change to another task's stack: that one was left at the same place (kernel/r4k_switch.S).
    return _NOTHING


def _decode_special(rs: int, rt: int, rd: int, function: int) -> CodeStep:
    if function == 8 or (function == 9 and not rd):
        return CodeStep(goes_on=False, is_computed=rs != RA, has_slot=True)
    if function == 9:
        return CodeStep(is_call=True, has_slot=True)
    if function == _BREAK:
        return CodeStep(goes_on=False)
    if function in _MOVES and not rt:
        return _decode_add(rs, rd, 0)
    return CodeStep(loses_sp=True) if rd == SP and function in _ARITHMETIC else _NOTHING


def _decode_add(source: int, target: int, number: int) -> CodeStep:
    if target == SP:
        if source == SP:
            return CodeStep(moves_sp=number)
        return CodeStep(sp_from_fp=number) if source == FP else CodeStep(loses_sp=True)
    return CodeStep(fp_from_sp=number) if target == FP and source == SP else _NOTHING


def _name(register: int) -> str:
    return _NAMES.get(register, f"${register}")


_NOTHING = CodeStep()
_ADDRESS_MASK = 0xFFFF_FFFF_FFFF_FFFF
_REGIMM = (0, 1, 2, 3, 0x10, 0x11, 0x12, 0x13)
"""bltz, bgez, their likely forms, and the same that are calls."""
_BRANCHES = (4, 5, 6, 7, 0x14, 0x15, 0x16, 0x17)
"""beq, bne, blez, bgtz, and their likely forms."""
_ADD_IMMEDIATE = (9, 0x19)
"""addiu, daddiu"""
_STORES, _LOADS = (0x2B, 0x3F), (0x23, 0x37)
"""sw, sd; lw, ld"""
_MOVES = (0x21, 0x25, 0x2D)
"""addu, or, daddu with $zero"""
_ARITHMETIC = (0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x2C, 0x2D, 0x2E, 0x2F)
_BREAK = 0x0D
_ERET = 0x4200_0018

KEPT = tuple(f"s{number}" for number in range(9))
"""What functions leave as it was, in all ABIs."""
_NAMES = {**{16 + number: f"s{number}" for number in range(8)}, FP: "s8", RA: "ra"}
FRAME_CODE = FrameCode(4, "ra", KEPT, decode)


def signal_code(general: tuple[str, ...], number: int, pc: int, registers: int) -> tuple[bytes, Mapping[str, int]]:
    """``li v0, number``, ``syscall`` (vdso/sigreturn.S), and where the frame has the pc and, 8 bytes each, all registers."""
    saved = {name: registers + 8 * index for index, name in enumerate(general) if index}
    return (0x2402_0000 | number).to_bytes(4, "little") + _SYSCALL_INSTRUCTION.to_bytes(4, "little"), {**saved, "pc": pc}


_SYSCALL_INSTRUCTION = 0x0C

TASK_ROOTS = frozenset({"ret_from_kernel_thread", "ret_from_fork"})
IDLE_ROOTS = frozenset({"start_kernel", "arch_call_rest_init", "start_secondary"})
"""kernel/head.S jumps to the first and the last. The code of the others is freed when the kernel has started."""
ENTRY_RANGES = (
    ("ret_from_exception", "mips_ihb"),  # kernel/entry.S
    ("rollback_handle_int", "isrdhwr"),  # kernel/genex.S
    ("tlb_do_page_fault_0", "tlbmiss_handler_setup_pgd"),  # mm/tlbex-fault.S
)
_EXCEPTIONS = "adel ades ibe dbe bp ri cpu ov tr msa_fpe fpe ftlb gsexc msa mdmx watch mcheck mt dsp reserved".split()
"""``BUILD_HANDLER`` (kernel/genex.S)."""
_SAVED = frozenset(f"handle_{name}_int" for name in _EXCEPTIONS)
"""Behind these labels the registers are saved."""
CONTEXTS = (
    ("syscall_common", Context.SYSTEM_CALL),  # kernel/scall*.S
    ("syscall_trace_entry", Context.SYSTEM_CALL),
    ("do_page_fault", Context.PAGE_FAULT),
    ("__do_page_fault", Context.PAGE_FAULT),
    ("tlb_do_page_fault", Context.PAGE_FAULT),
    ("plat_irq_dispatch", Context.HARD_IRQ),
    ("do_IRQ", Context.HARD_IRQ),
    ("handle_int", Context.HARD_IRQ),
    ("except_vec_vi", Context.HARD_IRQ),
    ("__do_softirq", Context.SOFT_IRQ),
    ("handle_softirqs", Context.SOFT_IRQ),
    ("do_softirq", Context.SOFT_IRQ),
    *((f"handle_{name}_int", Context.EXCEPTION) for name in _EXCEPTIONS),
)


def thread_info(registers: Registers) -> int | None:
    """$gp, in the kernel: ``struct thread_info``, which begins with a pointer to the task (asm/thread_info.h)."""
    return None if registers["status"] & (_MODE | _EXL | _ERL) else registers["gp"]


def kernelsp(code: bytes) -> int | None:
    """``kernelsp``: of each CPU the top of the running task's kernel stack, which entry code loads (``get_saved_sp``,

    asm/stackframe.h): ``lui k1, HIGH``, then ``lw sp, LOW(k1)``.
    """
    high = None
    for at in range(0, len(code) - 3, 4):
        word = int.from_bytes(code[at : at + 4], "little")
        if word >> 16 == _LUI_K1:
            high = (word & 0xFFFF) << 16
        elif high is not None and word >> 16 in (_LW_SP_K1, _LD_SP_K1):
            low = (word & 0xFFFF) - (word << 1 & 0x1_0000)
            address = high + low & 0xFFFF_FFFF
            return address if word >> 16 == _LW_SP_K1 else address | (0xFFFF_FFFF_0000_0000 if address >> 31 else 0)
    return None


_LUI_K1, _LW_SP_K1, _LD_SP_K1 = 0x3C1B, 0x8F7D, 0xDF7D
_LUI, _LW, _LD = 0x0F, 0x23, 0x37
KERNEL_STACKS, _VECTORS_BASE = "kernelsp", "ebase"


def ebase(code: bytes) -> int | None:
    """``ebase``: where the vectors are (kernel/traps.c), which ``set_handler`` loads first: ``lui R, HIGH``, ``lw R, LOW(R)``."""
    high: dict[int, int] = {}
    for at in range(0, len(code) - 3, 4):
        word = int.from_bytes(code[at : at + 4], "little")
        operation, base, target = word >> 26, word >> 21 & 31, word >> 16 & 31
        if operation == _LUI:
            high[target] = (word & 0xFFFF) << 16
        elif operation in (_LW, _LD) and base in high:
            address = high[base] + (word & 0xFFFF) - (word << 1 & 0x1_0000) & 0xFFFF_FFFF
            return address if operation == _LW else address | (0xFFFF_FFFF_0000_0000 if address >> 31 else 0)
    return None


DATA_IN_CODE = {KERNEL_STACKS: ("handle_int", kernelsp), _VECTORS_BASE: ("set_handler", ebase)}
_PAGE, _VECTOR_SIZE, _LEAST_ALIGNED = 0x1000, 0x100, 0x400
_VECTORS = (0x000, 0x080, 0x180, *range(0x200, _PAGE, _VECTOR_SIZE))
"""TLB refill, that of 64-bit addresses, general, interrupts: counted from the base that the kernel chose, a page's start

(volume III, 6.2). Interrupts are as far from each other as Linux wants them (``VECTORSPACING``, kernel/traps.c).
"""
_CHANGE_NOTHING = frozenset({"tlb_refill", "handle_tlbl", "handle_tlbs", "handle_tlbm", "except_vec3_generic"})
"""All but the last are made at run time (mm/tlbex.c). They use $k0, $k1, and where these are too few $at and $v0, none of which

functions keep, until they are over or jump elsewhere.
"""


def entry_places(size: int) -> Callable[[FindVariable, ReadMemory], Iterator[tuple[str, int, int]]]:
    """The vectors: of a page that the kernel allocates, what it copies there (``trap_init``). size: of a pointer."""

    def find(variable: FindVariable, read: ReadMemory) -> Iterator[tuple[str, int, int]]:
        place = variable(_VECTORS_BASE)
        word = None if place is None else read(place, size)
        base = 0 if word is None else int.from_bytes(word, "little")
        if not base or base % _LEAST_ALIGNED:
            return
        yield "tlb_refill", base, base + 0x100
        yield "except_vec2_generic", base + 0x100, base + 0x180
        yield "except_vec3_generic", base + 0x180, base + 0x200
        copied = {begin: name for name in _INTERRUPT_VECTORS if (at := variable(name)) is not None and (begin := read(at, 8))}
        found = {at: name for at in range(base + 0x200, base + _PAGE, _VECTOR_SIZE) if (name := copied.get(read(at, 8) or b""))}
        # Without vectored interrupts there is one, a jump that ``set_except_vector`` writes.
        for at, name in (found or {base + 0x200: "except_vec4"}).items():
            yield name, at, at + _VECTOR_SIZE

    return find


_INTERRUPT_VECTORS = ("except_vec_vi", "rollback_except_vec_vi")


def taken_exception(name: str, offset: int, registers: Registers) -> Mapping[str, int] | None:
    """The processor has saved the pc in EPC, and only Status has changed: until code at the vectors uses a register that matters.

    QEMU delivers an interrupt that is pending when it is asked to halt, so that a halt falls there far more often than time does.
    """
    pc, status = registers.get("epc"), registers["status"]
    is_handler = (name.startswith("handle_") and name not in _SAVED) or name.removeprefix("rollback_").startswith("except_vec")
    is_first = offset == 0 and (is_handler or (not name and registers["pc"] % _PAGE in _VECTORS))
    if pc is None or not status & _EXL or status & _ERL or not (is_first or name in _CHANGE_NOTHING):
        return None
    return {**registers, "pc": pc, "status": status & ~_EXL, SAVED_STATUS: status}


def monitor_registers(size: int) -> MonitorRegisters:
    """EPC, which the stub does not tell: ``mips_cpu_dump_state`` (target/mips/cpu.c) of QEMU."""
    return MonitorRegisters(
        registers=(("epc", size),),
        is_needed=lambda registers: bool(registers["status"] & _EXL),
        commands=("cpu {vcpu}", "info registers"),
        pattern=r"\bEPC +0x(?P<epc>[0-9a-f]+)\b",
    )
