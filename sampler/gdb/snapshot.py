"""A session of gdb becomes the stack of every vCPU at one moment."""

from __future__ import annotations

from recording.model import Context
from sampler.gdb.frames import parse_stack
from sampler.gdb.session import GdbSession
from sampler.snapshot import Snapshot, VcpuSnapshot


def take_gdb_snapshot(session: GdbSession) -> Snapshot:
    """Halt once. Raises what gdb or the stub raise. A guest that was paused before us stays so all the time."""
    told = session.target.capture(resume=session.was_running is not False)
    stacks = [parse_stack(each, session.roots) for each in told.stacks]
    session.images.learn(stacks)
    vcpus = [
        VcpuSnapshot(each.vcpu, None, session.images.callchain(stack), None, Context.UNKNOWN, None)
        for each, stack in zip(told.stacks, stacks, strict=True)
    ]
    return Snapshot(tuple(vcpus), tuple(session.images.as_images()), None, session.images.lines())
