"""What the user points at (address, process, QMP socket, or nothing) → the sockets and the process of one QEMU.

Nothing here connects to a gdb stub: that would halt the guest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from recording.errors import TransportError
from sampler.drives import StorageFacts, parse_storage, split_options, split_settings
from sampler.qmp import socket_address
from sampler.transport import split_address

_BINARY = re.compile(r"qemu-system-(\w+)|qemu-kvm")
_MAX_LISTED = 20
_ADVICE = (
    "restart it with -s and -qmp unix:/tmp/qmp,server=on,wait=off, or open a gdb stub in its monitor: gdbserver tcp:127.0.0.1:1234"
    " (libvirt: virsh qemu-monitor-command DOMAIN --hmp 'gdbserver tcp:127.0.0.1:1234')"
)

_NO_FACTS = StorageFacts()


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A QEMU on this machine, by its command line.

    gdb, qmp: addresses to connect to, or None. architecture: from the binary's name. accelerator: from the options. None: not said.
    storage: where the guest's files may be found on this host.
    """

    pid: int
    name: str
    gdb: str | None
    qmp: str | None
    architecture: str | None
    accelerator: str | None
    storage: StorageFacts = _NO_FACTS


@dataclass(frozen=True, slots=True)
class TargetAddress:
    """Where a target is. At least one of ``gdb`` and ``qmp`` is known.

    qmp_is_asked_for: the user named the QMP socket, so failing to use it is an error. process: what the command line tells.
    """

    gdb: str | None
    qmp: str | None
    pid: int | None
    qmp_is_asked_for: bool = False
    process: QemuProcess | None = None


def parse_command_line(
    pid: int, arguments: Sequence[str], cwd: Path | None, sockets: Mapping[int, str] | None = None
) -> QemuProcess:
    """What QEMU's options say of its sockets. sockets: paths of its unix sockets by file descriptor (for ``fd=`` of libvirt)."""
    options = list(split_options(arguments))
    chardevs = dict(_chardevs(options, cwd, sockets or {}))
    gdb = qmp = accelerator = None
    name = ""
    for option, value in options:
        if option == "s":
            gdb = "127.0.0.1:1234"
        elif option == "gdb":
            gdb = _device_address(value, chardevs, cwd)
        elif option in ("qmp", "qmp-pretty"):
            qmp = qmp or _device_address(value, chardevs, cwd)
        elif option == "mon":
            settings = split_settings(value, "chardev")
            if settings.get("mode") == "control":
                qmp = qmp or chardevs.get(settings.get("chardev", ""))
        elif option == "name":
            name = split_settings(value, "guest").get("guest", "")
        elif option == "enable-kvm":
            accelerator = "kvm"
        elif option == "accel":
            accelerator = accelerator or value.split(",")[0]
        elif option in ("machine", "M"):
            # "kvm:tcg" means the first that works, so it tells nothing.
            chosen = split_settings(value, "type").get("accel", "")
            accelerator = accelerator or (chosen if chosen and ":" not in chosen else None)
    binary = _BINARY.search(Path(arguments[0]).name) if arguments else None
    return QemuProcess(pid, name, gdb, qmp, binary[1] if binary else None, accelerator, parse_storage(options, cwd))


def _chardevs(options: Iterable[tuple[str, str]], cwd: Path | None, sockets: Mapping[int, str]) -> Iterable[tuple[str, str]]:
    for option, value in options:
        if option != "chardev":
            continue
        settings = split_settings(value, "backend")
        if settings.get("backend") != "socket" or "id" not in settings:
            continue
        descriptor = settings.get("fd", "")
        if "path" in settings:
            yield settings["id"], _unix(settings["path"], cwd)
        elif "port" in settings:
            yield settings["id"], _tcp(settings.get("host", ""), settings["port"])
        elif descriptor.isdecimal() and int(descriptor) in sockets:
            yield settings["id"], _unix(sockets[int(descriptor)], cwd)


def _device_address(value: str, chardevs: Mapping[str, str], cwd: Path | None) -> str | None:
    kind, _, rest = value.partition(":")
    if kind == "chardev":
        return chardevs.get(rest)
    where = next(iter(split_settings(rest, "where").values()), "")
    if kind == "unix" and where:
        return _unix(where, cwd)
    host, colon, port = where.rpartition(":")
    if kind == "tcp" and colon and port.isdecimal():
        return _tcp(host, port)
    return None


def _unix(path: str, cwd: Path | None) -> str:
    return f"unix:{path if cwd is None else cwd / path}"


def _tcp(host: str, port: str) -> str:
    bare = host.removeprefix("[").removesuffix("]")
    if bare in ("", "0.0.0.0", "::"):  # noqa: S104  (a server's "everywhere" is here for a client)
        bare = "127.0.0.1"
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def find_processes() -> list[QemuProcess]:
    """The QEMU system emulators on this machine whose command line we may read, by pid."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            described = describe_process(process)
            if described is not None:
                found.append(described)
    return sorted(found, key=lambda one: one.pid)


def describe_process(process: psutil.Process) -> QemuProcess | None:
    """A process's sockets, or None if it is no QEMU system emulator; raises psutil's errors."""
    arguments = process.cmdline()
    if not arguments or not _BINARY.fullmatch(Path(arguments[0]).name) or process.status() == psutil.STATUS_ZOMBIE:
        return None
    cwd = None
    with contextlib.suppress(psutil.Error):
        cwd = Path(process.cwd())
    sockets: dict[int, str] = {}
    with contextlib.suppress(psutil.Error):
        sockets = {one.fd: str(one.laddr) for one in process.net_connections("unix") if one.laddr}
    return parse_command_line(process.pid, arguments, cwd, sockets)


def find_process(pid: int) -> QemuProcess | None:
    """The QEMU of a pid, or None if it is another program or may not be looked at."""
    with contextlib.suppress(psutil.Error):
        return describe_process(psutil.Process(pid))
    return None


def find_listener(port: int) -> int | None:
    """The process that listens at a local TCP port, or None where we may not know."""
    with contextlib.suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
                return int(one.pid) if one.pid else None
    return None


def resolve_target(connect: str | None = None, pid: int | None = None, qmp: str | None = None) -> TargetAddress:
    """The target that the options name; by default the only QEMU on this machine. Raises TransportError with what to do."""
    if connect is not None:
        return _resolve_connect(connect, qmp, pid)
    if qmp is not None:
        return _resolve_qmp(qmp, pid)
    if pid is not None:
        process = find_process(pid)
        if process is None:
            raise TransportError(
                f"process {pid} is no QEMU system emulator, or not yours; check the number, or run guestprof as QEMU's user"
            )
        return _of_process(process)
    processes = find_processes()
    if not processes:
        raise TransportError("no QEMU runs on this machine; start one, or give --connect HOST:PORT")
    if len(processes) > 1:
        listed = "; ".join(_describe(one) for one in processes[:_MAX_LISTED])
        raise TransportError(f"{len(processes)} QEMUs run on this machine; choose one with --pid: {listed}")
    return _of_process(processes[0])


def _describe(process: QemuProcess) -> str:
    details = [process.name, process.architecture or "", f"gdb {process.gdb}" if process.gdb else "no gdb stub"]
    return f"{process.pid} ({', '.join(detail for detail in details if detail)})"


def _of_process(process: QemuProcess) -> TargetAddress:
    if process.gdb is None and process.qmp is None:
        raise TransportError(f"QEMU {process.pid} has neither a gdb stub nor a QMP socket: {_ADVICE}")
    return TargetAddress(process.gdb, process.qmp, process.pid, process=process)


def _resolve_connect(connect: str, qmp: str | None, pid: int | None) -> TargetAddress:
    where = split_address(connect)
    process = find_process(pid) if pid is not None else None
    if process is None and isinstance(where, str):
        wanted = f"unix:{Path(where).absolute()}"
        process = next((one for one in find_processes() if one.gdb == wanted), None)
    elif process is None and not isinstance(where, str) and where[0] in ("127.0.0.1", "localhost", "::1"):
        listener = find_listener(where[1])
        process = find_process(listener) if listener is not None else None
    if process is None:
        return TargetAddress(connect, qmp, pid, qmp is not None)
    return TargetAddress(connect, qmp or process.qmp, process.pid, qmp is not None, process)


def _resolve_qmp(qmp: str, pid: int | None) -> TargetAddress:
    where = socket_address(qmp)
    process = find_process(pid) if pid is not None else None
    if process is None and isinstance(where, str):
        wanted = f"unix:{Path(where).absolute()}"
        process = next((one for one in find_processes() if one.qmp == wanted), None)
    found = TargetAddress(process.gdb if process else None, qmp, process.pid if process else pid, True, process)
    return replace(found, pid=pid) if pid is not None else found
