"""What to copy of the running tasks and of their user stacks while the guest stands still.

Of each vCPU: the per-CPU pointer to its task, a slice of the task, and of a process' thread the top of its user stack.
The user stack pointer is the vCPU's own in user mode; in the kernel it is in the registers that were saved at the top of the task's
kernel stack. Out of QEMU's process all of it is read at once; through the stub it takes a third round trip where a vCPU is in the
kernel on behalf of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from guest.paging import PAGE_SIZE, FreshSpace, linear_address
from guest.tasks import TaskReader, TaskWords
from sampler.halt import HaltedState, Read
from unwind.arch import Architecture, Registers, StackLink
from unwind.rules import Missing, read_trap

USER_STACK_SIZE = 32768
"""Bytes of a user stack that are copied at most. Measured on a Debian guest: p50 2.1 K, p99 7 K; some programs have 20 K."""
_MAX_STAGES = 3
_RED_ZONE = 128
"""Bytes below the stack pointer that a function may use without moving it (System V ABI, x86-64 3.2.2)."""
Piece = tuple[int, bytes]


class TaskPlanner:
    """Copies tasks and user stacks of each halt."""

    def __init__(self, architecture: Architecture, memory: PhysicalMemory, *, can_peek: bool, user_stack_size: int) -> None:
        """can_peek: ``memory`` may be read while the guest stands still at no cost to speak of. user_stack_size: 0 for none."""
        self._architecture = architecture
        self._stack_size = architecture.stack_size
        self._memory = memory
        self._can_peek = can_peek
        self._user_stack_size = user_stack_size
        self._kernel: Kernel | None = None
        self._tasks: TaskReader | None = None
        self._space: FreshSpace | None = None
        self._offsets: dict[int, int] = {}
        self._linear: int | None = None
        self._stage = 0
        self.copied: dict[int, list[Piece]] = {}
        """By vCPU: (virtual address, bytes), of the halt at hand."""

    def set_kernel(self, kernel: Kernel | None, tasks: TaskReader | None) -> None:
        """What is known of the kernel from now on; without ``tasks`` only user stacks of vCPUs in user mode are copied."""
        if kernel is None or self._kernel is None or kernel.cpu_offsets != self._kernel.cpu_offsets:
            self._offsets.clear()
        self._kernel, self._tasks = kernel, tasks
        self._stack_size = kernel.stack_size if kernel else self._architecture.stack_size
        self._space = FreshSpace(self._memory, kernel.space.tables, kernel.space.root) if kernel else None
        self._linear = None
        has_tables_alone = kernel is not None and not kernel.space.tables.linear
        if has_tables_alone and kernel and tasks and kernel.cpu_offsets and self._architecture.hides_kernel and not self._can_peek:
            # Variables of CPUs and tasks lie in the kernel's linear mapping of all RAM.
            variable = tasks.current_address(kernel.cpu_offsets[0])
            physical = kernel.space.translate(variable)
            self._linear = None if physical is None else variable - physical

    def _kernel_read(self, vcpu: int, address: int, size: int) -> Read:
        physical = None if self._linear is None else address - self._linear
        if self._kernel is not None and self._kernel.space.tables.linear and self._architecture.hides_kernel:
            physical = linear_address(self._kernel.space.tables, address)
        is_ram = physical is not None and any(low <= physical <= high - size for low, high in self._memory.ram())
        return Read(vcpu, address, size, physical if is_ram else None)

    def offset_of(self, vcpu: int, registers: Registers) -> int | None:
        """The per-CPU offset of the CPU that a vCPU is: one of its registers holds it, or its number says it.

        Where programs have that register for themselves, it is the offset that was last seen there: a vCPU stays the same CPU.
        """
        offsets = () if self._kernel is None else self._kernel.cpu_offsets
        if self._architecture.cpu_areas is not None:
            return offsets[vcpu] if vcpu < len(offsets) else None
        if self._architecture.running_task.stacks:
            # No register tells, so that vCPUs must be numbered as the kernel numbers its CPUs.
            by_number = None if self._tasks is None else self._tasks.stacks_offset(vcpu)
            if by_number is not None:
                self._offsets[vcpu] = by_number
            return by_number
        for name in self._architecture.cpu_base:
            if (base := registers.get(name)) in offsets:
                self._offsets[vcpu] = base
                return base
        is_only = len(offsets) == 1 and bool(self._architecture.cpu_base)
        return self._offsets.get(vcpu, offsets[0] if is_only else None)

    def _offset_by_table(self, space: FreshSpace, registers: Registers, tasks: TaskReader) -> int | None:
        """The per-CPU offset of the only CPU whose task has the page table that a vCPU in user mode uses."""
        if self._kernel is None or not self._architecture.is_user(registers):
            return None
        roots = self._architecture.paging.roots(registers)
        found = [
            offset
            for offset in self._kernel.cpu_offsets
            if (words := tasks.find_running(space.read, registers, offset, None)) is not None
            and words.mm
            and (where := tasks.page_table_address(words)) is not None
            and (table := space.read(where, tasks.words.size)) is not None
            and space.translate(tasks.words.number(table)) in roots
        ]
        return found[0] if len(found) == 1 else None

    def kernel_stack(self, registers: Registers) -> tuple[int, int] | None:
        """A kernel stack pointer and the size of a task's kernel stack, None in user mode."""
        arch = self._architecture
        return None if arch.is_user(registers) else (registers[arch.sp], self._stack_size)

    def begin(self) -> Sequence[Read]:
        """A halt begins: what can be asked for together with it."""
        self.copied = {}
        self._stage = 0
        if self._can_peek or self._tasks is None:
            return ()
        return [
            self._kernel_read(vcpu, where(offset), self._tasks.words.size)
            for vcpu, offset in self._offsets.items()
            for where in (self._tasks.current_address, self._tasks.scheduled_address)
        ]

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        """What to read through the stub next, and whether that is all."""
        self._stage += 1
        if self._can_peek:
            if self._stage == 1:
                self._peek(state)
            return (), True
        reads: list[Read] = []
        is_last = True
        for vcpu, registers in zip(state.vcpus, state.registers, strict=True):
            own, own_is_last = self._plan_vcpu(state, vcpu, registers)
            reads += own
            is_last = is_last and own_is_last
        return reads, is_last

    def _plan_vcpu(self, state: HaltedState, vcpu: int, registers: Registers) -> tuple[list[Read], bool]:
        is_user = self._architecture.is_user(registers)
        reads = [Read(vcpu, *piece) for piece in self._user_pieces(registers)] if is_user and self._stage == 1 else []
        offset = self.offset_of(vcpu, registers)
        if self._tasks is None:
            return reads, True
        missing: list[Read] = []

        def read(address: int, size: int) -> bytes | None:
            data = _find(state, vcpu, address, size)
            if data is None:
                missing.append(self._kernel_read(vcpu, address, size))
            return data

        words = self._tasks.find_running(read, registers, offset, self.kernel_stack(registers))
        if missing:
            return [*reads, *missing], self._stage > _MAX_STAGES
        reads += [Read(vcpu, *piece) for piece in self._whole_stack(registers, words)]
        if not is_user:
            known = self._with_saved_words(registers, lambda address: _find(state, vcpu, address, self._architecture.pointer_size))
            saved = self._user_registers(known, words, lambda address, size: _find(state, vcpu, address, size))
            reads += [Read(vcpu, *piece) for piece in self._user_pieces(saved)] if saved else []
        return reads, True

    def _peek(self, state: HaltedState) -> None:
        """Read everything out of QEMU's process."""
        space = self._space
        if space is None:
            return
        space.forget()
        for vcpu, registers in zip(state.vcpus, state.registers, strict=True):
            pieces = self.copied[vcpu] = []
            words = self._peek_task(space, vcpu, registers, pieces)
            user = self._user_registers(self._with_area(space, vcpu, registers), words, space.read)
            own = self._user_space(space, registers, words)
            if user is None or own is None:
                continue
            for address, size in self._user_pieces(user):
                data = own.read(address, size)
                if data is not None:
                    pieces.append((address, data))

    def _peek_task(self, space: FreshSpace, vcpu: int, registers: Registers, pieces: list[Piece]) -> TaskWords | None:
        """The running task; what was read to find it becomes part of the capture."""
        offset = self.offset_of(vcpu, registers)
        if self._tasks is None:
            return None
        if offset is None and self._architecture.cpu_base:
            offset = self._offset_by_table(space, registers, self._tasks)
            if offset is not None:
                self._offsets[vcpu] = offset

        def read(address: int, size: int) -> bytes | None:
            data = space.read(address, size)
            if data is not None:
                pieces.append((address, data))
            return data

        words = self._tasks.find_running(read, registers, offset, self.kernel_stack(registers))
        for piece in self._whole_stack(registers, words):
            read(*piece)
        return words

    def _whole_stack(self, registers: Registers, words: TaskWords | None) -> Iterator[tuple[int, int]]:
        """The pages of the task's kernel stack, where the vCPU is on another one that does not say where it leads on."""
        arch = self._architecture
        if words is None or arch.interrupt_stacks.link is not StackLink.TASK or arch.is_user(registers):
            return
        end = words.stack + arch.stack_size
        if not words.stack <= registers[arch.sp] < end:
            yield from ((address, PAGE_SIZE) for address in range(words.stack, end, PAGE_SIZE))

    def _user_space(self, space: FreshSpace, registers: Registers, words: TaskWords | None) -> FreshSpace | None:
        """The page tables of a task's process. In the middle of a switch to another one the vCPU's may be that one's already."""
        paging = self._architecture.paging
        root: int | None = paging.user_root(registers)
        if words is not None and self._tasks is not None:
            if not words.mm:
                return None
            where = self._tasks.page_table_address(words)
            table = None if where is None else space.read(where, self._architecture.pointer_size)
            if where is not None:
                root = None if table is None else space.translate(int.from_bytes(table, self._architecture.byteorder))
        tables = space.tables if paging.user_tables is None else paging.user_tables(registers)
        return None if root is None else FreshSpace(self._memory, tables, root)

    def _user_registers(
        self, registers: Registers, words: TaskWords | None, read: Callable[[int, int], bytes | None]
    ) -> Registers | None:
        """The registers with which user code runs, or was left for the kernel; None where there are none, or they are not wanted.

        They may be stale in the first instructions of an entry; unwinding uses what it finds itself.
        """
        arch = self._architecture
        if arch.is_user(registers):
            return registers
        if words is None or words.is_kernel_thread or not self._user_stack_size:
            return None
        taken = self._taken(registers)
        if taken is not None:
            return taken
        sp, word = registers[arch.sp], arch.pointer_size
        low, high = arch.entry_stacks
        # On the way in, the processor saves them at the top of an entry stack; the kernel then copies them to that of the task.
        tops = [(sp // PAGE_SIZE + 1) * PAGE_SIZE] if low <= sp < high else []
        tops += [words.stack + self._stack_size - padding for padding in arch.kernel_code.user_trap_paddings]
        trap = arch.kernel_code.trap

        def read_word(address: int) -> int | None:
            data = read(address, word)
            return None if data is None else int.from_bytes(data, arch.byteorder)

        for top in tops:
            saved = read_trap(trap.partial, top - trap.size + trap.partial_at, read_word)
            if not isinstance(saved, Missing) and arch.kernel_code.is_trap(saved) and arch.is_user(saved):
                return saved
        return None

    def _with_area(self, space: FreshSpace, vcpu: int, registers: Registers) -> Registers:
        """Registers and the words that the processor has saved, out of the CPU's area: fixed addresses are its own alone."""
        if self._kernel is None or self._architecture.cpu_areas is None or self._architecture.is_user(registers):
            return registers
        areas, word = self._kernel.cpu_areas, self._architecture.pointer_size
        if vcpu >= len(areas) or not areas[vcpu]:
            return registers
        return self._with_saved_words(registers, lambda address: space.read(areas[vcpu] + address, word))

    def _with_saved_words(self, registers: Registers, read: Callable[[int], bytes | None]) -> Registers:
        code, byteorder = self._architecture.kernel_code, self._architecture.byteorder
        if not code.saved_words:
            return registers
        words = {name: read(address) for name, address in code.saved_words.items()}
        return {**registers, **{name: int.from_bytes(data, byteorder) for name, data in words.items() if data is not None}}

    def _taken(self, registers: Registers) -> Registers | None:
        """User registers that an exception has just interrupted: those on the kernel stack are of an earlier one."""
        code, pc = self._architecture.kernel_code, registers[self._architecture.pc]
        if self._kernel is None:
            return None
        piece = self._kernel.loaded.at(pc)
        symbol = self._kernel.symbols.find_at(pc) if piece is None else None
        start, name = (
            (piece.ranges[0][0], piece.name) if piece is not None else (symbol.address, symbol.name) if symbol else (pc, "")
        )
        taken = code.taken_exception(name, pc - start, registers)
        return taken if taken is not None and self._architecture.is_user(taken) else None

    def _user_pieces(self, registers: Registers) -> Iterator[tuple[int, int]]:
        """The pages of a user stack from a little below its pointer on."""
        start = registers[self._architecture.sp]
        end = start + self._user_stack_size
        start -= _RED_ZONE
        arch = self._architecture
        while 0 <= start < end and (arch.spaces_overlap or not arch.is_kernel_address(end)):
            stop = min(end, (start // PAGE_SIZE + 1) * PAGE_SIZE)
            yield start, stop - start
            start = stop


def _find(state: HaltedState, vcpu: int, address: int, size: int) -> bytes | None:
    """Bytes within one read of a halt."""
    for read, data in state.reads.items():
        offset = address - read.address
        if read.vcpu == vcpu and data is not None and 0 <= offset <= read.size - size:
            return data[offset : offset + size]
    return None
