"""A mount and a dentry become an absolute path, as ``/proc/PID/maps`` shows it (fs/d_path.c: prepend_path, simple_dname).

Names go up from parent to parent to the root of the mount, from there on from where it is mounted, to the root of all.
"""

from __future__ import annotations

from guest.records import ADDRESS_MASK, Record
from guest.remembered import Reads
from guest.structs import Structs
from recording.errors import GuestMemoryError

_MAX_STEPS = 512
_MAX_NAME = 1023
"""Names in file systems have up to 255 bytes, those of memory without a directory more ("memfd:" and 249 bytes)."""


class PathReader:
    """Where a kernel's structs have names."""

    def __init__(self, structs: Structs) -> None:
        """Raises BadImageError naming what is missing."""
        inline = next((path for path in ("d_iname", "d_shortname") if structs.field("dentry", path)), "d_iname")
        self._inline = structs.require("dentry", inline)
        self.dentry = Record(structs, "dentry", ("d_parent", "d_hash.pprev", "d_name.len", "d_name.name", inline))
        self.mount = Record(structs, "mount", ("mnt_parent", "mnt_mountpoint", "mnt.mnt_root"))
        self._in_mount = structs.require("mount", "mnt").offset

    def mount_of(self, mnt: int) -> int:
        """The ``struct mount`` that a ``struct vfsmount`` lies in."""
        return mnt - self._in_mount & ADDRESS_MASK

    def path(self, mnt: int, dentry: int, reads: Reads) -> tuple[bytes, bool]:
        """(path, whether the file was deleted) of a ``struct path``'s members. A file of no directory: "/" and its name, deleted.

        Raises GuestMemoryError.
        """
        mount = self.mount_of(mnt)
        first = dentry
        is_deleted = False
        names: list[bytes] = []
        reads.want(self.mount, mount)
        for _step in range(_MAX_STEPS):
            parent, hashed, length, name, inline = reads.record(self.dentry, dentry)
            parent_mount, mountpoint, root = reads.record(self.mount, mount)
            if dentry == root:
                if parent_mount == mount:
                    return b"/" + b"/".join(reversed(names)), is_deleted
                mount, dentry = parent_mount, mountpoint
                continue
            if dentry == first:
                is_deleted = not hashed
            names.append(self._name(dentry, length, name, inline, reads))
            if dentry == parent:
                # No directory has it: memory with a name, which the kernel shows as deleted; or an unmounted file system.
                return b"/" + b"/".join(reversed(names)).lstrip(b"/"), is_deleted or dentry == first
            dentry = parent
        raise GuestMemoryError(f"the directories above the dentry at {first:#x} have no end")

    def _name(self, dentry: int, length: int, name: int, inline: bytes, reads: Reads) -> bytes:
        if not 0 < length <= _MAX_NAME:
            raise GuestMemoryError(f"the name of the dentry at {dentry:#x} has {length} bytes")
        if name == dentry + self._inline.offset and length <= len(inline):
            return inline[:length]
        return reads.raw(name, length)
