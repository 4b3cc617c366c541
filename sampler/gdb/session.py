"""A target's address and a gdb → gdb connected to the guest through the relay, everything closed in order, the guest running.

The attachment (``sampler/attachment.py``) → gdb with its files read → the stub's connection, which halts the guest → the relay.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from guest.elf.images import ImageRequest
from recording.errors import BadImageError, GuestprofError, MissingDependencyError, StubError
from sampler.attachment import Attachment
from sampler.discovery import TargetAddress
from sampler.gdb.images import ImageStore
from sampler.gdb.mi import quote
from sampler.gdb.process import Gdb, GdbFailedError
from sampler.gdb.relay import Relay
from sampler.gdb.target import DEPTH_LIMIT, GdbTarget
from sampler.launch import make_private_directory
from sampler.stub import Stub
from sampler.transport import Connection

PROGRAMS = ("gdb-multiarch", "gdb")
"""What is looked for where the user names no gdb."""
_LOAD_TIMEOUT_S = 600.0
_DETACH_TIMEOUT_S = 5.0
_ENTRY = re.compile(r"^\s*Entry point: (0x[0-9a-f]+)$", re.MULTILINE)
_FUNCTION = re.compile(r"(\S+) in section ")
_ESCAPED = " \t\"'\\"

_REQUIRED_SETTINGS = (
    # Since gdb 7.8; so that gdb listens while the guest runs.
    "mi-async on",
    "non-stop off",
)
_SETTINGS = (
    # The relay lets none of it pass in any case.
    *("may-write-memory off", "may-write-registers off", "may-insert-tracepoints off", "may-insert-fast-tracepoints off"),
    *("auto-solib-add off", "stop-on-solib-events 0", "debuginfod enabled off", "history save off"),
    *("pagination off", "height 0", "width 0", "print thread-events off", "print inferior-events off"),
    # What gdb prints of each halt: no more than it must read memory for.
    *("print frame-arguments none", "print entry-values no"),
    *("backtrace past-main on", f"backtrace limit {DEPTH_LIMIT}", "scheduler-locking off"),
    # Processes of the remote protocol have other detach packets, which QEMU then expects of everybody who comes later.
    *("remote multiprocess-feature-packet off", "remote noack-packet off", "remote exec-file none"),
)
"""Those that a gdb does not know do not matter."""


@dataclass(frozen=True, slots=True)
class GdbOptions:
    """program: gdb, None for the one that is installed. files: with symbols.

    commands: of the user's, before gdb connects. timeout_s: for each answer of gdb's.
    """

    program: str | None = None
    files: tuple[ImageRequest, ...] = ()
    commands: tuple[str, ...] = ()
    timeout_s: float = 10.0

    def find_program(self) -> str:
        """The gdb to start. Raises MissingDependencyError."""
        names = PROGRAMS if self.program is None else (self.program,)
        found = next(filter(None, map(shutil.which, names)), None)
        if found is None:
            missing = f"{self.program} is not installed" if self.program else f"neither {' nor '.join(PROGRAMS)} is installed"
            raise MissingDependencyError(
                f"{missing}, and --engine gdb needs one; install it (Debian: apt-get install gdb-multiarch), or name one by --gdb"
            )
        return found


class GdbSession(Attachment):
    """A guest that gdb is connected to; halted at first. See ``Attachment``."""

    gdb: Gdb
    target: GdbTarget
    images: ImageStore

    def __init__(
        self,
        address: TargetAddress,
        options: GdbOptions,
        *,
        vcpus: Sequence[int] | None = None,
        resume_at_exit: bool | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Raises MissingDependencyError, GdbFailedError or GdbCommandError for gdb, TransportError or StubError for the stub."""
        super().__init__(address, resume_at_exit=resume_at_exit)
        self._options = options
        self._connection: Connection | None = None
        self._connected: GdbTarget | None = None
        self._timeout_s = timeout_s
        try:
            self._open(vcpus)
        except BaseException:
            self.close()
            raise

    def _open(self, vcpus: Sequence[int] | None) -> None:
        options = self._options
        program = options.find_program()
        # Reading symbols may take a minute; the guest is not halted before it is done.
        self.gdb = Gdb(program, timeout_s=options.timeout_s)
        self._closing.append(self.gdb.close)
        self._prepare()
        address, resume = self._attach(self._timeout_s, exports=False)
        directory = make_private_directory()
        self._closing.append(lambda: shutil.rmtree(directory, ignore_errors=True))
        relay = self.gdb.relay = Relay(directory / "stub")
        self._closing.append(relay.close)
        with self._halting():
            self._connection = Connection.open(address, self._timeout_s)
            self._closing.append(self._connection.close)
            self._closing.append(lambda: self._note_detached(self._resumes(resume), lambda: self._detach(resume)))
        relay.connect(self._connection)
        if self.pid is None and (listener := self._connection.peer_pid()) is not None:
            self._note_process(listener)
        self._connect(relay)
        self.target = self._connected = GdbTarget(self.gdb, address, vcpus=vcpus, resume_at_exit=resume)
        self.vcpus = self.target.vcpus
        self.images = ImageStore(self.gdb, options.files)
        self.roots = frozenset({"main", *self._entry_function()})
        """Functions that nothing calls."""
        self.qemu_version = self._qmp.version() if self._qmp else "unknown"
        self.accelerator = self._find_accelerator(self._qmp.monitor if self._qmp else _no_monitor)
        self.gdb_version = self.gdb.ask("-gdb-version").console().partition("\n")[0]
        frame = self.gdb.run(["-stack-info-frame"])[0].result.results().get("frame")
        self.architecture_name = str(frame.get("arch", "unknown")) if isinstance(frame, dict) else "unknown"
        """As gdb calls it."""

    def facts(self) -> dict[str, object]:
        """What a recording's reader may ask for."""
        return {"architecture": self.architecture_name, "engine": self.gdb_version}

    def how(self) -> str:
        """For people: how the guest is read."""
        return f"{self.gdb_version} ({self.gdb.program}) unwinds; it calls the processor {self.architecture_name}."

    def _prepare(self) -> None:
        """Settings, files and the user's own commands. Raises GdbCommandError where one is refused."""
        gdb, files = self.gdb, self._options.files
        for answer in gdb.run([f"-gdb-set {setting}" for setting in _REQUIRED_SETTINGS]):
            answer.require()
        gdb.run([f"-gdb-set {setting}" for setting in _SETTINGS])
        for number, file in enumerate(files):
            if not file.path.is_file():
                raise BadImageError(f"there is no file {file.path}; give the ELF file that the guest runs (--elf)")
            absolute = str(file.path.absolute())
            if number == 0 and not file.bias:
                command = f"-file-exec-and-symbols {quote(absolute)}"
            else:
                escaped = "".join(f"\\{character}" if character in _ESCAPED else character for character in absolute)
                command = f"-interpreter-exec console {quote(f'add-symbol-file {escaped} -o {file.bias:#x}')}"
            gdb.ask(command, timeout_s=_LOAD_TIMEOUT_S)
        for command in self._options.commands:
            answer = gdb.run([f"-interpreter-exec console {quote(command)}"], timeout_s=_LOAD_TIMEOUT_S)[0]
            replace(answer, command=command).require()

    def _entry_function(self) -> list[str]:
        """The name of the function at the files' entry point, where they have one."""
        entry = _ENTRY.search(self.gdb.run(['-interpreter-exec console "info files"'])[0].console())
        if entry is None:
            return []
        found = _FUNCTION.match(self.gdb.run([f'-interpreter-exec console "info symbol {entry[1]}"'])[0].console())
        return [found[1]] if found is not None else []

    def _connect(self, relay: Relay) -> None:
        try:
            self.gdb.ask(f"-target-select remote {relay.path}", timeout_s=max(self._timeout_s, self._options.timeout_s))
        except GdbFailedError:
            raise
        except GuestprofError as error:
            raise StubError(f"gdb cannot work with the stub: {error}; check the address, --elf and --gdb-command") from error

    def _resumes(self, wanted: bool) -> bool:
        """Whether the guest is to run afterwards."""
        return wanted if self._connected is None else self._connected.resume_at_exit

    def _detach(self, wanted: bool) -> bool:
        """Let the guest go, by gdb or without it; whether that is certain."""
        if not self._resumes(wanted):
            return True
        if self._connected is not None:
            with contextlib.suppress(GuestprofError):
                self._connected.detach(min(_DETACH_TIMEOUT_S, self._options.timeout_s))
                return True
        self.gdb.close()
        if self._connection is None:
            return False
        stub = Stub(self._connection, min(_DETACH_TIMEOUT_S, self._timeout_s))
        try:
            stub.interrupt()
            stub.detach()
        except GuestprofError:
            # The guard connects anew.
            return False
        return True


def _no_monitor(_command: str) -> str:
    raise StubError("there is no QMP socket")
