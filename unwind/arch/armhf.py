"""armhf: 32-bit Arm with A32 code, Linux 5.18 and later built with the EHABI's unwind tables (arch/arm/include/asm)."""

from __future__ import annotations

from collections.abc import Iterator

from recording.model import Context
from unwind.arch import (
    Architecture,
    FindVariable,
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
from unwind.arch.armhf_code import decode, follows_call, known_row
from unwind.hidden import EntryRun
from unwind.image_facts import ImageFacts, waits_behind
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

_PAGE_OFFSET = 0xC000_0000
"""CONFIG_VMSPLIT_3G: the image lies in the mapping of RAM from here on."""
_MODULES = (_PAGE_OFFSET - 0x100_0000, _PAGE_OFFSET)
"""MODULES_VADDR, where the kernel's half begins (asm/memory.h)."""
_VECTORS = (0xFFFF_0000, 0xFFFF_2000)
"""The page of exception vectors, which ends with the code that programs may call, and the page of their stubs (kernel/traps.c)."""
_USER_HELPERS = (0xFFFF_0000, 0xFFFF_1000)
_STUBS, _STUB_PIECE, _BRANCH = 0xFFFF_1000, 0x20, 0xEA
_VECTOR_NAMES = tuple(f"vector_{name}" for name in ("rst", "und", "swi", "pabt", "dabt", "addrexcptn", "irq", "fiq"))
_SYSTEM_CALL_VECTOR, _SYSTEM_CALL_ENTRY = 0xFFFF_0008, 0xFFFF_1000
"""The first word of the stubs is the address of ``vector_swi`` (kernel/entry-armv.S)."""
_SCTLR_M = 1 << 0
_TTBCR_EAE = 1 << 31
_TABLE_ADDRESS = 0xFFFF_C000
"""Without TTBCR.N a top-level table has 16 KiB (Arm ARM for ARMv7-A, B4.1.154)."""
_STACK_SIZE = 0x2000
_STACK_PADDING = 8
"""THREAD_START_SP (asm/thread_info.h)."""
_USER, _SUPERVISOR, _SYSTEM = 0x10, 0x13, 0x1F

# Short descriptors (Arm ARM for ARMv7-A, B3.5): bit 1 of a first-level entry alone is a section, of a second-level one a page.
# Linux makes supersections of 16 MiB on single processors only (arch/arm/mm/ioremap.c), and no large pages.
_SHORT = PageTables(
    page_shift=12,
    index_bits=(8, 12),
    large_levels=(2,),
    present=0b11,
    large=(0b11, 0b10),
    address_mask=0xFFFF_FC00,
    entry_size=4,
    byteorder="little",
    own_entry=-0x800,  # PTE_HWTABLE_OFF, L_PTE_PRESENT (asm/pgtable-2level.h): processors have no bit that says "used"
    own_present=1,
)


def _mode(registers: Registers) -> int:
    """Arm ARM for ARMv7-A, B1.3.1."""
    return registers["cpsr"] & 0x1F


def _is_user(registers: Registers) -> bool:
    return _mode(registers) == _USER


def _system_call_entry(_registers: Registers, read: ReadMemory) -> int | None:
    """``vector_swi``, at the beginning of the image."""
    data = read(_SYSTEM_CALL_ENTRY, 4)
    return None if data is None else int.from_bytes(data, "little")


def _is_trap(registers: Registers) -> bool:
    """The mode fits the addresses."""
    pc, sp, mode = registers["pc"], registers["sp"], _mode(registers)
    if mode == _USER:
        return (pc < _MODULES[0] or _USER_HELPERS[0] <= pc < _USER_HELPERS[1]) and sp < _MODULES[0]
    return mode in (_SUPERVISOR, _SYSTEM) and pc >= _MODULES[0] and sp >= _MODULES[0]


def _follows_call(before: bytes) -> bool:
    """``bl``, ``blx`` (Arm ARM for ARMv7-A, A8.8.25, A8.8.26); ``movne pc, r5``: so ret_from_fork calls a thread's function."""
    instruction = int.from_bytes(before, "little")
    if len(before) != 4:
        return False
    if instruction >> 28 == 0xF:
        return instruction & 0xFE00_0000 == 0xFA00_0000
    return instruction & 0x0F00_0000 == 0x0B00_0000 or instruction & 0x0FFF_FFF0 == 0x012F_FF30 or instruction == 0x11A0_F005


def _call_target(address: int, code: bytes) -> int | None:
    """Of ``bl`` (Arm ARM for ARMv7-A, A8.8.25)."""
    instruction = int.from_bytes(code, "little")
    if instruction >> 28 == 0xF or instruction & 0x0F00_0000 != 0x0B00_0000:
        return None
    words = instruction & 0x00FF_FFFF
    return address + 8 + 4 * (words - (words >> 23 << 24)) & 0xFFFF_FFFF


def _landings(registers: Registers, read: ReadMemory) -> tuple[int, ...]:
    """Calls that entry code comes to behind the vector of an interrupt or abort (kernel/entry-armv.S, ``vector_stub``).

    The stub tells neither SPSR nor the stack pointer and link register of the mode that was interrupted. Code of the vectors
    ends with ``movs pc, lr``, behind which the entries for each mode stand: those for user and supervisor mode count.
    """
    pc = registers["pc"]
    if not _VECTORS[0] <= pc < _VECTORS[1] or _mode(registers) not in _EXCEPTION_MODES:
        return ()
    words = _Words(read)
    ways, _calls = _follow(pc, words)
    if len(ways) != 1 or words.at(ways[0]) != _TO_ENTRY:
        return ()
    landings: set[int] = set()
    for number in (0, _SUPERVISOR & 0xF):
        entry = words.at(ways[0] + 4 + 4 * number)
        ends, calls = ([0], []) if entry is None else _follow(entry, words)
        if ends:
            return ()
        landings.update(calls)
    return tuple(sorted(landings))


def _entry_places(_find: FindVariable, read: ReadMemory) -> Iterator[tuple[str, int, int]]:
    """The vectors, and the stubs that they branch to (``__vectors_start``, ``vector_stub``, kernel/entry-armv.S).

    A stub begins at a multiple of 32 bytes and has two such pieces of code. With a mitigation for the branch history vectors branch
    to another one, of one piece, which joins the first.
    """
    words = _Words(read)
    for place, name in enumerate(_VECTOR_NAMES):
        at = _VECTORS[0] + 4 * place
        word = words.at(at)
        if word is None:
            return
        yield name, at, at + 4
        offset = word & 0x00FF_FFFF
        start = at + 8 + 4 * (offset - (offset >> 23 << 24)) & 0xFFFF_FFFF
        if word >> 24 != _BRANCH or not _STUBS <= start < _VECTORS[1]:
            continue
        ways, _calls = _follow(start, words)
        is_stub = len(ways) == 1 and words.at(ways[0]) == _TO_ENTRY
        begin = (ways[0] & -_STUB_PIECE) - _STUB_PIECE if is_stub else start
        if begin != start:
            yield name, start, (start & -_STUB_PIECE) + _STUB_PIECE
        if is_stub:
            yield name, begin, ways[0] + 4


def _has_saved(registers: Registers) -> bool:
    """At the vectors, in the mode to which their code switches when it leaves them; system calls enter in it."""
    at_vector = _VECTORS[0] <= registers["pc"] < _VECTORS[1] and registers["pc"] != _SYSTEM_CALL_VECTOR
    return at_vector and _mode(registers) == _SUPERVISOR


class _Words:
    """Instructions, read in pieces that do not leave a page."""

    def __init__(self, read: ReadMemory) -> None:
        self._read = read
        self._pieces: dict[int, bytes | None] = {}

    def at(self, address: int) -> int | None:
        start = address & -_PIECE
        if start not in self._pieces:
            self._pieces[start] = self._read(start, _PIECE)
        piece = self._pieces[start]
        return None if piece is None else int.from_bytes(piece[address - start : address - start + 4], "little")


def _follow(start: int, words: _Words) -> tuple[list[int], list[int]]:
    """Where ways through code end otherwise than at a call: in a jump that is no branch, or out of reach; and the first calls."""
    ends, calls, known, waiting = [], [], set(), [start]
    while waiting:
        address = waiting.pop()
        if address in known:
            continue
        known.add(address)
        word = words.at(address) if len(known) <= _MAX_FOLLOWED else None
        if word is None:
            ends.append(address)
            continue
        is_always = word >> 28 == 0xE
        if word >> 28 < 0xF and word & 0x0F00_0000 == 0x0B00_0000:  # bl
            calls.append(address)
        elif word >> 28 < 0xF and word & 0x0F00_0000 == 0x0A00_0000:  # b
            offset = word & 0x00FF_FFFF
            waiting.append(address + 8 + 4 * (offset - (offset >> 23 << 24)) & 0xFFFF_FFFF)
        elif _writes_pc(word):
            ends.append(address)
        else:
            is_always = False
        if not is_always:
            waiting.append(address + 4)
    return ends, calls


def _writes_pc(word: int) -> bool:
    """``ldm`` with pc; data processing, loads with the pc as their target; ``bx`` and the like (Arm ARM for ARMv7-A, A5)."""
    group = word >> 25 & 7
    if word >> 28 == 0xF:
        return word & 0x0E50_0000 == 0x0810_0000  # rfe
    if group == 4:
        return bool(word & 1 << 20) and bool(word & 1 << 15)
    if word & 0x0FFF_FF00 == 0x012F_FF00:
        return True
    is_load = group in (2, 3) and bool(word & 1 << 20)
    is_result = group in (0, 1) and word & 0x0180_0000 != 0x0100_0000
    return word >> 12 & 0xF == 0xF and (is_load or is_result)


_TO_ENTRY = 0xE1B0_F00E
"""``movs pc, lr``"""
_EXCEPTION_MODES = (0x12, 0x17, 0x1B)
"""IRQ, abort, undefined (Arm ARM for ARMv7-A, table B1-1)."""
_PIECE = 0x100
_MAX_FOLLOWED = 256


def _entry_task(code: bytes) -> int | None:
    """``reload_current`` (asm/assembler.h): TPIDRPRW, ``movw`` and ``movt`` of ``__entry_task``, ``ldr``, TPIDRURO."""
    words = [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code) - 3, 4)]
    for mrc, movw, movt, ldr, mcr in zip(words, words[1:], words[2:], words[3:], words[4:], strict=False):
        if mrc & 0xFFFF_0FFF != 0xEE1D_0F90 or mcr & 0xFFFF_0FFF != 0xEE0D_0F70 or ldr & 0xFFF0_0FF0 != 0xE790_0000:
            continue
        if movw & 0xFFF0_0000 == 0xE300_0000 and movt & 0xFFF0_0000 == 0xE340_0000:
            low, high = (word >> 4 & 0xF000 | word & 0xFFF for word in (movw, movt))
            return high << 16 | low
    return None


def _current(registers: Registers) -> int | None:
    """TPIDRURO in the kernel; in user mode, and in the first instructions behind it, it is the program's."""
    task = registers.get("TPIDRURO", 0)
    return task if task >= _PAGE_OFFSET and not _is_user(registers) else None


def _system_call_number(saved: Registers) -> int | None:
    """r7, unless entry code has put -1 in the place of r0 (``usr_entry``, kernel/entry-armv.S), which a system call has twice."""
    first = saved.get("orig_r0")
    if first is None:
        return None
    return -1 if first == 0xFFFF_FFFF and saved["r0"] != first else saved["r7"]


_KERNEL_CODE = (
    "[vectors]",
    *_USER_HELPERS,
    # Documentation/arch/arm/kernel_user_helpers.rst
    {
        "__kuser_cmpxchg64": 0xFFFF_0F60,
        "__kuser_memory_barrier": 0xFFFF_0FA0,
        "__kuser_cmpxchg": 0xFFFF_0FC0,
        "__kuser_get_tls": 0xFFFF_0FE0,
    },
)
_GENERAL = tuple(f"r{number}" for number in range(13))
_SAVED = (*_GENERAL, "sp", "lr", "pc", "cpsr")

_USER_ABIS = (
    UserAbi(
        # DWARF for the Arm 32-bit Architecture, table 1; AAPCS32 6.1.1 (callee-saved).
        name="arm",
        pointer_size=4,
        pc="pc",
        sp="sp",
        fp="r11",
        registers=(*_GENERAL, "sp", "lr", "pc"),
        frame_record=0,
        caller_slot=None,
        has_frames_above=False,
        address_bits=32,
        callee_saved=_GENERAL[4:12],
        return_column=14,
        red_zone=0,
        system_call_size=4,  # svc
        entry_size=40,
        signal_frame={},
        signal_code=(),
        go_clock_sp="",
        init_code=None,
        decode=decode,
        is_process=lambda _registers: True,
        mode_flag=("cpsr", 1 << 5),  # CPSR.T
        index_segment=0x7000_0001,  # PT_ARM_EXIDX (ELF for the Arm Architecture, 5.2)
        known_row=known_row,
        follows_call=follows_call,
        kernel_code=_KERNEL_CODE,
        return_offset=0,
        stack_bias=0,
        windowed=(),
    ),
)

ARMHF = Architecture(
    name="armhf",
    qemu_targets=("arm",),
    gdb_architectures=("arm",),
    byteorder="little",
    is_other_byteorder=lambda _registers: False,
    pointer_size=4,
    pc="pc",
    sp="sp",
    fp="r11",
    fixed_registers=(),  # numbers of the system registers are told by the XML alone
    system_registers=(
        ("SCTLR",),
        ("TTBCR",),
        ("TTBR0_EL1",),
        ("TTBR1_EL1",),
        ("TPIDRPRW",),
        ("TPIDRURO",),
    ),
    is_user=_is_user,
    is_kernel_address=lambda address: address >= _MODULES[0],
    spaces_overlap=False,
    is_32bit_kernel=lambda _registers: False,  # it is meant to be one
    paging=PagingFormat(
        roots=lambda registers: (registers.get("TTBR1_EL1", 0) & _TABLE_ADDRESS,),  # swapper_pg_dir (v7_ttb_setup, mm/proc-v7.S)
        user_root=lambda registers: registers.get("TTBR0_EL1", 0) & _TABLE_ADDRESS,
        tables=lambda _registers: _SHORT,
        kernel_tables=lambda tables, _variable: tables,
        is_shared=False,
        shows_own=True,
        enabled=lambda registers: bool(registers.get("SCTLR", 0) & _SCTLR_M) and not registers.get("TTBCR", 0) & _TTBCR_EAE,
        user_tables=None,
    ),
    page_table_symbol="swapper_pg_dir",
    image_start=("_stext",),
    code_start="_stext",
    kernel_image=(_PAGE_OFFSET, 0xF000_0000),
    image_alignment=0x10_0000,  # of its code (kernel/vmlinux.lds.S)
    image_mark=_system_call_entry,
    is_image_in_linear_map=True,
    image_mark_symbols=("vector_swi", "vector_bhb_loop8_swi", "vector_bhb_bpiall_swi"),
    image_physical=lambda _address, _numbers: None,
    stack_size=_STACK_SIZE,
    entry_stacks=(0, 0),
    cpu_base=("TPIDRPRW",),
    cpu_areas=None,
    interrupt_stacks=InterruptStacks(
        variable="",  # they are aligned as those of tasks are (init_irq_stacks, kernel/irq.c)
        container="",
        arrays=(),
        is_lowest=False,
        link=StackLink.TASK,  # call_with_stack, lib/call_with_stack.S
        exceptions="",
        word_at=0,
    ),
    running_task=RunningTask(
        pointer=_current,
        variables=("__entry_task",),  # kernel/process.c
        head=lambda _registers: None,
        stacks="",
    ),
    hides_kernel=True,
    kernel_code=KernelCode(
        method=UnwindMethod.EHABI,
        link=LinkRegister("lr", 4, _call_target),
        frame_record=0,
        chain=None,
        signature=0,
        trap=TrapFrame(
            size=72,
            full={name: 4 * i for i, name in enumerate((*_SAVED, "orig_r0"))},  # asm/ptrace.h
            partial={name: 4 * i for i, name in enumerate(("sp", "lr", "pc", "cpsr"))},
            partial_at=52,
            alignment=8,
            records=(0, -8),  # at the stack pointer; above the fifth and sixth argument of a system call (kernel/entry-common.S)
        ),
        is_trap=_is_trap,
        is_trap_place=lambda end: (end + _STACK_PADDING) % _STACK_SIZE == 0,
        user_trap_paddings=(_STACK_PADDING,),
        call_size=4,
        follows_call=_follows_call,
        sets_frame=lambda _code: False,  # there are no frame records; what code does to the stack is known of each instruction
        saves_link=lambda _code: True,
        frame_height=lambda _code: None,
        task_switch=("__switch_to", "__schedule"),  # kernel/entry-armv.S
        has_left_frame=lambda _before, _after: False,
        machine_code=None,
        follows_own_call=lambda _before: False,
        pushed_words=lambda _before, _after: 0,
        return_labels=frozenset({"ret_fast_syscall", "__ret_fast_syscall", "__sys_trace_return"}),
        task_roots=frozenset({"ret_from_fork"}),
        idle_roots=frozenset({"start_kernel", "rest_init", "secondary_start_kernel"}),
        thunks=(),
        entry_text=("__entry_text_start", "__entry_text_end"),
        entry_functions=frozenset(),
        entry_areas=(_VECTORS,),
        entry_copies=(),
        name_copies=None,
        entry_places=_entry_places,
        saved_words={},
        taken_exception=lambda _name, _offset, _registers: None,  # other modes have a stack pointer and link register of their own
        module_area=_MODULES,
        has_only_code=False,
        module_reach=0,
        contexts=(
            ("ret_fast_syscall", Context.SYSTEM_CALL),
            ("__ret_fast_syscall", Context.SYSTEM_CALL),
            ("__sys_trace", Context.SYSTEM_CALL),
            ("do_page_fault", Context.PAGE_FAULT),
            ("do_translation_fault", Context.PAGE_FAULT),
            ("do_DataAbort", Context.PAGE_FAULT),
            ("do_PrefetchAbort", Context.PAGE_FAULT),
            ("__dabt_", Context.PAGE_FAULT),
            ("__pabt_", Context.PAGE_FAULT),
            ("__irq_", Context.HARD_IRQ),
            ("generic_handle_arch_irq", Context.HARD_IRQ),
            ("handle_fiq_as_nmi", Context.EXCEPTION),
            ("__do_softirq", Context.SOFT_IRQ),
            ("handle_softirqs", Context.SOFT_IRQ),
            ("do_softirq", Context.SOFT_IRQ),
            ("do_undefinstr", Context.EXCEPTION),
            ("__und_", Context.EXCEPTION),
        ),
        system_call_number=_system_call_number,
        is_32bit_process=lambda _registers: False,
        system_call_tables={False: ("arm", "sys_call_table")},
        first_system_calls={"sys_call_table": ("sys_restart_syscall", "sys_exit", "sys_fork")},
        data_in_code={"__entry_task": ("vector_swi", _entry_task)},
        frame_code=None,
        entry_ranges=(),
        in_entry=lambda _registers: False,
        has_saved=_has_saved,
    ),
    user_abis=_USER_ABIS,
    firmware=None,
    shows_image=lambda _registers: True,
    page_table_alignment=0,
    hidden=EntryRun(_landings),
    images=ImageFacts(
        machines=(40,),
        has_both_orders=False,
        roots=lambda registers: (registers.get("TTBR0_EL1", 0) & _TABLE_ADDRESS,),
        is_waiting=waits_behind(b"\x03\xf0\x20\xe3", b"\x02\xf0\x20\xe3", b"\x30\xbf", b"\x20\xbf"),
        pushed_exception=None,
        leaving=None,
    ),
)
