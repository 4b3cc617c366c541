"""What to copy of the running tasks and of their user stacks while the guest stands still.

Of each vCPU: the per-CPU pointer to its task, a slice of the task, and of a process' thread the top of its user stack.
The user stack pointer is the vCPU's own in user mode; in the kernel it is in the registers that were saved at the top of the task's
kernel stack. Out of QEMU's process all of it is read at once; through the stub it takes a third round trip where a vCPU is in the
kernel on behalf of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from guest.paging import PAGE_SIZE, FreshSpace
from guest.tasks import TaskReader, TaskWords
from sampler.halt import HaltedState, Read
from unwind.arch import Architecture, Registers
from unwind.rules import Missing, read_trap

USER_STACK_SIZE = 16384
"""Bytes of a user stack that are copied at most. Measured on a Debian guest: p50 2.1 K, p99 7 K, maximum 14 K."""
_RED_ZONE = 128
"""Bytes below the stack pointer that a function may use without moving it (System V ABI, x86-64 3.2.2)."""
Piece = tuple[int, bytes]


class TaskPlanner:
    """Copies tasks and user stacks of each halt."""

    def __init__(self, architecture: Architecture, memory: PhysicalMemory, *, can_peek: bool, user_stack_size: int) -> None:
        """can_peek: ``memory`` may be read while the guest stands still at no cost to speak of. user_stack_size: 0 for none."""
        self._architecture = architecture
        self._memory = memory
        self._can_peek = can_peek
        self._user_stack_size = user_stack_size
        self._kernel: Kernel | None = None
        self._tasks: TaskReader | None = None
        self._space: FreshSpace | None = None
        self._offsets: dict[int, int] = {}
        self._stage = 0
        self.copied: dict[int, list[Piece]] = {}
        """By vCPU: (virtual address, bytes), of the halt at hand."""

    def set_kernel(self, kernel: Kernel | None, tasks: TaskReader | None) -> None:
        """What is known of the kernel from now on; without ``tasks`` only user stacks of vCPUs in user mode are copied."""
        self._kernel, self._tasks = kernel, tasks
        self._offsets.clear()
        paging = self._architecture.paging
        self._space = FreshSpace(self._memory, paging, kernel.space.root, kernel.space.levels) if kernel else None

    def offset_of(self, registers: Registers) -> int | None:
        """The per-CPU offset of the CPU with these registers: one of them holds it, whatever mode it is in."""
        offsets = () if self._kernel is None else self._kernel.cpu_offsets
        for name in self._architecture.cpu_base:
            if (base := registers.get(name)) in offsets:
                return base
        return None

    def begin(self) -> Sequence[Read]:
        """A halt begins: what can be asked for together with it."""
        self.copied = {}
        self._stage = 0
        if self._can_peek or self._tasks is None:
            return ()
        return [Read(vcpu, self._tasks.current_address(offset), 8) for vcpu, offset in self._offsets.items()]

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
        offset = self.offset_of(registers)
        if self._tasks is None or offset is None:
            return reads, True
        self._offsets[vcpu] = offset
        pointer = state.reads.get(Read(vcpu, self._tasks.current_address(offset), 8))
        if pointer is None:
            return [*reads, Read(vcpu, self._tasks.current_address(offset), 8)], self._stage > 1
        piece = Read(vcpu, *self._tasks.slice_of(int.from_bytes(pointer, "little")))
        data = state.reads.get(piece)
        if data is None:
            return [*reads, piece], is_user or self._stage > 2
        if not is_user and self._user_stack_size:
            words = self._tasks.parse(int.from_bytes(pointer, "little"), data)
            saved = self._saved_registers(words, lambda address, size: _find(state, vcpu, address, size))
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
            is_user = self._architecture.is_user(registers)
            words = self._peek_task(space, registers, pieces)
            user: Mapping[str, int] | None = registers if is_user else None
            if not is_user and words is not None and not words.is_kernel_thread and self._user_stack_size:
                user = self._saved_registers(words, space.read)
            if user is None:
                continue
            paging = self._architecture.paging
            own = FreshSpace(self._memory, paging, paging.roots(registers)[0], space.levels)
            for address, size in self._user_pieces(user):
                data = own.read(address, size)
                if data is not None:
                    pieces.append((address, data))

    def _peek_task(self, space: FreshSpace, registers: Registers, pieces: list[Piece]) -> TaskWords | None:
        offset = self.offset_of(registers)
        if self._tasks is None or offset is None:
            return None
        where = self._tasks.current_address(offset)
        pointer = space.read(where, 8)
        if pointer is None:
            return None
        task = int.from_bytes(pointer, "little")
        address, size = self._tasks.slice_of(task)
        data = space.read(address, size)
        if data is None:
            return None
        pieces += [(where, pointer), (address, data)]
        return self._tasks.parse(task, data)

    def _saved_registers(self, words: TaskWords, read: Callable[[int, int], bytes | None]) -> Mapping[str, int] | None:
        """The registers that were saved when the task entered the kernel, as far as the stack is to be found by them.

        They may be stale in the first instructions of an entry; unwinding uses what it finds itself.
        """
        arch, trap = self._architecture, self._architecture.kernel_code.trap
        size, order = arch.pointer_size, arch.byteorder

        def read_word(address: int) -> int | None:
            data = read(address, size)
            return None if data is None else int.from_bytes(data, order)

        for padding in arch.kernel_code.user_trap_paddings:
            saved = read_trap(
                trap.partial, words.stack + arch.stack_size - padding - arch.pointer_size * len(trap.partial), read_word
            )
            if not isinstance(saved, Missing) and arch.kernel_code.is_trap(saved) and arch.is_user(saved):
                return saved
        return None

    def _user_pieces(self, registers: Registers) -> Iterator[tuple[int, int]]:
        """The pages of a user stack from a little below its pointer on."""
        start = registers[self._architecture.sp]
        end = start + self._user_stack_size
        start -= _RED_ZONE
        while 0 <= start < end and not self._architecture.is_kernel_address(end):
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
