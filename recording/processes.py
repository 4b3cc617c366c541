"""Tasks become the rows and root frames that stand for processes and threads."""

from __future__ import annotations

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


def process_of(task: Task | None, *, is_firmware: bool) -> Owner:
    """The process of a sample; a kernel thread or an idle task is one by itself."""
    if task is None:
        return FIRMWARE if is_firmware else UNKNOWN
    return Owner(task.process, task.tgid, _kind(task))


def thread_of(task: Task | None, *, is_firmware: bool) -> Owner:
    """The thread of a sample, under its own name."""
    if task is None:
        return FIRMWARE if is_firmware else UNKNOWN
    return Owner(task.comm, task.pid, _kind(task))


def _kind(task: Task) -> FrameKind:
    return FrameKind.KERNEL if task.is_kernel_thread or task.pid == 0 else FrameKind.USER
