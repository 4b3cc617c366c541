"""A kernel's heap of 256 KiB with structs in it, and layouts of these: what readers of processes and files read.

Layouts are as in a real kernel in what matters (which members a struct has, one inside the other), not in their offsets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from guest.paging import AddressSpace
from guest.structs import Composite, Member, Scalar, Structs, Type
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from tests.builders.page_tables import FOUR_LEVELS, PageTables
from tests.builders.words import LITTLE_64

HEAP = 0xFFFF_8880_0000_0000
HEAP_PHYSICAL = 0x40_0000
HEAP_SIZE = 0x4_0000
PAGES = 0xFFFF_EA00_0000_0000
"""Where the array of ``struct page`` is said to lie."""
PAGES_PHYSICAL = 0x80_0000
PAGES_SIZE = 0x2_0000
TABLES = 0x20_0000

Layout = Mapping[str, tuple[int, int | str]]
"""Members: offset, and size or the name of a struct."""

COMMON: Mapping[str, tuple[int, Layout]] = {
    "path": (16, {"mnt": (0, 8), "dentry": (8, 8)}),
    "file": (64, {"f_mode": (0, 4), "f_inode": (8, 8), "f_path": (16, "path")}),
    "inode": (
        128,
        {
            "i_sb": (8, 8),
            "i_mapping": (16, 8),
            "i_ino": (24, 8),
            "i_size": (32, 8),
            "i_mtime": (40, "timespec64"),
            "i_generation": (56, 4),
        },
    ),
    "timespec64": (16, {"tv_sec": (0, 8), "tv_nsec": (8, 8)}),
    "super_block": (96, {"s_dev": (0, 4), "s_type": (8, 8), "s_id": (16, 32), "s_uuid": (48, 16)}),
    "file_system_type": (16, {"name": (0, 8)}),
    "dentry": (
        96,
        {"d_hash": (0, "hlist_bl_node"), "d_parent": (16, 8), "d_name": (24, "qstr"), "d_iname": (40, 32), "d_sb": (72, 8)},
    ),
    "hlist_bl_node": (16, {"next": (0, 8), "pprev": (8, 8)}),
    "qstr": (16, {"hash": (0, 4), "len": (4, 4), "name": (8, 8)}),
    "mount": (64, {"mnt_parent": (0, 8), "mnt_mountpoint": (8, 8), "mnt": (16, "vfsmount")}),
    "vfsmount": (32, {"mnt_root": (0, 8), "mnt_sb": (8, 8)}),
    "vm_special_mapping": (16, {"name": (0, 8)}),
    "mm_context_t": (16, {"vdso": (0, 8)}),
    "maple_tree": (16, {"ma_flags": (0, 4), "ma_root": (8, 8)}),
    "maple_metadata": (2, {"end": (0, 1), "gap": (1, 1)}),
    "maple_range_64": (256, {"parent": (0, 8), "pivot": (8, 120), "slot": (128, 128), "meta": (248, "maple_metadata")}),
    "maple_arange_64": (
        256,
        {"parent": (0, 8), "pivot": (8, 72), "slot": (80, 80), "gap": (160, 80), "meta": (240, "maple_metadata")},
    ),
    "css_set": (16, {"dfl_cgrp": (8, 8)}),
    "cgroup": (16, {"kn": (8, 8)}),
    "kernfs_node": (32, {"parent": (0, 8), "name": (8, 8), "id": (16, 8)}),
    "address_space": (64, {"host": (0, 8), "i_pages": (8, "xarray")}),
    "xarray": (16, {"xa_flags": (0, 4), "xa_head": (8, 8)}),
    "xa_node": (576, {"shift": (0, 1), "offset": (1, 1), "slots": (16, 512)}),
    "folio": (64, {"flags": (0, 8), "mapping": (24, 8), "index": (32, 8)}),
    "page": (64, {"flags": (0, 8), "mapping": (24, 8)}),
}
_AREA: Layout = {
    "vm_start": (0, 8),
    "vm_end": (8, 8),
    "vm_mm": (16, 8),
    "vm_flags": (24, 8),
    "vm_ops": (32, 8),
    "vm_pgoff": (40, 8),
    "vm_file": (48, 8),
    "vm_private_data": (56, 8),
}
_MM: Layout = {
    name: (16 + 8 * index, 8)
    for index, name in enumerate("map_count pgd start_stack start_brk brk total_vm exec_vm start_code arg_start exe_file".split())
} | {"context": (96, "mm_context_t")}
MAPLE: Mapping[str, tuple[int, Layout]] = {
    **COMMON,
    "vm_area_struct": (64, _AREA),
    "mm_struct": (128, {"mm_mt": (0, "maple_tree"), **_MM}),
}
RED_BLACK: Mapping[str, tuple[int, Layout]] = {
    **COMMON,
    "rb_node": (24, {"rb_right": (8, 8), "rb_left": (16, 8)}),
    "rb_root": (8, {"rb_node": (0, 8)}),
    "vm_area_struct": (96, {**_AREA, "vm_rb": (64, "rb_node")}),
    "mm_struct": (128, {"mm_rb": (0, "rb_root"), **_MM}),
}
TASK: Mapping[str, tuple[int, Layout]] = {
    "list_head": (16, {"next": (0, 8), "prev": (8, 8)}),
    "task_struct": (
        512,
        {
            "flags": (16, 4),
            "stack": (24, 8),
            "tasks": (40, "list_head"),
            "mm": (64, 8),
            "pid": (128, 4),
            "tgid": (132, 4),
            "group_leader": (160, 8),
            "comm": (200, 16),
            "cgroups": (240, 8),
        },
    ),
}
ENUMS = {"pageflags": {"PG_locked": 0, "PG_uptodate": 2}, "maple_type": {"maple_leaf_64": 1, "maple_range_64": 2}}
UPTODATE = 4


class LayoutTypes:
    """``guest.structs.TypeSource`` of layouts written down."""

    def __init__(self, layouts: Mapping[str, tuple[int, Layout]]) -> None:
        self._layouts = layouts

    def find(self, name: str) -> Type | None:
        if name not in self._layouts:
            return None
        size, members = self._layouts[name]

        def each() -> Iterator[Member]:
            for member, (offset, kind) in members.items():
                found = self.find(kind) if isinstance(kind, str) else Scalar(kind, kind)
                yield Member(member, 8 * offset, 0, lambda found=found: found)  # type: ignore[misc]

        return Composite(size, size, each)

    def variables(self, section: str) -> Iterator[tuple[str, int]]:
        return iter(())

    def enumerators(self, name: str) -> Iterator[tuple[str, int]]:
        return iter(ENUMS.get(name, {}).items())


class Heap:
    """Structs at addresses from HEAP on. ``batches`` of the memory counts reads."""

    def __init__(self, layouts: Mapping[str, tuple[int, Layout]] = MAPLE, symbols: Sequence[tuple[int, str, str]] = ()) -> None:
        self.structs = Structs(LayoutTypes(layouts), LITTLE_64)
        tables = PageTables(TABLES)
        tables.map(HEAP, HEAP_PHYSICAL, HEAP_SIZE)
        tables.map(PAGES, PAGES_PHYSICAL, PAGES_SIZE)
        self.memory = BytesMemory(
            {TABLES: bytes(tables.memory), HEAP_PHYSICAL: bytes(HEAP_SIZE), PAGES_PHYSICAL: bytes(PAGES_SIZE)}
        )
        self.space = AddressSpace(self.memory, FOUR_LEVELS, TABLES)
        self._next = HEAP + 0x1000
        self.symbols = SymbolTable.from_symbols([*symbols, (self.take(8), "D", "vmemmap_base")])
        self.write(HEAP + 0x1000, struct.pack("<Q", PAGES))

    def take(self, size: int) -> int:
        """The address of ``size`` bytes of zeros, aligned as the largest of nodes is."""
        address = self._next
        self._next += size + 255 & ~255
        return address

    def write(self, address: int, data: bytes) -> None:
        """Change bytes."""
        self.memory.write(address - (PAGES - PAGES_PHYSICAL if address >= PAGES else HEAP - HEAP_PHYSICAL), data)

    def put(self, kind: str, address: int = 0, /, **members: int | bytes) -> int:
        """A struct's address, new or given; members by path with ``__`` for dots (a leading one stays)."""
        address = address or self.take(self.structs.size_of(kind) or 0)
        for name, value in members.items():
            lead = "__" if name.startswith("__") else ""
            field = self.structs.require(kind, lead + name.removeprefix(lead).replace("__", "."))
            data = value if isinstance(value, bytes) else value.to_bytes(field.size, "little")
            self.write(address + field.offset, data)
        return address

    def text(self, data: bytes) -> int:
        """The address of a string."""
        address = self.take(len(data) + 1)
        self.write(address, data + b"\0")
        return address

    def dentry(self, name: bytes, parent: int = 0, *, is_hashed: bool = True) -> int:
        """A name in a directory, 0 for a root of its own."""
        address = self.take(96)
        inline = self.structs.require("dentry", "d_iname")
        is_inline = len(name) < inline.size
        return self.put(
            "dentry",
            address,
            d_parent=parent or address,
            d_hash__pprev=1 if is_hashed else 0,
            d_name__len=len(name),
            d_name__name=address + inline.offset if is_inline else self.text(name),
            d_iname=name if is_inline else b"",
        )

    def mount(self, root: int, parent: int = 0, mountpoint: int = 0) -> int:
        """The ``struct vfsmount`` of a mount, by default of the root of all; parent: another's."""
        address = self.take(64)
        inside = self.structs.require("mount", "mnt").offset
        self.put("mount", address, mnt_parent=parent - inside if parent else address, mnt_mountpoint=mountpoint, mnt__mnt_root=root)
        return address + inside

    def file(self, mnt: int, dentry: int, number: int = 7, **inode: int) -> int:
        """An open file of an ext4 file system on vda1."""
        kind = self.put("file_system_type", name=self.text(b"ext4"))
        block = self.put("super_block", s_dev=0xFE_00001, s_type=kind, s_id=b"vda1", s_uuid=bytes(range(16)))
        node = self.put(
            "inode", i_ino=number, i_size=5000, i_sb=block, i_mtime__tv_sec=12, i_mtime__tv_nsec=34, i_generation=56, **inode
        )
        return self.put("file", f_inode=node, f_path__mnt=mnt, f_path__dentry=dentry)

    def area(self, mm: int, start: int, end: int, flags: int = 1, **members: int) -> int:
        """A mapping of a process."""
        return self.put("vm_area_struct", vm_start=start, vm_end=end, vm_mm=mm, vm_flags=flags, **members)


def maple_leaf(heap: Heap, parent: int, ranges: Sequence[tuple[int, int]], last: int, address: int = 0) -> int:
    """A leaf, encoded: (last index, entry) of each slot; ``last``: of the node. parent: 0 for the root."""
    address = address or heap.take(256)
    return _node(heap, address, 1, parent, ranges, last, pivots=15, slot_at=128, end_at=248)


def maple_inner(heap: Heap, parent: int, ranges: Sequence[tuple[int, int]], last: int, address: int = 0) -> int:
    """An inner node with gaps, encoded."""
    address = address or heap.take(256)
    return _node(heap, address, 3, parent, ranges, last, pivots=9, slot_at=80, end_at=240)


def _node(
    heap: Heap,
    address: int,
    kind: int,
    parent: int,
    ranges: Sequence[tuple[int, int]],
    last: int,
    *,
    pivots: int,
    slot_at: int,
    end_at: int,
) -> int:
    heap.write(address, struct.pack("<Q", parent & ~255 or 0x1000 | 1))
    for index, (end, entry) in enumerate(ranges):
        if index < pivots and end != last:
            heap.write(address + 8 + 8 * index, struct.pack("<Q", end))
        heap.write(address + slot_at + 8 * index, struct.pack("<Q", entry))
    if len(ranges) <= pivots:
        heap.write(address + end_at, bytes([len(ranges) - 1]))
    return address | kind << 3 | 6
