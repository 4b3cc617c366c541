"""Bytes of the gdb remote serial protocol ↔ packets. No socket, no thread, no clock (gdb manual, appendix E "Remote Protocol").

``$payload#xx`` is a packet, ``%payload#xx`` a notification (dropped: QEMU needs none of them), ``+`` and ``-`` are
acknowledgements (dropped: QEMU's stub does not wait for ours, and everything runs over reliable transports). Anything else
between packets is garbage, which is skipped and counted.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from recording.errors import StubError

MAX_PACKET = 1 << 20
"""Bytes of one packet on the wire; QEMU's own limit is 0x20020 of payload, so anything longer never ends."""

_START = re.compile(rb"[$%]")
_ESCAPE = 0x7D
_RUN = 0x2A
_CHECKSUM_CHUNK = 256
_ASCII_CHUNK = 512


def checksum(payload: bytes) -> int:
    """Sum of all bytes modulo 256 ("Overview" of the appendix).

    Adler-32's low half, begun at 0, is the plain sum as long as that stays under 65521: for 256 bytes of any value and for 512
    of ASCII. It is five times as fast as ``sum``, which counts for 8 KB of hexadecimal in every halt.
    """
    chunk = _ASCII_CHUNK if payload.isascii() else _CHECKSUM_CHUNK
    if len(payload) <= chunk:
        return zlib.adler32(payload, 0) & 0xFF
    total = 0
    for start in range(0, len(payload), chunk):
        total += zlib.adler32(payload[start : start + chunk], 0) & 0xFFFF
    return total & 0xFF


def encode_packet(payload: bytes) -> bytes:
    """The packet that carries a payload; ``#``, ``$``, ``*`` and ``}`` are escaped ("Binary Data")."""
    if any(special in payload for special in b"#$*}"):
        escaped = payload.replace(b"}", b"}]")
        for special in b"#$*":
            escaped = escaped.replace(bytes([special]), bytes([_ESCAPE, special ^ 0x20]))
        payload = escaped
    return b"$%b#%02x" % (payload, checksum(payload))


def decode_payload(payload: bytes) -> bytes:
    """Undo escapes and run lengths; raises StubError where a run repeats nothing or an escape escapes nothing."""
    if b"}" not in payload and b"*" not in payload:
        return payload
    out = bytearray()
    position = 0
    while position < len(payload):
        byte = payload[position]
        if byte in (_ESCAPE, _RUN):
            if position + 1 >= len(payload):
                raise StubError("the stub sent a packet that ends within an escape or a run length; it is no sound gdb stub")
            argument = payload[position + 1]
            if byte == _ESCAPE:
                out.append(argument ^ 0x20)
            elif not out or argument < 32:
                raise StubError("the stub sent a run length that repeats nothing; it is no sound gdb stub")
            else:
                out += out[-1:] * (argument - 29)
            position += 2
        else:
            out.append(byte)
            position += 1
        if len(out) > MAX_PACKET:
            raise StubError(f"the stub sent a packet that expands to more than {MAX_PACKET} bytes; it is no sound gdb stub")
    return bytes(out)


class PacketReader:
    """Bytes as they arrive → payloads of whole packets, in order.

    ``skipped`` counts the bytes that were no part of the protocol.
    """

    def __init__(self, max_packet: int = MAX_PACKET) -> None:
        self._buffer = bytearray()
        self._max_packet = max_packet
        self._position = 0
        self._searched = 0
        self.skipped = 0

    def feed(self, data: bytes) -> None:
        """Add bytes from the wire."""
        if self._position:
            del self._buffer[: self._position]
            self._searched = max(0, self._searched - self._position)
            self._position = 0
        self._buffer += data

    def next_packet(self) -> bytes | None:
        """The next packet's payload, decoded; None until more bytes are fed.

        Raises StubError for a wrong checksum, a damaged payload or a packet without end. The damaged packet is gone then and
        the next call goes on behind it.
        """
        buffer = self._buffer
        while True:
            if not buffer.startswith((b"$", b"%"), self._position):
                if buffer.startswith(b"+$", self._position):
                    self._position += 1
                elif not self._skip_to_packet():
                    return None
            start = self._position
            end = buffer.find(b"#", max(self._searched, start))
            if end < 0 or end + 3 > len(buffer):
                self._searched = end if end >= 0 else len(buffer)
                if len(buffer) - start > self._max_packet:
                    self._drop_all()
                    raise StubError(
                        f"the stub sent a packet of more than {self._max_packet} bytes without end; it is no sound gdb stub"
                    )
                return None
            self._position = self._searched = end + 3
            # A "$" within a packet is never escaped away, so it begins a new one: the first lost its end (gdb's read_frame).
            restart = buffer.rfind(b"$", start, end)
            if restart > start:
                self.skipped += restart - start
                start = restart
            if buffer[start] == 0x25:
                continue
            payload = bytes(buffer[start + 1 : end])
            self._verify(payload, bytes(buffer[end + 1 : end + 3]))
            return decode_payload(payload)

    def _skip_to_packet(self) -> bool:
        found = _START.search(self._buffer, self._position)
        end = found.start() if found else len(self._buffer)
        self.skipped += len(self._buffer[self._position : end].translate(None, b"+-"))
        self._position = self._searched = end
        return found is not None

    def _drop_all(self) -> None:
        self._buffer.clear()
        self._position = self._searched = 0

    @staticmethod
    def _verify(payload: bytes, digits: bytes) -> None:
        try:
            expected = int(digits, 16)
        except ValueError:
            expected = -1
        if expected != checksum(payload):
            raise StubError(
                f"the stub sent a packet whose checksum is wrong ({digits!r} instead of {checksum(payload):02x}):"
                f" {payload[:40]!r}; check that the address is a gdb stub and that nothing else reads from it"
            )


@dataclass(frozen=True, slots=True)
class StopReply:
    """``T05thread:01;``, ``S05``, ``W00`` or ``X09``: the guest stopped (gdb appendix E.3).

    kind: the letter. signal: gdb's signal number, or the exit status after ``W``. thread: the stub's thread id, or None.
    """

    kind: str
    signal: int
    thread: str | None = None

    @property
    def is_end(self) -> bool:
        """Whether QEMU ended rather than the guest stopped."""
        return self.kind in "WX"


_STOP_REPLY = re.compile(rb"([STWX])([0-9a-fA-F]{2})(?:.*?thread:([0-9a-fp.]{1,40});)?")


def parse_stop_reply(payload: bytes) -> StopReply | None:
    """The stop reply in a payload, or None if it is another reply.

    No reply to a request that guestprof sends begins with one of these letters (hexadecimal is lower case in QEMU), so an
    unsolicited stop reply is never mistaken for an answer.
    """
    if payload[:1] not in (b"T", b"S", b"W", b"X"):
        return None
    found = _STOP_REPLY.match(payload)
    if found is None:
        return None
    thread = found[3].decode("ascii") if found[3] else None
    return StopReply(found[1].decode("ascii"), int(found[2], 16), thread)
