"""The planner of a halt's reads: kernel stacks, tasks, user stacks and clocks together, and the captures that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from guest.elf.images import GuestImages
from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from guest.tasks import TaskReader, TaskWords
from guest.timekeeper import Timekeeper
from recording.model import ClockReading
from sampler.clock import ClockPlanner
from sampler.halt import HaltedState, Read
from sampler.images import ImageStacks
from sampler.memory import ProcessMemory
from sampler.stacks import StackPlanner
from sampler.user_stacks import USER_STACK_SIZE, TaskPlanner
from unwind.arch import Architecture
from unwind.capture import Capture


class HaltPlanner:
    """Plans the reads of each halt, see ``sampler.halt.Planner``."""

    def __init__(
        self,
        architecture: Architecture,
        memory: PhysicalMemory,
        *,
        user_stack_size: int = USER_STACK_SIZE,
        images: GuestImages | None = None,
    ) -> None:
        """``memory``: where it is QEMU's own, a word in a halt costs nothing. user_stack_size: bytes, 0 for no user stacks.

        images: files of the user's whose code the guest runs.
        """
        can_peek = isinstance(memory, ProcessMemory)
        self.images = None if images is None else ImageStacks(architecture, memory, images, can_peek=can_peek)
        self._stacks = StackPlanner(architecture, can_peek=can_peek)
        self._tasks = TaskPlanner(architecture, memory, can_peek=can_peek, user_stack_size=user_stack_size)
        self._clock = ClockPlanner(architecture, memory, can_peek=can_peek)
        self._reader: TaskReader | None = None
        self._has_stacks = self._has_tasks = self._has_images = False

    def set_kernel(self, kernel: Kernel | None, tasks: TaskReader | None = None) -> None:
        """Use what is known of the kernel and its tasks from now on; None when it is gone."""
        self._reader = tasks
        self._stacks.set_kernel(kernel)
        self._tasks.set_kernel(kernel, tasks)
        self._clock.set_kernel(kernel)

    def set_timekeeper(self, timekeeper: Timekeeper) -> None:
        """Read the clock of the kernel there from now on."""
        self._clock.set_timekeeper(timekeeper)

    def probes(self) -> Sequence[Read]:
        """Reads that go out together with the halt."""
        self._has_stacks = self._has_tasks = self._has_images = False
        return [*self._stacks.probes(), *self._tasks.begin(), *self._clock.begin()]

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        """The next reads, and whether they are the last of this halt."""
        reads: list[Read] = []
        self._clock.peek()
        if self.images is not None:
            if not self._has_images:
                reads += self.images.plan(state)
                self._has_images = True
            state = _without(state, self.images)
        if not self._has_stacks:
            wanted, self._has_stacks = self._stacks.plan(state)
            reads += wanted
        if not self._has_tasks:
            wanted, self._has_tasks = self._tasks.plan(state)
            reads += wanted
        return reads, self._has_stacks and self._has_tasks

    def captures(self, state: HaltedState) -> list[Capture]:
        """One capture for each vCPU of the halt that was planned last."""
        pieces: dict[int, dict[int, bytes]] = {vcpu: dict(self._tasks.copied.get(vcpu, ())) for vcpu in state.vcpus}
        for vcpu, copied in self.images.copied.items() if self.images is not None else ():
            pieces[vcpu].update(copied)
        for read, data in state.reads.items():
            if data is not None and not self._clock.has_asked(read):
                pieces[read.vcpu][read.address] = data
        return [
            Capture(vcpu, registers, _joined(sorted(pieces[vcpu].items())))
            for vcpu, registers in zip(state.vcpus, state.registers, strict=True)
        ]

    def clock(self, state: HaltedState, halt: int, boot: int) -> ClockReading | None:
        """The guest's own clocks in the halt that was planned last, which has an index in its recording; None where unknown."""
        return self._clock.reading(state, halt, boot)

    def find_task(self, capture: Capture) -> TaskWords | None:
        """The task that a capture's vCPU ran, None where that is not known."""
        offset = self._tasks.offset_of(capture.vcpu, capture.registers)
        if self._reader is None:
            return None
        return self._reader.find_running(capture.read, capture.registers, offset, self._tasks.kernel_stack(capture.registers))


def _without(state: HaltedState, images: ImageStacks) -> HaltedState:
    """A halt without the vCPUs that run code of the user's files."""
    kept = [pair for pair in zip(state.vcpus, state.registers, strict=True) if not images.claims(pair[1])]
    return replace(state, vcpus=tuple(vcpu for vcpu, _ in kept), registers=tuple(registers for _, registers in kept))


def _joined(pieces: Iterable[tuple[int, bytes]]) -> tuple[tuple[int, bytes], ...]:
    """Pieces in address order, those that touch made one: stacks are copied by pages and read by words."""
    runs: list[tuple[int, list[bytes], int]] = []
    for address, data in pieces:
        if runs and runs[-1][2] == address:
            start, parts, _end = runs[-1]
            parts.append(data)
            runs[-1] = start, parts, address + len(data)
        else:
            runs.append((address, [data], address + len(data)))
    return tuple((start, b"".join(parts)) for start, parts, _end in runs)
