"""A process with a handful of mappings in a kernel's heap: a program, a library, heap, vdso and stack; by either tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.builders.kernel_structs import HEAP, HEAP_PHYSICAL, MAPLE, RED_BLACK, Heap, maple_inner, maple_leaf

SPECIAL_OPS = 0xFFFF_FFFF_8100_0000
LAST = (1 << 64) - 1
PGD = HEAP + 0x2000
PGD_PHYSICAL = HEAP_PHYSICAL + 0x2000


@dataclass(frozen=True, slots=True)
class Process:
    """mm: its address; names: dentries by name; areas: addresses of its mappings in order; root: where its tree begins."""

    heap: Heap
    mm: int
    dentries: dict[str, int]
    areas: tuple[int, ...]
    root: int


def build_process(*, is_maple: bool = True, image: Sequence[tuple[int, str, str]] = ()) -> Process:
    """[0x400000, 0x401000) and [0x401000, 0x402000) of /usr/prog, heap, a library, data, vdso, stack. image: more symbols."""
    heap = Heap(MAPLE if is_maple else RED_BLACK, [(SPECIAL_OPS, "d", "special_mapping_vmops"), *image])
    heap.take(0x2000)
    root = heap.dentry(b"/")
    usr = heap.dentry(b"usr", root)
    program = heap.dentry(b"prog", usr)
    library = heap.dentry(b"libc.so.6", usr, is_hashed=False)
    mnt = heap.mount(root)
    program_file, library_file = heap.file(mnt, program), heap.file(mnt, library, 8)
    data_file = heap.file(mnt, usr, 9)
    vvar = heap.put("vm_special_mapping", name=heap.text(b"[vvar]"))
    vdso = heap.put("vm_special_mapping", name=heap.text(b"[vdso]"))
    mm = heap.take(128)
    areas = (
        heap.area(mm, 0x400000, 0x401000, vm_file=program_file),
        heap.area(mm, 0x401000, 0x402000, 5, vm_file=program_file, vm_pgoff=1),
        heap.area(mm, 0x500000, 0x521000, 3),
        heap.area(mm, 0x7F00_0000_0000, 0x7F00_0010_0000, 5, vm_file=library_file, vm_pgoff=0x26),
        heap.area(mm, 0x7F00_0010_0000, 0x7F00_0010_1000, vm_file=data_file),
        heap.area(mm, 0x7F00_0020_0000, 0x7F00_0020_1000, vm_ops=SPECIAL_OPS, vm_private_data=vvar),
        heap.area(mm, 0x7F00_0020_1000, 0x7F00_0020_2000, 5, vm_ops=SPECIAL_OPS, vm_private_data=vdso),
        heap.area(mm, 0x7FFF_0000_0000, 0x7FFF_0002_1000, 3),
        heap.area(mm, 0x7FFF_0003_0000, 0x7FFF_0003_1000, 5),
    )
    members = {
        "map_count": len(areas),
        "pgd": PGD,
        "start_stack": 0x7FFF_0002_0010,
        "start_brk": 0x500000,
        "brk": 0x521000,
        "total_vm": 99,
        "context__vdso": 0x7F00_0020_1000,
    }
    if is_maple:
        root_node = heap.take(256)
        heap.put("mm_struct", mm, mm_mt__ma_root=_maple(heap, root_node, areas), **members)
        return Process(heap, mm, {"usr": usr, "prog": program, "libc": library}, areas, root_node)
    top = areas[4]
    node = heap.structs.require("vm_area_struct", "vm_rb").offset
    _balance(heap, areas, node)
    heap.put("mm_struct", mm, mm_rb__rb_node=top + node, **members)
    return Process(heap, mm, {"usr": usr, "prog": program, "libc": library}, areas, top)


def _maple(heap: Heap, top: int, areas: tuple[int, ...]) -> int:
    """Two leaves under an inner node."""
    low = maple_leaf(
        heap,
        top,
        [(0x3FFFFF, 0), (0x400FFF, areas[0]), (0x401FFF, areas[1]), (0x4FFFFF, 0), (0x520FFF, areas[2]), (0x6FFF_FFFF_FFFF, 0)],
        0x6FFF_FFFF_FFFF,
    )
    high = maple_leaf(
        heap,
        top,
        [
            (0x7EFF_FFFF_FFFF, 0),
            (0x7F00_000F_FFFF, areas[3]),
            (0x7F00_0010_0FFF, areas[4]),
            (0x7F00_001F_FFFF, 0),
            (0x7F00_0020_0FFF, areas[5]),
            (0x7F00_0020_1FFF, areas[6]),
            (0x7FFE_FFFF_FFFF, 0),
            (0x7FFF_0002_0FFF, areas[7]),
            (0x7FFF_0002_FFFF, 0),
            (0x7FFF_0003_0FFF, areas[8]),
            (LAST, 0),
        ],
        LAST,
    )
    return maple_inner(heap, 0, [(0x6FFF_FFFF_FFFF, low), (LAST, high)], LAST, top)


def _balance(heap: Heap, areas: tuple[int, ...], node: int) -> None:
    """The middle one above, and so on below it."""
    if not areas:
        return
    middle = len(areas) // 2
    for name, part in (("vm_rb__rb_left", areas[:middle]), ("vm_rb__rb_right", areas[middle + 1 :])):
        heap.put("vm_area_struct", areas[middle], **{name: part[len(part) // 2] + node if part else 0})
        _balance(heap, part, node)
