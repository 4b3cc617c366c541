"""All that is known of a guest, kept up to date: its kernel, what that has loaded, its tasks, its processes' files.

What becomes known is put where it is needed: into the planner of halts, into the maker of samples, and as images into recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from guest.cache import KernelCache
from guest.elf.cache import ElfCache
from guest.elf.images import GuestImages
from guest.host_kernel import KernelFinder
from guest.kernel import Kernel
from guest.kernel_code import LoadedPiece
from guest.memory import PhysicalMemory
from recording.errors import UnsupportedTargetError
from recording.initcalls import SYMBOL_PREFIX
from recording.model import FrameKind, Image
from sampler.boot_code import BootCodeTracker, Monitor
from sampler.halt import HaltedState
from sampler.images import ImageStacks
from sampler.memory import ProcessMemory
from sampler.planner import HaltPlanner
from sampler.samples import Pending, SampleMaker
from sampler.tracker import KernelTracker, TrackerEvents
from sampler.user_files import FileFinder
from sampler.userspace import ImageStore, UserSpaces
from unwind.arch import Architecture, UnwindMethod
from unwind.frame_pointer import keeps_frame_pointers


@dataclass(frozen=True, slots=True)
class Caches:
    """What earlier recordings have read of kernels and of files with user code."""

    kernels: KernelCache
    files: ElfCache

    @classmethod
    def of_user(cls) -> Caches:
        """Those in this user's cache directory."""
        return cls(KernelCache.of_user(), ElfCache.of_user())


@dataclass(frozen=True, slots=True)
class Sources:
    """Where knowledge comes from. ``finder``: contents of the guest's files from outside its memory.

    images: files of the user's whose code the guest runs. host_kernel: finds the file of its kernel on this machine.
    monitor: QEMU's, for what firmware it has loaded; None where asking it would halt the guest.
    """

    memory: PhysicalMemory
    caches: Caches
    finder: FileFinder | None = None
    images: GuestImages | None = None
    host_kernel: KernelFinder | None = None
    monitor: Monitor | None = None


@dataclass(frozen=True, slots=True)
class KnowledgeEvents:
    """Whom to tell: a kernel was found; something of it changed (also directly after it was found); it is gone (why)."""

    found: Callable[[Kernel], None]
    changed: Callable[[Kernel], None]
    gone: Callable[[str], None]


class Knowledge:
    """Owns the tracker, the planner, the maker of samples and the processes' code; see there for what to do with them."""

    def __init__(
        self,
        architecture: Architecture,
        sources: Sources,
        images: ImageStore,
        events: KnowledgeEvents,
        tell: Callable[[str, str], None],
        user_stack_size: int,
        *,
        scan_stacks: bool = False,
    ) -> None:
        """tell: takes the kind and the sentence of an event. user_stack_size: bytes, 0 for no user stacks.

        scan_stacks: guess the callers where a kernel stack cannot be walked on.
        """
        memory = sources.memory
        self._images = images
        self._events = events
        self._tell = tell
        self._loaded: dict[int, int] = {}
        self._problem: str | None = None
        self._scan_stacks = scan_stacks
        self._unknown: str | None = None
        self._architecture = architecture
        for image in () if sources.images is None else sources.images.all:
            images.add_image(image.to_image())
        self.planner = HaltPlanner(architecture, memory, user_stack_size=user_stack_size, images=sources.images)
        told = self._kernel_found, self._kernel_changed, self._kernel_gone, self._code_changed
        on = TrackerEvents(*told, clock=self.planner.set_timekeeper)
        self.tracker = KernelTracker(memory, architecture, sources.caches.kernels, on, host=sources.host_kernel)
        self.spaces: UserSpaces | None = None
        if user_stack_size:
            self.spaces = UserSpaces(architecture, memory, images, sources.finder, sources.caches.files, tell)
        self.boot_code: BootCodeTracker | None = None
        if isinstance(memory, ProcessMemory) and sources.monitor is not None:
            self.boot_code = BootCodeTracker(architecture, memory, sources.monitor, images, tell)
        self.maker = SampleMaker(architecture, self.spaces, self._image_at, self.planner.images, self.boot_code, scans=scan_stacks)

    @property
    def files(self) -> GuestImages | None:
        """Files of the user's whose code the guest runs, the first images of the recording."""
        return None if self.planner.images is None else self.planner.images.images

    @property
    def explains(self) -> bool:
        """Whether code of the user's files was seen to run."""
        return self.planner.images is not None and self.planner.images.has_seen

    def see(self, state: HaltedState, now_ns: int) -> bool:
        """Take notice of a halt's registers; whether any vCPU may run a kernel that is to be found.

        Code of the user's files is no sign of Linux, nor is other code of theirs that no Linux would run. Raises
        UnsupportedTargetError where it is of another build than the file.
        """
        known = self.planner.images
        if known is not None:
            self._check_builds(known, state)
        if known is None or self.tracker.kernel is not None:
            self.tracker.see(state.vcpus, state.registers, now_ns)
            return True
        pairs = zip(state.vcpus, state.registers, strict=True)
        others = [pair for pair in pairs if not known.claims(pair[1]) and not self._architecture.is_32bit_kernel(pair[1])]
        if others:
            self.tracker.see([vcpu for vcpu, _ in others], [registers for _, registers in others], now_ns)
        return bool(others)

    def _check_builds(self, known: ImageStacks, state: HaltedState) -> None:
        """Raises UnsupportedTargetError where the guest runs another build of a file than the user named."""
        for registers in state.registers:
            found = known.find_other_build(registers)
            if found is None:
                continue
            image, other = found
            path = image.request.path
            said = f"the guest runs build {other} of {path.name}, {path} is of build {image.elf.build_id}"
            if not known.images.any_build:
                raise UnsupportedTargetError(f"{said}; name the file of the same build (or give --any-build)")
            self._tell("other-build", said)

    def note(self, pending: Pending) -> Pending:
        """Right after a halt: add the task of a capture, and what of it would be gone later."""
        if self.boot_code is not None:
            place = self.boot_code.see(pending.capture.registers, self.tracker.kernel, pending.taken_ns)
            pending = replace(pending, boot_place=place)
        words = self.planner.find_task(pending.capture)
        if words is not None:
            self.tracker.see_filter(words.filter)
        return self.maker.note(pending, words)

    def _kernel_found(self, kernel: Kernel) -> None:
        self._images.add_image(kernel_image(kernel, self.tracker.boot))
        self._tell("kernel-found", f"Linux {kernel.release} was found by {kernel.found_by}")
        if kernel.debug is not None:
            self._tell("debug-information", "where the kernel's own tables do not say how to unwind, a file of this machine does")
        if kernel.orc is None and kernel.architecture.kernel_code.method is UnwindMethod.ORC:
            why = kernel.orc_problem or "the kernel has no ORC table"
            if kernel.debug is not None:
                self._tell("no-unwind-table", f"debug information is followed instead of ORC: {why}")
            elif keeps_frame_pointers(kernel.symbols.text_only(), kernel.text):
                self._tell("no-unwind-table", f"frame pointers are followed instead of ORC: {why}")
            else:
                self.maker.scans = True
                self._tell("no-unwind-table", f"stacks are scanned for return addresses, and their frames are guesses: {why}")
        self._kernel_changed(kernel)
        self._events.found(kernel)

    def _kernel_changed(self, kernel: Kernel) -> None:
        if self.spaces is not None:
            self.spaces.set_kernel(kernel, self.tracker.boot)
        problem = self.maker.set_kernel(kernel, self.tracker.unwinder) or kernel.structs_problem
        if problem is not None and problem != self._problem:
            self._tell("no-tasks", f"tasks and user code cannot be told: {problem}")
        self._problem = problem
        if kernel.unknown is not None and kernel.unknown != self._unknown:
            self._tell("unknown", kernel.unknown)
        self._unknown = kernel.unknown
        self.planner.set_kernel(kernel, self.maker.tasks)
        self._events.changed(kernel)

    def _kernel_gone(self, why: str) -> None:
        self._events.gone(why)
        self.planner.set_kernel(None)
        self.maker.set_kernel(None, None)
        self.maker.scans = self._scan_stacks
        if self.spaces is not None:
            self.spaces.set_kernel(None, self.tracker.boot)
        self._loaded.clear()
        self._tell("kernel-gone", why)

    def _code_changed(self, loaded: Sequence[LoadedPiece], unloaded: Sequence[LoadedPiece]) -> None:
        """Modules came and went; so did code that the kernel makes, which is worth an image but no event."""
        for code in unloaded:
            self._loaded.pop(code.address, None)
            if code.kind is FrameKind.MODULE:
                self._tell("module-unloaded", code.name)
        for code in loaded:
            if code.kind is FrameKind.MODULE:
                where = f" at {code.ranges[0][0]:#x}" if code.ranges else ""
                self._tell("module-loaded", f"{code.name}{where}")
            image = Image(code.name, code.kind, self.tracker.boot, code.build_id, code.ranges, code.symbols)
            self._loaded[code.address] = self._images.add_image(image)
        if self.tracker.kernel is not None:
            self._events.changed(self.tracker.kernel)

    def _image_at(self, address: int) -> int | None:
        code = self.tracker.module_at(address)
        return None if code is None else self._loaded.get(code.address)


def kernel_image(kernel: Kernel, boot: int) -> Image:
    """A kernel as an image with names, those of its table of initcalls too; its boot code stays its own when that was freed."""
    is_there = kernel.text.contains(kernel.init_text[0])
    ranges = kernel.text.ranges if is_there else (*kernel.text.ranges, kernel.init_text)
    symbols = kernel.symbols.text_only(and_prefix=SYMBOL_PREFIX)
    return Image("vmlinux", FrameKind.KERNEL, boot, kernel.build_id, ranges, symbols)
