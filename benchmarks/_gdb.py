"""One long-lived gdb with a kernel's or a program's files, and the small stub that shows it a halted vCPU: registers → frames.

QEMU serves one gdb client at a time, and that is guestprof's. So gdb is connected to a stub of the benchmark, which answers ``g``
with the register bytes that QEMU sent and ``m`` with guest memory read at that moment, a page at a time. What guestprof copied of
the stack in the halt is not used: should it be wrong or too little, gdb does not share the fault.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sampler.gdb.mi import quote
from sampler.gdb.process import Gdb as EngineGdb
from sampler.rsp.codec import PacketReader, encode_packet

PAGE = 4096
_SCRIPT = Path(__file__).with_name("_gdb_script.py")
_LOAD_TIMEOUT_S = 600.0
_TIMEOUT_S = 120.0
_MAX_READ = 1 << 16

_SETTINGS = (
    # Both sides share a busy machine; a packet that gdb sends again would be answered twice.
    "remotetimeout 60",
    "pagination off",
    "height 0",
    "auto-solib-add off",
    "debuginfod enabled off",
    # Every byte that gdb uses comes from the halted guest, not from a cache and not from the file.
    "stack-cache off",
    "code-cache off",
    "trust-readonly-sections off",
    "backtrace past-main on",
    "backtrace past-entry on",
    "backtrace limit unlimited",
)

ReadPage = Callable[[int], "bytes | None"]
"""The page at an address, or None where none is mapped."""

_FIXED_REPLIES = {
    b"?": b"T05thread:1;",
    b"qC": b"QC1",
    b"qAttached": b"1",
    b"qfThreadInfo": b"m1",
    b"qsThreadInfo": b"l",
    b"QStartNoAckMode": b"OK",
    b"D": b"OK",
}


@dataclass(frozen=True, slots=True)
class GdbLayout:
    """What gdb takes a target without a description of its registers for.

    program: which gdb. architecture: gdb's name of it. registers: name ("" for what stays 0) and bytes of each in the order of a
    ``g`` reply, as many as are needed. kept: those whose values are told of each frame, the stack pointer first.
    """

    program: str
    architecture: str
    byteorder: Literal["little", "big"]
    registers: tuple[tuple[str, int], ...]
    kept: tuple[str, ...]

    def encode(self, values: Mapping[str, int]) -> bytes:
        """The bytes of a ``g`` reply; what is not given is 0."""
        return b"".join((values.get(name, 0) & (1 << 8 * size) - 1).to_bytes(size, self.byteorder) for name, size in self.registers)


_X86_64 = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip"
X86_64 = GdbLayout(
    "gdb",
    "i386:x86-64",
    "little",
    (*((name, 8) for name in _X86_64.split()), ("eflags", 4), *((("", 4),) * 6)),
    # What a function leaves as it found it (System V ABI).
    ("rsp", "rbp", "rbx", "r12", "r13", "r14", "r15"),
)
KEPT_REGISTERS = X86_64.kept


def encode_registers(values: Mapping[str, int]) -> bytes:
    """Of x86-64, see ``GdbLayout.encode``."""
    return X86_64.encode(values)


@dataclass(frozen=True, slots=True)
class GdbFrame:
    """One real frame as gdb sees it: its pc, its function's name ("" if none), its values of ``GdbLayout.kept``."""

    pc: int
    name: str
    registers: tuple[int, ...]

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self.registers[0]


@dataclass(frozen=True, slots=True)
class GdbWalk:
    """gdb's frames, leaf first, and what gdb gave as the reason for their end."""

    frames: tuple[GdbFrame, ...]
    stop: str


class Gdb:
    """The gdb engine's gdb, connected to a stub of ours. Ends when the ``with`` block ends."""

    def __init__(self, load: Sequence[str], layout: GdbLayout = X86_64) -> None:
        """``load``: the gdb commands that read the symbols.

        Raises MissingDependencyError, or GuestprofError where gdb ends, hangs or refuses something.
        """
        settings = (f"architecture {layout.architecture}", f"endian {layout.byteorder}", *_SETTINGS)
        registers = json.dumps(layout.kept)
        self._walk = f"-interpreter-exec console {quote(f'python tell({registers})')}"
        self._closing = ExitStack()
        try:
            directory = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="gp-gdb-")))
            self._gdb = self._closing.enter_context(EngineGdb(layout.program, timeout_s=_TIMEOUT_S))
            self._stub = _Stub(directory / "stub", sum(size for _name, size in layout.registers))
            self._closing.callback(self._stub.close)
            for setting in settings:
                self._gdb.ask(f"-gdb-set {setting}")
            for command in (*load, f"source {_SCRIPT}"):
                self._gdb.ask(f"-interpreter-exec console {quote(command)}", timeout_s=_LOAD_TIMEOUT_S)
            self._gdb.relay = self._stub
            self._gdb.ask(f"-target-select remote {directory / 'stub'}")
        except BaseException:
            self.close()
            raise

    def walk(self, registers: bytes, read_page: ReadPage) -> GdbWalk:
        """What gdb sees of a vCPU: ``registers`` as in a ``g`` reply, at least those of the layout. Raises GuestprofError."""
        self._stub.show(registers, read_page)
        answer = json.loads(self._gdb.ask(self._walk).console())
        frames = tuple(GdbFrame(pc, name, tuple(values)) for pc, name, values in answer["frames"])
        return GdbWalk(frames, answer["stop"])

    def close(self) -> None:
        """End gdb, by its process id."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Stub:
    """Shows gdb one halted vCPU."""

    def __init__(self, path: Path, size: int) -> None:
        """size: of the registers, in bytes."""
        self._size = size
        self._registers = bytes(size)
        self._read_page: ReadPage = lambda _page: None
        self._reader = PacketReader()
        self._acknowledges = True
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def show(self, registers: bytes, read_page: ReadPage) -> None:
        """Another state, or another vCPU."""
        self._registers = registers[: self._size]
        self._read_page = read_page

    def sources(self) -> list[socket.socket]:
        """See ``sampler.gdb.process.Link``."""
        return [self._connection or self._listener]

    def serve(self, _ready: object) -> None:
        """See ``sampler.gdb.process.Link``."""
        if self._connection is None:
            self._connection = self._listener.accept()[0]
            return
        self._reader.feed(self._connection.recv(1 << 16))
        while (packet := self._reader.next_packet()) is not None:
            acknowledgement = b"+" if self._acknowledges else b""
            self._connection.sendall(acknowledgement + encode_packet(self._reply(packet)))
            self._acknowledges = self._acknowledges and packet != b"QStartNoAckMode"

    def _reply(self, packet: bytes) -> bytes:
        if packet.startswith(b"qSupported"):
            return b"PacketSize=4000;QStartNoAckMode+"
        if packet == b"g":
            return self._registers.hex().encode()
        if packet.startswith(b"m"):
            address, size = (int(part, 16) for part in packet[1:].split(b","))
            return self._read(address, min(size, _MAX_READ)).hex().encode() or b"E14"
        if packet.startswith((b"H", b"T")):
            return b"OK"
        return _FIXED_REPLIES.get(packet, b"")

    def _read(self, address: int, size: int) -> bytes:
        """As many of the bytes as are mapped."""
        data = b""
        while len(data) < size:
            at = address + len(data)
            page = self._read_page(at - at % PAGE)
            if page is None:
                break
            data += page[at % PAGE : at % PAGE + size - len(data)]
        return data

    def close(self) -> None:
        """Close both sockets."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
