"""A process with open files, a pid namespace, a root directory and mounts, in a kernel's heap; and a file that names its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guest.user.perf_files import PerfMapFinder, ProcessKey
from tests.builders.kernel_structs import COMMON, Heap, Layout

PID, TGID = 7, 1234
NAME = b"perf-7.map"
_DENTRY: Layout = {**COMMON["dentry"][1], "d_inode": (80, 8)}
_LISTS = {
    "list_head": (16, {"next": (0, 8), "prev": (8, 8)}),
    "hlist_head": (8, {"first": (0, 8)}),
    "hlist_node": (16, {"next": (0, 8), "pprev": (8, 8)}),
}
_RING: Layout = {**_DENTRY, "d_child": (88, "list_head"), "d_subdirs": (104, "list_head")}
_CHAIN: Layout = {**_DENTRY, "d_sib": (88, "hlist_node"), "d_children": (104, "hlist_head")}
_OTHERS: dict[str, tuple[int, Layout]] = {
    **_LISTS,
    "mount": (80, {**COMMON["mount"][1], "mnt_mounts": (48, "list_head"), "mnt_child": (64, "list_head")}),
    "task_struct": (
        64,
        {"mm": (0, 8), "tgid": (8, 4), "group_leader": (16, 8), "thread_pid": (24, 8), "fs": (32, 8), "files": (40, 8)},
    ),
    "pid": (8, {"level": (4, 4), "numbers": (8, 0)}),
    "upid": (16, {"nr": (0, 4), "ns": (8, 8)}),
    "files_struct": (16, {"fdt": (8, 8)}),
    "fdtable": (16, {"max_fds": (0, 4), "fd": (8, 8)}),
    "fs_struct": (32, {"root": (8, "path")}),
}


@dataclass(frozen=True, slots=True)
class JitProcess:
    """Addresses. tmp: the entry of the root directory that something is mounted on; directory: what is mounted there."""

    heap: Heap
    key: ProcessKey
    inode: int
    file: int
    mount: int
    tmp: int
    directory: int
    dentry: int

    def finder(self) -> PerfMapFinder:
        return PerfMapFinder(self.heap.space, self.heap.structs)

    def grow(self, size: int) -> None:
        """More was written to the file."""
        self.heap.put("inode", self.inode, i_size=size)


def build_jit_process(*, is_ring: bool = True, is_open: bool = False, file_system: bytes = b"tmpfs") -> JitProcess:
    """A file ``/tmp/perf-7.map`` of a process that is 1234 outside its pid namespace.

    is_ring: how directories list what they hold. file_system: of the file.
    """
    heap = Heap({**COMMON, **_OTHERS, "dentry": (120, _RING if is_ring else _CHAIN)})
    root, directory = heap.dentry(b"/"), heap.dentry(b"/")
    others = [heap.dentry(name, root) for name in (b"bin", b"tmp", b"tmpx")]
    gone, tmp = heap.dentry(b"tmp", root, is_hashed=False), others[1]
    dentry = heap.dentry(NAME, directory)
    siblings = [heap.dentry(b"perf-8.map", directory), heap.dentry(NAME, directory), dentry, heap.dentry(b"a" * 40, directory)]
    _list(heap, root, [gone, *others], is_ring=is_ring)
    _list(heap, directory, siblings, is_ring=is_ring)
    mnt = heap.mount(root)
    upper, elsewhere = heap.mount(directory, mnt, tmp), heap.mount(heap.dentry(b"/"), mnt, others[0])
    inside = heap.structs.require("mount", "mnt").offset
    _ring(heap, "mount", mnt - inside, "mnt_mounts", "mnt_child", [elsewhere - inside, upper - inside])
    for each in (upper, elsewhere):
        _ring(heap, "mount", each - inside, "mnt_mounts", "mnt_child", [])
    kind = heap.put("file_system_type", name=heap.text(file_system))
    block = heap.put("super_block", s_dev=5, s_type=kind, s_id=b"tmp")
    inode = heap.put("inode", i_ino=3, i_size=100, i_sb=block)
    for each in (gone, *others, dentry):
        heap.put("dentry", each, d_inode=inode)
    file = heap.put("file", f_inode=inode, f_path__mnt=upper, f_path__dentry=dentry)
    other = heap.put("file", f_inode=inode, f_path__mnt=upper, f_path__dentry=siblings[0])
    array = heap.take(8 * 300)
    for index, value in ((0, other), (2, other + 0x10_0000_0000), (290, file if is_open else other)):
        heap.write(array + 8 * index, value.to_bytes(8, "little"))
    table = heap.put("fdtable", max_fds=300, fd=array)
    own = heap.take(64)
    heap.put("pid", own, level=1)
    for level, number in enumerate((TGID, PID)):
        heap.put("upid", own + 8 + 16 * level, nr=number)
    task = heap.take(64)
    mm = heap.take(64)
    fs = heap.put("fs_struct", root__mnt=mnt, root__dentry=root)
    files = heap.put("files_struct", fdt=table)
    heap.put("task_struct", task, mm=mm, tgid=TGID, group_leader=task, thread_pid=own, fs=fs, files=files)
    return JitProcess(heap, ProcessKey(task, TGID, mm), inode, file, upper, tmp, directory, dentry)


def _list(heap: Heap, directory: int, children: Sequence[int], *, is_ring: bool) -> None:
    if is_ring:
        _ring(heap, "dentry", directory, "d_subdirs", "d_child", children)
        return
    at = heap.structs.require("dentry", "d_sib").offset
    links = [child + at for child in children] + [0]
    heap.put("dentry", directory, d_children__first=links[0])
    for child, link in zip(children, links[1:], strict=True):
        heap.put("dentry", child, d_sib__next=link)


def _ring(heap: Heap, kind: str, owner: int, head: str, member: str, children: Sequence[int]) -> None:
    at, inside = heap.structs.require(kind, head).offset, heap.structs.require(kind, member).offset
    links = [child + inside for child in children] + [owner + at]
    heap.put(kind, owner, **{f"{head}__next": links[0]})
    for child, link in zip(children, links[1:], strict=True):
        heap.put(kind, child, **{f"{member}__next": link})
