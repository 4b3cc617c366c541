"""A process' trees of mappings, well-formed and otherwise."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.user.files import FileIdentity
from guest.user.maple_tree import MapleNodes, Span, TreeChangedError
from guest.user.mappings import Mapping, MappingReader, Mappings
from recording.errors import BadImageError, GuestMemoryError
from tests.builders.kernel_structs import HEAP, HEAP_PHYSICAL, HEAP_SIZE, MAPLE, Heap, maple_leaf
from tests.builders.processes import LAST, PGD_PHYSICAL, Process, build_process

MAX_BATCHES = 3000


def reader_of(process: Process) -> MappingReader:
    return MappingReader(process.heap.space, process.heap.symbols, process.heap.structs)


@pytest.mark.parametrize("is_maple", [True, False])
def test_mappings_are_as_proc_shows_them(is_maple: bool) -> None:
    process = build_process(is_maple=is_maple)
    found = reader_of(process).read(process.mm)
    program, library = found.mappings[1].file, found.mappings[3].file
    assert program is not None
    assert library is not None
    assert program == FileIdentity(
        inode=program.inode,
        number=7,
        size=5000,
        device=0xFE_00001,
        file_system="ext4",
        source="vda1",
        uuid=bytes(range(16)),
        mtime_ns=12_000_000_034,
        generation=56,
    )
    assert library.number == 8
    assert found.mappings == (
        Mapping(0x400000, 0x401000, 0, False, program, "/usr/prog"),
        Mapping(0x401000, 0x402000, 0x1000, True, program, "/usr/prog"),
        Mapping(0x500000, 0x521000, 0, False, None, "[heap]"),
        Mapping(0x7F00_0000_0000, 0x7F00_0010_0000, 0x26000, True, library, "/usr/libc.so.6", is_deleted=True),
        Mapping(0x7F00_0010_0000, 0x7F00_0010_1000, 0, False, None, "[file]"),
        Mapping(0x7F00_0020_0000, 0x7F00_0020_1000, 0, False, None, "[vvar]"),
        Mapping(0x7F00_0020_1000, 0x7F00_0020_2000, 0, True, None, "[vdso]"),
        Mapping(0x7FFF_0000_0000, 0x7FFF_0002_1000, 0, False, None, "[stack]"),
        Mapping(0x7FFF_0003_0000, 0x7FFF_0003_1000, 0, True, None, "[anon]"),
    )
    assert found.stack_top == 0x7FFF_0002_0010
    assert found.page_table == PGD_PHYSICAL


def test_the_second_time_files_cost_one_batch() -> None:
    process = build_process()
    reader = reader_of(process)
    first = reader.read(process.mm)
    before = process.heap.memory.batches
    second = reader.read(process.mm)
    # Its words, two levels of the tree, the areas, files, special mappings, its words again.
    assert process.heap.memory.batches - before == 7
    assert second == first
    assert second.mappings[1].file is first.mappings[1].file


def test_names_in_the_kernels_image_are_read_once() -> None:
    process = build_process(image=[(HEAP, "T", "_text"), (HEAP + HEAP_SIZE, "B", "_end")])
    reader = reader_of(process)
    reader.read(process.mm)
    before = process.heap.memory.batches
    assert [each.path for each in reader.read(process.mm).mappings[5:7]] == ["[vvar]", "[vdso]"]
    assert process.heap.memory.batches - before == 6


def test_a_renamed_directory_and_a_written_file_are_seen() -> None:
    process = build_process()
    reader = reader_of(process)
    first = reader.read(process.mm)
    process.heap.put("dentry", process.dentries["usr"], d_iname=b"opt")
    process.heap.put("inode", first.mappings[1].file.inode, i_size=6000)  # type: ignore[union-attr]
    second = reader.read(process.mm)
    assert [each.path for each in second.mappings[1:4]] == ["/opt/prog", "[heap]", "/opt/libc.so.6"]
    assert second.mappings[1].file.size == 6000  # type: ignore[union-attr]


@pytest.mark.parametrize("is_maple", [True, False])
def test_the_stamp_changes_with_the_mappings(is_maple: bool) -> None:
    process = build_process(is_maple=is_maple)
    reader = reader_of(process)
    stamp = reader.stamp(process.mm)
    assert stamp == reader.stamp(process.mm)
    for name in ("map_count", "total_vm", "exec_vm", "pgd", "exe_file", "arg_start"):
        process.heap.put("mm_struct", process.mm, **{name: 0x1234})
        changed = reader.stamp(process.mm)
        assert changed != stamp, name
        stamp = changed
    process.heap.put("mm_struct", process.mm, brk=0x522000)
    assert reader.stamp(process.mm) == stamp
    assert reader.stamp(0) is None


@pytest.mark.parametrize("is_maple", [True, False])
def test_a_count_that_stays_wrong_is_believed_and_a_foreign_area_is_not(is_maple: bool) -> None:
    """A guest that stands still amid mmap(2) has one more or less than its count says."""
    process = build_process(is_maple=is_maple)
    process.heap.put("mm_struct", process.mm, map_count=10)
    assert len(reader_of(process).read(process.mm).mappings) == 9
    process.heap.put("vm_area_struct", process.areas[3], vm_mm=HEAP)
    with pytest.raises(GuestMemoryError, match="0x7f0000000000"):
        reader_of(process).read(process.mm)


def test_a_node_that_was_replaced_is_not_believed() -> None:
    process = build_process()
    process.heap.write(process.root, struct.pack("<Q", process.root))
    with pytest.raises(TreeChangedError, match="no longer"):
        reader_of(process).read(process.mm)


def test_a_tree_of_no_or_one_area() -> None:
    process = build_process()
    process.heap.put("mm_struct", process.mm, mm_mt__ma_root=0, map_count=0)
    assert reader_of(process).read(process.mm) == Mappings((), 0x7FFF_0002_0010, PGD_PHYSICAL)
    process.heap.put("mm_struct", process.mm, mm_mt__ma_root=process.areas[0], map_count=1)
    with pytest.raises(TreeChangedError, match="not as its tree says"):
        reader_of(process).read(process.mm)


def test_a_process_that_has_ended_has_no_mappings_to_read() -> None:
    """exit_mmap() destroys the tree and leaves the count."""
    process = build_process()
    process.heap.put("mm_struct", process.mm, mm_mt__ma_root=0)
    with pytest.raises(GuestMemoryError, match="change too quickly"):
        reader_of(process).read(process.mm)


def test_an_unreadable_file_costs_its_name() -> None:
    process = build_process()
    process.heap.put("vm_area_struct", process.areas[1], vm_file=0x1234)
    found = reader_of(process).read(process.mm).mappings[1]
    assert (found.path, found.file, found.is_executable) == ("[unknown]", None, True)


def test_a_kernel_without_a_member_is_named() -> None:
    heap = Heap({name: layout for name, layout in MAPLE.items() if name != "super_block"})
    with pytest.raises(BadImageError, match="s_dev in struct super_block"):
        MappingReader(heap.space, heap.symbols, heap.structs)


def test_find() -> None:
    low = Mapping(0x1000, 0x3000, 0, True, None, "/a")
    high = Mapping(0x3000, 0x4000, 0, True, None, "/b")
    mappings = Mappings((low, high), 0)
    assert mappings.find(0xFFF) is None
    assert mappings.find(0x1000) is low
    assert mappings.find(0x2FFF) is low
    assert mappings.find(0x3000) is high
    assert mappings.find(0x4000) is None


def test_the_slots_of_a_full_leaf() -> None:
    heap = Heap()
    nodes = MapleNodes(heap.structs)
    entries = [HEAP + 0x100 * index for index in range(16)]
    full = maple_leaf(heap, 0, [(0x1000 * (index + 1) - 1, entry) for index, entry in enumerate(entries)], 0xFFFF)
    spans = nodes.parse(Span(0, 0xFFFF, full), 0, heap.space.read(full & ~255, 256))
    assert spans == [Span(0x1000 * index, 0x1000 * index + 0xFFF, entry) for index, entry in enumerate(entries)]
    short = maple_leaf(heap, 0, [(0xFFF, 0), (0x1FFF, HEAP), (LAST, 0)], LAST)
    assert nodes.parse(Span(0, LAST, short), 0, heap.space.read(short & ~255, 256)) == [Span(0x1000, 0x1FFF, HEAP)]
    # Its pivot is the node's last index, and nothing behind it is looked at.
    ended = maple_leaf(heap, 0, [(0xFFF, HEAP), (0x1FFE, 0), (0x2FFF, HEAP + 8)], LAST)
    assert nodes.parse(Span(0, 0x1FFE, ended), 0, heap.space.read(ended & ~255, 256)) == [Span(0, 0xFFF, HEAP)]


def test_pivots_out_of_order_are_refused() -> None:
    heap = Heap()
    node = maple_leaf(heap, 0, [(0x2FFF, HEAP), (0x1FFF, HEAP), (LAST, 0)], LAST)
    with pytest.raises(TreeChangedError, match="order"):
        MapleNodes(heap.structs).parse(Span(0, LAST, node), 0, heap.space.read(node & ~255, 256))


def _read_hostile(process: Process) -> None:
    before = process.heap.memory.batches
    reader = reader_of(process)
    for _time in range(2):
        try:
            found = reader.read(process.mm)
        except GuestMemoryError:
            continue
        starts = [each.start for each in found.mappings]
        assert starts == sorted(starts)
    reader.stamp(process.mm)
    assert process.heap.memory.batches - before <= MAX_BATCHES


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.lists(st.tuples(st.integers(0x3000, 0x5FF8), st.binary(min_size=1, max_size=8)), min_size=1, max_size=12))
def test_changed_bytes_raise_nothing_but_memory_errors(is_maple: bool, changes: list[tuple[int, bytes]]) -> None:
    process = build_process(is_maple=is_maple)
    for offset, data in changes:
        process.heap.write(HEAP + offset, data)
    _read_hostile(process)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.data())
def test_pointers_to_other_structs_lead_nowhere_for_ever(is_maple: bool, data: st.DataObject) -> None:
    """Any pointer becomes any other, so that trees, directories and mounts run in circles."""
    process = build_process(is_maple=is_maple)
    heap = bytes(process.heap.memory.pieces[HEAP_PHYSICAL])
    places = [at for at in range(0, 0x8000, 8) if HEAP <= struct.unpack_from("<Q", heap, at)[0] < HEAP + HEAP_SIZE]
    values = [struct.unpack_from("<Q", heap, at)[0] for at in places]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=8)):
        process.heap.write(HEAP + place, struct.pack("<Q", data.draw(st.sampled_from(values))))
    _read_hostile(process)


def test_circles() -> None:
    """The circles that matter, each for itself."""
    process = build_process()
    process.heap.put("dentry", process.dentries["usr"], d_parent=process.dentries["prog"])
    assert reader_of(process).read(process.mm).mappings[1].path == "[unknown]"
    process = build_process(is_maple=False)
    node = process.heap.structs.require("vm_area_struct", "vm_rb").offset
    process.heap.put("vm_area_struct", process.areas[0], vm_rb__rb_left=process.root + node)
    with pytest.raises(TreeChangedError, match="back into its own tree"):
        reader_of(process).read(process.mm)
