"""Per-CPU facts of a running kernel: where each CPU's variables, interrupt stack and exception stacks are.

Which of the kernel's variables exist says how it keeps them; no version does. Before ``setup_per_cpu_areas`` and before a CPU is
brought up there is nothing: read again later.
"""

from __future__ import annotations

from dataclasses import dataclass

from guest.paging import PAGE_SIZE, AddressSpace
from guest.words import Words
from recording.symbols import SymbolTable
from unwind.arch import Architecture

MAX_CPUS = 8192
_HOT_SIZE = 64
"""``struct pcpu_hot`` is a cache line (arch/x86/include/asm/current.h, 6.2 to 6.14)."""
_EXCEPTION_STACK_PAGES = 19
"""``struct cea_exception_stacks``: six stacks of two pages with a guard page before each and one at the end."""
_BUILT_IN_STACKS = (("__start_init_stack", "__end_init_stack"), ("__start_init_task", "__end_init_task"))
"""By 6.10 and later, and by older kernels."""
_STACK_SIZES = frozenset(1 << shift for shift in range(12, 19))
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """Each tuple has one item per possible CPU, or none before the kernel has set them up.

    offsets: what to add to a per-CPU symbol (``__per_cpu_offset``).
    irq_stacks: [low, high) of the stack for hard and soft interrupts; (0, 0) for a CPU that is not up.
    areas: address of what belongs to it (``unwind.arch.CpuAreas``), 0 for a CPU that is not up.
    exception_stacks: [low, high) of each mapped stack for NMI, double fault, debug and machine check exceptions.
    """

    offsets: tuple[int, ...] = ()
    irq_stacks: tuple[Range, ...] = ()
    exception_stacks: tuple[tuple[Range, ...], ...] = ()
    areas: tuple[int, ...] = ()


def stack_size_of(symbols: SymbolTable, architecture: Architecture) -> int:
    """Bytes of a kernel stack: by the one that is built in (include/asm-generic/vmlinux.lds.h), where that has names."""
    for start, end in _BUILT_IN_STACKS:
        low, high = symbols.find(start), symbols.find(end)
        size = 0 if low is None or high is None else high.address - low.address
        if size in _STACK_SIZES:
            return size
    return architecture.stack_size


def read_cpus(space: AddressSpace, symbols: SymbolTable, architecture: Architecture) -> CpuFacts:
    """Read the facts; parts that are not there yet stay empty."""
    offsets = _read_offsets(space, symbols, architecture)
    if not offsets:
        return CpuFacts()
    arrays = [_read_array(space, symbols, name, len(offsets), architecture) for name in architecture.interrupt_stacks.arrays]
    size = stack_size_of(symbols, architecture)
    areas = _read_areas(space, symbols, architecture, len(offsets))
    if arrays:
        ranges = [tuple(_lowest_to_range(space, lowest, size, architecture) for lowest in array) for array in arrays]
        others = zip(*ranges[1:], strict=True)
        stacks = ranges[0] if any(arrays[0]) else ()
        return CpuFacts(offsets, stacks, tuple(tuple(filter(any, each)) for each in others), areas)
    tops = _read_irq_stack_tops(space, symbols, offsets, size, architecture)
    irq_stacks = tuple((top - size, top) if top else (0, 0) for top in tops)
    pointers = _read_variable(space, symbols, architecture.interrupt_stacks.exceptions, offsets, architecture)
    exception_stacks = tuple(_mapped_stacks(space, pointer, architecture) for pointer in pointers)
    return CpuFacts(
        offsets,
        irq_stacks if any(tops) else (),
        exception_stacks if any(exception_stacks) else (),
        areas,
    )


def _read_offsets(space: AddressSpace, symbols: SymbolTable, architecture: Architecture) -> tuple[int, ...]:
    """``__per_cpu_offset`` of the possible CPUs; all are the same until the per-CPU areas are set up."""
    words = Words.of(architecture)
    table = symbols.find("__per_cpu_offset")
    if table is None:
        return (0,) if symbols.find("__per_cpu_start") is None else ()
    limit = min(table.size // words.size, MAX_CPUS)
    number = symbols.find("nr_cpu_ids")
    data = space.read_many([(number.address, 4)])[0] if number else None
    count = min(limit, words.number(data)) if data else limit
    data = space.read_many([(table.address, words.size * count)])[0]
    if not data:
        return ()
    offsets = words.pointers(data)
    if count > 1 and len(set(offsets)) < count:
        return ()
    return offsets if any(offsets) else ()


def _read_areas(space: AddressSpace, symbols: SymbolTable, architecture: Architecture, count: int) -> tuple[int, ...]:
    """The address of each CPU's area."""
    pointers = symbols.find(architecture.cpu_areas.pointers) if architecture.cpu_areas is not None else None
    words = Words.of(architecture)
    address = None if pointers is None else pointers.address
    if address is not None and architecture.cpu_areas is not None and architecture.cpu_areas.is_pointer:
        data = space.read_many([(address, words.size)])[0]
        address = None if data is None else words.number(data)
    data = space.read_many([(address, words.size * count)])[0] if address else None
    return () if data is None else words.pointers(data)


def _read_variable(
    space: AddressSpace, symbols: SymbolTable, name: str, offsets: tuple[int, ...], architecture: Architecture
) -> list[int]:
    """The pointer in a per-CPU variable on each CPU, 0 where it cannot be read; nothing where there is no such variable."""
    symbol = symbols.find(name) if name else None
    if symbol is None:
        return []
    words = Words.of(architecture)
    answers = space.read_many([(symbol.address + offset & words.mask, words.size) for offset in offsets])
    return [0 if answer is None else words.number(answer) for answer in answers]


def _read_array(space: AddressSpace, symbols: SymbolTable, name: str, count: int, architecture: Architecture) -> list[int]:
    """The pointers of an array with one for each CPU, 0 where they cannot be read."""
    symbol, words = symbols.find(name), Words.of(architecture)
    data = None if symbol is None else space.read_many([(symbol.address, words.size * count)])[0]
    return [0] * count if data is None else list(words.pointers(data))


def _lowest_to_range(space: AddressSpace, lowest: int, size: int, architecture: Architecture) -> Range:
    """The stack that begins at an address, (0, 0) where none can."""
    return (lowest, lowest + size) if lowest and _is_stack_end(space, lowest + size, size, architecture) else (0, 0)


def _read_irq_stack_tops(
    space: AddressSpace, symbols: SymbolTable, offsets: tuple[int, ...], size: int, architecture: Architecture
) -> list[int]:
    """The end of each CPU's interrupt stack, 0 where it is not up.

    The variable points at the start or end of the stack, or at the last slot of it (x86-64 since 951c2a51ae75).
    """
    stacks = architecture.interrupt_stacks
    hot = symbols.find(stacks.container) if stacks.container else None
    if symbols.find(stacks.variable) or hot is None:
        values = _read_variable(space, symbols, stacks.variable, offsets, architecture)
    else:
        # The pointer's place in the structure differs with the configuration, but it is the only one to the last slot of a page.
        answers = space.read_many([(hot.address + offset & Words.of(architecture).mask, _HOT_SIZE) for offset in offsets])
        values = [_slot_pointer(answer, architecture) if answer else 0 for answer in answers]
    tops = [value + size if stacks.is_lowest and value else value + 15 & -16 for value in values]
    return [top if _is_stack_end(space, top, size, architecture) else 0 for top in tops]


def _slot_pointer(hot: bytes, architecture: Architecture) -> int:
    slot = PAGE_SIZE - architecture.pointer_size
    pointers = Words.of(architecture).pointers(hot)
    return next((word for word in pointers if word % PAGE_SIZE == slot and architecture.is_kernel_address(word)), 0)


def _is_stack_end(space: AddressSpace, top: int, size: int, architecture: Architecture) -> bool:
    return (
        top % PAGE_SIZE == 0
        and architecture.is_kernel_address(top - size)
        and space.translate(top - architecture.pointer_size) is not None
        and space.translate(top - size) is not None
    )


def _mapped_stacks(space: AddressSpace, pointer: int, architecture: Architecture) -> tuple[Range, ...]:
    """The mapped runs of pages from a pointer on: unmapped guard pages part the stacks."""
    if pointer % PAGE_SIZE or not architecture.is_kernel_address(pointer):
        return ()
    stacks: list[Range] = []
    for page in range(pointer, pointer + _EXCEPTION_STACK_PAGES * PAGE_SIZE, PAGE_SIZE):
        if space.translate(page) is None:
            continue
        if stacks and stacks[-1][1] == page:
            stacks[-1] = stacks[-1][0], page + PAGE_SIZE
        else:
            stacks.append((page, page + PAGE_SIZE))
    return tuple(stacks)
