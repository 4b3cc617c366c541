"""Layouts of structs from a BTF section."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.btf import parse_btf, read_structs
from guest.memory import run_steps
from guest.structs import Field, Structs
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from tests.builders.btf import Btf
from tests.builders.kernel_structs import Heap
from tests.builders.words import LITTLE_64


def example() -> bytes:
    """``struct task`` with what real ones have: nesting, anonymous unions, qualifiers, arrays, bitfields."""
    btf = Btf()
    number = btf.number(4)
    long = btf.number(8, "long")
    pid = btf.typedef("pid_t", btf.const(number))
    ring = btf.struct("list_head", 16, [("next", btf.pointer(), 0), ("prev", btf.pointer(), 8)])
    inner = btf.struct("", 16, [("first", long, 0), ("second", number, 8)])
    either = btf.struct("", 16, [("", inner, 0), ("whole", btf.array(number, 4), 0)], kind=5)
    area = btf.struct("area", 24, [("base", btf.pointer(), 0), ("size", number, 16)])
    btf.struct("task", 200, [("pid", pid, 4), ("", either, 16), ("tasks", ring, 40), ("mem", btf.array(area, 3), 64)])
    btf.bitfields("flags", 8, [("low", number, 0, 1), ("middle", number, 30, 4), ("plain", number, 32, 0)])
    btf.enum("state", {"LIVE": 0, "GOING": 2})
    # Two names of its own that begin alike, and a forward declaration.
    btf.add(7, "area")
    return btf.to_bytes()


@pytest.fixture
def structs() -> Structs:
    return run_steps(parse_btf(example(), LITTLE_64))


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("task", "pid", Field(4, 4)),
        ("task", "second", Field(24, 4)),
        ("task", "whole", Field(16, 16)),
        ("task", "whole[3]", Field(28, 4)),
        ("task", "tasks.prev", Field(48, 8)),
        ("task", "mem", Field(64, 72)),
        ("task", "mem[2].size", Field(128, 4)),
        ("task", "mem.base", Field(64, 8)),
        ("flags", "low", Field(0, 1)),
        ("flags", "middle", Field(3, 2)),
        ("flags", "plain", Field(4, 4)),
        ("task", "mem[3].size", None),
        ("task", "nothing", None),
        ("task", "pid.next", None),
        ("task", "tasks.next.next", None),
        ("nothing", "pid", None),
    ],
)
def test_members_lie_where_the_kernel_says(structs: Structs, name: str, path: str, expected: Field | None) -> None:
    assert structs.field(name, path) == expected


def test_sizes_and_constants(structs: Structs) -> None:
    assert [structs.size_of(name) for name in ("task", "area", "pid_t", "nothing")] == [200, 24, 4, None]
    assert [structs.enumerator("state", name) for name in ("LIVE", "GOING", "GONE")] == [0, 2, None]


def test_what_is_missing_is_named(structs: Structs) -> None:
    with pytest.raises(BadImageError, match=r"no mm in struct task"):
        structs.require("task", "mm")


def test_read_from_memory() -> None:
    heap = Heap()
    data = example()
    address = heap.take(len(data))
    heap.write(address, data)
    symbols = SymbolTable.from_symbols([(address, "R", "__start_BTF"), (address + len(data), "R", "__stop_BTF")])
    assert run_steps(read_structs(heap.space, symbols, LITTLE_64)).field("task", "pid") == Field(4, 4)


@pytest.mark.parametrize("symbols", [[], [(0x1000, "R", "__start_BTF"), (0x900, "R", "__stop_BTF")]])
def test_a_kernel_without_it_is_told(symbols: list[tuple[int, str, str]]) -> None:
    with pytest.raises(BadImageError, match=r"type information"):
        run_steps(read_structs(Heap().space, SymbolTable.from_symbols(symbols), LITTLE_64))


def test_typedefs_in_a_circle_have_no_layout() -> None:
    btf = Btf()
    btf.typedef("a", 2)
    btf.typedef("b", 1)
    btf.struct("s", 8, [("x", 1, 0)])
    structs = run_steps(parse_btf(btf.to_bytes(), LITTLE_64))
    assert structs.size_of("a") is None
    assert structs.field("s", "x") is None


def test_anonymous_members_in_a_circle_end() -> None:
    btf = Btf()
    btf.struct("s", 8, [("", 1, 0), ("", 1, 0), ("x", 1, 4)])
    structs = run_steps(parse_btf(btf.to_bytes(), LITTLE_64))
    assert structs.field("s", "nothing") is None
    assert structs.field("s", "x") == Field(4, 8)


def test_a_kind_of_the_future_ends_what_is_known() -> None:
    btf = Btf()
    btf.struct("before", 8, [])
    btf.add(25, "new")
    btf.struct("behind", 8, [])
    structs = run_steps(parse_btf(btf.to_bytes(), LITTLE_64))
    assert structs.size_of("before") == 8
    assert structs.size_of("behind") is None


def test_a_count_that_lies_gives_no_members() -> None:
    btf = Btf()
    number = btf.number(4)
    btf.add(4, "s", 60000, 8, struct.pack("<III", btf.name("x"), number, 0))
    assert run_steps(parse_btf(btf.to_bytes(), LITTLE_64)).field("s", "x") is None


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb\x02" + bytes(60), bytes(64), example()[:100]])
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(BadImageError):
        run_steps(parse_btf(data, LITTLE_64))


@given(st.lists(st.tuples(st.integers(24, len(example()) - 1), st.integers(0, 255)), max_size=30))
def test_damage_costs_knowledge_only(changes: list[tuple[int, int]]) -> None:
    data = bytearray(example())
    for place, value in changes:
        data[place] = value
    structs = run_steps(parse_btf(bytes(data), LITTLE_64))
    for name in ("task", "area", "flags", "pid_t", "state"):
        structs.size_of(name)
        structs.enumerator(name, "GOING")
        for path in ("pid", "second", "mem[2].size", "tasks.prev", "middle"):
            field = structs.field(name, path)
            assert field is None or 0 <= field.offset < 1 << 34
