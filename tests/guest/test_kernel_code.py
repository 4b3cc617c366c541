"""Code that the kernel makes at run time, and all its code together as unwinding sees it."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from guest.generated_code import GeneratedCode, GeneratedCodeReader
from guest.kernel_code import KernelCodeMap, LoadedCode
from guest.memory import run_steps
from guest.modules import Module, ModuleReader
from guest.text import TextImage
from recording.model import FrameKind
from recording.symbols import SymbolTable
from tests.builders.kernel_structs import HEAP, HEAP_PHYSICAL, HEAP_SIZE, TABLES, Heap
from tests.builders.modules import CALL_ROW, ModuleHeap
from tests.builders.page_tables import PageTables
from unwind.arch.arm64 import ARM64
from unwind.arch.s390x import S390X
from unwind.arch.x86_64 import X86_64
from unwind.orc import OrcTable, OrcVersion

STEXT = 0xFFFF_FFFF_8100_0000
CODE = bytes(range(256)) * 16
BPF_PROLOGUE = bytes.fromhex("f30f1efa 0f1f440000 0f1f00 55 4889e5")
"""As Linux 6.12 compiles it: landing pad, room for a call, room for the count of tail calls, the frame pointer."""


def kernel_orc() -> OrcTable:
    """One row for everything from STEXT on, and one of its own for the 16 bytes of ``ftrace_caller``."""
    rows = [(STEXT, CALL_ROW), (STEXT + 0x800, struct.pack("<hhH", 104, 0, 0x205)), (STEXT + 0x810, CALL_ROW)]
    places = b"".join(struct.pack("<i", at - STEXT - 4 * index) for index, (at, _row) in enumerate(rows))
    return OrcTable.parse(places, STEXT, b"".join(row for _at, row in rows), OrcVersion.V3)


SYMBOLS = SymbolTable.from_symbols([(STEXT, "T", "_stext"), (STEXT + 0x800, "T", "ftrace_caller"), (STEXT + 0x900, "T", "later")])


def code_map(modules: tuple[Module, ...] = (), generated: tuple[GeneratedCode, ...] = ()) -> KernelCodeMap:
    return KernelCodeMap(SYMBOLS, TextImage([(STEXT, CODE)]), kernel_orc(), LoadedCode(modules, generated))


def read_module(heap: ModuleHeap, **options: object) -> Module:
    heap.link_modules(heap.module("virtio_blk", bytes(range(64)), {"probe": 0x10}, **options))  # type: ignore[arg-type]
    return run_steps(ModuleReader(heap.symbols, heap.structs, OrcVersion.V3).read(heap.space))[0]


def test_an_address_has_the_code_name_and_row_of_what_it_is_in() -> None:
    module = read_module(ModuleHeap(), orc=[0])
    start = module.ranges[0][0]
    code = code_map((module,))
    assert (code.contains(start), code.contains(start + 64), code.contains(STEXT + 5)) == (True, False, True)
    assert (code.read(start + 1, 2), code.read(STEXT + 1, 2), code.read(start + 63, 2)) == (b"\1\2", b"\1\2", None)
    symbol = code.find_at(start + 0x18)
    assert symbol is not None
    assert symbol.name == "probe"
    # Before its first name a module has none, whatever lies below it.
    assert code.find_at(start + 8) is None
    row = code.find_row(start + 0x18)
    assert row is not None
    assert (row.register, row.offset, row.guess) == ("rsp", 16, False)
    kernel = code.find_at(STEXT + 0x905)
    assert kernel is not None
    assert kernel.name == "later"


def test_a_module_without_rows_is_walked_by_frame_pointers_and_marked() -> None:
    module = read_module(ModuleHeap())
    row = code_map((module,)).find_row(module.ranges[0][0] + 0x30)
    assert row is not None
    assert (row.register, row.offset, row.guess) == ("rbp", 16, True)


def test_what_is_loaded_is_found_by_address() -> None:
    module = read_module(ModuleHeap())
    start, end = module.ranges[0]
    piece = GeneratedCode("bpf_prog_1_a", start + 0x1000, start + 0x1010, FrameKind.BPF)
    loaded = LoadedCode((module,), (piece,))
    assert [loaded.at(address) for address in (start - 1, start, end - 1, end)] == [None, module, module, None]
    assert [loaded.at(start + 0x1000), loaded.at(start + 0x1010)] == [piece, None]


def make_generated(heap: ModuleHeap, text: bytes) -> int:
    """A BPF program, a trampoline and a page of kprobes; the address of the program."""
    start, trampoline, page = heap.take(len(text)), heap.take(64), heap.take(4096)
    heap.write(start, text)
    program = heap.put("bpf_ksym", start=start, end=start + len(text), name=b"bpf_prog_0123456789abcdef_spin")
    heap.link("bpf_kallsyms", [program], 48)
    operations = heap.put("ftrace_ops", flags=0, trampoline=trampoline, trampoline_size=64)
    heap.link("ftrace_ops_trampoline_list", [operations], 24)
    heap.link("kprobe_insn_slots", [heap.put("kprobe_insn_page", insns=page)], 0)
    return start


def generated_reader(heap: ModuleHeap) -> GeneratedCodeReader:
    traced = [(symbol.address, symbol.kind, symbol.name) for symbol in heap.symbols]
    return GeneratedCodeReader(SymbolTable.from_symbols([*traced, (STEXT + 0x800, "T", "ftrace_caller")]), heap.structs, X86_64)


def test_generated_code_is_named() -> None:
    heap = ModuleHeap()
    start = make_generated(heap, BPF_PROLOGUE + bytes(16))
    using = generated_reader(heap)
    assert using.has_changed(heap.space)
    pieces = run_steps(using.read(heap.space))
    assert not using.has_changed(heap.space)
    assert [(piece.name, piece.kind, piece.end - piece.start) for piece in pieces] == [
        ("bpf_prog_0123456789abcdef_spin", FrameKind.BPF, 32),
        ("ftrace_trampoline", FrameKind.KERNEL, 64),
        ("kprobe_insn_page", FrameKind.KERNEL, 4096),
    ]
    assert pieces[0].start == start
    assert run_steps(using.read(heap.space))[0] is pieces[0]
    heap.link("bpf_kallsyms", [], 48)
    assert using.has_changed(heap.space)
    assert [piece.name for piece in run_steps(using.read(heap.space))] == ["ftrace_trampoline", "kprobe_insn_page"]


def test_generated_code_is_unwound_by_what_it_is() -> None:
    """BPF by its frame pointer, a trampoline as the function that it is a copy of, a page of kprobes not at all."""
    heap = ModuleHeap()
    start = make_generated(heap, BPF_PROLOGUE + bytes(16))
    program, trampoline, page = run_steps(generated_reader(heap).read(heap.space))
    code = code_map(generated=(program, trampoline, page))
    rows = [code.find_row(start + at) for at in (0, 12, 13, 20)]
    assert [row and (row.register, row.offset, row.guess) for row in rows] == [
        ("rsp", 8, True),
        ("rsp", 8, True),
        ("rsp", 16, True),
        ("rbp", 16, True),
    ]
    copied = code.find_row(trampoline.start + 4)
    assert copied is not None
    assert (copied.register, copied.offset, copied.guess) == ("rsp", 104, False)
    assert code.find_row(page.start) is None


def test_the_end_of_a_call_is_no_return() -> None:
    """The last byte of ``call rel32`` may look like ``ret``: of a return address that byte is looked up."""
    heap = ModuleHeap()
    start = make_generated(heap, BPF_PROLOGUE + bytes(4) + bytes.fromhex("e8454ad2c3 31c0 5b c9 c3"))
    code = code_map(generated=run_steps(generated_reader(heap).read(heap.space)))
    in_call, at_return = code.find_row(start + 24), code.find_row(start + 29)
    assert in_call is not None
    assert at_return is not None
    assert (in_call.register, at_return.register) == ("rbp", "rsp")


def test_what_a_recording_keeps_gives_the_same_rows() -> None:
    heap = ModuleHeap()
    module = read_module(heap, orc=[0, 0x20])
    make_generated(heap, BPF_PROLOGUE + bytes(16))
    loaded = LoadedCode((module,), run_steps(generated_reader(heap).read(heap.space)))
    again = LoadedCode.from_data(loaded.to_data())
    first = KernelCodeMap(SYMBOLS, TextImage([(STEXT, CODE)]), kernel_orc(), loaded)
    second = KernelCodeMap(SYMBOLS, TextImage([(STEXT, CODE)]), kernel_orc(), again)
    starts = [module.ranges[0][0], *(piece.start for piece in loaded.generated)]
    assert len(starts) == 4
    for address in (at + offset for at in starts for offset in range(-8, 80)):
        assert first.find_row(address) == second.find_row(address)
        assert first.find_at(address) == second.find_at(address)
        assert first.read(address, 4) == second.read(address, 4)
        assert first.contains(address) == second.contains(address)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0x1000, 0x3000), st.binary(min_size=1, max_size=12)), max_size=30))
def test_damage_costs_knowledge_only(changes: list[tuple[int, bytes]]) -> None:
    heap = ModuleHeap()
    make_generated(heap, BPF_PROLOGUE + bytes(16))
    for place, data in changes:
        heap.write(HEAP + place % (HEAP_SIZE - 16), data)
    pieces = run_steps(generated_reader(heap).read(heap.space))
    code = code_map(generated=pieces)
    for piece in pieces:
        assert piece.start < piece.end
        code.find_row(piece.start + 1)
        code.read(piece.start, 8)


def test_entry_code_has_its_names_where_it_is_mapped_once_more() -> None:
    """KPTI's trampoline on arm64: a page of the image in the fixmap."""
    heap = Heap()
    image, alias = HEAP + 0x3_0000, 0xFFFF_FBFF_FDBF_7000
    heap.write(image + 0x400, b"\x11" * 0x100)
    tables = PageTables(TABLES, pages=64)
    tables.map(HEAP, HEAP_PHYSICAL, HEAP_SIZE)
    tables.map(alias, HEAP_PHYSICAL + 0x3_0000)
    heap.memory.write(TABLES, bytes(tables.memory))
    symbols = SymbolTable.from_symbols([(image + 0x400, "t", "tramp_vectors"), (image + 0x800, "t", "tramp_exit")])
    reader = GeneratedCodeReader(symbols, heap.structs, ARM64)
    assert reader.has_changed(heap.space)
    found = run_steps(reader.read(heap.space))
    assert [(piece.name, piece.start) for piece in found] == [("tramp_vectors", alias + 0x400), ("tramp_exit", alias + 0x800)]
    assert found[0].end == alias + 0x800
    assert found[0].text[:0x100] == b"\x11" * 0x100
    assert found[1].end <= alias + 0x1000
    assert not reader.has_changed(heap.space)
    assert run_steps(reader.read(heap.space))[0] is found[0]


def test_entry_code_without_symbols_is_told_by_what_it_is() -> None:
    """A kernel without CONFIG_KALLSYMS_ALL: two sets of vectors, of which the first halves are empty, and the way out."""
    heap = Heap()
    image, alias = HEAP + 0x3_0000, 0xFFFF_FBFF_FDBF_6000
    for place in (image + 0x400, image + 0xC00, image + 0x1000):
        heap.write(place, b"\x11" * 0x100)
    tables = PageTables(TABLES, pages=64)
    tables.map(HEAP, HEAP_PHYSICAL, HEAP_SIZE)
    for page in range(0, 0x2000, 0x1000):
        tables.map(alias + page, HEAP_PHYSICAL + 0x3_0000 + page)
    tables.map(alias + 0x10_0000, HEAP_PHYSICAL)
    heap.memory.write(TABLES, bytes(tables.memory))
    symbols = SymbolTable.from_symbols([(HEAP + 0x1_0000, "T", "_stext"), (HEAP + 0x3_8000, "D", "init_task")])
    reader = GeneratedCodeReader(symbols, heap.structs, ARM64)
    found = run_steps(reader.read(heap.space))
    assert [(piece.name, piece.start, piece.end) for piece in found] == [
        ("tramp_vectors", alias, alias + 0x1000),
        ("tramp_exit", alias + 0x1000, alias + 0x2000),
    ]
    assert found[1].text[:0x100] == b"\x11" * 0x100
    assert not reader.has_changed(heap.space)


def test_code_at_fixed_places_outside_of_the_image_has_its_name() -> None:
    heap = Heap()
    reader = GeneratedCodeReader(heap.symbols, heap.structs, S390X)
    found = run_steps(reader.read(heap.space))
    assert [(piece.name, piece.start, piece.kind) for piece in found] == [
        ("return_lpswe", 0x400, FrameKind.KERNEL),
        ("return_mcck_lpswe", 0x404, FrameKind.KERNEL),
    ]
    symbol = code_map(generated=found).find_at(0x400)
    assert symbol is not None
    assert (symbol.name, code_map(generated=found).contains(0x400)) == ("return_lpswe", False)
