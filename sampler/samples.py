"""A capture becomes a sample: kernel stack, user stack, task, context and system call, with all that is known at the time.

Right after the halt, ``note`` reads what would be gone later (names of the task's process, what it has mapped). Later ``make``
walks the stacks; it may be asked again for the same capture when more is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from guest.contexts import ContextFinder
from guest.kernel import Kernel
from guest.system_calls import SystemCalls
from guest.task_list import read_first_tasks
from guest.tasks import TaskReader, TaskWords
from guest.words import Words
from recording.errors import BadImageError
from recording.model import Callchain, Frame, Sample, Space, StackEnd, SystemCall, Task, UserEnd
from sampler.boot_code import BootCodeTracker, BootPlace
from sampler.images import ImageStacks
from sampler.userspace import ProcessCode, UserSpaces
from unwind.arch import Architecture
from unwind.capture import Capture
from unwind.kernel import KernelUnwinder
from unwind.outside import Unwound, classify_outside_kernel
from unwind.scan import scan_stack

_NO_IMAGES: frozenset[int] = frozenset()
_REPLACES_MEMORY = "load_elf_binary"
_WITHOUT_USER = frozenset({StackEnd.FIRMWARE, StackEnd.NO_KERNEL, StackEnd.IDLE_ROOT, StackEnd.TASK_ROOT})


@dataclass(frozen=True, slots=True)
class Pending:
    """A capture on its way to being a sample.

    running_ns: the recording's guest running time when it was taken. taken_ns: host time, by any clock.
    process: what its task had mapped, or why that is not known. has_memory: False for a task that has freed its memory.
    walks: how often it was walked although the kernel was known. boot_place: where it was in code from before the kernel.
    """

    halt: int
    boot: int
    weight_ns: int
    running_ns: int
    taken_ns: int
    capture: Capture
    task: Task | None = None
    process: ProcessCode | UserEnd = UserEnd.NO_MAPPINGS
    has_memory: bool = True
    walks: int = 0
    boot_place: BootPlace | None = None

    @property
    def size(self) -> int:
        """Bytes that keeping it costs, about."""
        return sum(len(data) for _address, data in self.capture.memory)


@dataclass(frozen=True, slots=True)
class Made:
    """A sample, and what its user stack can be walked again with when files become known that it met too early.

    saved: the user registers. unread: those files, by image.
    """

    sample: Sample
    pending: Pending
    saved: Mapping[str, int] | None
    unread: frozenset[int]


class SampleMaker:
    """Makes samples under the kernel that is known at the time."""

    def __init__(
        self,
        architecture: Architecture,
        spaces: UserSpaces | None,
        image_at: Callable[[int], int | None],
        images: ImageStacks | None = None,
        boot_code: BootCodeTracker | None = None,
        *,
        scans: bool = False,
    ) -> None:
        """spaces: None where no user stacks are wanted. image_at: the image of a module at a kernel address.

        images: files of the user's whose code the guest runs. boot_code: what names code from before the kernel.
        scans: whether stacks that cannot be walked on are scanned, see ``unwind/scan.py``.
        """
        self._architecture = architecture
        self.scans = scans
        self._spaces = spaces
        self._image_at = image_at
        self._images = images
        self._boot_code = boot_code
        self._kernel: Kernel | None = None
        self._unwinder: KernelUnwinder | None = None
        self._tasks: TaskReader | None = None
        self._contexts: ContextFinder | None = None
        self._calls: SystemCalls | None = None
        self._running_ns = 0
        self._noted_early = False
        self._first_tasks: Mapping[int, TaskWords] | None = None
        self._first_until_ns = 0

    @property
    def tasks(self) -> TaskReader | None:
        """What is known of the kernel's tasks, None before its types are known."""
        return self._tasks

    def set_kernel(self, kernel: Kernel | None, unwinder: KernelUnwinder | None) -> str | None:
        """Use a kernel that was found, read anew or lost. Returns why its tasks cannot be told, None where they can."""
        before = self._kernel
        self._kernel, self._unwinder = kernel, unwinder
        if kernel is None:
            self._tasks = self._contexts = self._calls = self._first_tasks = None
            self._noted_early = False
            return None
        if before is None or kernel.symbols is not before.symbols or kernel.space is not before.space:
            tables = dict(self._architecture.kernel_code.system_call_tables.values())
            arch = self._architecture
            self._calls = SystemCalls(kernel.space, kernel.symbols, tables, Words.of(arch))
            self._contexts = ContextFinder(self._architecture, self._name_at)
        elif kernel.structs is before.structs:
            return None
        if kernel.structs is None:
            return None
        try:
            areas = dict(zip(kernel.cpu_offsets, kernel.cpu_areas, strict=False))
            self._tasks = TaskReader(kernel.space, kernel.symbols, kernel.structs, self._architecture, areas)
        except BadImageError as error:
            return str(error)
        if self._noted_early and self._first_tasks is None:
            self._first_tasks = read_first_tasks(kernel.space, kernel.symbols, kernel.structs, self._tasks, kernel.cpu_offsets)
            self._first_until_ns = self._running_ns
        return None

    def _name_at(self, address: int) -> str | None:
        symbol = self._kernel.symbols.find_at(address) if self._kernel is not None else None
        return None if symbol is None else symbol.name

    def note(self, pending: Pending, words: TaskWords | None) -> Pending:
        """Add what must be read at once: the task's names and its mappings."""
        self._running_ns = pending.running_ns
        if words is None or self._tasks is None:
            self._noted_early = self._noted_early or self._tasks is None
            return pending
        task = self._tasks.describe(words, pending.taken_ns)
        process: ProcessCode | UserEnd = UserEnd.NO_MAPPINGS
        if self._spaces is not None and not task.is_kernel_thread and words.mm:
            process = self._spaces.look(words)
        return replace(pending, task=task, process=process, has_memory=bool(words.mm))

    def make(self, pending: Pending) -> Made:
        """The sample of a capture."""
        known = None if self._images is None else self._images.walk(pending.capture)
        if known is not None:
            chain, context = known
            ids = pending.halt, pending.capture.vcpu, pending.boot, pending.weight_ns
            return Made(Sample(*ids, chain, pending.task, context), pending, None, _NO_IMAGES)
        unwound = self._unwound(pending.capture)
        chain, saved = self._with_boot_code(unwound.callchain, pending.boot_place), unwound.user_registers
        task = pending.task or self._task_by_stack(pending, unwound)
        context, in_call = self._contexts.find(chain, task, saved) if self._contexts else ContextFinder.without_kernel(chain)
        call = self._system_call(saved) if in_call and saved is not None else None
        frames = tuple([self._with_image(frame) for frame in chain.frames])
        vcpu = pending.capture.vcpu
        sample = Sample(pending.halt, vcpu, pending.boot, pending.weight_ns, Callchain(frames, chain.end), task, context, call)
        return self.with_user(Made(sample, pending, saved, _NO_IMAGES))

    def _task_by_stack(self, pending: Pending, unwound: Unwound) -> Task | None:
        """The task of a capture from before it was known where tasks are, or where the CPUs' variables are."""
        if self._first_tasks is None or self._tasks is None or unwound.root_sp is None:
            return None
        size = self._kernel.stack_size if self._kernel is not None else self._architecture.stack_size
        words = self._first_tasks.get(unwound.root_sp - unwound.root_sp % size)
        if words is None or (words.pid and pending.running_ns > self._first_until_ns):
            return None
        return self._tasks.describe(words, pending.taken_ns)

    def with_user(self, made: Made) -> Made:
        """A sample whose user stack is walked (again): its kernel part stays as it is, also when that kernel is gone."""
        sample = made.sample
        frames, user_end, unread = self._walk_user(made)
        return replace(made, sample=replace(sample, callchain=Callchain(frames, sample.callchain.end, user_end)), unread=unread)

    def _unwound(self, capture: Capture) -> Unwound:
        if self._unwinder is not None:
            unwound = self._unwinder.unwind(capture)
            if not self.scans:
                return unwound
            return scan_stack(unwound, capture, self._architecture.pointer_size, self._unwinder.return_address)
        outside = classify_outside_kernel(self._architecture, capture.registers)
        pc = capture.registers[self._architecture.pc]
        return outside or Unwound(Callchain((Frame(pc, pc),), StackEnd.NO_KERNEL), None)

    def _with_boot_code(self, chain: Callchain, place: BootPlace | None) -> Callchain:
        """A callchain whose first frame is named where it is in code from before the kernel, or in the kernel's own such code."""
        if place is None or self._boot_code is None or not chain.frames or chain.frames[0].pc != place.address:
            return chain
        frame = self._boot_code.frame(place, self._kernel)
        if frame is None:
            return chain
        end = StackEnd.ENTRY_WINDOW if frame.space is Space.KERNEL and chain.end is StackEnd.FIRMWARE else chain.end
        return Callchain((frame, *chain.frames[1:]), end)

    def _with_image(self, frame: Frame) -> Frame:
        if frame.space is not Space.KERNEL:
            return frame
        low, high = self._architecture.kernel_code.module_area
        image = self._image_at(frame.lookup_pc) if low <= frame.lookup_pc < high else None
        return frame if image is None else Frame(frame.pc, frame.lookup_pc, frame.space, frame.guess, image)

    def _walk_user(self, made: Made) -> tuple[tuple[Frame, ...], UserEnd | None, frozenset[int]]:
        """The frames with the user stack behind them, why that ended (None: there is none), and which files were not known yet."""
        kernel, task, pending, saved = made.sample.callchain, made.sample.task, made.pending, made.saved
        own = tuple([frame for frame in kernel.frames if frame.space is not Space.USER])
        if saved is None:
            is_process = task is not None and not task.is_kernel_thread
            lost = is_process and kernel.end not in _WITHOUT_USER
            wanted = UserEnd.NO_REGISTERS if self._spaces is not None else UserEnd.NOT_WANTED
            return kernel.frames, wanted if lost else None, _NO_IMAGES
        if self._spaces is None:
            return kernel.frames, UserEnd.NOT_WANTED, _NO_IMAGES
        if not pending.has_memory:
            return own, UserEnd.NO_MEMORY, _NO_IMAGES
        if isinstance(pending.process, UserEnd):
            pc = saved[self._architecture.pc]
            return (*own, Frame(pc, pc, Space.USER)), pending.process, _NO_IMAGES
        in_call = made.sample.system_call is not None
        walk = self._spaces.unwind(saved, pending.capture, pending.process, in_system_call=in_call)
        if not walk.end.is_proper and self._is_in_exec(own):
            # The registers are still those that the old program called execve with.
            return own, UserEnd.NO_MEMORY, _NO_IMAGES
        return (*own, *walk.frames), walk.end, walk.unread

    def _is_in_exec(self, frames: tuple[Frame, ...]) -> bool:
        """Whether a kernel stack goes through the part of execve that replaces the process' memory (fs/exec.c, fs/binfmt_elf.c).

        There are two functions of that name: the other is for 32-bit programs (fs/compat_binfmt_elf.c).
        """
        return any(self._name_at(frame.lookup_pc) == _REPLACES_MEMORY for frame in frames if frame.space is Space.KERNEL)

    def _system_call(self, saved: Mapping[str, int]) -> SystemCall | None:
        code = self._architecture.kernel_code
        number = code.system_call_number(saved)
        if number is None or self._calls is None:
            return None
        table, _symbol = code.system_call_tables[code.is_32bit_process(saved)]
        return self._calls.find(table, number)
