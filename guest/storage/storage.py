"""A file that the guest has mapped → its contents, from whatever of the guest's storage holds it, each candidate checked.

The order: the file system that its identity names (disks, shares, initramfs), then the user's own directories. A file is the one
that is wanted if its size is the mapped file's, and its time of last change where that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.storage.archive import read_archive
from guest.storage.device import BlockCache, BlockDevice, CachedDevice
from guest.storage.drivers import FileSystem, guarded, has_driver, open_file_system
from guest.storage.files import MAX_FILE_SIZE, BytesContents, FoundFile, StorageMiss, WantedFile, path_suffixes
from guest.storage.host import Share, find_in_share, find_in_sysroot, find_symbol_files
from guest.storage.volumes import Volume, find_logical_volumes, find_volumes
from recording.errors import GuestprofError

_INITRAMFS = ("rootfs", "ramfs", "tmpfs")
_SHARES = ("9p", "virtiofs")
_KINDS = {"ext2": "ext4", "ext3": "ext4", "msdos": "vfat"}
"""What one driver reads under several of the kernel's names."""
_NOWHERE = ("devtmpfs", "proc", "sysfs", "hugetlbfs", "anon_inodefs", "bdev", "memfd")
_SECOND = 10**9
_SYSROOT_ADVICE = "--sysroot DIR gives a copy of the guest's files"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest. open: makes the device; raises StorageError with what would help. name: for the report."""

    name: str
    open: Callable[[], BlockDevice]


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that files may come from. initrds: paths of QEMU's -initrd. missing: why disks are not in ``disks``."""

    disks: Sequence[Disk] = ()
    initrds: Sequence[str] = ()
    shares: Sequence[Share] = ()
    sysroots: Sequence[str] = ()
    symbol_dirs: Sequence[str] = ()
    missing: Sequence[str] = ()


class Storage:
    """The guest's storage; disks are opened when the first file of one is wanted. Blocks: see sampler/storage.py for steps."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._cache = BlockCache()
        self._devices: dict[int, CachedDevice] = {}
        self._volumes: list[Volume] | None = None
        self._opened: dict[tuple[Volume, ...], FileSystem] = {}
        self._faults: list[str] = []
        self._initramfs: dict[str, BytesContents] | None = None

    def find_file(self, wanted: WantedFile) -> FoundFile | StorageMiss:
        """The contents of a file, or why they are not known. Never raises."""
        reasons: list[str] = []
        try:
            if not 0 < wanted.size <= MAX_FILE_SIZE:
                return StorageMiss(f"its size is said to be {wanted.size} bytes")
            for source in self._order(wanted):
                found = source(wanted)
                if isinstance(found, FoundFile):
                    return found
                if found.reason:
                    reasons.append(found.reason)
        except GuestprofError as error:
            reasons.append(str(error))
        except (RecursionError, MemoryError) as error:
            reasons.append(f"its file system cannot be read ({type(error).__name__})")
        return StorageMiss("; ".join(dict.fromkeys(reasons)))

    def find_symbol_files(self, build_id: bytes, path: str) -> list[FoundFile]:
        """Candidates from ``--symbol-dir``, best first; the caller checks their build ID."""
        return [found for directory in self._sources.symbol_dirs for found in find_symbol_files(directory, build_id, path)]

    def _order(self, wanted: WantedFile) -> Iterator[Callable[[WantedFile], FoundFile | StorageMiss]]:
        kind = wanted.file_system
        if kind in _SHARES:
            yield self._find_in_shares
        elif kind in _INITRAMFS:
            yield self._find_in_initramfs
        elif kind in _NOWHERE:
            yield lambda _wanted: StorageMiss(f"files of {kind} are only in the guest's memory")
        else:
            yield self._find_on_disks
        yield self._find_in_sysroots

    # Directories and archives of the host

    def _find_in_shares(self, wanted: WantedFile) -> FoundFile | StorageMiss:
        shares = [share for share in self._sources.shares if share.file_system == wanted.file_system]
        for share in shares:
            found = find_in_share(share, wanted)
            if found is not None:
                return found
        if not shares:
            return StorageMiss(f"the directory behind its {wanted.file_system} share was not found; {_SYSROOT_ADVICE}")
        names = ", ".join(share.directory for share in shares)
        return StorageMiss(f"no file of that path, size and inode number that we may read is in the shared {names}")

    def _find_in_initramfs(self, wanted: WantedFile) -> FoundFile | StorageMiss:
        if not self._sources.initrds:
            return StorageMiss(f"it lies in {wanted.file_system}, and QEMU was started without -initrd; {_SYSROOT_ADVICE}")
        if self._initramfs is None:
            files: dict[str, BytesContents] = {}
            for path in self._sources.initrds:
                files |= read_archive(Path(path))
            self._initramfs = files
        name = "/".join(next(path_suffixes(wanted.path)))
        contents = self._initramfs.get(name)
        if contents is None or contents.size != wanted.size:
            return StorageMiss(f"it lies in {wanted.file_system}, and the initrd holds no program of that path and size")
        return FoundFile(contents, "initrd")

    def _find_in_sysroots(self, wanted: WantedFile) -> FoundFile | StorageMiss:
        for directory in self._sources.sysroots:
            found = find_in_sysroot(directory, wanted)
            if found is not None:
                return found
        if not self._sources.sysroots:
            return StorageMiss("")
        return StorageMiss(f"no file of that path and size is in {', '.join(self._sources.sysroots)}")

    # Disks

    def _find_on_disks(self, wanted: WantedFile) -> FoundFile | StorageMiss:
        kind = _KINDS.get(wanted.file_system, wanted.file_system)
        if not has_driver(kind):
            return StorageMiss(f"file system {kind} is not one that can be read from outside; {_SYSROOT_ADVICE}")
        fresh = self._volumes is None
        found: list[FoundFile] = []
        reasons = self._try_volumes(kind, wanted, found)
        if not found and not fresh:
            # The guest may have written it, or made its file system, since we looked.
            self.refresh()
            reasons = self._try_volumes(kind, wanted, found)
        return found[0] if found else StorageMiss("; ".join(reasons))

    def _try_volumes(self, kind: str, wanted: WantedFile, found: list[FoundFile]) -> list[str]:
        """Look for the file on every volume that it may be on, until ``found`` holds it; why it is not there."""
        groups = _candidates(self._find_volumes(), kind, wanted)
        if not groups:
            return [self._say_what_there_is(kind, wanted)]
        reasons = []
        for group in groups:
            try:
                entry = self._check(self._open(kind, group), kind, group[0], wanted)
            except GuestprofError as error:
                reasons.append(f"{group[0].name}: {error}")
                continue
            if isinstance(entry, FoundFile):
                found.append(entry)
                return []
            reasons.append(entry.reason)
        return reasons

    def _check(self, file_system: FileSystem, kind: str, volume: Volume, wanted: WantedFile) -> FoundFile | StorageMiss:
        """The file by its number (or path), if it has not changed."""
        reason = f"{volume.name} ({kind}) has no file with its inode number {wanted.number} or path"
        for entry in file_system.find(wanted):
            if entry.size != wanted.size:
                reason = (
                    f"on {volume.name} ({kind}) its inode {wanted.number} has {entry.size} bytes and not {wanted.size}:"
                    " the guest has not written it there yet"
                )
            elif entry.mtime_ns is not None and wanted.mtime_ns and not _is_same_time(entry.mtime_ns, wanted.mtime_ns):
                reason = f"on {volume.name} ({kind}) its inode {wanted.number} is from another time: the guest has written it anew"
            else:
                with guarded(f"a file system {kind}"):
                    return FoundFile(entry.open(), f"{kind} on {volume.name}")
        return StorageMiss(reason)

    def _open(self, kind: str, group: tuple[Volume, ...]) -> FileSystem:
        if group not in self._opened:
            self._opened[group] = open_file_system(kind, [volume.device for volume in group])
        return self._opened[group]

    def _find_volumes(self) -> list[Volume]:
        if self._volumes is None:
            self._faults = list(self._sources.missing)
            found: list[Volume] = []
            for number, disk in enumerate(self._sources.disks):
                try:
                    if number not in self._devices:
                        self._devices[number] = CachedDevice(disk.open(), self._cache)
                    found += find_volumes(disk.name, number, self._devices[number])
                except GuestprofError as error:
                    self._faults.append(f"disk {disk.name}: {error}")
            self._volumes = found + find_logical_volumes([volume for volume in found if volume.kind == "LVM2"])
        return self._volumes

    def refresh(self) -> None:
        """Forget what was read of the disks; they stay open."""
        for device in self._devices.values():
            device.refresh()
        self._opened.clear()
        self._volumes = None

    def _say_what_there_is(self, kind: str, wanted: WantedFile) -> str:
        there = [f"{volume.name}: {volume.kind or 'unknown'}" for volume in self._find_volumes()]
        wish = f"{kind} with UUID {wanted.uuid.hex()}" if wanted.uuid else kind
        parts = [f"no file system {wish} ({wanted.source}) was found on the guest's disks"]
        parts += [f"there are {', '.join(there)}"] if there else []
        parts += self._faults
        return "; ".join(parts)


def _candidates(volumes: Sequence[Volume], kind: str, wanted: WantedFile) -> list[tuple[Volume, ...]]:
    """The file systems that may be the wanted one: by UUID where it has one, else all of its kind, the same partition number first.

    One file system of several disks (btrfs) is one candidate.
    """
    fitting = [volume for volume in volumes if volume.kind == kind]
    if wanted.uuid and any(wanted.uuid):
        fitting = [volume for volume in fitting if volume.uuid in (None, wanted.uuid)]
    digits = wanted.source[len(wanted.source.rstrip("0123456789")) :]
    fitting.sort(key=lambda volume: str(volume.number) != digits)
    if kind != "btrfs":
        return [(volume,) for volume in fitting]
    groups: dict[bytes | None, list[Volume]] = {}
    for volume in fitting:
        groups.setdefault(volume.uuid, []).append(volume)
    return [tuple(group) for group in groups.values()]


def _is_same_time(one: int, other: int) -> bool:
    """Equal, or equal in seconds where one of them has nothing finer. In nanoseconds."""
    is_coarse = not (one % _SECOND and other % _SECOND)
    return one == other or (is_coarse and one // _SECOND == other // _SECOND)
