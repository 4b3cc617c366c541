"""The kernel's list of modules: code, names, unwind tables; what has changed is noticed; damage costs knowledge only."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.memory import run_steps
from guest.modules import Module, ModuleReader
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from tests.builders.kernel_structs import HEAP, HEAP_SIZE
from tests.builders.modules import COMING, LIVE, UNFORMED, ModuleHeap
from unwind.orc import OrcVersion

SYMBOLS = {"cleanup": 0x20, "probe": 0x10, "__pfx_probe": 0x8}


def reader(heap: ModuleHeap) -> ModuleReader:
    return ModuleReader(heap.symbols, heap.structs, OrcVersion.V3)


def read(heap: ModuleHeap, using: ModuleReader | None = None) -> tuple[Module, ...]:
    return run_steps((using or reader(heap)).read(heap.space))


@pytest.fixture(params=[True, False], ids=["mem", "core_layout"])
def heap(request: pytest.FixtureRequest) -> ModuleHeap:
    return ModuleHeap(new_layout=request.param)


def test_a_module_has_code_names_rows_and_build_id(heap: ModuleHeap) -> None:
    code = bytes(range(64))
    address = heap.module("virtio_blk", code, SYMBOLS, orc=[0, 0x10], build_id=bytes(range(20)))
    heap.link_modules(address)
    (module,) = read(heap)
    start, end = module.ranges[0]
    assert (module.name, module.address, end - start, len(module.ranges)) == ("virtio_blk", address, 64, 1)
    assert [(symbol.address - start, symbol.name) for symbol in module.symbols] == [(0x10, "probe"), (0x20, "cleanup")]
    assert module.build_id == "000102030405060708090a0b0c0d0e0f10111213"
    assert module.text.read(start, 64) == code
    assert module.orc is not None
    row = module.orc.find_row(start + 0x18)
    assert row is not None
    assert (row.register, row.offset) == ("rsp", 16)


def test_code_of_the_start_is_there_until_it_is_over(heap: ModuleHeap) -> None:
    """A module keeps its identity, and the names of its start, when that is freed."""
    address = heap.module("xor", symbols={"run": 0, "init_module": 0x1000}, state=COMING, start=bytes(32))
    heap.link_modules(address)
    using = reader(heap)
    (coming,) = read(heap, using)
    assert [end - start for start, end in coming.ranges] == [64, 32]
    assert not using.has_changed(heap.space)
    heap.put("module", address, state=LIVE, **{("mem[4]__size" if heap.new_layout else "init_layout__text_size"): 0})
    assert using.has_changed(heap.space)
    (live,) = read(heap, using)
    assert [end - start for start, end in live.ranges] == [64]
    assert live.serial == coming.serial
    assert {symbol.name for symbol in live.symbols} == {"run", "init_module"}


def test_one_that_is_not_formed_is_left_out_until_it_is(heap: ModuleHeap) -> None:
    """Its state changes without a change of the list."""
    address = heap.module("loop", symbols=SYMBOLS, state=UNFORMED)
    heap.link_modules(address)
    using = reader(heap)
    assert read(heap, using) == ()
    assert not using.has_changed(heap.space)
    heap.put("module", address, state=COMING)
    assert using.has_changed(heap.space)
    assert [module.name for module in read(heap, using)] == ["loop"]


def test_a_build_id_that_comes_later_is_read(heap: ModuleHeap) -> None:
    """While its start runs, for which the list and its state do not change."""
    address = heap.module("loop", symbols=SYMBOLS, state=COMING)
    heap.link_modules(address)
    using = reader(heap)
    (before,) = read(heap, using)
    assert before.build_id is None
    assert not using.has_changed(heap.space)
    heap.put("module", address, notes_attrs=heap.notes(bytes(range(20))))
    assert using.has_changed(heap.space)
    (after,) = read(heap, using)
    assert after.build_id == bytes(range(20)).hex()
    assert after.serial == before.serial


def test_known_modules_are_not_read_again(heap: ModuleHeap) -> None:
    first, second = heap.module("first"), heap.module("second")
    heap.link_modules(first)
    using = reader(heap)
    assert using.has_changed(heap.space)
    (old,) = read(heap, using)
    heap.link_modules(second, first)
    assert using.has_changed(heap.space)
    new = read(heap, using)
    assert [module.name for module in new] == ["second", "first"]
    assert new[1] is old
    heap.link_modules(second)
    assert read(heap, using) == (new[0],)


def test_another_module_at_the_same_address_is_another(heap: ModuleHeap) -> None:
    address = heap.module("first")
    heap.link_modules(address)
    using = reader(heap)
    (old,) = read(heap, using)
    heap.put("module", address, name=b"second\0")
    heap.link_modules(address)
    assert using.has_changed(heap.space)
    (new,) = read(heap, using)
    assert (new.name, new.serial != old.serial) == ("second", True)


def test_patched_code_is_read_again_when_asked(heap: ModuleHeap) -> None:
    address = heap.module("first", b"\x90" * 64)
    heap.link_modules(address)
    using = reader(heap)
    (old,) = read(heap, using)
    start = old.ranges[0][0]
    heap.write(start, b"\xe8")
    assert read(heap, using)[0].text.read(start, 2) == b"\x90\x90"
    (new,) = run_steps(using.read(heap.space, has_new_text=True))
    assert new.text.read(start, 2) == b"\xe8\x90"
    assert new.serial == old.serial


def test_a_list_that_never_ends_ends(heap: ModuleHeap) -> None:
    first, second = heap.module("first"), heap.module("second")
    heap.link_modules(first, second)
    heap.put("module", second, list__next=first + 8)
    assert [module.name for module in read(heap)] == ["first", "second"]


def test_a_link_to_nowhere_ends_the_list(heap: ModuleHeap) -> None:
    first, second = heap.module("first"), heap.module("second")
    heap.link_modules(first, second)
    heap.put("module", first, list__next=0xDEAD_0000_0000_0100)
    assert [module.name for module in read(heap)] == ["first"]


def test_what_lies_behind_a_break_of_the_list_is_not_gone(heap: ModuleHeap) -> None:
    """A module that is being loaded may be in the list before its memory can be read."""
    first, second = heap.module("first"), heap.module("second")
    heap.link_modules(first, second)
    using = reader(heap)
    known = read(heap, using)
    heap.write(heap.lists["modules"], struct.pack("<Q", HEAP + HEAP_SIZE + 0x1000))
    assert using.has_changed(heap.space)
    assert read(heap, using) == known
    heap.link_modules(second)
    assert read(heap, using) == known[1:]


@pytest.mark.parametrize("member", ["kallsyms", "notes_attrs", "arch__orc_unwind_ip", "arch__num_orcs"])
def test_a_pointer_that_lies_costs_that_piece(heap: ModuleHeap, member: str) -> None:
    address = heap.module("first", symbols=SYMBOLS, orc=[0, 0x10], build_id=bytes(20))
    heap.link_modules(address)
    heap.put("module", address, **{member: 0x7FFF_FFFF})
    (module,) = read(heap)
    lost = {"kallsyms": not len(module.symbols), "notes_attrs": module.build_id is None}
    assert [name for name, is_lost in lost.items() if is_lost] == ([member] if member in lost else [])
    assert (module.orc is None) == member.startswith("arch")


def test_without_orc_a_module_has_no_rows(heap: ModuleHeap) -> None:
    heap.link_modules(heap.module("first", orc=[0]))
    (module,) = run_steps(ModuleReader(heap.symbols, heap.structs, None).read(heap.space))
    assert module.orc is None


def test_a_kernel_without_modules_is_told(heap: ModuleHeap) -> None:
    with pytest.raises(BadImageError, match=r"list of modules"):
        ModuleReader(SymbolTable.from_symbols([]), heap.structs, None)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.integers(0x1000, 0x4000), st.binary(min_size=1, max_size=12)), max_size=40))
def test_damage_costs_knowledge_only(new_layout: bool, changes: list[tuple[int, bytes]]) -> None:
    heap = ModuleHeap(new_layout=new_layout)
    modules = [heap.module(name, symbols=SYMBOLS, orc=[0, 8], build_id=bytes(20), start=bytes(16)) for name in "abc"]
    heap.link_modules(*modules)
    for place, data in changes:
        heap.write(HEAP + place % (HEAP_SIZE - 16), data)
    using = reader(heap)
    for module in read(heap, using):
        assert sum(end - start for start, end in module.ranges) < 1 << 28
    using.has_changed(heap.space)
