"""The packet core against a table of wire bytes, each read whole, byte by byte and with more bytes behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording.errors import StubError
from sampler.rsp.codec import PacketReader, StopReply, checksum, encode_packet, parse_stop_reply

# (wire bytes, payloads, bytes that are no protocol)
CASES = [
    (b"$OK#9a", [b"OK"], 0),
    (b"$#00", [b""], 0),
    (b"+$OK#9a", [b"OK"], 0),
    (b"+-++$OK#9a+", [b"OK"], 0),
    (b"$OK#9A", [b"OK"], 0),
    (b"$T02thread:01;#04+$OK#9a", [b"T02thread:01;", b"OK"], 0),
    (b"%Stop:T05#8f$OK#9a", [b"OK"], 0),
    (b"SSH-2.0\r\n$OK#9a", [b"OK"], 8),
    (b"$E1$E14#aa", [b"E14"], 3),
    (b"$0*,#86", [b"0" * 16], 0),
    (b"$0* 1#ab", [b"00001"], 0),
    (b"$a}\x03b#%02x" % (sum(b"a}\x03b") & 255), [b"a#b"], 0),
    (b"$}]}\x04}\x0a#%02x" % (sum(b"}]}\x04}\x0a") & 255), [b"}$*"], 0),
]


def packets(reader: PacketReader) -> list[bytes]:
    found = []
    while (payload := reader.next_packet()) is not None:
        found.append(payload)
    return found


@pytest.mark.parametrize(("wire", "payloads", "skipped"), CASES)
def test_whole(wire: bytes, payloads: list[bytes], skipped: int) -> None:
    reader = PacketReader()
    reader.feed(wire)
    assert packets(reader) == payloads
    # A "-" belongs to the acknowledgements, so of "SSH-2.0\r\n" eight bytes are garbage.
    assert reader.skipped == skipped


@pytest.mark.parametrize(("wire", "payloads", "skipped"), CASES)
def test_byte_by_byte(wire: bytes, payloads: list[bytes], skipped: int) -> None:
    reader = PacketReader()
    found = []
    for index in range(len(wire)):
        reader.feed(wire[index : index + 1])
        found += packets(reader)
    assert found == payloads
    assert reader.skipped == skipped


@pytest.mark.parametrize(("wire", "payloads", "skipped"), CASES)
def test_trailing_bytes_wait_for_their_end(wire: bytes, payloads: list[bytes], skipped: int) -> None:
    reader = PacketReader()
    reader.feed(wire + b"+$QC0")
    assert packets(reader) == payloads
    reader.feed(b"1#f")
    assert packets(reader) == []
    reader.feed(b"5")
    assert packets(reader) == [b"QC01"]
    assert reader.skipped == skipped


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"$OK#9b$QC01#f5", "checksum is wrong"),
        (b"$OK#zz$QC01#f5", "checksum is wrong"),
        (b"$*!#4b$QC01#f5", "repeats nothing"),
        (b"$0*\x1f#%02x$QC01#f5" % (sum(b"0*\x1f") & 255), "repeats nothing"),
        (b"$a}#%02x$QC01#f5" % (sum(b"a}") & 255), "ends within an escape"),
    ],
)
def test_a_damaged_packet_is_an_error_and_the_next_one_is_read(wire: bytes, message: str) -> None:
    reader = PacketReader()
    reader.feed(wire)
    with pytest.raises(StubError, match=message):
        reader.next_packet()
    assert reader.next_packet() == b"QC01"


def test_a_packet_without_end_is_an_error() -> None:
    reader = PacketReader(max_packet=1000)
    reader.feed(b"$" + b"0" * 1000)
    with pytest.raises(StubError, match="more than 1000 bytes without end"):
        reader.next_packet()
    reader.feed(b"$OK#9a")
    assert reader.next_packet() == b"OK"


def test_runs_that_expand_without_bound_are_an_error() -> None:
    reader = PacketReader()
    payload = b"0" + b"*~" * 20000
    reader.feed(b"$%b#%02x" % (payload, sum(payload) & 255))
    with pytest.raises(StubError, match="expands to more than"):
        reader.next_packet()


@pytest.mark.parametrize(
    ("payload", "wire"),
    [
        (b"g", b"$g#67"),
        (b"", b"$#00"),
        (b"m0,10", b"$m0,10#2a"),
        (b"a#b$c*d}e", b"$a}\x03b}\x04c}\nd}]e#51"),
    ],
)
def test_encode(payload: bytes, wire: bytes) -> None:
    assert encode_packet(payload) == wire


@given(st.lists(st.binary(max_size=2000), max_size=5), st.integers(1, 97))
def test_what_is_encoded_is_read_back_in_any_pieces(payloads: list[bytes], piece: int) -> None:
    wire = b"".join(map(encode_packet, payloads))
    reader = PacketReader()
    found = []
    for start in range(0, len(wire), piece):
        reader.feed(wire[start : start + piece])
        found += packets(reader)
    assert found == payloads
    assert reader.skipped == 0


@given(st.binary(max_size=5000))
def test_checksum_is_the_sum_of_all_bytes(payload: bytes) -> None:
    assert checksum(payload) == sum(payload) & 0xFF


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_arbitrary_bytes_never_break_the_reader(pieces: list[bytes]) -> None:
    reader = PacketReader(max_packet=4096)
    for piece in pieces:
        reader.feed(piece)
        for _ in range(len(piece) + 1):
            try:
                if reader.next_packet() is None:
                    break
            except StubError:
                continue
    reader.feed(b"#00$OK#9a")
    found = []
    for _ in range(2000):
        try:
            payload = reader.next_packet()
        except StubError:
            continue
        if payload is None:
            break
        found.append(payload)
    assert found[-1] == b"OK"


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (b"T02thread:01;", StopReply("T", 2, "01")),
        (b"T05thread:p01.02;", StopReply("T", 5, "p01.02")),
        (b"T05watch:ffff;thread:02;", StopReply("T", 5, "02")),
        (b"S05", StopReply("S", 5)),
        (b"W00", StopReply("W", 0)),
        (b"X09", StopReply("X", 9)),
        (b"OK", None),
        (b"E14", None),
        (b"", None),
        (b"0011aabb", None),
        (b"QC01", None),
    ],
)
def test_stop_replies(payload: bytes, reply: StopReply | None) -> None:
    assert parse_stop_reply(payload) == reply


def test_only_w_and_x_mean_that_qemu_ended() -> None:
    assert [StopReply(kind, 0).is_end for kind in "TSWX"] == [False, False, True, True]
