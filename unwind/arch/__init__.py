"""What guestprof must know of an architecture: one table of facts a file, nothing elsewhere asks which architecture it is.

To add an architecture:

1. Copy the file of the one that is most like it and keep the order of its lines.
2. Fill in the registers by their gdb names, the paging format and the kernel's fixed addresses, each with its source.
3. Name the unwinding method; if none fits, write one beside ``orc.py`` and lower it to the rules of ``rules.py``.
4. Add it to ``ARCHITECTURES`` below and a row to the table of ``tests/unwind/test_arch.py``.
5. Run ``make test``: the guests of ``tests/qemu`` are the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from recording.model import Context
from unwind.rules import TrapFrame

Registers = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PagingFormat:
    """How the processor's page tables are laid out (all entries are 8 bytes, little endian, 512 a table).

    roots: physical addresses at which a vCPU's registers say that a top-level table may be which maps the kernel, likeliest first.
    levels: number of levels from the registers.
    present: bit mask that a valid entry has set.
    large: bit mask of an entry above the last level that maps memory itself.
    address_mask: bits of an entry that are a physical address.
    enabled: whether the registers say that paging in this format is on.
    """

    roots: Callable[[Registers], tuple[int, ...]]
    levels: Callable[[Registers], int]
    present: int
    large: int
    address_mask: int
    enabled: Callable[[Registers], bool]


@dataclass(frozen=True, slots=True)
class KernelCode:
    """What must be known of the kernel's own code to walk its stacks. Names are those of the kernel's symbols.

    trap: where entry code saves registers.
    is_trap: whether registers read from a supposed trap frame can be such (a processor writes only few selector values).
    is_trap_place: whether a trap frame that came from user mode may end at an address (its stack's top).
    user_trap_paddings: bytes between the end of such a frame and the top of the task's stack, one of these.
    follows_call: whether the 7 bytes before an address end with a call instruction.
    follows_own_call: whether they end with a call to the instructions right behind it.
    pushed_words: how many words the instructions around an address have pushed that no unwind table knows of
        (bytes of text before the address, bytes of text from it on).
    task_roots, idle_roots: functions in which every task's stack, every idle task's stack begins.
    thunks: prefixes of the names of functions that stand between a call or return and its target.
    entry_text: symbols that enclose the entry and exit code.
    module_area: addresses at which modules and generated code lie.
    contexts: (beginning of a function's name, what a stack is doing that goes through it), the first that fits.
    system_call_number: name in a full trap frame of the number of the system call.
    is_32bit_process: whether user registers are those of a 32-bit process.
    system_call_tables: by that, (name of the table, the kernel's symbol).
    """

    trap: TrapFrame
    is_trap: Callable[[Registers], bool]
    is_trap_place: Callable[[int], bool]
    user_trap_paddings: tuple[int, ...]
    follows_call: Callable[[bytes], bool]
    follows_own_call: Callable[[bytes], bool]
    pushed_words: Callable[[bytes, bytes], int]
    task_roots: frozenset[str]
    idle_roots: frozenset[str]
    thunks: tuple[str, ...]
    entry_text: tuple[str, str]
    module_area: tuple[int, int]
    contexts: tuple[tuple[str, Context], ...]
    system_call_number: str
    is_32bit_process: Callable[[Registers], bool]
    system_call_tables: Mapping[bool, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class UserAbi:
    """How programs of one kind use the processor, as far as their stacks are concerned. Register names are gdb's.

    registers: by DWARF number.
    callee_saved: those that a function leaves as they were unless its unwind row says otherwise.
    return_column: DWARF number of the return address.
    red_zone: bytes below the stack pointer that a function may use.
    system_call_size: bytes of the instruction that makes a system call.
    signal_frame: where, counted from the stack pointer that a signal handler returns with, the kernel saved what it interrupted;
        empty where that is not known.
    init_code: bytes with which ``.init`` and ``.fini`` move the stack pointer down at their start, up at their end, how far;
        None where that is not told by their code.
    go_clock_sp: where Go's runtime keeps the stack pointer while it asks the vDSO for the time on another stack.
    is_process: whether registers of user mode belong to such a program.
    """

    name: str
    pointer_size: int
    pc: str
    sp: str
    fp: str
    registers: tuple[str, ...]
    callee_saved: tuple[str, ...]
    return_column: int
    red_zone: int
    system_call_size: int
    signal_frame: Mapping[str, int]
    go_clock_sp: str
    init_code: tuple[bytes, bytes, int] | None
    is_process: Callable[[Registers], bool]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture. Register names are gdb's, addresses are virtual, sizes are bytes.

    qemu_targets: what QMP's ``query-target`` and the binary's name call it.
    gdb_architectures: what the stub's target XML calls it.
    fixed_registers: (name, bytes) in ``g`` order for stubs that offer no XML.
    is_user: whether the registers are those of user mode.
    is_kernel_address: whether an address is in the kernel's half.
    kernel_image: range in which the kernel image is mapped, wherever KASLR puts it.
    image_alignment: KASLR moves the image in steps of this.
    interrupt_table: fixed address of the interrupt table (mapped in kernel and user page tables), or None.
    interrupt_handler: handler address from the table's first 16 bytes.
    image_physical: physical address of an image address, from VMCOREINFO's numbers; None where the note lacks them.
    stack_size: of a task's kernel stack, which is aligned to it.
    entry_stacks: addresses of the stacks, a page each, on which the processor enters the kernel.
    cpu_base: registers one of which holds the per-CPU base of the running CPU, most likely first.
    user_abis: the kinds of programs that the kernel runs; the first whose ``is_process`` fits holds.
    """

    name: str
    qemu_targets: tuple[str, ...]
    gdb_architectures: tuple[str, ...]
    byteorder: Literal["little", "big"]
    pointer_size: int
    pc: str
    sp: str
    fp: str
    fixed_registers: tuple[tuple[str, int], ...]
    is_user: Callable[[Registers], bool]
    is_kernel_address: Callable[[int], bool]
    is_32bit_kernel: Callable[[Registers], bool]
    paging: PagingFormat
    page_table_symbol: str
    kernel_image: tuple[int, int]
    image_alignment: int
    interrupt_table: int | None
    interrupt_handler: Callable[[bytes], int]
    image_physical: Callable[[int, Mapping[str, int]], int | None]
    stack_size: int
    entry_stacks: tuple[int, int]
    cpu_base: tuple[str, ...]
    kernel_code: KernelCode
    user_abis: tuple[UserAbi, ...]
