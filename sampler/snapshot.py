"""A session becomes the stack of every vCPU at one moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from guest.cache import KernelCache
from guest.kernel import Kernel
from guest.kernel_code import LoadedCode
from recording.model import Callchain, Image
from sampler.planner import HaltPlanner
from sampler.session import Session
from sampler.tracker import KernelTracker, TrackerEvents
from unwind.kernel import unwind_capture

_SEARCH_NS = 30_000_000_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One halt: (vCPU, whether it was in user mode, callchain), and the kernel if one was found."""

    vcpus: tuple[tuple[int, bool, Callchain], ...]
    kernel: Kernel | None


def take_snapshot(session: Session, cache: KernelCache, *, clock: Callable[[], int] = time.monotonic_ns) -> Snapshot:
    """Find the kernel (the guest runs meanwhile), then halt once. Raises what the stub or the guest's memory raise.

    A guest that was paused before us stays so all the time.
    """
    resume = session.was_running is not False
    architecture = session.architecture
    planner = HaltPlanner(architecture, session.memory, user_stack_size=0)
    events = TrackerEvents(planner.set_kernel, planner.set_kernel, lambda _why: planner.set_kernel(None))
    tracker = KernelTracker(session.memory, architecture, cache, events)
    state = session.target.capture(planner, resume=resume)
    tracker.see(state.vcpus, state.registers, clock())
    give_up_ns = clock() + _SEARCH_NS
    while tracker.has_work and clock() < give_up_ns:
        tracker.step()
    vcpus = []
    for capture in planner.captures(session.target.capture(planner, resume=resume)):
        chain = unwind_capture(architecture, tracker.unwinder, capture)
        vcpus.append((capture.vcpu, architecture.is_user(capture.registers), chain))
    return Snapshot(tuple(vcpus), tracker.kernel)


def loaded_images(loaded: LoadedCode, boot: int) -> list[Image]:
    """What a kernel has loaded or made, as images with names."""
    return [
        Image(each.name, each.kind, boot, each.build_id, each.ranges, each.symbols) for each in (*loaded.modules, *loaded.generated)
    ]
