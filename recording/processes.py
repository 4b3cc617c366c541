"""Tasks become the rows and root frames that stand for processes and threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recording.model import FrameKind, Task


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose time a sample is: a process or a thread.

    pid: its number in the guest; None for samples without a task.
    kind: USER, or KERNEL for kernel threads and idle tasks; FIRMWARE and UNKNOWN for samples without a task.
    """

    name: str
    pid: int | None
    kind: FrameKind

    @property
    def root_name(self) -> str:
        """As the root of a stack: the idle tasks of all vCPUs are ``swapper``, as perf calls them."""
        return "swapper" if self.pid == 0 else self.name


FIRMWARE = Owner("[firmware]", None, FrameKind.FIRMWARE)
UNKNOWN = Owner("[unknown]", None, FrameKind.UNKNOWN)
NO_TASKS = Owner("[no tasks]", None, FrameKind.UNKNOWN)
"""Of recordings that can have none."""


def why_no_tasks(meta: Mapping[str, object]) -> str | None:
    """Why a recording can have no tasks, by its ``meta``; None where it can."""
    if "engine" in meta:
        return "gdb does not tell which task runs"
    if "elf_files" in meta and "kernel_release" not in meta:
        return "no Linux was seen, and of other kernels only the code is known"
    return None


def process_of(task: Task) -> Owner:
    """The process of a task; a kernel thread or an idle task is one by itself."""
    return Owner(task.process, task.tgid, _kind(task))


def thread_of(task: Task) -> Owner:
    """A task as a thread, under its own name."""
    return Owner(task.comm, task.pid, _kind(task))


def _kind(task: Task) -> FrameKind:
    return FrameKind.KERNEL if task.is_kernel_thread or task.pid == 0 else FrameKind.USER
