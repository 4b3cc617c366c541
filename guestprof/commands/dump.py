"""``guestprof dump``: the stack of every vCPU, now."""

from __future__ import annotations

import json
from typing import Any

import click

from guest.cache import KernelCache
from guestprof.options import find_target, target_options
from guestprof.signals import raise_on_sigterm
from recording.model import Callchain
from recording.names import NamedFrame, Namer
from sampler.recorder import kernel_image
from sampler.session import Session
from sampler.snapshot import loaded_images, take_snapshot


@click.command()
@target_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def dump(*, connect: str | None, pid: int | None, qmp: str | None, as_json: bool) -> None:
    """Print the call stack of every vCPU at this moment. The guest is halted for less than a millisecond."""
    raise_on_sigterm()
    with Session(find_target(connect, pid, qmp)) as session:
        snapshot = take_snapshot(session, KernelCache.of_user())
    kernel = snapshot.kernel
    namer = Namer([kernel_image(kernel, 0), *loaded_images(kernel.loaded, 0)] if kernel else [])
    rows = [(vcpu, is_user, chain, [namer.name(frame, 0) for frame in chain.frames]) for vcpu, is_user, chain in snapshot.vcpus]
    if as_json:
        click.echo(json.dumps([_as_json(*row) for row in rows], indent=2))
        return
    click.echo(f"Linux {snapshot.kernel.release}" if snapshot.kernel else "no Linux kernel was found in the guest's memory")
    for vcpu, is_user, chain, names in rows:
        click.echo(f"\nvCPU {vcpu}: {'user' if is_user else 'kernel'} mode, stack ends: {chain.end.value}")
        for frame, named in zip(chain.frames, names, strict=True):
            offset = "" if named.offset is None else f"+{named.offset:#x}"
            click.echo(f"  {frame.pc:#018x}  {named.name}{offset}  {named.module}{'  (guess)' if frame.guess else ''}")


def _as_json(vcpu: int, is_user: bool, chain: Callchain, names: list[NamedFrame]) -> dict[str, Any]:
    return {
        "vcpu": vcpu,
        "mode": "user" if is_user else "kernel",
        "task": None,
        "frames": [
            {"pc": f"{frame.pc:#x}", "name": named.name, "offset": named.offset, "module": named.module, "kind": named.kind.value}
            for frame, named in zip(chain.frames, names, strict=True)
        ],
        "end": chain.end.value,
    }
