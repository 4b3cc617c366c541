"""What guestprof must know of an architecture: one table of facts a file, nothing elsewhere asks which architecture it is.

To add an architecture:

1. Copy the file of the one that is most like it and keep the order of its lines.
2. Fill in the registers by their gdb names, the paging format and the kernel's fixed addresses, each with its source.
3. Name the unwinding method; if none fits, write one beside ``orc.py`` and lower it to the rules of ``rules.py``.
4. Add it to ``registry.py``, to the tables of ``tests/unwind/test_arch.py``, ``tests/qemu/guests.py``, ``test_architectures.py``.
5. Run ``make test``: the guests of ``tests/qemu`` are the judge. Then the oracles: docs/adding-an-architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from recording.model import Context
from unwind.hidden import Hidden
from unwind.image_facts import ImageFacts
from unwind.instructions import Instruction
from unwind.machine_code import MachineCode
from unwind.rules import TrapFrame
from unwind.user_abi import UserAbi

Registers = Mapping[str, int]
ByteOrder = Literal["little", "big"]

ReadMemory = Callable[[int, int], "bytes | None"]
"""Bytes at (address, size), None where not all of them can be read."""

FindVariable = Callable[[str], "int | None"]
"""The address of a variable of the kernel's by its name."""


@dataclass(frozen=True, slots=True)
class PageTables:
    """One shape of page tables. Level 1 is the last one, whose entries are pages.

    page_shift: a page has 1 << page_shift bytes.
    index_bits: by level from 1 on, how many bits of an address choose an entry.
    large_levels: levels above the first whose entries may map memory themselves.
    present: bit mask of which a valid entry has set something.
    large: (mask, value) of an entry above the last level that maps memory itself.
    address_mask: bits of an entry that are a physical address, shifted right by ``address_shift``; left where that is negative.
    linear: pieces of the address space that the processor maps without tables: (low, high, physical address of low).
    valid: by level, (mask, value) of bits that a valid entry has besides; empty where ``present`` says it all.
    has_pointers: whether entries above the last level, but for large ones, are kernel addresses of tables, all of which are there.
    own_entry, own_present: how far from a page's entry the kernel's own is, the bit that says it is there; 0 where there is none.
    """

    page_shift: int
    index_bits: tuple[int, ...]
    large_levels: tuple[int, ...]
    present: int
    large: tuple[int, int]
    address_mask: int
    entry_size: int
    byteorder: ByteOrder
    address_shift: int = 0
    has_pointers: bool = False
    linear: tuple[tuple[int, int, int], ...] = ()
    valid: tuple[tuple[int, int], ...] = ()
    own_entry: int = 0
    own_present: int = 0


@dataclass(frozen=True, slots=True)
class PagingFormat:
    """What a vCPU's registers say of its page tables.

    roots: physical addresses at which a top-level table may be which maps the kernel, likeliest first.
    user_root: that of the table which maps the process; None where no register tells it (the kernel's ``mm_struct`` does).
    tables: the tables' shape.
    kernel_tables: it, by the kernel's own variables (their values by name) where the registers do not say all of it.
    is_shared: whether the tables of processes map the kernel too, so that a root may be one that ends with its process.
    shows_own: whether a root is that of the kernel's own table.
    enabled: whether paging in this format is on.
    user_tables: the shape of the table that maps the process, None where it is the kernel's.
    """

    roots: Callable[[Registers], tuple[int, ...]]
    user_root: Callable[[Registers], int | None]
    tables: Callable[[Registers], PageTables]
    kernel_tables: Callable[[PageTables, Callable[[str], int | None]], PageTables]
    is_shared: bool
    shows_own: bool
    enabled: Callable[[Registers], bool]
    user_tables: Callable[[Registers], PageTables] | None


class UnwindMethod(Enum):
    """How the stacks of a kernel are unwound; ``unwind/methods.py`` knows which module does it."""

    ORC = auto()
    """By the kernel's ORC tables, else by frame pointers."""
    FRAME_RECORDS = auto()
    """By frame records: the frame pointer leads to the caller's frame pointer and the return address."""
    PUSHED_FRAMES = auto()
    """By frame pointers of a processor whose calls push the return address, also amid prologues and epilogues."""
    STACK_CHAIN = auto()
    """By words that lead from frame to frame; the code of an interrupted function says how far it has made its own."""
    PROLOGUES = auto()
    """By the code of each function, which tells how large its frame is and where in it the return address was saved."""
    EHABI = auto()
    """By the kernel's unwind tables of the Arm EHABI, and by its code amid prologues and epilogues."""
    BACK_CHAIN = auto()
    """By the word at the stack pointer, which leads to the caller's frame; what a halted function has done to it its code tells."""


@dataclass(frozen=True, slots=True)
class LinkRegister:
    """The register in which a call leaves its return address.

    name: "" where it pushes it: then the word at the stack pointer takes the register's place.
    target: the function that a call calls: (address of the instruction, its bytes) -> address, None where a register says it.
    size: bytes of a call instruction.
    """

    name: str
    size: int
    target: Callable[[int, bytes], int | None]


@dataclass(frozen=True, slots=True)
class StackChain:
    """Frames of which each has a word that leads to the caller's.

    word: where that is, counted from the stack pointer; 0 in it ends a chain.
    link: the register in which a call leaves its return address.
    return_address: where a function saves its return address, counted from its caller's stack pointer.
    trap: where behind the stack pointer a trap frame lies at the end of a chain.
    alignment: of an instruction's address; a call is longer.
    decode: the instruction at (address, bytes from there on), None where it is none.
    switches: functions that go from one task's stack to another's; in between there is none.
    called: functions amid entry code that are called as others are.
    """

    word: int
    link: str
    return_address: int
    trap: int
    alignment: int
    decode: Callable[[int, bytes], Instruction | None]
    switches: tuple[str, ...]
    called: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CpuAreas:
    """Memory that belongs to one CPU each and that no per-CPU variable is.

    pointers: the kernel's array of their addresses, by CPU number; or if ``is_pointer`` a pointer to that. struct: what lies there.
    members: where members of it are, for kernels without type information.
    """

    pointers: str
    struct: str
    is_pointer: bool = False
    members: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CodeStep:
    """What an instruction does, as far as the frame of its function and the way to the next instruction are concerned.

    Registers are those of the stack pointer, the return address, and those that functions keep; others do not count.

    moves_sp: what it adds to the stack pointer. loses_sp: it sets the stack pointer to something that is not known.
    fp_from_sp: it sets the frame pointer to the stack pointer plus that. sp_from_fp: the other way round.
    saves, loads: (register, offset from the stack pointer) that it stores or loads a word at.
    target: where it may branch to, None where it does not or where that is in a register. goes_on: with what follows, perhaps.
    is_call: it leaves a return address, and goes on when the callee returns. is_computed: a branch to where a register says.
    has_slot: the next instruction is done before the branch. skips_slot: it is not where the branch is not taken.
    """

    moves_sp: int = 0
    loses_sp: bool = False
    fp_from_sp: int | None = None
    sp_from_fp: int | None = None
    saves: tuple[str, int] | None = None
    loads: tuple[str, int] | None = None
    target: int | None = None
    goes_on: bool = True
    is_call: bool = False
    is_computed: bool = False
    has_slot: bool = False
    skips_slot: bool = False


@dataclass(frozen=True, slots=True)
class FrameCode:
    """How code makes frames, for ``UnwindMethod.PROLOGUES``.

    size: bytes of an instruction. link: the register in which a call leaves its return address.
    kept: those that functions leave as they were or save. decode: (an instruction's address, it as a number) -> what it does.
    """

    size: int
    link: str
    kept: tuple[str, ...]
    decode: Callable[[int, int], CodeStep]


class StackLink(Enum):
    """Where an interrupt stack leads on to the stack that was interrupted."""

    TOP_WORD = auto()
    """Its topmost word is the stack pointer there."""
    BOTTOM_WORD = auto()
    """A word at ``word_at`` is the stack pointer there; in that of a task's stack there is no kernel address (STACK_END_MAGIC)."""
    FRAME_POINTER = auto()
    """The chain of frame pointers leaves it."""
    TASK = auto()
    """Only its frames know: what may be there of the running task's stack is that as a whole."""


@dataclass(frozen=True, slots=True)
class InterruptStacks:
    """How to find each CPU's stack for interrupts.

    variable: the per-CPU variable that points to it; "" where none has to, because it is aligned as the stacks of tasks are.
    container: the per-CPU struct in which that is where there is no such variable.
    is_lowest: whether it points to the stack's lowest address, and not to its end or last word.
    exceptions: the per-CPU variable that points to the stacks for NMI and other exceptions, "" where there is none.
    word_at: how far above the stack's lowest address its ``BOTTOM_WORD`` is.
    arrays: variables that hold a pointer for each CPU to the lowest address of such a stack, where there is no ``variable``.
    """

    variable: str
    container: str
    arrays: tuple[str, ...]
    is_lowest: bool
    link: StackLink
    exceptions: str
    word_at: int


@dataclass(frozen=True, slots=True)
class RunningTask:
    """How the kernel knows the task that a CPU runs.

    pointer: the task's address where a register has it in this mode, else None.
    head: the address of a pointer to it instead, in the same way.
    stacks: the variable with a word for each CPU that points into the task's kernel stack, whose first word points to the task, "".
    variables: per-CPU variables that point to it, or VARIABLE.MEMBER of a struct of that name, or STRUCT.MEMBER of a ``CpuAreas``;
        the first that the kernel has. There are none where a register has it in all modes.
    """

    pointer: Callable[[Registers], int | None]
    variables: tuple[str, ...]
    head: Callable[[Registers], int | None]
    stacks: str


@dataclass(frozen=True, slots=True)
class KernelCode:
    """What must be known of the kernel's own code to walk its stacks. Names are those of the kernel's symbols.

    method: how stacks are unwound.
    link: the register that calls leave return addresses in, None where they push them and unwind tables say where, or where
        ``chain`` tells all.
    frame_record: how far from the frame pointer to the record of the caller's frame pointer and the return address.
    chain: how frames are chained, None where no word of theirs does it.
    signature: bits of a return address that may hold its signature (pointer authentication) and are set without one, or 0.
    trap: where entry code saves registers.
    is_trap: whether registers read from a supposed trap frame can be such (a processor writes only few selector values).
    is_trap_place: whether a trap frame that came from user mode may end at an address (its stack's top).
    user_trap_paddings: bytes between the end of such a frame and the top of the task's stack, one of these.
    call_size: bytes before a return address that tell whether it is one.
    follows_call: whether these end with a call instruction.
    sets_frame: whether code from the start of a function on makes a frame record.
    saves_link: whether it saves the return address; it may do so after it has set the frame pointer.
    frame_height: how far above the stack pointer code from the start of a function on sets its frame pointer.
    task_switch: (function that switches from one task to another, the one that calls it), where the former uses the frame pointer
        for something else, or makes a call for which it saves nothing on the stack; it does not move the stack pointer.
    has_left_frame: where calls push return addresses: whether code between two bytes has just taken down its frame, or returns.
    machine_code: how to follow it for methods that need it, else None.
    follows_own_call: whether they end with a call to the instructions right behind it.
    pushed_words: how many words the instructions around an address have pushed that no unwind table knows of
        (bytes of text before the address, bytes of text from it on).
    return_labels: places in entry code that functions return to though no call stands before them.
    task_roots, idle_roots: functions in which every task's stack, every idle task's stack begins.
    thunks: prefixes of the names of functions that stand between a call or return and its target.
    entry_text: symbols that enclose the entry and exit code.
    entry_ranges: more of it: the first symbol of a piece, the first one behind it.
    in_entry: whether the vCPU's registers say that an exception is being taken or left, so that its frame is not whole.
    has_saved: whether registers of a vCPU at an exception vector are those of later on (``EntryRun``): at their stack pointer all
        registers of what was interrupted are saved.
    entry_functions: functions elsewhere in the image that this code jumps to before or after there is a kernel stack.
    entry_areas: addresses [low, high) outside of the image at which no other kernel code lies than entry and exit code.
    entry_copies: functions of the image that are mapped there once more.
    name_copies: what that is, where the image has no symbols for it: its bytes -> names, each with [start, end) in them; or None.
    entry_places: where more of such code lies that no symbol names: (address of a variable by its name, memory) -> names that the
        kernel's source has for it, each with [start, end); None where there is none.
    saved_words: by name, words of the running CPU's at fixed virtual addresses of the kernel, in which the processor saves what an
        exception has interrupted; ``taken_exception`` has them among the registers.
    taken_exception: (function, bytes into it, registers) -> those that an exception has interrupted, where the vCPU stands at the
        first instruction behind it and has changed none of them yet; else None.
    module_area: addresses at which modules and generated code lie.
    has_only_code: whether nothing else lies there, so that an address in it is code also where it is not known.
    module_reach: bytes in front of the image of which that is true.
    contexts: (beginning of a function's name, what a stack is doing that goes through it), the first that fits.
    system_call_number: number of the system call from a trap frame, -1 where something else led to it, None where it does not say.
    is_32bit_process: whether user registers are those of a 32-bit process.
    system_call_tables: by that, (name of the table, the kernel's symbol).
    first_system_calls: by that symbol, the functions that the table's first entries point to.
    data_in_code: variables that have no symbol, with a function that uses each and what finds its address in the code of that.
    frame_code: how code makes frames, None where the method does not ask.
    """

    method: UnwindMethod
    link: LinkRegister | None
    frame_record: int
    chain: StackChain | None
    signature: int
    trap: TrapFrame
    is_trap: Callable[[Registers], bool]
    is_trap_place: Callable[[int], bool]
    user_trap_paddings: tuple[int, ...]
    call_size: int
    follows_call: Callable[[bytes], bool]
    sets_frame: Callable[[bytes], bool]
    saves_link: Callable[[bytes], bool]
    frame_height: Callable[[bytes], int | None]
    task_switch: tuple[str, str]
    has_left_frame: Callable[[bytes, bytes], bool]
    machine_code: MachineCode | None
    follows_own_call: Callable[[bytes], bool]
    pushed_words: Callable[[bytes, bytes], int]
    return_labels: frozenset[str]
    task_roots: frozenset[str]
    idle_roots: frozenset[str]
    thunks: tuple[str, ...]
    entry_text: tuple[str, str]
    entry_functions: frozenset[str]
    entry_areas: tuple[tuple[int, int], ...]
    entry_copies: tuple[str, ...]
    name_copies: Callable[[bytes], Iterable[tuple[str, int, int]]] | None
    entry_places: Callable[[FindVariable, ReadMemory], Iterable[tuple[str, int, int]]] | None
    saved_words: Mapping[str, int]
    taken_exception: Callable[[str, int, Registers], Mapping[str, int] | None]
    module_area: tuple[int, int]
    has_only_code: bool
    module_reach: int
    contexts: tuple[tuple[str, Context], ...]
    system_call_number: Callable[[Registers], int | None]
    is_32bit_process: Callable[[Registers], bool]
    system_call_tables: Mapping[bool, tuple[str, str]]
    first_system_calls: Mapping[str, tuple[str, ...]]
    data_in_code: Mapping[str, tuple[str, Callable[[bytes], int | None]]]
    frame_code: FrameCode | None
    entry_ranges: tuple[tuple[str, str], ...]
    in_entry: Callable[[Registers], bool]
    has_saved: Callable[[Registers], bool]


@dataclass(frozen=True, slots=True)
class Firmware:
    """Firmware that runs beneath the kernel, which calls it.

    is_running: whether a vCPU runs it; its stack pointer is then one of firmware's, and so are the addresses that it reads.
    depth: bytes above the stack pointer in which the kernel's registers are saved.
    frame, size: where they are: name -> byte offset.
    kept: one of them that firmware leaves as it was.
    caller: the kernel's registers out of such a frame, None where it can be none of the kernel's.
    entered_from: the kernel's registers where firmware has not changed those that matter yet, or has restored them; else None.
    """

    is_running: Callable[[Registers], bool]
    depth: int
    frame: Mapping[str, int]
    size: int
    kept: str
    caller: Callable[[Registers], Registers | None]
    entered_from: Callable[[Registers], Registers | None]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture. Register names are gdb's, addresses are virtual, sizes are bytes.

    qemu_targets: what QMP's ``query-target`` and the binary's name call it.
    gdb_architectures: what the stub's target XML calls it.
    is_other_byteorder: whether registers that were read in this byte order were sent in the other one.
    fixed_registers: (name, bytes) in ``g`` order for stubs that offer no XML.
    system_registers: those that ``g`` lacks and that are read one by one: the names that QEMU's versions give each, ours first.
    is_user: whether the registers are those of user mode.
    is_kernel_address: whether an address may be the kernel's.
    spaces_overlap: whether any address may be the kernel's or a process', so that the mode alone tells; with paging off it is
        neither's.
    image_start: symbols at the kernel image's first address.
    code_start: symbol at which the kernel's code begins.
    kernel_image: range in which the kernel image is mapped, wherever KASLR puts it; where there is a mark, other things are too.
    image_alignment: KASLR moves the image in steps of this.
    image_mark: an address in the image that runs, by the registers and what is mapped; None where only one image is mapped there.
    page_table_alignment: of that table, where its content tells it (``guest.own_table.find_pointer_table``), else 0.
    hidden: how to learn what an exception has interrupted where the stub does not tell it, None where it always does.
    shows_image: whether registers in kernel or user mode may tell that mark.
    is_image_in_linear_map: whether the image is a piece of the mapping of all RAM: it begins at the last step in front of the mark.
    image_mark_symbols: one of these is at the mark; none where other things may be.
    image_physical: physical address of an image address, from VMCOREINFO's numbers; None where the note lacks them.
    stack_size: of a task's kernel stack, which is aligned to its size; the smallest where kernels differ and say it themselves.
    entry_stacks: addresses of the stacks, a page each, on which the processor enters the kernel.
    cpu_base: registers one of which holds the per-CPU base of the running CPU, most likely first; none where only tasks know it.
    cpu_areas: None where there are none. vCPUs are then numbered as the kernel does.
    hides_kernel: whether QEMU's stub refuses to read kernel memory by a vCPU in user mode.
    user_abis: the kinds of programs that the kernel runs; the first whose ``is_process`` fits holds.
    firmware: what runs beneath the kernel, None where nothing does that a vCPU could be seen in. images: facts of other code.
    """

    name: str
    qemu_targets: tuple[str, ...]
    gdb_architectures: tuple[str, ...]
    byteorder: ByteOrder
    is_other_byteorder: Callable[[Registers], bool]
    pointer_size: int
    pc: str
    sp: str
    fp: str
    fixed_registers: tuple[tuple[str, int], ...]
    system_registers: tuple[tuple[str, ...], ...]
    is_user: Callable[[Registers], bool]
    is_kernel_address: Callable[[int], bool]
    spaces_overlap: bool
    is_32bit_kernel: Callable[[Registers], bool]
    paging: PagingFormat
    page_table_symbol: str
    image_start: tuple[str, ...]
    code_start: str
    kernel_image: tuple[int, int]
    image_alignment: int
    image_mark: Callable[[Registers, ReadMemory], int | None]
    is_image_in_linear_map: bool
    image_mark_symbols: tuple[str, ...]
    image_physical: Callable[[int, Mapping[str, int]], int | None]
    stack_size: int
    entry_stacks: tuple[int, int]
    cpu_base: tuple[str, ...]
    cpu_areas: CpuAreas | None
    interrupt_stacks: InterruptStacks
    running_task: RunningTask
    hides_kernel: bool
    kernel_code: KernelCode
    user_abis: tuple[UserAbi, ...]
    firmware: Firmware | None
    shows_image: Callable[[Registers], bool]
    page_table_alignment: int
    hidden: Hidden | None
    images: ImageFacts
