"""What to copy of the guest's kernel stacks while it stands still.

The live part of a kernel stack lies between the stack pointer and the stack's top, and tasks' stacks are aligned to their size,
so the stack pointer alone tells both. On the stack of a hard interrupt the word at its top leads back to the stack that was
interrupted, or another one at a fixed place does, or the chain of frame pointers (``unwind.arch.StackLink``). It is read from
QEMU's process, or the word is asked for together with the halt, so that two round trips do for any number of vCPUs. Only a stack
of its own for an exception (NMI, double fault ...) needs a third, and another word or a chain through the stub alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from guest.kernel import Kernel
from guest.paging import FreshSpace
from sampler.halt import HaltedState, Read
from unwind.arch import Architecture, StackLink
from unwind.firmware import find_caller
from unwind.sources import find_range

_PAGE = 4096
_ADDRESS_END = 1 << 64
_MAX_RECORDS = 64
"""Frames that are followed on an interrupt stack at most."""
_MAX_STACKS = 3
"""A hard interrupt amid a soft one, and the task."""
_COPY_LIMIT = 8192
"""Bytes of one stack that are copied at most. Measured on stock Debian kernels: p99 3.2 K, maximum 4.7 K."""


class StackPlanner:
    """Plans the reads of kernel stacks in each halt."""

    def __init__(self, architecture: Architecture, *, can_peek: bool) -> None:
        """can_peek: the kernel's memory may be read in a halt at no cost (out of QEMU's process), so that no probes are needed."""
        self._can_peek = can_peek
        self._kernel: Kernel | None = None
        self._architecture = architecture
        self._stack_size = architecture.stack_size
        self._follows_frames = architecture.interrupt_stacks.link is StackLink.FRAME_POINTER
        self._has_named_stacks = bool(architecture.interrupt_stacks.variable or architecture.interrupt_stacks.arrays)
        self._peeks_all = can_peek and bool(architecture.interrupt_stacks.arrays)
        self._has_bottom_words = architecture.interrupt_stacks.link is StackLink.BOTTOM_WORD
        self._links: dict[int, Read] = {}
        self._unfollowed: list[int] = []
        self._entry_text = (0, 0)
        self._bottoms: dict[int, int] = {}
        self._rounds = 0

        self._in_firmware: set[int] = set()
        self._space: FreshSpace | None = None

    def set_kernel(self, kernel: Kernel | None) -> None:
        """Use what is known of the kernel's stacks from now on; None when it is gone."""
        self._kernel = kernel
        self._stack_size = kernel.stack_size if kernel else self._architecture.stack_size
        self._links.clear()
        has_firmware = kernel is not None and self._architecture.firmware is not None
        self._space = FreshSpace(kernel.space.memory, kernel.space.tables, kernel.space.root) if kernel and has_firmware else None
        self._entry_text = (0, 0)
        if kernel is not None and self._architecture.kernel_code.trap.is_pushed:
            self._entry_text = find_range(kernel.symbols, self._architecture.kernel_code.entry_text)

    def probes(self) -> Sequence[Read]:
        """Per vCPU the word at the top of its interrupt stack, once it is known which stack that is."""
        self._unfollowed = []
        self._in_firmware.clear()
        self._bottoms, self._rounds = {}, 1
        return () if self._can_peek else tuple(self._links.values())

    def _saved_words(self, vcpu: int) -> Iterator[Read]:
        """What the processor saves at fixed addresses: through the stub, which knows where that is for each vCPU."""
        places = self._architecture.kernel_code.saved_words.values()
        if places:
            yield Read(vcpu, min(places), max(places) + self._architecture.pointer_size - min(places))

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        """The reads that follow from the registers, and whether they are the last of this halt."""
        if self._unfollowed:
            return self._plan_links(state), True
        if self._bottoms:
            return self._plan_bottoms(state)
        arch = self._architecture
        reads: list[Read] = []
        for vcpu, live in zip(state.vcpus, state.registers, strict=True):
            registers = self._firmwares_caller(vcpu, live, reads) or live
            sp = registers[arch.sp]
            if arch.is_user(registers) or not arch.is_kernel_address(registers[arch.pc]) or not arch.is_kernel_address(sp):
                continue
            reads.extend(self._saved_words(vcpu))
            if self._has_bottom_words:
                reads.extend(self._stacks_by_bottom(vcpu, sp))
                continue
            self._learn_cpu(vcpu, registers)
            end, is_last = self._stack_end(sp)
            reads.extend(self._stack(vcpu, sp, end))
            if is_last and self._follows_frames:
                # The instructions that leave an interrupt stack have taken down all of it.
                record = registers[arch.fp] + arch.kernel_code.frame_record
                is_last = sp <= record < end or not arch.is_kernel_address(registers[arch.fp])
            if self._peeks_all:
                reads.extend(self._stacks_behind(vcpu, registers, end))
                continue
            if is_last:
                continue
            target = self._find_link(state, vcpu, registers, end)
            if target is not None:
                reads.extend(self._stack(vcpu, target, self._stack_end(target)[0]))
            else:
                self._unfollowed.append(vcpu)
        return reads, not self._unfollowed and not self._bottoms

    def _firmwares_caller(self, vcpu: int, registers: Mapping[str, int], reads: list[Read]) -> Mapping[str, int] | None:
        """The kernel's registers where a vCPU runs firmware that the kernel has called, if that costs no round trip."""
        firmware, space = self._architecture.firmware, self._space
        if firmware is None or space is None or not self._can_peek or not firmware.is_running(registers):
            return None
        sp = registers[self._architecture.sp]
        reads.append(Read(vcpu, sp, firmware.depth, sp))
        caller = find_caller(self._architecture, registers, lambda address, size: space.memory.read_many([(address, size)])[0])
        if caller is not None:
            # Firmware's own addresses are physical, so that kernel addresses mean nothing to the vCPU.
            space.forget()
            self._in_firmware.add(vcpu)
        return caller

    def _stacks_behind(self, vcpu: int, registers: Mapping[str, int], end: int) -> Iterator[Read]:
        """Reads of all stacks that the frames of one lead on to: of interrupts, and of exceptions, which no variable tells."""
        arch = self._architecture
        for _stack in range(_MAX_STACKS):
            target = self._follow_frames(registers, end, self._peek)
            if target is None:
                return
            end = self._stack_end(target)[0]
            yield from self._stack(vcpu, target, end)
            registers = {arch.sp: target, arch.fp: target - arch.kernel_code.frame_record}

    def _stacks_by_bottom(self, vcpu: int, sp: int) -> Iterator[Read]:
        """Reads of the stack at an address and, where its lowest word can be had at no cost, of those that it leads to."""
        size, word = self._architecture.stack_size, self._architecture.pointer_size
        for _stack in range(_MAX_STACKS):
            # An interrupt stack that is empty again, but not left yet, ends at its stack pointer.
            end, _is_last = self._stack_end(sp - 1)
            yield from self._stack(vcpu, sp, end)
            low, high = self._architecture.entry_stacks
            if low <= sp < high:
                return
            bottom = (sp - 1) // size * size + self._architecture.interrupt_stacks.word_at
            if not self._can_peek or self._kernel is None:
                if self._rounds < _MAX_STACKS:
                    self._bottoms[vcpu] = bottom
                    yield Read(vcpu, bottom, word)
                return
            target = self._peek(bottom)
            if target is None or not self._architecture.is_kernel_address(target):
                return
            sp = target

    def _plan_bottoms(self, state: HaltedState) -> tuple[list[Read], bool]:
        """As ``_stacks_by_bottom``, from the words that were asked for in the last round trip."""
        asked, self._bottoms = self._bottoms, {}
        self._rounds += 1
        reads: list[Read] = []
        for vcpu, bottom in asked.items():
            target = self._word(state, vcpu, bottom)
            if target is not None and self._architecture.is_kernel_address(target):
                reads.extend(self._stacks_by_bottom(vcpu, target))
        return reads, not self._bottoms

    def _find_link(self, state: HaltedState, vcpu: int, registers: Mapping[str, int], end: int) -> int | None:
        """Where the stack that ends at an address leads on, if that is known without another round trip."""
        if self._follows_frames:
            return self._follow_frames(registers, end, self._peek) if self._can_peek else None
        if self._can_peek and self._kernel is not None:
            data = self._kernel.space.read_many([(end - self._architecture.pointer_size, self._architecture.pointer_size)])[0]
        else:
            link = self._links.get(vcpu)
            data = state.reads.get(link) if link is not None and link.address + link.size == end else None
        target = 0 if data is None else int.from_bytes(data, self._architecture.byteorder)
        return target if self._architecture.is_kernel_address(target) else None

    def _peek(self, address: int) -> int | None:
        if self._kernel is None:
            return None
        data = self._kernel.space.read_many([(address, self._architecture.pointer_size)])[0]
        return None if data is None else int.from_bytes(data, self._architecture.byteorder)

    def _follow_frames(self, registers: Mapping[str, int], end: int, read_word: Callable[[int], int | None]) -> int | None:
        """Where the chain of frame pointers leaves the stack that ends at an address."""
        sp, fp = registers[self._architecture.sp], registers.get(self._architecture.fp)
        for _number in range(_MAX_RECORDS):
            if fp is None or not self._architecture.is_kernel_address(fp):
                return None
            record = fp + self._architecture.kernel_code.frame_record
            if not sp <= record < end:
                return record
            sp, fp = record + 1, self._next_frame(record, read_word)
        return None

    def _next_frame(self, record: int, read_word: Callable[[int], int | None]) -> int | None:
        """The frame pointer that a record leads to: where entry code made the call, that of what was interrupted."""
        fp, arch = read_word(record), self._architecture
        trap = arch.kernel_code.trap
        if fp is None or not trap.is_pushed:
            return fp
        caller = read_word(record + arch.pointer_size)
        is_entry = caller is not None and self._entry_text[0] < caller <= self._entry_text[1]
        return read_word(fp - trap.size + trap.full[arch.fp]) if is_entry else fp

    def _plan_links(self, state: HaltedState) -> list[Read]:
        """For stacks that were not known beforehand: where their topmost words lead elsewhere, copy from there too."""
        arch = self._architecture
        reads: list[Read] = []
        for vcpu, registers in zip(state.vcpus, state.registers, strict=True):
            if vcpu not in self._unfollowed:
                continue
            sp = registers[arch.sp]
            if self._follows_frames:
                end = self._stack_end(sp)[0]
                target = self._follow_frames(registers, end, lambda address, vcpu=vcpu: self._word(state, vcpu, address))  # type: ignore[misc]
                if target is not None:
                    reads.extend(self._stack(vcpu, target, self._stack_end(target)[0]))
                continue
            copied = {read.address: read.size for read, data in state.reads.items() if read.vcpu == vcpu and data is not None}
            top = bottom = next((start for start, size in copied.items() if start <= sp < start + size), sp)
            while top in copied:
                top += copied[top]
            for offset in (arch.pointer_size, 2 * arch.pointer_size):
                target = self._word(state, vcpu, top - offset)
                if target is not None and arch.is_kernel_address(target) and not bottom <= target < top:
                    reads.extend(self._stack(vcpu, target, self._stack_end(target)[0]))
                    break
        return reads

    def _learn_cpu(self, vcpu: int, registers: Mapping[str, int]) -> None:
        """Which guest CPU a vCPU is, and so which interrupt stack it has: its per-CPU base says so."""
        if self._kernel is None or vcpu in self._links or self._follows_frames:
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
        """The top of the stack that an address is on, and whether no other stack can lie behind it."""
        kernel, size = self._kernel, self._stack_size
        low, high = self._architecture.entry_stacks
        in_entry_area = low <= sp < high
        if kernel is not None:
            for low, high in (*kernel.irq_stacks, *chain.from_iterable(kernel.exception_stacks)):
                if low <= sp < high:
                    return high, False
        if in_entry_area:
            return (sp // _PAGE + 1) * _PAGE, True
        if kernel is None or (self._has_named_stacks and not kernel.irq_stacks):
            return sp + _COPY_LIMIT, False
        return sp // size * size + size, True

    def _stack(self, vcpu: int, sp: int, end: int) -> Iterator[Read]:
        """Reads of a stack from a stack pointer to its top, none of which crosses a page: one unmapped page would fail it whole.

        A little below the stack pointer is copied too: exit code pops the registers of a trap frame one by one, and the unwind
        rows go on counting from the frame's start.
        """
        start, end = max(0, sp - self._architecture.kernel_code.trap.size), min(end, sp + _COPY_LIMIT, _ADDRESS_END)
        while start < end:
            stop = min(end, (start // _PAGE + 1) * _PAGE)
            physical = self._space.translate(start) if self._space is not None and vcpu in self._in_firmware else None
            yield Read(vcpu, start, stop - start, physical)
            start = stop

    def _word(self, state: HaltedState, vcpu: int, address: int) -> int | None:
        for read, data in state.reads.items():
            offset = address - read.address
            if read.vcpu == vcpu and data is not None and 0 <= offset <= read.size - self._architecture.pointer_size:
                return int.from_bytes(data[offset : offset + self._architecture.pointer_size], self._architecture.byteorder)
        return None
