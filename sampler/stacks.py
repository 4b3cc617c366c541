"""What to copy of the guest's stacks while it stands still: the planner of a halt's memory reads.

The live part of a kernel stack lies between the stack pointer and the stack's top, and tasks' stacks are aligned to their size,
so the stack pointer alone tells both. On the stack of a hard interrupt the word at its top leads back to the stack that was
interrupted (arch/x86/include/asm/irq_stack.h); it is asked for together with the halt, so that two round trips do for any number
of vCPUs. Only a stack of its own for an exception (NMI, double fault ...) needs a third.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from guest.kernel import Kernel
from sampler.target import HaltedState, Read
from unwind.arch import Architecture
from unwind.capture import Capture

_PAGE = 4096
_ADDRESS_END = 1 << 64
_COPY_LIMIT = 8192
"""Bytes of one stack that are copied at most. Measured on stock Debian kernels: p99 3.2 K, maximum 4.7 K."""


class StackPlanner:
    """Plans the reads of each halt."""

    def __init__(self, architecture: Architecture) -> None:
        self._kernel: Kernel | None = None
        self._architecture = architecture
        self._links: dict[int, Read] = {}
        self._second_stage = False

    def set_kernel(self, kernel: Kernel | None) -> None:
        """Use what is known of the kernel's stacks from now on; None when it is gone."""
        self._kernel = kernel
        self._links.clear()

    def probes(self) -> Sequence[Read]:
        """Per vCPU the word at the top of its interrupt stack, once it is known which stack that is."""
        self._second_stage = False
        return tuple(self._links.values())

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        """The reads that follow from the registers, and whether they are the last of this halt."""
        if self._second_stage:
            return self._plan_links(state), True
        reads: list[Read] = []
        last = True
        for vcpu, registers in zip(state.vcpus, state.registers, strict=True):
            arch = self._architecture
            if arch.is_user(registers) or not arch.is_kernel_address(registers[arch.pc]):
                continue
            self._learn_cpu(vcpu, registers)
            sp = registers[arch.sp]
            if not arch.is_kernel_address(sp):
                continue
            end, known = self._stack_end(sp)
            reads.extend(_pieces(vcpu, sp, end))
            link = self._links.get(vcpu)
            if link is not None and sp < link.address + arch.pointer_size == end:
                target = self._follow(state, link)
                if target is not None:
                    reads.extend(_pieces(vcpu, target, self._stack_end(target)[0]))
            elif not known:
                last = False
        self._second_stage = not last
        return reads, last

    def _plan_links(self, state: HaltedState) -> list[Read]:
        """For stacks that were not known: where the topmost word that was copied leads elsewhere, copy from there too."""
        arch = self._architecture
        reads: list[Read] = []
        for vcpu, registers in zip(state.vcpus, state.registers, strict=True):
            sp = registers[arch.sp]
            if arch.is_user(registers) or not arch.is_kernel_address(sp) or self._stack_end(sp)[1]:
                continue
            copied = {read.address: read.size for read, data in state.reads.items() if read.vcpu == vcpu and data is not None}
            top = sp
            while top in copied:
                top += copied[top]
            if top == sp:
                continue
            for offset in (arch.pointer_size, 2 * arch.pointer_size):
                target = self._word(state, vcpu, top - offset)
                if target is not None and arch.is_kernel_address(target) and not sp <= target < top:
                    reads.extend(_pieces(vcpu, target, self._stack_end(target)[0]))
                    break
        return reads

    def _learn_cpu(self, vcpu: int, registers: Mapping[str, int]) -> None:
        """Which guest CPU a vCPU is, and so which interrupt stack it has: its per-CPU base says so."""
        if self._kernel is None or vcpu in self._links:
            return
        for name in self._architecture.cpu_base:
            base = registers.get(name)
            if base in self._kernel.cpu_offsets:
                cpu = self._kernel.cpu_offsets.index(base)
                top = self._kernel.irq_stacks[cpu][1] if cpu < len(self._kernel.irq_stacks) else 0
                if top:
                    size = self._architecture.pointer_size
                    self._links[vcpu] = Read(vcpu, top - size, size)
                return

    def _stack_end(self, sp: int) -> tuple[int, bool]:
        """The top of the stack that an address is on, and whether it is known to be the whole way to the task's stack."""
        size = self._architecture.stack_size
        low, high = self._architecture.entry_stacks
        in_entry_area = low <= sp < high
        if not in_entry_area and (self._kernel is None or not self._kernel.irq_stacks):
            return sp + _COPY_LIMIT, False
        for low, high in self._kernel.irq_stacks if self._kernel else ():
            if low <= sp < high:
                return high, any(link.address == high - self._architecture.pointer_size for link in self._links.values())
        for low, high in chain.from_iterable(self._kernel.exception_stacks if self._kernel else ()):
            if low <= sp < high:
                return high, False
        if in_entry_area:
            return (sp // _PAGE + 1) * _PAGE, True
        return sp // size * size + size, True

    def _follow(self, state: HaltedState, link: Read) -> int | None:
        data = state.reads.get(link)
        if data is None:
            return None
        target = int.from_bytes(data, self._architecture.byteorder)
        return target if self._architecture.is_kernel_address(target) else None

    def _word(self, state: HaltedState, vcpu: int, address: int) -> int | None:
        for read, data in state.reads.items():
            offset = address - read.address
            if read.vcpu == vcpu and data is not None and 0 <= offset <= read.size - self._architecture.pointer_size:
                return int.from_bytes(data[offset : offset + self._architecture.pointer_size], self._architecture.byteorder)
        return None


def _pieces(vcpu: int, start: int, end: int) -> Iterator[Read]:
    """Reads from start to end, none of which crosses a page: one unmapped page would fail the whole read."""
    end = min(end, start + _COPY_LIMIT, _ADDRESS_END)
    while start < end:
        stop = min(end, (start // _PAGE + 1) * _PAGE)
        yield Read(vcpu, start, stop - start)
        start = stop


def captures(state: HaltedState) -> list[Capture]:
    """One capture for each vCPU of a halt."""
    by_vcpu: dict[int, list[tuple[int, bytes]]] = {vcpu: [] for vcpu in state.vcpus}
    for read, data in state.reads.items():
        if data is not None:
            by_vcpu[read.vcpu].append((read.address, data))
    return [
        Capture(vcpu, registers, tuple(sorted(by_vcpu[vcpu]))) for vcpu, registers in zip(state.vcpus, state.registers, strict=True)
    ]
