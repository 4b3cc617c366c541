"""A target's address → everything that profiling it needs, opened in order and closed in the opposite one, the guest running.

QMP (if there is any) → a gdb stub (opened through QMP if there is none) → the guard → the target → memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from guest.memory import PhysicalMemory
from recording.errors import GuestprofError, StubError, TransportError
from sampler.discovery import QemuProcess, TargetAddress, find_process
from sampler.guard import Guard
from sampler.launch import make_private_directory
from sampler.memory import DEFAULT_MAX_HALT_S, OpenedMemory, open_memory
from sampler.qmp import Qmp, QmpEvent
from sampler.storage import GuestDisks
from sampler.target import Target
from unwind.arch import Architecture


@dataclass(frozen=True, slots=True)
class FileSources:
    """Where contents of the guest's files may come from beside its memory.

    storage: its own disks, initrd and shares. sysroots, symbol_dirs: directories of this machine.
    """

    storage: bool = True
    sysroots: tuple[Path, ...] = ()
    symbol_dirs: tuple[Path, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing may be read."""
        return not (self.storage or self.sysroots or self.symbol_dirs)


class Session:
    """A guest that is ready to be profiled; halted at first. Leaving the context lets it run (or leaves it paused, if it was).

    resume_at_exit: None keeps a guest paused that was paused before us, True lets it run in any case (``boot`` starts it paused).
    was_running: False if the guest was paused when we came, None where nobody can tell (no QMP). run_state: QEMU's word for it.
    memory_reason: why memory is read through the stub, "" if it is not.
    """

    target: Target
    memory: PhysicalMemory
    architecture: Architecture
    accelerator: str
    qemu_version: str
    vcpus: tuple[int, ...]
    pid: int | None
    was_running: bool | None
    run_state: str | None
    memory_reason: str

    def __init__(
        self,
        address: TargetAddress,
        *,
        vcpus: Sequence[int] | None = None,
        resume_at_exit: bool | None = None,
        timeout_s: float = 5.0,
        max_halt_s: float = DEFAULT_MAX_HALT_S,
        sources: FileSources = FileSources(storage=False),
    ) -> None:
        """sources: what ``files`` finds contents of the guest's files in."""
        self._address = address
        self._max_halt_s = max_halt_s
        self._sources = sources
        self._process: QemuProcess | None = None
        self._socket: Path | None = None
        self.files: GuestDisks | None = None
        self._closing: list[Callable[[], None]] = []
        self._qmp: Qmp | None = None
        self._certain = True
        self._resume_at_exit = resume_at_exit
        self.was_running = None
        self.run_state = None
        try:
            self._open(vcpus, timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _open(self, vcpus: Sequence[int] | None, timeout_s: float) -> None:
        process = self._address.process
        self.pid = self._address.pid
        self._open_qmp(timeout_s)
        if self._qmp is not None:
            self.run_state = self._qmp.status()
            self.was_running = self.run_state == "running"
            if self.pid is None:
                # libvirt opens the socket before it starts QEMU, so the kernel may name libvirt.
                process = find_process(self._qmp.pid) if self._qmp.pid is not None else None
                self.pid = process.pid if process else None
        resume = self._resume_at_exit if self._resume_at_exit is not None else self.was_running is not False
        gdb = self._find_stub(process, resume)
        hint = self._qmp.architecture() if self._qmp else process.architecture if process else None
        self.target = Target.open(gdb, vcpus=vcpus, architecture_hint=hint, resume_at_exit=resume, timeout_s=timeout_s)
        self._closing.append(self._detach)
        self.architecture = self.target.architecture
        self.vcpus = self.target.vcpus
        if self.pid is None and (listener := self.target.peer_pid()) is not None:
            process = find_process(listener)
            self.pid = process.pid if process else None
        opened = self._open_memory()
        self.memory = opened.as_physical()
        self.memory_reason = opened.fallback_reason
        self._process = process
        self._open_files()
        self.qemu_version = self._qmp.version() if self._qmp else self.target.monitor("info version").strip() or "unknown"
        self.accelerator = self._find_accelerator(process)

    def _open_qmp(self, timeout_s: float) -> None:
        if self._address.qmp is None:
            return
        try:
            self._qmp = Qmp.open(self._address.qmp, min(timeout_s, 3.0))
        except TransportError:
            if self._address.qmp_is_asked_for or self._address.gdb is None:
                raise
            return
        self._closing.append(self._qmp.close)

    def _find_stub(self, process: QemuProcess | None, resume: bool) -> str:
        """The stub's address; the guard is on duty before the guest can be halted."""
        gdb = self._address.gdb or (process.gdb if process else None)
        if gdb is None and self._qmp is not None:
            gdb = self._qmp.find_gdbstub()
        qmp = self._address.qmp if self._qmp is not None else None
        if gdb is not None:
            if resume:
                directory = self._make_directory() if qmp is not None and self._sources.storage else None
                self._start_guard(Guard(gdb, qmp=qmp, exports=self._socket, remove=directory))
            return gdb
        if self._qmp is None:
            raise TransportError("this QEMU has no gdb stub and no QMP socket to open one with; start it with -s")
        directory = self._make_directory()
        gdb = f"unix:{directory}/gdb"
        self._start_guard(Guard(gdb, qmp=qmp, opened=True, exports=self._socket, remove=directory))
        # Before, not behind: it may be interrupted when QEMU has already done it.
        self._closing.append(self._close_stub)
        self._qmp.open_gdbstub(f"{directory}/gdb")
        return gdb

    def _make_directory(self) -> Path:
        """A private directory for sockets that QEMU opens for us; removed at the end, by the guard if need be."""
        directory = _private_directory(self.pid)
        self._closing.append(lambda: self._remove_directory(directory))
        self._socket = directory / "nbd" if self._sources.storage else None
        return directory

    def _remove_directory(self, directory: Path) -> None:
        if self._certain:
            shutil.rmtree(directory, ignore_errors=True)
        # Else the guard does: the socket in there tells it that QEMU serves its disks to us.

    def _open_files(self) -> None:
        """Contents of files; nothing is opened before the first is wanted."""
        sources = self._sources
        if sources.is_empty:
            return
        qmp, process = (self._qmp, self._process) if sources.storage else (None, None)
        disks = GuestDisks(qmp, process, socket=self._socket, sysroots=sources.sysroots, symbol_dirs=sources.symbol_dirs)
        self._closing.append(lambda: self._close_files(disks))
        self.files = disks

    def _close_files(self, disks: GuestDisks) -> None:
        """Take QEMU's exports away; if that cannot be done, the guard is to try."""
        certain, self._certain = self._certain, False
        self._certain = (disks.close() or self._has_ended()) and certain

    def _start_guard(self, guard: Guard) -> None:
        # QMP serves one client: it must be free before the guard needs it, so the guard is dismissed or called after it is closed.
        self._closing.insert(0, lambda: guard.goodbye() if self._certain else guard.call())

    def _open_memory(self) -> OpenedMemory:
        opened = open_memory(self.target, self.pid, self._qmp.monitor if self._qmp else None, self._max_halt_s)
        self._closing.append(opened.memory.close)
        return opened

    def _find_accelerator(self, process: QemuProcess | None) -> str:
        monitor = self._qmp.monitor if self._qmp else self.target.monitor
        with contextlib.suppress(StubError):
            if "kvm support: enabled" in monitor("info kvm"):
                return "kvm"
        named = process.accelerator if process else None
        if named is not None and named != "kvm":
            return named
        with contextlib.suppress(StubError):
            # Other accelerators answer that there is no translation buffer; builds without TCG do not know the command.
            if "Translation buffer" in monitor("info jit"):
                return "tcg"
        return "unknown"

    def poll_events(self) -> list[QmpEvent]:
        """RESET, SHUTDOWN and the like since the last call; nothing without QMP. Call it at least once a second."""
        return self._qmp.poll_events() if self._qmp else []

    def _detach(self) -> None:
        resume = self.target.resume_at_exit
        before, self._certain = self._certain, False
        certain = self.target.detach()
        if self._qmp is not None and resume:
            with contextlib.suppress(GuestprofError):
                if self._qmp.status() == "paused":
                    self._qmp.resume()
                certain = True
        self._certain = before and (certain or self._has_ended())

    def _close_stub(self) -> None:
        """Take away the stub that we opened; if that cannot be done, the guard is to try."""
        certain = self._certain
        self._certain = False
        try:
            if self._qmp is not None:
                self._qmp.close_gdbstub()
        except GuestprofError:
            certain = certain and self._has_ended()
        self._certain = certain

    def _has_ended(self) -> bool:
        """Whether QEMU is known to be gone: then there is nothing to resume."""
        return self.pid is not None and find_process(self.pid) is None

    def close(self) -> None:
        """Detach, take away the stub that we opened, dismiss the guard. A second call does nothing.

        Raises nothing but what interrupts it (Ctrl-C, SIGTERM), and that when all is done.
        """
        interruption: BaseException | None = None
        while self._closing:
            step = self._closing.pop()
            # One step that fails or is interrupted must not keep the others from being taken.
            try:
                step()
            except GuestprofError:
                continue
            except BaseException as error:  # noqa: BLE001  (raised below)
                interruption = error
        if interruption is not None:
            raise interruption


def _private_directory(pid: int | None) -> Path:
    """A directory for the stub's socket that only QEMU's user and we can enter."""
    directory = make_private_directory()
    if pid is not None and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = Path(f"/proc/{pid}").stat().st_uid
            os.chown(directory, owner, -1)
    return directory
