"""A target's address → everything that profiling it needs, opened in order and closed in the opposite one, the guest running.

The attachment (``sampler/attachment.py``) → the target → memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.memory import PhysicalMemory
from sampler.attachment import Attachment
from sampler.discovery import TargetAddress
from sampler.memory import DEFAULT_MAX_HALT_S, OpenedMemory, open_memory
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


class Session(Attachment):
    """A guest that is ready to be profiled; halted at first. See ``Attachment``.

    memory_reason: why memory is read through the stub, "" if it is not.
    """

    target: Target
    memory: PhysicalMemory
    architecture: Architecture
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
        super().__init__(address, resume_at_exit=resume_at_exit)
        self._max_halt_s = max_halt_s
        self._sources = sources
        self.files: GuestDisks | None = None
        try:
            self._open(vcpus, timeout_s)
        except BaseException:
            self.close()
            raise

    def _open(self, vcpus: Sequence[int] | None, timeout_s: float) -> None:
        gdb, resume = self._attach(timeout_s, exports=self._sources.storage)
        hint = self._qmp.architecture() if self._qmp else self._process.architecture if self._process else None
        with self._halting():
            self.target = Target.open(gdb, vcpus=vcpus, architecture_hint=hint, resume_at_exit=resume, timeout_s=timeout_s)
            self._closing.append(self._detach)
        self.architecture = self.target.architecture
        self.vcpus = self.target.vcpus
        if self.pid is None and (listener := self.target.peer_pid()) is not None:
            self._note_process(listener)
        opened = self._open_memory()
        self.memory = opened.as_physical()
        self.memory_reason = opened.fallback_reason
        self._open_files()
        self.qemu_version = self._qmp.version() if self._qmp else self.target.monitor("info version").strip() or "unknown"
        self.accelerator = self._find_accelerator(self._qmp.monitor if self._qmp else self.target.monitor)

    @property
    def monitor(self) -> Callable[[str], str] | None:
        """QEMU's human monitor; None where only the stub could ask it, which halts the guest."""
        return self._qmp.monitor if self._qmp else None

    def facts(self) -> dict[str, object]:
        """What a recording's reader may ask for."""
        return {
            "architecture": self.architecture.name,
            "memory": self.memory_reason or "process",
            "registers": self.target.layout.to_json(),
        }

    def how(self) -> str:
        """For people: how the guest is read."""
        how = f"through the stub ({self.memory_reason})" if self.memory_reason else "from QEMU's process"
        return f"QEMU {self.qemu_version}; guest memory is read {how}."

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

    def _open_memory(self) -> OpenedMemory:
        opened = open_memory(self.target, self.pid, self._qmp.monitor if self._qmp else None, self._max_halt_s)
        self._closing.append(opened.memory.close)
        return opened

    def _detach(self) -> None:
        self._note_detached(self.target.resume_at_exit, self.target.detach)
