"""Filters of system calls: the code of each that a task has, for as long as it is there."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.generated_code import GeneratedCode
from guest.memory import run_steps
from guest.system_call_filters import SystemCallFilters
from recording.errors import BadImageError
from recording.model import FrameKind
from tests.builders.kernel_structs import HEAP, HEAP_PHYSICAL, HEAP_SIZE, MAPLE, Heap, Layout

LAYOUTS: Mapping[str, tuple[int, Layout]] = {
    **MAPLE,
    "seccomp_filter": (64, {"prev": (16, 8), "prog": (24, 8)}),
    "bpf_prog": (64, {"jited_len": (12, 4), "bpf_func": (40, 8)}),
}


class Filters:
    """A task's newest filter and the one before."""

    def __init__(self) -> None:
        self.heap = Heap(LAYOUTS)
        self.first_code, self.second_code = self.code(b"first code"), self.code(b"second")
        self.first = self.filter(self.first_code, 10)
        self.second = self.filter(self.second_code, 6, self.first)

    def code(self, data: bytes) -> int:
        address = self.heap.take(len(data))
        self.heap.write(address, data)
        return address

    def filter(self, code: int, size: int, prev: int = 0) -> int:
        return self.heap.put("seccomp_filter", prev=prev, prog=self.heap.put("bpf_prog", jited_len=size, bpf_func=code))

    def reader(self) -> SystemCallFilters:
        return SystemCallFilters(self.heap.structs)


def pieces(code: list[GeneratedCode]) -> set[tuple[int, bytes]]:
    assert all((piece.name, piece.kind, piece.has_frame_pointer) == ("seccomp_filter", FrameKind.BPF, True) for piece in code)
    assert all(piece.end - piece.start == len(piece.text) for piece in code)
    return {(piece.start, piece.text) for piece in code}


def test_a_task_has_its_newest_filter_and_those_before() -> None:
    guest = Filters()
    reader = guest.reader()
    assert run_steps(reader.read(guest.heap.space)) == []
    reader.see(0)
    assert not reader.has_new
    reader.see(guest.second)
    assert reader.has_new
    both = {(guest.first_code, b"first code"), (guest.second_code, b"second")}
    assert pieces(run_steps(reader.read(guest.heap.space))) == both
    reader.see(guest.second)
    reader.see(guest.first)
    assert not reader.has_new
    before = run_steps(reader.read(guest.heap.space))
    assert all(one is other for one, other in zip(before, run_steps(reader.read(guest.heap.space)), strict=True))


def test_a_filter_that_was_freed_is_dropped_and_its_memory_may_become_another() -> None:
    guest = Filters()
    reader = guest.reader()
    reader.see(guest.first)
    assert pieces(run_steps(reader.read(guest.heap.space))) == {(guest.first_code, b"first code")}
    guest.heap.put("seccomp_filter", guest.first, prog=guest.heap.put("bpf_prog", jited_len=6, bpf_func=guest.second_code))
    assert run_steps(reader.read(guest.heap.space)) == []
    reader.see(guest.first)
    assert reader.has_new
    assert pieces(run_steps(reader.read(guest.heap.space))) == {(guest.second_code, b"second")}


@pytest.mark.parametrize(("size", "function"), [(0, HEAP), (1 << 19, HEAP), (16, 0), (16, 1 << 63)])
def test_a_filter_without_compiled_code_is_none(size: int, function: int) -> None:
    guest = Filters()
    reader = guest.reader()
    reader.see(guest.filter(function, size))
    assert run_steps(reader.read(guest.heap.space)) == []
    assert not reader.has_new


def test_a_ring_of_filters_ends() -> None:
    guest = Filters()
    guest.heap.put("seccomp_filter", guest.first, prev=guest.second)
    reader = guest.reader()
    reader.see(guest.first)
    assert len(run_steps(reader.read(guest.heap.space))) == 2


def test_many_filters_are_read_in_steps() -> None:
    guest = Filters()
    reader = guest.reader()
    newest = 0
    for _ in range(200):
        newest = guest.filter(guest.second_code, 6, newest)
        reader.see(newest)
    steps = reader.read(guest.heap.space)
    assert sum(1 for _ in steps) == 4
    assert len(run_steps(reader.read(guest.heap.space))) == 200


def test_a_kernel_without_filters() -> None:
    with pytest.raises(BadImageError, match="seccomp_filter"):
        SystemCallFilters(Heap().structs)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, HEAP_SIZE // 8 - 1), st.integers(HEAP, HEAP + HEAP_SIZE)), max_size=40),
    st.integers(0, 2**64 - 1),
)
def test_damage_never_raises(changes: list[tuple[int, int]], newest: int) -> None:
    guest = Filters()
    for place, value in changes:
        guest.heap.memory.write(HEAP_PHYSICAL + 8 * place, struct.pack("<Q", value))
    reader = guest.reader()
    for address in (newest, guest.second, HEAP + 8, HEAP + HEAP_SIZE - 1):
        reader.see(address)
    assert len(run_steps(reader.read(guest.heap.space))) <= 8192
