"""A disk → its volumes: the whole of it, its partitions (MBR, GPT), LVM2 logical volumes, each with its kind and UUID.

The superblocks that are told apart here: fs/ext4/ext4.h (``struct ext4_super_block``), fs/xfs/libxfs/xfs_format.h (``xfs_dsb``),
include/uapi/linux/btrfs_tree.h (``btrfs_super_block``), fs/squashfs/squashfs_fs.h, Microsoft's FAT specification 1.03.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guest.storage.device import BlockDevice, DeviceStream, SliceDevice, StreamDevice
from guest.storage.drivers import guarded
from recording.errors import GuestprofError, StorageError

_PROBE_SIZE = 0x10068
_MAX_PARTITIONS = 256
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Volume:
    """Something that may hold a file system.

    name: for the report ("virtio0 partition 2"). disk: which disk it lies on. number: of the partition, 0 for a whole disk.
    kind: as the guest's kernel names the file system; "" where nothing was recognised. uuid: None if that kind has none.
    """

    name: str
    disk: int
    number: int
    device: BlockDevice
    kind: str
    uuid: bytes | None


def probe(device: BlockDevice) -> tuple[str, bytes | None]:
    """The kind of file system (or of container) on a device, and its UUID. Raises StorageError where it cannot be read."""
    head = device.read(0, min(_PROBE_SIZE, device.size))
    if head[0x438:0x43A] == b"\x53\xef":
        return "ext4", head[0x468:0x478]
    if head[:4] == b"XFSB":
        return "xfs", head[0x20:0x30]
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs", head[0x10020:0x10030]
    for at, magic, kind in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return kind, None
    if any(head[at : at + 8] == b"LABELONE" for at in range(0, 4 * _SECTOR, _SECTOR)):
        return "LVM2", None
    return "", None


_MAGICS = (
    (0, b"hsqs", "squashfs"),
    (0x52, b"FAT32   ", "vfat"),
    (0x36, b"FAT16   ", "vfat"),
    (0x36, b"FAT12   ", "vfat"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
    (0x400, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0x8001, b"CD001", "iso9660"),
)


def find_volumes(name: str, disk: int, device: BlockDevice) -> list[Volume]:
    """What a disk holds; a disk without a file system of its own and without a partition table has none.

    Raises StorageError where it cannot be read, MissingDependencyError where the library for partitions is not installed.
    """
    kind, uuid = probe(device)
    if kind and kind != "vfat":
        # A partition table may stand in the same sector as the beginning of a FAT: only that one needs a second look.
        return [Volume(name, disk, 0, device, kind, uuid)]
    volumes = []
    with contextlib.suppress(StorageError):
        for number, part in _partitions(device):
            with contextlib.suppress(StorageError):
                part_kind, part_uuid = probe(part)
                volumes.append(Volume(f"{name} partition {number}", disk, number, part, part_kind, part_uuid))
    return volumes or ([Volume(name, disk, 0, device, kind, uuid)] if kind else [])


def _partitions(device: BlockDevice) -> Iterator[tuple[int, BlockDevice]]:
    if device.read(0x1FE, 2) != b"\x55\xaa":
        return
    with guarded("a partition table"):
        from dissect.volume.disk import Disk  # noqa: PLC0415  (it takes 40 ms to load)

        table = Disk(DeviceStream(device))
        for partition in itertools.islice(table.partitions, _MAX_PARTITIONS):
            # The library counts the last sector of a GPT partition out.
            last = getattr(partition.raw, "last_lba", None)
            size = partition.size if last is None else (int(last) + 1) * table.sector_size - int(partition.offset)
            yield int(partition.number), SliceDevice(device, int(partition.offset), int(size))


def find_logical_volumes(physical: Sequence[Volume]) -> list[Volume]:
    """The logical volumes of the given physical ones ("LVM2"); those that cannot be put together are left out."""
    if not physical:
        return []
    found: list[Volume] = []
    with contextlib.suppress(StorageError), guarded("LVM2"):
        from dissect.volume.lvm import LVM2, LVM2Device  # noqa: PLC0415

        groups: dict[str, list[object]] = {}
        for volume in physical:
            with contextlib.suppress(Exception):
                device = LVM2Device(DeviceStream(volume.device))
                names = [name for name, value in device.metadata.items() if isinstance(value, dict)]
                groups.setdefault(names[0], []).append(device)
        for devices in groups.values():
            with contextlib.suppress(Exception):
                for logical in LVM2(devices).volume_group.logical_volumes.values():
                    with contextlib.suppress(GuestprofError):
                        found.append(_logical(logical, physical[0].disk))
    return found


def _logical(logical: Any, disk: int) -> Volume:  # noqa: ANN401  (the library's)
    with guarded("LVM2"):
        stream = logical.open()
        device = StreamDevice(stream, int(stream.size))
        kind, uuid = probe(device)
        return Volume(f"logical volume {logical.name}", disk, 0, device, kind, uuid)
