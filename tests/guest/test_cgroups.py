"""Paths of control groups."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.cgroups import CgroupReader
from recording.errors import BadImageError
from tests.builders.kernel_structs import COMMON, HEAP, HEAP_PHYSICAL, HEAP_SIZE, Heap

MAX_BATCHES = 300


class Groups:
    """/, /system.slice and /system.slice/a.service, and the set of a task in the last one."""

    def __init__(self) -> None:
        self.heap = Heap()
        self.root = self.node(b"", 0)
        self.slice = self.node(b"system.slice", self.root)
        self.service = self.node(b"a.service", self.slice)
        self.group = self.heap.put("cgroup", kn=self.service)
        self.set = self.heap.put("css_set", dfl_cgrp=self.group)

    def node(self, name: bytes, parent: int) -> int:
        return self.heap.put("kernfs_node", name=self.heap.text(name), id=parent + 1, parent=parent)

    def reader(self) -> CgroupReader:
        return CgroupReader(self.heap.space, self.heap.symbols, self.heap.structs)


def test_paths() -> None:
    groups = Groups()
    reader = groups.reader()
    assert reader.path(groups.set) == "/system.slice/a.service"
    groups.heap.put("cgroup", groups.group, kn=groups.slice)
    assert reader.path(groups.set) == "/system.slice"
    groups.heap.put("cgroup", groups.group, kn=groups.root)
    assert reader.path(groups.set) == "/"


def test_a_known_set_costs_one_batch_and_a_reused_one_is_read_anew() -> None:
    groups = Groups()
    reader = groups.reader()
    reader.path(groups.set)
    before = groups.heap.memory.batches
    assert reader.path(groups.set) == "/system.slice/a.service"
    assert groups.heap.memory.batches - before == 1
    other = groups.node(b"b\xff", groups.root)
    groups.heap.put("css_set", groups.set, dfl_cgrp=groups.heap.put("cgroup", kn=other))
    assert reader.path(groups.set) == "/b\\xff"
    groups.heap.put("css_set", groups.set, dfl_cgrp=0)
    assert reader.path(groups.set) is None


def test_the_set_of_the_first_tasks_is_the_roots_and_costs_no_read() -> None:
    heap = Heap(symbols=[(HEAP + 0x2000, "D", "init_css_set")])
    reader = CgroupReader(heap.space, heap.symbols, heap.structs)
    before = heap.memory.batches
    assert reader.path(HEAP + 0x2000) == "/"
    assert heap.memory.batches == before


def test_the_new_name_of_a_member() -> None:
    size, members = COMMON["kernfs_node"]
    new = {("__parent" if name == "parent" else name): place for name, place in members.items()}
    heap = Heap({**COMMON, "kernfs_node": (size, new)})
    root = heap.put("kernfs_node", name=heap.text(b""))
    node = heap.put("kernfs_node", __parent=root, name=heap.text(b"init.scope"))
    css = heap.put("css_set", dfl_cgrp=heap.put("cgroup", kn=node))
    assert CgroupReader(heap.space, heap.symbols, heap.structs).path(css) == "/init.scope"


def test_a_name_at_the_end_of_memory() -> None:
    groups = Groups()
    groups.heap.write(HEAP + HEAP_SIZE - 4, b"end\0")
    groups.heap.put("kernfs_node", groups.service, name=HEAP + HEAP_SIZE - 4)
    assert groups.reader().path(groups.set) == "/system.slice/end"


def test_damage() -> None:
    groups = Groups()
    groups.heap.put("kernfs_node", groups.slice, parent=groups.service)
    assert groups.reader().path(groups.set) is None
    groups = Groups()
    groups.heap.put("kernfs_node", groups.slice, name=0x1234)
    assert groups.reader().path(groups.set) is None
    assert groups.reader().path(0) is None


def test_a_kernel_without_them() -> None:
    heap = Heap({name: layout for name, layout in COMMON.items() if name != "css_set"})
    with pytest.raises(BadImageError, match="css_set"):
        CgroupReader(heap.space, heap.symbols, heap.structs)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_pointers_anywhere(data: st.DataObject) -> None:
    groups = Groups()
    heap = bytes(groups.heap.memory.pieces[HEAP_PHYSICAL])
    places = [at for at in range(0, 0x4000, 8) if HEAP <= struct.unpack_from("<Q", heap, at)[0] < HEAP + HEAP_SIZE]
    values = [*(struct.unpack_from("<Q", heap, at)[0] for at in places), 0, (1 << 64) - 1, 0x1234]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=5)):
        groups.heap.write(HEAP + place, struct.pack("<Q", data.draw(st.sampled_from(values))))
    before = groups.heap.memory.batches
    reader = groups.reader()
    path = reader.path(groups.set)
    assert path is None or path.startswith("/")
    assert reader.path(groups.set) == path
    assert groups.heap.memory.batches - before <= MAX_BATCHES
