"""One long-lived gdb with a kernel's or a program's files, and the small stub that shows it a halted vCPU: registers → frames.

QEMU serves one gdb client at a time, and that is guestprof's. So gdb is connected to a stub of the benchmark, which answers ``g``
with the register bytes that QEMU sent and ``m`` with guest memory read at that moment, a page at a time. What guestprof copied of
the stack in the halt is not used: should it be wrong or too little, gdb does not share the fault.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from recording.errors import GuestprofError, MissingDependencyError
from sampler.rsp.codec import PacketReader, encode_packet

PAGE = 4096
_START_TIMEOUT_S = 600.0
_WALK_TIMEOUT_S = 120.0
_MAX_READ = 1 << 16

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


class GdbFailedError(GuestprofError):
    """gdb ended or did not answer; the message holds what it printed."""


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
    """A gdb process. Ends when the ``with`` block ends."""

    def __init__(self, load: str, layout: GdbLayout = X86_64) -> None:
        """``load``: the gdb command that reads the symbols. Raises MissingDependencyError or GdbFailedError."""
        self._size = sum(size for _name, size in layout.registers)
        self._registers = bytes(self._size)
        self._read_page: ReadPage = lambda _page: None
        self._directory = tempfile.TemporaryDirectory(prefix="gp-gdb-")
        path = Path(self._directory.name) / "stub"
        self._log = (Path(self._directory.name) / "log").open("w+b")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            self._control, theirs = socket.socketpair()
            environment = {
                **os.environ,
                "BENCH_ARCHITECTURE": layout.architecture,
                "BENCH_ENDIAN": layout.byteorder,
                "BENCH_REGISTERS": " ".join(layout.kept),
                "BENCH_SYMBOL_FILE": load,
                "BENCH_STUB": str(path),
                "BENCH_CONTROL": str(theirs.fileno()),
            }
            command = [layout.program, "-nx", "-quiet", "-batch", "-x", str(Path(__file__).with_name("_gdb_script.py"))]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            except FileNotFoundError as error:
                message = f"this benchmark compares with {layout.program}, which is not installed; apt install {layout.program}"
                raise MissingDependencyError(message) from error
            theirs.close()
            listener.settimeout(_START_TIMEOUT_S)
            self._connection = self._accept(listener)
        self._reader = PacketReader()
        self._acknowledges = True
        self._answer = bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._connection, selectors.EVENT_READ, self._serve)
        self._selector.register(self._control, selectors.EVENT_READ, self._take_answer)

    def _accept(self, listener: socket.socket) -> socket.socket:
        """The connection. gdb connects when it has read the symbols; until then it may also have ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            ready = [key.fileobj for key, _events in selector.select(_START_TIMEOUT_S)]
        if listener not in ready:
            raise self._failure("gdb did not connect")
        return listener.accept()[0]

    def walk(self, registers: bytes, read_page: ReadPage) -> GdbWalk:
        """What gdb sees of a vCPU: ``registers`` as in a ``g`` reply, at least those of the layout. Raises GdbFailedError."""
        self._registers = registers[: self._size]
        self._read_page = read_page
        self._answer.clear()
        self._control.sendall(b"walk\n")
        while not self._answer.endswith(b"\n"):
            events = self._selector.select(_WALK_TIMEOUT_S)
            if not events:
                raise self._failure("gdb did not answer in time")
            for key, _events in events:
                key.data()
        answer = json.loads(self._answer)
        frames = tuple(GdbFrame(pc, name, tuple(values)) for pc, name, values in answer["frames"])
        return GdbWalk(frames, answer["stop"])

    def _take_answer(self) -> None:
        data = self._control.recv(1 << 16)
        if not data:
            raise self._failure("gdb ended")
        self._answer += data

    def _serve(self) -> None:
        data = self._connection.recv(1 << 16)
        if not data:
            raise self._failure("gdb closed its connection")
        self._reader.feed(data)
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

    def _failure(self, what: str) -> GdbFailedError:
        self._log.seek(0)
        text = " ".join(self._log.read().decode("utf-8", "replace").split())
        return GdbFailedError(f"{what}; it printed: {text[-1000:]!r}")

    def close(self) -> None:
        """End gdb, by its process id."""
        self._control.close()
        self._connection.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        self._log.close()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
