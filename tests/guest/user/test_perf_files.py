"""Where processes name the code that they made: by open files, by directories and mounts, in namespaces; also damaged."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.memory import run_steps
from guest.structs import Structs
from guest.user.files import FileIdentity, OpenFile
from guest.user.perf_files import PerfMapFinder, PerfMapPlace, ProcessKey, drop_cut_lines, read_lines
from recording.errors import BadImageError
from tests.builders.kernel_structs import COMMON, HEAP, HEAP_SIZE, Heap, LayoutTypes
from tests.builders.perf_maps import NAME, PID, JitProcess, build_jit_process
from tests.builders.words import LITTLE_64

MAX_BATCHES = 20_000
PATH = "/tmp/perf-7.map"  # noqa: S108 (where the interface has it, in the guest)
RINGS = pytest.mark.parametrize("is_ring", [True, False])


def place_of(process: JitProcess) -> PerfMapPlace:
    return PerfMapPlace(PID, process.mount, process.dentry)


@RINGS
@pytest.mark.parametrize("is_open", [True, False])
def test_the_file_of_a_process(is_ring: bool, is_open: bool) -> None:
    process = build_jit_process(is_ring=is_ring, is_open=is_open)
    if is_open:
        # It is enough that the process has it open.
        process.heap.put("dentry", process.directory, **{"d_subdirs__next" if is_ring else "d_children__first": 0})
    finder = process.finder()
    place = run_steps(finder.find(process.key))
    assert place == place_of(process)
    assert finder.look(place) == OpenFile(PATH, False, FileIdentity(process.inode, 3, 100, 5, "tmpfs", "tmp", None, 0, 0))
    process.grow(200)
    file = finder.look(place)
    assert file is not None
    assert file.identity.size == 200


@RINGS
def test_a_process_without_the_file(is_ring: bool) -> None:
    process = build_jit_process(is_ring=is_ring)
    process.heap.put("dentry", process.dentry, d_inode=0)
    finder = process.finder()
    assert run_steps(finder.find(process.key)) is None
    assert finder.look(place_of(process)) is None
    process.heap.put("dentry", process.dentry, d_inode=process.inode, d_hash__pprev=0)
    assert run_steps(finder.find(process.key)) is None


@pytest.mark.parametrize("member", ["mm", "tgid"])
def test_a_task_that_is_another_process_now(member: str) -> None:
    process = build_jit_process(is_open=True)
    process.heap.put("task_struct", process.key.task, **{member: 99})
    assert run_steps(process.finder().find(process.key)) is None
    assert run_steps(process.finder().find(ProcessKey(0x1000, 1, 2))) is None


def test_a_place_whose_memory_is_another_entry_now() -> None:
    process = build_jit_process()
    finder = process.finder()
    assert finder.look(place_of(process)) is not None
    process.heap.put("dentry", process.dentry, d_iname=b"perf-9.map")
    assert finder.look(place_of(process)) is None


def test_a_task_that_has_given_up_its_files() -> None:
    process = build_jit_process(is_open=True)
    process.heap.put("task_struct", process.key.task, files=0)
    assert run_steps(process.finder().find(process.key)) == place_of(process)
    process.heap.put("task_struct", process.key.task, fs=0)
    assert run_steps(process.finder().find(process.key)) is None


@pytest.mark.parametrize("is_same_name", [True, False])
def test_overlayfs_has_the_contents_elsewhere(is_same_name: bool) -> None:
    """``struct ovl_inode`` has the entry of the upper directory behind its inode."""
    process = build_jit_process(file_system=b"overlay")
    heap = process.heap
    kind = heap.put("file_system_type", name=heap.text(b"ext4"))
    block = heap.put("super_block", s_dev=6, s_type=kind, s_id=b"vda1")
    inode = heap.put("inode", i_ino=44, i_size=300, i_sb=block)
    upper = heap.dentry(NAME if is_same_name else b"perf-8.map", heap.dentry(b"upper"))
    heap.put("dentry", upper, d_inode=inode)
    heap.write(process.inode + 128, struct.pack("<Q", upper))
    file = process.finder().look(place_of(process))
    if not is_same_name:
        assert file is None
        return
    assert file is not None
    assert file.path == PATH
    assert file.identity == FileIdentity(inode, 44, 300, 6, "ext4", "vda1", None, 0, 0)


@pytest.mark.parametrize("missing", ["pid", "upid", "fdtable", "fs_struct", "list_head"])
def test_a_kernel_without_a_struct_is_refused(missing: str) -> None:
    process = build_jit_process()
    structs = process.heap.structs
    types = structs._types
    find = types.find
    types.find = lambda name: None if name == missing else find(name)  # type: ignore[method-assign]
    with pytest.raises(BadImageError, match=r"report this kernel"):
        PerfMapFinder(process.heap.space, Structs(types, LITTLE_64))
    with pytest.raises(BadImageError, match="task_struct"):
        PerfMapFinder(Heap().space, Structs(LayoutTypes(COMMON), LITTLE_64))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damage_costs_the_file_and_no_more(data: st.DataObject) -> None:
    """Lists that never end, links into each other, counts beyond all: never an error, never without end."""
    process = build_jit_process(is_ring=data.draw(st.booleans()), is_open=data.draw(st.booleans()))
    heap = process.heap
    used = [process.key.task, process.file, process.mount, process.tmp, process.directory, process.dentry, process.inode]
    words = st.one_of(
        st.sampled_from([0, HEAP, (1 << 64) - 1, (1 << 64) - 4096, *(address + at for address in used for at in (0, 64, 88, 104))]),
        st.integers(0, (1 << 64) - 1),
    )
    end = heap.take(0) - HEAP
    for _change in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.one_of(st.integers(0x200, end // 8), st.sampled_from([(each - HEAP) // 8 + 11 for each in used])))
        heap.write(HEAP + 8 * at, struct.pack("<Q", data.draw(words)))
    finder = process.finder()
    before = heap.memory.batches
    place = run_steps(finder.find(process.key))
    if place is not None:
        finder.look(place)
    finder.look(place_of(process))
    assert heap.memory.batches - before < MAX_BATCHES


@RINGS
def test_a_directory_that_never_ends(is_ring: bool) -> None:
    process = build_jit_process(is_ring=is_ring)
    heap = process.heap
    member = "d_child" if is_ring else "d_sib"
    link = {f"{member}__next": process.tmp + heap.structs.require("dentry", member).offset}
    heap.put("dentry", process.tmp, d_iname=b"pmt", **link)
    assert run_steps(process.finder().find(process.key)) is None
    assert heap.memory.batches < 100


@RINGS
def test_a_large_directory_takes_many_steps(is_ring: bool) -> None:
    process = build_jit_process(is_ring=is_ring)
    heap = process.heap
    member, head = ("d_child", "d_subdirs__next") if is_ring else ("d_sib", "d_children__first")
    at = heap.structs.require("dentry", member).offset
    link = process.dentry + at
    for _number in range(200):
        child = heap.put("dentry", d_parent=process.directory, **{f"{member}__next": link})
        link = child + at
    heap.put("dentry", process.directory, **{head: link})
    steps = process.finder().find(process.key)
    assert sum(1 for _ in steps) > 4
    assert run_steps(process.finder().find(process.key)) == place_of(process)


class Pages:
    """A page cache in which some pages are missing."""

    page_size = 4096

    def __init__(self, text: bytes, missing: Sequence[int] = ()) -> None:
        self.text, self.missing = text, missing

    def read_pages(self, _inode: int, indexes: Sequence[int]) -> list[bytes | None]:
        return [
            None if index in self.missing else self.text[index * 4096 : (index + 1) * 4096].ljust(4096, b"\0") for index in indexes
        ]


def open_file(size: int) -> OpenFile:
    return OpenFile(PATH, False, FileIdentity(HEAP, 3, size, 5, "tmpfs", "tmp", None, 0, 0))


def test_a_files_last_part_is_read() -> None:
    text = b"".join(b"%07d\n" % number for number in range(4096 * 100 // 8 + 5))
    assert run_steps(read_lines(Pages(text), open_file(len(text)), 1 << 20)) == (text, [])
    found, missing = run_steps(read_lines(Pages(text, [97, 98, 100]), open_file(len(text)), 4096 * 10))
    assert len(found) == 4096 * 10 + 40
    assert found[: 4096 * 7] == text[4096 * 90 : 4096 * 97]
    assert missing == [(4096 * 7, 4096 * 9), (4096 * 10, 4096 * 10 + 40)]


@pytest.mark.parametrize("size", [0, 1 << 63, (1 << 64) - 1])
def test_sizes_that_cannot_be(size: int) -> None:
    found, missing = run_steps(read_lines(Pages(b""), open_file(size), 1 << 16))
    assert len(found) <= (1 << 16) + 4096
    assert missing == []


def test_lines_that_are_not_whole_are_dropped() -> None:
    text = b"aa\nbb\ncc\ndd\nee"
    assert drop_cut_lines(text, [], is_cut=False) == text
    assert drop_cut_lines(text, [], is_cut=True) == b"bb\ncc\ndd\nee"
    assert drop_cut_lines(text, [(4, 7)], is_cut=False) == b"aa\ndd\nee"
    assert drop_cut_lines(text, [(0, 4), (13, 14)], is_cut=False) == b"\ncc\ndd\n"


@settings(max_examples=100)
@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=3), st.booleans())
def test_dropping_never_makes_lines(text: bytes, gaps: list[tuple[int, int]], is_cut: bool) -> None:
    missing, at = [], 0
    for skip, length in gaps:
        low, high = at + skip, at + skip + length
        if high > len(text):
            break
        missing.append((low, high))
        at = high
    lines = set(drop_cut_lines(text, missing, is_cut=is_cut).split(b"\n")) - {b""}
    assert lines <= set(text.split(b"\n"))


def test_the_heap_was_large_enough() -> None:
    assert build_jit_process().heap.take(0) < HEAP + HEAP_SIZE
