"""A task becomes the file in which its process names code that it made at run time: ``/tmp/perf-PID.map``.

The file is looked for as the process sees it (its own pid, root directory and mounts): first among the files that it has open (most
runtimes keep it open to append), then in the cache of directory entries from its root on (fs/namei.c: walk_component, without
symbolic links). Other files of ``/tmp`` are never looked into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guest.memory import Steps
from guest.paging import AddressSpace
from guest.records import ADDRESS_MASK, Record, Values, read_records
from guest.remembered import Reads, Remembered
from guest.structs import Structs
from guest.user.contents import PageReader
from guest.user.files import FileReader, OpenFile
from guest.user.paths import PathReader
from recording.errors import BadImageError, GuestMemoryError

_DIRECTORY = b"tmp"
_MAX_OPEN = 1 << 12
"""Open files that are looked at, low numbers first."""
_MAX_CHILDREN = 1 << 13
"""New entries are the first of their directory's list (fs/dcache.c: d_alloc)."""
_MAX_MOUNTS = 1 << 12
_MAX_STACKED = 16
_MAX_LEVEL = 32
"""include/linux/pid_namespace.h: MAX_PID_NS_LEVEL"""
_READS_PER_STEP = 64
_BATCH = 256


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """A thread of a process, and what tells whether it still is that: addresses of ``struct task_struct`` and ``mm_struct``."""

    task: int
    tgid: int
    mm: int


@dataclass(frozen=True, slots=True)
class PerfMapPlace:
    """Where such a file was found. pid: as the process itself knows it; mnt and dentry: the members of a ``struct path``."""

    pid: int
    mnt: int
    dentry: int

    @property
    def name(self) -> bytes:
        """Of the file, in its directory."""
        return b"perf-%d.map" % self.pid


class PerfMapFinder:
    """Finds these files by a kernel's own structs."""

    def __init__(self, space: AddressSpace, structs: Structs) -> None:
        """Raises BadImageError naming what is missing."""
        self._space = space
        self._words = structs.words
        self._task = Record(structs, "task_struct", ("mm", "tgid", "group_leader"))
        self._leader = Record(structs, "task_struct", ("thread_pid",))
        self._opened = Record(structs, "task_struct", ("fs", "files"))
        self._level = Record(structs, "pid", ("level",))
        self._number = Record(structs, "upid", ("nr",))
        # A flexible array in newer kernels: it has no size of its own.
        self._numbers_at, self._number_size = structs.require("pid", "numbers").offset, structs.size_of("upid") or 0
        self._table_of = Record(structs, "files_struct", ("fdt",))
        self._table = Record(structs, "fdtable", ("max_fds", "fd"))
        self._file = Record(structs, "file", ("f_path.mnt", "f_path.dentry"))
        self._root = Record(structs, "fs_struct", ("root.mnt", "root.dentry"))
        inline = "d_iname|d_shortname"
        self._name = Record(structs, "dentry", ("d_name.len", inline, "d_inode"))
        # d_children and d_sib: a list without a head in the directory, 6.8 and later.
        siblings, children = ("d_sib", "d_children") if structs.field("dentry", "d_children") else ("d_child", "d_subdirs")
        self._child = Record(structs, "dentry", ("d_parent", "d_hash.pprev", "d_name.len", inline, "d_inode", f"{siblings}.next"))
        first = "first" if siblings == "d_sib" else "next"
        self._children = Record(structs, "dentry", (f"{children}.{first}",))
        self._sibling_at = structs.require("dentry", siblings).offset
        self._children_at = structs.require("dentry", children).offset
        self._mount = Record(
            structs, "mount", ("mnt_parent", "mnt_mountpoint", "mnt.mnt_root", "mnt_mounts.next", "mnt_child.next")
        )
        self._mounts_at, self._mount_child_at = (structs.require("mount", name).offset for name in ("mnt_mounts", "mnt_child"))
        self._in_mount = structs.require("mount", "mnt").offset
        self._paths = PathReader(structs)
        self._inode_size = structs.size_of("inode") or 0
        if not self._inode_size or not self._number_size:
            raise BadImageError("the kernel's type information has no size of struct inode or upid; report this kernel")
        self._files = FileReader(space, structs)
        self._known: Remembered[PerfMapPlace, OpenFile] = Remembered(space, self._describe)

    def look(self, place: PerfMapPlace) -> OpenFile | None:
        """The file at a place as it is now; None where it is no longer there."""
        return self._known.read([place])[place]

    def find(self, process: ProcessKey) -> Steps[PerfMapPlace | None]:
        """Where the file of a process is; None where it has none, has ended, or where its directory is not in memory."""
        known, opened = read_records(self._space, [(self._task, process.task), (self._opened, process.task)])
        if known is None or opened is None or known[:2] != (process.mm, process.tgid):
            return None
        pid = self._own_pid(known[2])
        if pid is None:
            return None
        fs, files = opened
        yield
        place = yield from self._find_open(files, pid)
        return place or (yield from self._find_named(fs, pid))

    def _read(self, record: Record, address: int) -> Values | None:
        return read_records(self._space, [(record, address)])[0] if address else None

    def _own_pid(self, leader: int) -> int | None:
        """A process' number in its own namespace, which is the innermost (kernel/pid.c: task_tgid_vnr)."""
        thread_pid = self._read(self._leader, leader)
        level = self._read(self._level, thread_pid[0]) if thread_pid else None
        if thread_pid is None or level is None or level[0] > _MAX_LEVEL:
            return None
        found = self._read(self._number, thread_pid[0] + self._numbers_at + level[0] * self._number_size & ADDRESS_MASK)
        return found[0] if found and 0 < found[0] < 1 << 31 else None

    def _find_open(self, files: int, pid: int) -> Steps[PerfMapPlace | None]:
        table_at = self._read(self._table_of, files)
        table = self._read(self._table, table_at[0]) if table_at else None
        if table is None:
            return None
        count, array = table
        for start in range(0, min(count, _MAX_OPEN), _BATCH):
            word = self._words.size
            data = self._space.read_many([(array + word * start & ADDRESS_MASK, word * min(_BATCH, count - start))])[0]
            if data is None:
                return None
            opened = read_records(self._space, [(self._file, pointer) for pointer in self._words.pointers(data) if pointer])
            places = [PerfMapPlace(pid, *values) for values in opened if values is not None]
            names = read_records(self._space, [(self._name, place.dentry) for place in places])
            for place, name in zip(places, names, strict=True):
                if name is not None and _is_named(place.name, name[0], name[1]) and self.look(place) is not None:
                    return place
            yield
        return None

    def _find_named(self, fs: int, pid: int) -> Steps[PerfMapPlace | None]:
        root = self._read(self._root, fs)
        if root is None:
            return None
        mount, dentry = self._paths.mount_of(root[0]), root[1]
        for name in (_DIRECTORY, b"perf-%d.map" % pid):
            child = yield from self._find_child(dentry, name)
            if child is None:
                return None
            mount, dentry = yield from self._enter(mount, child)
        return PerfMapPlace(pid, mount + self._in_mount & ADDRESS_MASK, dentry)

    def _find_child(self, directory: int, name: bytes) -> Steps[int | None]:
        """The entry of a directory by its name, among those that the kernel has in memory."""
        first = self._read(self._children, directory)
        end = directory + self._children_at & ADDRESS_MASK
        for element in self._elements(self._child, first[0] if first else 0, end, self._sibling_at, _MAX_CHILDREN):
            if element is None:
                yield
                continue
            child, (parent, hashed, length, inline, inode, _next) = element
            if parent != directory:
                # The list has changed meanwhile.
                break
            if hashed and inode and _is_named(name, length, inline):
                return child
        return None

    def _enter(self, mount: int, dentry: int) -> Steps[tuple[int, int]]:
        """What is mounted on a directory entry, if anything, and what is mounted on that (fs/namei.c: traverse_mounts)."""
        for _stacked in range(_MAX_STACKED):
            found = yield from self._find_mount(mount, dentry)
            if found is None:
                break
            mount, dentry = found
        return mount, dentry

    def _find_mount(self, mount: int, dentry: int) -> Steps[tuple[int, int] | None]:
        top = self._read(self._mount, mount)
        end = mount + self._mounts_at & ADDRESS_MASK
        for element in self._elements(self._mount, top[3] if top else 0, end, self._mount_child_at, _MAX_MOUNTS):
            if element is None:
                yield
                continue
            child, (parent, mountpoint, root, _mounts, _next) = element
            if parent != mount:
                break
            if mountpoint == dentry:
                return child, root
        return None

    def _elements(self, record: Record, link: int, end: int, inside: int, limit: int) -> Iterator[tuple[int, Values] | None]:
        """What a list links, with the values of ``record``, of which the last is the next link; None now and then, for a pause.

        A ring ends where it began, a list without a ring at 0. inside: where the link lies in an element.
        """
        seen: set[int] = set()
        while link not in (0, end) and link not in seen and len(seen) < limit:
            seen.add(link)
            address = link - inside & ADDRESS_MASK
            values = self._read(record, address)
            if values is None:
                break
            yield address, values
            link = values[-1]
            if not len(seen) % _READS_PER_STEP:
                yield None

    def _describe(self, place: PerfMapPlace, reads: Reads) -> OpenFile:
        inode = self._inode_of(place.dentry, place, reads)
        file = self._files.describe_at(place.mnt, place.dentry, inode, reads)
        if file.identity.file_system != "overlay":
            return file
        # The contents are those of the upper file (it was written to); its dentry follows the inode in struct ovl_inode, whose
        # type is a module's (fs/overlayfs/ovl_entry.h). Its name is the same.
        upper = self._words.number(reads.raw(inode + self._inode_size & ADDRESS_MASK, self._words.size))
        return self._files.describe_at(place.mnt, place.dentry, self._inode_of(upper, place, reads), reads)

    def _inode_of(self, dentry: int, place: PerfMapPlace, reads: Reads) -> int:
        length, inline, inode = reads.record(self._name, dentry)
        if not inode or not _is_named(place.name, length, inline):
            raise GuestMemoryError(f"the dentry at {dentry:#x} is no longer that of {place.name.decode()}")
        found: int = inode
        return found


def _is_named(name: bytes, length: int, inline: bytes) -> bool:
    """Whether a directory entry has that name, which is short enough to lie inside it."""
    return length == len(name) and inline[:length] == name


def read_lines(page_cache: PageReader, file: OpenFile, limit: int) -> Steps[tuple[bytes, list[tuple[int, int]]]]:
    """The last ``limit`` bytes of a file's text, or up to a page more, as the page cache has it; and which ranges it has not.

    Ranges are [start, end) in the text; there it has newlines.
    """
    identity = file.identity
    page_size = page_cache.page_size
    first = max(0, identity.size - limit) // page_size
    end = -(-identity.size // page_size)
    text = bytearray()
    missing: list[tuple[int, int]] = []
    for start in range(first, end, _READS_PER_STEP):
        wanted = range(start, min(end, start + _READS_PER_STEP))
        for page in page_cache.read_pages(identity.inode, wanted):
            at = len(text)
            text += b"\n" * page_size if page is None else page
            if page is None and missing and missing[-1][1] == at:
                missing[-1] = missing[-1][0], at + page_size
            elif page is None:
                missing.append((at, at + page_size))
        yield
    del text[max(0, identity.size - first * page_size) :]
    return bytes(text), [(low, min(high, len(text))) for low, high in missing]


def drop_cut_lines(text: bytes, missing: Sequence[tuple[int, int]], *, is_cut: bool) -> bytes:
    """Text without the lines that reach into what is missing. is_cut: its first line is not whole either."""
    pieces: list[bytes] = []
    at = 0
    for low, high in (*missing, (len(text), len(text))):
        piece = text[at:low]
        if is_cut:
            piece = piece.partition(b"\n")[2]
        if low < len(text):
            piece = piece.rpartition(b"\n")[0]
        pieces.append(piece)
        at, is_cut = high, True
    return b"\n".join(pieces)
