"""Requests ↔ replies of QEMU's gdb stub over one connection: who waits for what, and how to get back in step.

Every reply is matched to its request by order; stop replies can come at any time (QEMU 7.2 sends one when a client connects)
and are set aside. No byte but ``^C`` is ever sent while the guest runs: any other one halts it (gdb_read_byte).
"""

from __future__ import annotations

import binascii
import re
import time
from collections.abc import Callable, Iterable, Sequence

from recording.errors import StubError, TransportError
from sampler.rsp.codec import PacketReader, StopReply, encode_packet, parse_stop_reply
from sampler.transport import CLOSED, Connection

INTERRUPT = b"\x03"
CONTINUE = encode_packet(b"c")
VIRTUAL_MODE = encode_packet(b"Qqemu.PhyMemMode:0")
PHYSICAL_MODE = encode_packet(b"Qqemu.PhyMemMode:1")
DETACH_PROCESS = encode_packet(b"D;1")
DETACH = encode_packet(b"D")
_STOPS = (b"T", b"S", b"W", b"X")
_CURRENT_THREAD = encode_packet(b"qC")
_LAST_OF_OUTPUT = re.compile(rb"\$(?!O[0-9a-f])[^#]*#..", re.DOTALL)
"""The packet that ends a monitor command's output: ``OK``, or an error."""
_MAX_RUN_S = 0.1
_SIGTRAP = 5
_MAX_GARBAGE = 1 << 16
_MAX_FILE = 1 << 22
_MAX_MONITOR_OUTPUT = 1 << 24
_MAX_THREADS = 4096
_DEFAULT_PACKET_SIZE = 400
_MAX_PACKET_SIZE = 1 << 17

_MEANINGS = {
    2: "somebody else paused it (QMP stop, virsh suspend); resume it there and record again",
    3: "it shut down and QEMU keeps it (-no-shutdown)",
    5: "it hit a breakpoint of another debugger; remove the breakpoint and record again",
    6: "QEMU met an internal error",
    14: "its watchdog expired",
    17: "its disk had an I/O error (full host disk?)",
    24: "it is being migrated to another host",
}
"""QEMU's signal numbers of run states (gdbstub/system.c, gdb_vm_state_change)."""


class GuestStoppedError(StubError):
    """The guest stands still for a reason that is not ours. ``signal`` is gdb's number, 2 where somebody paused it."""

    def __init__(self, address: str, signal: int) -> None:
        meaning = _MEANINGS.get(signal, f"the stub reports signal {signal}")
        super().__init__(f"{address}: the guest stopped by itself: {meaning}")
        self.signal = signal

    @property
    def is_paused(self) -> bool:
        """Whether somebody paused the guest and will want to resume it."""
        return self.signal == 2

    @property
    def is_shutdown(self) -> bool:
        """Whether the guest has shut down and QEMU waits (-no-shutdown)."""
        return self.signal == 3

    @property
    def is_breakpoint(self) -> bool:
        """Whether the guest reached a breakpoint."""
        return self.signal == _SIGTRAP


class Stub:
    """One conversation with a stub. ``stops`` holds the stop replies that have come since it was last cleared."""

    def __init__(self, connection: Connection, timeout_s: float, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._connection = connection
        self._reader = PacketReader()
        self._timeout_s = timeout_s
        self._clock = clock
        self._unverified: list[bytes] = []
        self._first_of_halt = b""
        self.stops: list[StopReply] = []
        self.received_ns = 0
        self.packet_size = _DEFAULT_PACKET_SIZE
        self.has_description = False
        self.has_physical_mode = False

    @property
    def address(self) -> str:
        """Where the stub is."""
        return self._connection.address

    def handshake(self) -> None:
        """The first exchange: is this a gdb stub at all, and what can it do. The guest is halted afterwards.

        Raises StubError if nothing answers, or something else than a stub.
        """
        # No "multiprocess+": QEMU remembers it for the life of its process and then wants other detach packets (handle_detach).
        self._connection.send(encode_packet(b"qSupported:xmlRegisters=i386"))
        features = self._first_reply().split(b";")
        sizes = [feature.removeprefix(b"PacketSize=") for feature in features if feature.startswith(b"PacketSize=")]
        try:
            size = int(sizes[0], 16)
        except (IndexError, ValueError) as error:
            raise StubError(f"{self.address} speaks gdb's protocol but states no packet size: it is not QEMU's gdb stub") from error
        self.packet_size = min(max(size, 64), _MAX_PACKET_SIZE)
        self.has_description = b"qXfer:features:read+" in features
        self.has_physical_mode = b"PhyMemMode" in self.request(b"qqemu.Supported").split(b";")
        if self.has_physical_mode:
            # The mode outlives connections (a static variable of QEMU), so a killed client may have left it on.
            self.request(b"Qqemu.PhyMemMode:0")

    def _first_reply(self) -> bytes:
        try:
            reply = self.collect(1, strict=True)[0]
        except _NoAnswerError as error:
            raise StubError(
                f"{self.address} accepts the connection but does not answer: another debugger holds the stub (QEMU serves one at a"
                " time), or it is no gdb stub; close the other debugger or check the address"
            ) from error
        except TransportError as error:
            raise StubError(
                f"{self.address} closed the connection at once: it is no gdb stub, or QEMU is ending; check the address"
            ) from error
        if not reply:
            raise StubError(f"{self.address} speaks gdb's protocol but is not QEMU's gdb stub; check the address")
        return reply

    def send(self, data: bytes) -> None:
        """Send encoded packets (or ``INTERRUPT``)."""
        self._connection.send(data)

    def take_waiting(self) -> None:
        """Read what has come while nothing was asked, so that ``stops`` tells whether the guest stopped by itself."""
        data = self._connection.receive_waiting()
        if data:
            self._reader.feed(data)
            while (payload := self._reader.next_packet()) is not None:
                self._set_aside(payload)

    def collect(self, count: int, *, strict: bool = False) -> list[bytes]:
        """The next ``count`` replies. ``received_ns`` is when the last of their bytes came.

        strict: garbage before the first packet is an error. Raises StubError for garbage and if nothing comes in time.
        """
        replies: list[bytes] = []
        if not count:
            return replies
        reader = self._reader
        deadline = self._clock() + int(self._timeout_s * 1e9)
        while True:
            payload = reader.next_packet()
            if payload is None:
                if reader.skipped and (strict or reader.skipped > _MAX_GARBAGE):
                    raise self._garbage()
                self._receive(deadline)
            elif payload[:1] in _STOPS:
                self._set_aside(payload)
            else:
                replies.append(payload)
                if len(replies) == count:
                    return replies

    def _receive(self, deadline: int) -> None:
        try:
            data = self._connection.receive()
        except TimeoutError:
            data = b""
        self.received_ns = self._clock()
        if not data or self.received_ns > deadline:
            raise self._no_answer()
        self._reader.feed(data)

    def _set_aside(self, payload: bytes) -> None:
        stop = parse_stop_reply(payload)
        if stop is None:
            raise StubError(f"{self.address} sent {payload[:40]!r}, which answers nothing that was asked; it is no sound gdb stub")
        if stop.is_end:
            raise TransportError(f"{self.address}: {CLOSED}")
        self.stops.append(stop)

    def exchange(self, packets: bytes, count: int) -> list[bytes]:
        """Send encoded packets and wait for ``count`` replies, with as little work as possible: the guest stands still meanwhile.

        Replies of the hot path are hexadecimal, ``OK`` or ``E..``, so counting ``#`` tells when all are there. Checksums and
        garbage are left to ``verify``, which must be called when there is time.
        """
        self._connection.send(packets)
        if not count:
            return []
        receive = self._connection.receive
        deadline = self._clock() + int(self._timeout_s * 1e9)
        data = b""
        chunks: list[bytes] = []
        missing = count
        while True:
            try:
                chunk = receive()
            except TimeoutError:
                chunk = b""
            self.received_ns = self._clock()
            if not chunk or self.received_ns > deadline:
                self._reader.feed(b"".join(chunks))
                raise self._no_answer()
            chunks.append(chunk)
            missing -= chunk.count(b"#") - chunk.count(b"T")
            if missing <= 0:
                data = chunk if len(chunks) == 1 else b"".join(chunks)
                if len(data) - data.rfind(b"#") >= 3:
                    break
        self._unverified.append(data)
        if b"}" in data or b"*" in data or b"%" in data:
            return self.verify(count)
        replies = self._split(data)
        if self.stops:
            self._first_of_halt = data
        if len(replies) != count:
            raise StubError(f"{self.address} sent {len(replies)} replies to {count} requests; it is no sound gdb stub")
        return replies

    def _split(self, data: bytes) -> list[bytes]:
        replies = []
        for part in data.split(b"$")[1:]:
            payload = part[: part.find(b"#")]
            if payload[:1] in _STOPS:
                self._set_aside(payload)
            else:
                replies.append(payload)
        return replies

    def rehearse(self) -> list[bytes]:
        """The replies of the last halt's first exchange again, to no end but warm caches."""
        stops = self.stops
        self.stops = []
        replies = self._split(self._first_of_halt)
        self.stops = stops
        return replies

    def verify(self, count: int | None = None) -> list[bytes]:
        """Read strictly what ``exchange`` has read in haste; raises StubError for wrong checksums or garbage.

        count: replies to wait for, of which some may still be under way; without it, nothing is waited for.
        """
        data = b"".join(self._unverified)
        self._unverified.clear()
        self._reader.feed(data)
        if count is not None:
            return self.collect(count)
        while self._reader.next_packet() is not None:
            pass
        if self._reader.skipped > _MAX_GARBAGE:
            raise self._garbage()
        return []

    def _no_answer(self) -> StubError:
        return _NoAnswerError(f"{self.address} did not answer within {self._timeout_s:g} s: QEMU hangs; look at its process")

    def _garbage(self) -> StubError:
        return StubError(f"{self.address} answers in another protocol than gdb's: it is no gdb stub; check the address")

    def request(self, payload: bytes) -> bytes:
        """The reply to one packet; the guest must be halted."""
        self._connection.send(encode_packet(payload))
        return self.collect(1)[0]

    def interrupt(self) -> bool:
        """Halt the guest and get in step again, whatever was under way. Whether a stop reply came.

        Raises StubError or TransportError when the stub does not answer.
        """
        self._unverified.clear()
        for attempt in (1, 2):
            # A ^C behind an unacknowledged reply is swallowed; then the "$" halts the guest and its packet is lost: ask again.
            self._connection.send(INTERRUPT + _CURRENT_THREAD)
            try:
                self._drain_until_thread()
            except _NoAnswerError:
                if attempt == 2:
                    raise
            else:
                break
        stopped = bool(self.stops)
        self.stops.clear()
        return stopped

    def _drain_until_thread(self) -> None:
        deadline = self._clock() + int(self._timeout_s * 1e9)
        while True:
            try:
                if self.collect(1)[0].startswith(b"QC"):
                    return
            except _NoAnswerError:
                raise
            except StubError:
                if self._clock() > deadline:
                    raise

    def read_file(self, name: str) -> bytes:
        """A file of the target description (``qXfer:features:read``)."""
        content = bytearray()
        while True:
            reply = self.request(b"qXfer:features:read:%b:%x,%x" % (name.encode(), len(content), (self.packet_size - 5) // 2))
            content += reply[1:]
            if reply[:1] == b"l":
                return bytes(content)
            if reply[:1] != b"m" or len(reply) == 1 or len(content) > _MAX_FILE:
                raise StubError(
                    f"{self.address} does not give its target description {name!r} (it answers {reply[:20]!r}); check QEMU"
                )

    def threads(self) -> tuple[bytes, ...]:
        """Thread ids in the stub's own words, one a vCPU, in order."""
        found: list[bytes] = []
        reply = self.request(b"qfThreadInfo")
        while reply[:1] == b"m":
            found += reply[1:].split(b",")
            if len(found) > _MAX_THREADS:
                raise StubError(f"{self.address} lists more than {_MAX_THREADS} vCPUs; it is no sound gdb stub")
            reply = self.request(b"qsThreadInfo")
        if not found:
            raise StubError(f"{self.address} lists no vCPU (it answers {reply[:20]!r}); check that it is QEMU's gdb stub")
        return tuple(found)

    def monitor(self, command: str) -> str:
        """Output of a human monitor command (``qRcmd``), with plain newlines; the guest must be halted."""
        self._connection.send(encode_packet(b"qRcmd," + binascii.hexlify(command.encode())))
        output = bytearray()
        while True:
            reply = self.collect(1)[0]
            if reply == b"OK":
                return output.decode("utf-8", "replace").replace("\r\n", "\n").lstrip("\n")
            if not reply.startswith(b"O"):
                raise StubError(f"{self.address} refuses the monitor command {command!r} (it answers {reply[:20]!r}); give --qmp")
            output += decode_hex(reply[1:], "qRcmd")
            if len(output) > _MAX_MONITOR_OUTPUT:
                raise StubError(f"{self.address} never ends its answer to the monitor command {command!r}; it is no sound gdb stub")

    def ask_monitor(self, commands: Sequence[str]) -> str:
        """The joined output of short human monitor commands, with as little work as possible (a line of it is a packet).

        Nothing for those that are refused.
        """
        self._connection.send(b"".join(encode_packet(b"qRcmd," + binascii.hexlify(command.encode())) for command in commands))
        deadline = self._clock() + int(self._timeout_s * 1e9)
        data = b""
        while len(_LAST_OF_OUTPUT.findall(data)) < len(commands):
            try:
                data += self._connection.receive()
            except TimeoutError:
                raise self._no_answer() from None
            self.received_ns = self._clock()
            if self.received_ns > deadline or len(data) > _MAX_MONITOR_OUTPUT:
                raise self._no_answer()
        self._unverified.append(data)
        lines = (part.partition(b"#")[0] for part in data.split(b"$O")[1:])
        return b"".join(decode_hex(line, "qRcmd") for line in lines if line != b"K").decode("ascii", "replace")

    def run_alone(self, thread: bytes) -> None:
        """Let one vCPU run until it stops at a breakpoint, the others standing still; or halt it, where it does not soon.

        Raises GuestStoppedError where somebody else paused the guest meanwhile.
        """
        self._connection.send(encode_packet(b"vCont;c:" + thread))
        self._connection.set_timeout(_MAX_RUN_S)
        try:
            while not self.stops:
                self._reader.feed(self._connection.receive())
                while (payload := self._reader.next_packet()) is not None:
                    self._set_aside(payload)
        except TimeoutError:
            self.interrupt()
            return
        finally:
            self._connection.set_timeout(self._timeout_s)
        signal = self.stops[0].signal
        self.stops.clear()
        if signal != _SIGTRAP:
            raise GuestStoppedError(self.address, signal)

    def detach(self) -> None:
        """Let a halted guest run and end the conversation: the last bytes that the stub gets."""
        mode = [VIRTUAL_MODE] if self.has_physical_mode else []
        for packets in ([*mode, DETACH_PROCESS], [DETACH]):
            self._connection.send(b"".join(packets))
            if self.collect(len(packets))[-1] == b"OK":
                return
        self._connection.send(CONTINUE)

    def close(self) -> None:
        """Close the connection; the guest stays as it is."""
        self._connection.close()

    def peer_pid(self) -> int | None:
        """QEMU's process, where the kernel knows it."""
        return self._connection.peer_pid()


class _NoAnswerError(StubError):
    """Nothing came in time."""


def encode_read(address: int, size: int) -> bytes:
    """The packet that reads memory."""
    body = b"m%x,%x" % (address, size)
    return b"$%b#%02x" % (body, sum(body) & 0xFF)


def decode_read(reply: bytes, size: int) -> bytes | None:
    """The bytes of a memory read, None where the stub could not read all of them (``E14``)."""
    return decode_hex(reply, "m") if len(reply) == size * 2 else None


def decode_hex(digits: bytes, request: str) -> bytes:
    """Bytes of hexadecimal digits; raises StubError naming the request."""
    try:
        return binascii.unhexlify(digits)
    except binascii.Error as error:
        raise StubError(
            f"the stub answered {request} with {digits[:40]!r}, which is not hexadecimal; it is no sound gdb stub"
        ) from error


def split_reads(requests: Iterable[tuple[int, int]], limit: int) -> list[list[tuple[int, int]]]:
    """Each (address, size) in pieces of at most ``limit`` bytes."""
    return [
        [(start, min(limit, address + size - start)) for start in range(address, address + size, limit)]
        for address, size in requests
    ]
