"""``guestprof dump``: the stack of every vCPU, now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from exporters.text import printable
from guest.elf.images import ImageRequest, load_images
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles
from guest.symbolize import frame_lines
from guestprof.elf_option import elf_option
from guestprof.engines import EngineOptions, engine_options, open_session
from guestprof.options import find_target, host_file_options, target_options
from guestprof.signals import raise_on_sigterm
from guestprof.symbolizing import make_finder, open_host_kernel
from recording.model import Frame, Task
from recording.names import NamedFrame, Namer
from sampler.gdb.session import GdbSession
from sampler.gdb.snapshot import take_gdb_snapshot
from sampler.knowledge import Caches
from sampler.session import FileSources
from sampler.snapshot import Snapshot, VcpuSnapshot, take_snapshot


@click.command()
@target_options
@engine_options
@elf_option
@host_file_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def dump(
    *,
    connect: str | None,
    pid: int | None,
    qmp: str | None,
    engine: EngineOptions,
    images: tuple[ImageRequest, ...],
    host_files: HostFiles,
    as_json: bool,
) -> None:
    """Print the call stack of every vCPU at this moment, user code included; with --vmlinux lines and inlined functions, too.

    The guest is halted for less than a millisecond, by gdb (--engine gdb) for some.
    """
    raise_on_sigterm()
    gdb = engine.chosen(images, host_files.vmlinux)
    with open_session(find_target(connect, pid, qmp), gdb, sources=FileSources()) as session:
        if isinstance(session, GdbSession):
            snapshot, found = take_gdb_snapshot(session), session.how()
        else:
            host_kernel = open_host_kernel(host_files, may_fetch=False)
            files = load_images(images, session.architecture, any_build=host_files.any_build)
            snapshot = take_snapshot(session, Caches.of_user(), files, host_kernel=host_kernel)
            found = _found(snapshot, images)
    frames_of_all = [frame for each in snapshot.vcpus for frame in each.callchain.frames]
    lines = snapshot.lines
    if gdb is None and not host_files.is_empty:
        cache, release = SourceCache.of_user(), snapshot.kernel.release if snapshot.kernel else None
        lines = frame_lines(snapshot.images, frames_of_all, make_finder(host_files, cache, release, _warn), cache, _warn)
    namer = Namer(snapshot.images, lines)
    namer.prepare(frames_of_all)
    rows = [
        (each, [(frame, named) for frame in each.callchain.frames for named in reversed(namer.names(frame, 0))])
        for each in snapshot.vcpus
    ]
    if as_json:
        click.echo(json.dumps([_as_json(*row) for row in rows], indent=2))
        return
    click.echo(found)
    for each, frames in rows:
        click.echo(f"\nvCPU {each.vcpu}: {_describe(each)}")
        for frame, named in frames:
            click.echo(f"  {frame.pc:#018x}  {_place(named)}{'  (guess)' if frame.guess else ''}")


def _warn(line: str) -> None:
    click.echo(f"guestprof: {line}", err=True)


def _place(named: NamedFrame) -> str:
    """``work+0x12  kernel.elf  src/work.c:14``."""
    offset = " (inlined)" if named.is_inlined else "" if named.offset is None else f"+{named.offset:#x}"
    line = "" if named.path is None else f"  {printable(named.path)}{'' if named.line is None else f':{named.line}'}"
    return f"{printable(named.name)}{offset}  {printable(named.module)}{line}"


def _found(snapshot: Snapshot, images: Sequence[ImageRequest]) -> str:
    """One line: what the guest runs."""
    if snapshot.kernel is not None:
        return f"Linux {snapshot.kernel.release}"
    if images:
        return ", ".join(printable(str(image.path)) for image in images)
    return "no Linux kernel was found in the guest's memory"


def _describe(each: VcpuSnapshot) -> str:
    """One line: who, in which mode and context, and why the stack ends."""
    parts = [_task_name(each.task)] if each.task else []
    if each.is_user is not None:
        parts.append("user mode" if each.is_user else "kernel mode")
    if each.is_user is False:
        call = each.system_call
        parts.append(f"{each.context.value} {call.name or call.number}" if call else each.context.value)
    ends = [each.callchain.end.value, *([each.callchain.user_end.value] if each.callchain.user_end else [])]
    return "; ".join([*([", ".join(parts)] if parts else []), f"stack ends: {', '.join(dict.fromkeys(ends))}"])


def _task_name(task: Task) -> str:
    name = task.comm if task.comm == task.process else f"{task.comm} of {task.process}"
    return f"{printable(name)} ({task.pid})"


def _as_json(each: VcpuSnapshot, frames: list[tuple[Frame, NamedFrame]]) -> dict[str, Any]:
    task, chain, call = each.task, each.callchain, each.system_call
    return {
        "vcpu": each.vcpu,
        "mode": None if each.is_user is None else "user" if each.is_user else "kernel",
        "task": {"pid": task.pid, "tgid": task.tgid, "comm": task.comm, "process": task.process, "cgroup": task.cgroup}
        if task
        else None,
        "context": each.context.value,
        "system_call": {"number": call.number, "name": call.name} if call else None,
        "frames": [
            {
                "pc": f"{frame.pc:#x}",
                "name": named.name,
                "offset": named.offset,
                "module": named.module,
                "kind": named.kind.value,
                "inlined": named.is_inlined,
                "path": named.path,
                "line": named.line,
            }
            for frame, named in frames
        ],
        "end": chain.end.value,
        "user_end": chain.user_end.value if chain.user_end else None,
    }
