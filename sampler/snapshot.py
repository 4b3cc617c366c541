"""A session becomes the stack of every vCPU at one moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from guest.elf.images import GuestImages
from guest.host_kernel import KernelFinder
from guest.kernel import Kernel
from recording.model import Callchain, Context, Image, SourceLine, SystemCall, Task
from recording.symbols import SymbolTable
from sampler.knowledge import Caches, Knowledge, KnowledgeEvents, Sources
from sampler.samples import Made, Pending
from sampler.session import Session
from sampler.user_stacks import USER_STACK_SIZE

_SEARCH_NS = 30_000_000_000
_PAUSE_S = 0.0005


@dataclass(frozen=True, slots=True)
class VcpuSnapshot:
    """One vCPU. ``is_user``: whether it was in user mode, None where that is not known. Others: see ``recording.model.Sample``."""

    vcpu: int
    is_user: bool | None
    callchain: Callchain
    task: Task | None
    context: Context
    system_call: SystemCall | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One halt, the images that its frames name by their index, and the kernel if one was found.

    lines: see ``recording.reader.Recording.source_lines``.
    """

    vcpus: tuple[VcpuSnapshot, ...]
    images: tuple[Image, ...]
    kernel: Kernel | None
    lines: Mapping[tuple[int, int], Sequence[SourceLine]] = field(default_factory=dict)


class _Images:
    """Images by their index."""

    def __init__(self) -> None:
        self.all: list[Image] = []

    def add_image(self, image: Image) -> int:
        """See ``sampler.userspace.ImageStore``."""
        self.all.append(image)
        return len(self.all) - 1

    def update_image(
        self, index: int, *, name: str | None = None, build_id: str | None = None, symbols: SymbolTable | None = None
    ) -> None:
        """See ``sampler.userspace.ImageStore``."""
        self.all[index] = replace(self.all[index], name=name or self.all[index].name, build_id=build_id, symbols=symbols)


def take_snapshot(
    session: Session,
    caches: Caches,
    files: GuestImages | None = None,
    *,
    host_kernel: KernelFinder | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Snapshot:
    """Find the kernel (the guest runs meanwhile), then halt once. Raises what the stub or the guest's memory raise.

    A guest that was paused before us stays so all the time. files: of the user's, whose code the guest runs. host_kernel: see
    ``sampler.knowledge.Sources``.
    """
    resume = session.was_running is not False
    images = _Images()
    events = KnowledgeEvents(lambda _kernel: None, lambda _kernel: None, lambda _why: None)
    sources = Sources(session.memory, caches, session.files, files, host_kernel)
    guest = Knowledge(session.architecture, sources, images, events, lambda _kind, _text: None, USER_STACK_SIZE)
    state = session.target.capture(guest.planner, resume=resume)
    guest.see(state, clock())
    give_up_ns = clock() + _SEARCH_NS
    while guest.tracker.has_work and clock() < give_up_ns:
        guest.tracker.step()
    state = session.target.capture(guest.planner, resume=resume)
    pending = [guest.note(Pending(0, 0, 0, 0, clock(), capture)) for capture in guest.planner.captures(state)]
    made = [_walked_whole(guest, guest.maker.make(each), clock) for each in pending]
    vcpus = [
        VcpuSnapshot(
            each.sample.vcpu,
            session.architecture.is_user(each.pending.capture.registers),
            each.sample.callchain,
            each.sample.task,
            each.sample.context,
            each.sample.system_call,
        )
        for each in made
    ]
    return Snapshot(tuple(vcpus), tuple(images.all), guest.tracker.kernel)


def _walked_whole(guest: Knowledge, made: Made, clock: Callable[[], int]) -> Made:
    """With all files read that its user stack goes through, and their names."""
    give_up_ns = clock() + _SEARCH_NS
    while guest.spaces is not None and clock() < give_up_ns:
        while guest.spaces.has_work and clock() < give_up_ns:
            if not guest.spaces.step():
                time.sleep(_PAUSE_S)
        made = guest.maker.with_user(made)
        if not guest.spaces.has_work:
            break
    return made
