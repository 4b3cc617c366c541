"""A target's address → its QMP socket, a gdb stub and the guard: what comes before any engine, and is closed behind it.

QMP (if there is any) → a gdb stub (opened through QMP if there is none) → the guard, before the guest can be halted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from recording.errors import GuestprofError, StubError, TransportError
from sampler.discovery import QemuProcess, TargetAddress, find_process
from sampler.guard import Guard
from sampler.launch import make_private_directory
from sampler.qmp import Qmp, QmpEvent


class Attachment:
    """A guest that an engine may be connected to. Leaving the context lets it run (or leaves it paused, if it was).

    resume_at_exit: None keeps a guest paused that was paused before us, True lets it run in any case (``boot`` starts it paused).
    stub_address: the gdb stub's. qemu_version: "unknown" where nobody tells.
    was_running: False if the guest was paused when we came, None where nobody can tell (no QMP). run_state: QEMU's word for it.
    """

    stub_address: str
    accelerator: str
    qemu_version: str
    vcpus: tuple[int, ...]
    pid: int | None
    was_running: bool | None
    run_state: str | None

    def __init__(self, address: TargetAddress, *, resume_at_exit: bool | None = None) -> None:
        self._address = address
        self._resume_at_exit = resume_at_exit
        self._process: QemuProcess | None = address.process
        self._socket: Path | None = None
        self._closing: list[Callable[[], None]] = []
        self._qmp: Qmp | None = None
        self._certain = True
        self.pid = address.pid
        self.was_running = None
        self.run_state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _attach(self, timeout_s: float, *, exports: bool) -> tuple[str, bool]:
        """The stub's address, the guard on duty, and whether the guest is to run afterwards. exports: QEMU may serve its disks."""
        self._open_qmp(timeout_s)
        if self._qmp is not None:
            self.run_state = self._qmp.status()
            self.was_running = self.run_state == "running"
            if self.pid is None:
                # libvirt opens the socket before it starts QEMU, so the kernel may name libvirt.
                self._note_process(self._qmp.pid)
        resume = self._resume_at_exit if self._resume_at_exit is not None else self.was_running is not False
        self.stub_address = self._find_stub(resume, exports=exports)
        return self.stub_address, resume

    def _note_process(self, pid: int | None) -> None:
        """QEMU may be this process."""
        self._process = find_process(pid) if pid is not None else None
        self.pid = self._process.pid if self._process else None

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

    def _find_stub(self, resume: bool, *, exports: bool) -> str:
        """The stub's address; the guard is on duty before the guest can be halted."""
        gdb = self._address.gdb or (self._process.gdb if self._process else None)
        if gdb is None and self._qmp is not None:
            gdb = self._qmp.find_gdbstub()
        qmp = self._address.qmp if self._qmp is not None else None
        if gdb is not None:
            if resume:
                directory = self._make_directory(exports=exports) if qmp is not None and exports else None
                self._start_guard(Guard(gdb, qmp=qmp, exports=self._socket, remove=directory))
            return gdb
        if self._qmp is None:
            raise TransportError("this QEMU has no gdb stub and no QMP socket to open one with; start it with -s")
        directory = self._make_directory(exports=exports)
        gdb = f"unix:{directory}/gdb"
        self._start_guard(Guard(gdb, qmp=qmp, opened=True, exports=self._socket, remove=directory))
        # Before, not behind: it may be interrupted when QEMU has already done it.
        self._closing.append(self._close_stub)
        self._qmp.open_gdbstub(f"{directory}/gdb")
        return gdb

    def _make_directory(self, *, exports: bool) -> Path:
        """A private directory for sockets that QEMU opens for us; removed at the end, by the guard if need be."""
        directory = _private_directory(self.pid)
        self._closing.append(lambda: self._remove_directory(directory))
        self._socket = directory / "nbd" if exports else None
        return directory

    def _remove_directory(self, directory: Path) -> None:
        if self._certain:
            shutil.rmtree(directory, ignore_errors=True)
        # Else the guard does: the socket in there tells it that QEMU serves its disks to us.

    def _start_guard(self, guard: Guard) -> None:
        # QMP serves one client: it must be free before the guard needs it, so the guard is dismissed or called after it is closed.
        self._closing.insert(0, lambda: guard.goodbye() if self._certain else guard.call())

    def _find_accelerator(self, monitor: Callable[[str], str]) -> str:
        """What runs the guest's code. monitor: gives the output of a command of QEMU's monitor, or raises StubError."""
        with contextlib.suppress(StubError):
            if "kvm support: enabled" in monitor("info kvm"):
                return "kvm"
        named = self._process.accelerator if self._process else None
        if named is not None and named != "kvm":
            return named
        with contextlib.suppress(StubError):
            # Other accelerators answer that there is no translation buffer; builds without TCG do not know the command.
            if "Translation buffer" in monitor("info jit"):
                return "tcg"
        return "unknown"

    @property
    def name(self) -> str:
        """What to call the guest."""
        return f"QEMU {self.pid or self.stub_address}"

    def poll_events(self) -> list[QmpEvent]:
        """RESET, SHUTDOWN and the like since the last call; nothing without QMP. Call it at least once a second."""
        return self._qmp.poll_events() if self._qmp else []

    @contextlib.contextmanager
    def _halting(self) -> Iterator[None]:
        """Around what halts the guest, to the point from which a step of ours lets it go: what interrupts it has the guard called.

        Whatever raises one of our own errors within leaves the guest running by itself.
        """
        certain, self._certain = self._certain, False
        try:
            yield
        except GuestprofError:
            self._certain = certain
            raise
        self._certain = certain

    def _note_detached(self, resume: bool, detach: Callable[[], bool]) -> None:
        """Detach from the stub. detach: whether it is certain that the guest is left as it is to be, which is running if resume."""
        before, self._certain = self._certain, False
        certain = detach()
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
