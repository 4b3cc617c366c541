"""An open file (``struct file``) becomes its path and what tells it from all other files."""

from __future__ import annotations

from dataclasses import dataclass

from guest.paging import AddressSpace
from guest.records import Record
from guest.remembered import Reads, Remembered
from guest.structs import Structs
from guest.user.paths import PathReader

_FMODE_NOACCOUNT = 1 << 29
_FMODE_BACKING = 1 << 24 | 1 << 25
"""The file of an upper or lower file system behind one of overlayfs (include/linux/fs.h; 6.5 and later): one of the two bits, since
6.14 and in some earlier stable kernels the lower. What the other one means is not found in a mapped file together with
FMODE_NOACCOUNT, which all of these have (fs/file_table.c: alloc_empty_backing_file)."""
_NO_UUID = bytes(16)
_MAX_TYPE_NAME = 32


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file of the guest, by what its inode says: on overlayfs that of the upper or lower file system.

    inode: address of ``struct inode``. number: i_ino. size: in bytes. device: s_dev (major << 20 | minor). file_system: its type
    ("ext4"). source: s_id, for file systems on a block device its name ("vda1"). uuid: of the file system, None if it has none.
    """

    inode: int
    number: int
    size: int
    device: int
    file_system: str
    source: str
    uuid: bytes | None
    mtime_ns: int
    generation: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file as a process has it open. path: in the guest, from the root; bytes that are no UTF-8 are surrogates."""

    path: str
    is_deleted: bool
    identity: FileIdentity


class FileReader:
    """Describes open files, remembering them; each time all that they were made of is read again (one batch) and compared."""

    def __init__(self, space: AddressSpace, structs: Structs) -> None:
        """Raises BadImageError naming what is missing."""
        self._file = Record(structs, "file", ("f_inode", "f_path.mnt", "f_path.dentry", "f_mode?"))
        # Where there is user_path, f_path is that of the file behind; before (6.5 to 6.7) f_path was the user's.
        has_user_path = structs.field("backing_file", "user_path") is not None
        self._user = Record(structs, "backing_file", ("user_path.mnt", "user_path.dentry")) if has_user_path else None
        self._inode = Record(
            structs,
            "inode",
            (
                "i_ino",
                "i_size",
                "i_sb",
                "i_mtime_sec|i_mtime.tv_sec|__i_mtime.tv_sec?",
                "i_mtime_nsec|i_mtime.tv_nsec|__i_mtime.tv_nsec?",
                "i_generation?",
            ),
        )
        self._super = Record(structs, "super_block", ("s_dev", "s_type", "s_id", "s_uuid?"))
        self._type = Record(structs, "file_system_type", ("name",))
        self._paths = PathReader(structs)
        self._known: Remembered[int, OpenFile] = Remembered(space, self._describe)

    def read(self, files: list[int]) -> dict[int, OpenFile | None]:
        """The files at addresses of ``struct file``, None for those that cannot be read."""
        return self._known.read(files)

    def _describe(self, file: int, reads: Reads) -> OpenFile:
        inode, mnt, dentry, mode = reads.record(self._file, file)
        reads.want(self._inode, inode)
        if self._user is not None and mode & _FMODE_BACKING and mode & _FMODE_NOACCOUNT:
            mnt, dentry = reads.record(self._user, file)
        return self.describe_at(mnt, dentry, inode, reads)

    def describe_at(self, mnt: int, dentry: int, inode: int, reads: Reads) -> OpenFile:
        """The file at a ``struct path``'s members with the contents of an inode. Raises GuestMemoryError."""
        identity = self._identify(inode, reads, (self._paths.dentry, dentry), (self._paths.mount, self._paths.mount_of(mnt)))
        path, is_deleted = self._paths.path(mnt, dentry, reads)
        if identity.file_system == "anon_inodefs":
            # fs/anon_inodes.c: anon_inodefs_dname
            path, is_deleted = b"anon_inode:" + path.lstrip(b"/"), False
        return OpenFile(path.decode("utf-8", "surrogateescape"), is_deleted, identity)

    def _identify(self, inode: int, reads: Reads, *others: tuple[Record, int]) -> FileIdentity:
        """``others``: structs that are wanted next."""
        for other in others:
            reads.want(*other)
        number, size, block, seconds, nanoseconds, generation = reads.record(self._inode, inode)
        device, kind, source, uuid = reads.record(self._super, block)
        (name,) = reads.record(self._type, kind)
        signed = seconds - (seconds >> 63 << 64)
        return FileIdentity(
            inode,
            number,
            size,
            device,
            reads.text(name, _MAX_TYPE_NAME).decode("ascii", "backslashreplace"),
            source.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"),
            uuid if uuid and uuid != _NO_UUID else None,
            signed * 1_000_000_000 + nanoseconds,
            generation,
        )
