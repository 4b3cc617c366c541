"""Records of structs, slices of pages, and facts that are remembered."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.records import Record, read_records, read_slices
from guest.remembered import Reads, Remembered
from recording.errors import BadImageError, GuestMemoryError
from tests.builders.kernel_structs import HEAP, HEAP_PHYSICAL, HEAP_SIZE, Heap


def test_values_come_in_the_order_asked_for() -> None:
    heap = Heap()
    record = Record(heap.structs, "super_block", ("s_id", "nothing?", "s_dev", "none|s_type"))
    address = heap.put("super_block", s_dev=5, s_type=6, s_id=b"vda1")
    assert record.request(address) == (address, 48)
    assert read_records(heap.space, [(record, address), (record, 0x1234)]) == [(b"vda1".ljust(32, b"\0"), 0, 5, 6), None]
    assert record.has == (True, False, True, True)
    single = Record(heap.structs, "file_system_type", ("name",))
    assert single.values(struct.pack("<Q", 7)) == (7,)


def test_a_missing_member_is_named() -> None:
    with pytest.raises(BadImageError, match="s_other in struct super_block"):
        Record(Heap().structs, "super_block", ("s_other|s_else",))
    with pytest.raises(BadImageError, match="s_other"):
        Record(Heap().structs, "super_block", ("s_other?",))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-64, HEAP_SIZE + 64), st.integers(1, 4096)), max_size=12))
def test_slices_are_as_read_one_by_one(wanted: list[tuple[int, int]]) -> None:
    heap = Heap()
    heap.write(HEAP, b"".join(struct.pack("<I", number) for number in range(HEAP_SIZE // 4)))
    requests = [(HEAP + offset, size) for offset, size in wanted]
    assert read_slices(heap.space, requests) == heap.space.read_many(requests)


def test_slices_of_a_page_are_one_read() -> None:
    heap = Heap()
    heap.space.translate(HEAP)
    heap.memory.pieces[HEAP_PHYSICAL][0x1000:0x1008] = b"abcdefgh"
    asked: list[int] = []
    read_many = heap.memory.read_many

    def note(requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        asked.append(len(requests))
        return read_many(requests)

    heap.memory.read_many = note  # type: ignore[method-assign]
    found = read_slices(heap.space, [(HEAP + 0x1000 + 8 * index, 8) for index in range(100)])
    assert found == [b"abcdefgh"] + [bytes(8)] * 99
    assert asked == [1]


def test_facts_are_described_again_when_their_words_change() -> None:
    heap = Heap()
    name = Record(heap.structs, "file_system_type", ("name",))
    kinds = [heap.put("file_system_type", name=heap.text(text)) for text in (b"ext4", b"tmpfs")]
    described: list[int] = []

    def describe(kind: int, reads: Reads) -> bytes:
        described.append(kind)
        (address,) = reads.record(name, kind)
        return reads.text(address, 16)

    facts = Remembered(heap.space, describe)
    assert facts.read([*kinds, 0x1234, kinds[0]]) == {kinds[0]: b"ext4", kinds[1]: b"tmpfs", 0x1234: None}
    before, described[:] = heap.memory.batches, []
    assert facts.read(kinds) == {kinds[0]: b"ext4", kinds[1]: b"tmpfs"}
    assert (described, heap.memory.batches - before) == ([], 1)
    heap.put("file_system_type", kinds[0], name=heap.text(b"xfs"))
    assert facts.read(kinds) == {kinds[0]: b"xfs", kinds[1]: b"tmpfs"}
    assert set(described) == {kinds[0]}


def test_a_fact_without_end_is_none() -> None:
    heap = Heap()
    record = Record(heap.structs, "file_system_type", ("name",))

    def describe(kind: int, reads: Reads) -> int:
        while True:
            reads.record(record, kind)
            kind += 8

    assert Remembered(heap.space, describe).read([HEAP]) == {HEAP: None}
    assert heap.memory.batches < 1000

    def give_up(_kind: int, _reads: Reads) -> int:
        raise GuestMemoryError("no")

    assert Remembered(heap.space, give_up).read([HEAP]) == {HEAP: None}
