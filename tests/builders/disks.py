"""A few files of known content → images of disks with the file systems that guests have, by the tools that make real ones.

A tool that is not installed skips the test, and says which package has it.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

MTIME_S = 1_700_000_000
PROGRAM = b"\x7fELF" + random.Random(3).randbytes(300_001)
"""What /usr/bin/program of every image holds."""
LIBRARY = b"\x7fELF" + b"library " * 9000
_SECTOR = 512


def need(program: str, package: str) -> str:
    """The path of a tool; skips the test without it."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed; Debian's package {package} has it")
    return found


def run(*command: object) -> str:
    """What a tool prints; it must succeed."""
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_tree(root: Path) -> Path:
    """A root file system in a directory: /usr/bin/program, /usr/lib/library.so, a few small files."""
    for name, data in {"usr/bin/program": PROGRAM, "usr/lib/library.so": LIBRARY, "etc/motd": b"hello\n"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for number in range(40):
        (root / "etc" / f"file{number}").write_text(f"{number}\n", "ascii")
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (MTIME_S, MTIME_S))
    return root


def make_ext4(image: Path, tree: Path, *, size_mib: int = 16, uuid: str = "00112233-4455-6677-8899-aabbccddeeff") -> Path:
    """An ext4 file system, by mke2fs."""
    mke2fs = need("mke2fs", "e2fsprogs")
    image.touch()
    os.truncate(image, size_mib << 20)
    run(mke2fs, "-q", "-F", "-t", "ext4", "-U", uuid, "-d", tree, image)
    return image


def ext4_number(image: Path, path: str) -> int:
    """The inode number of a file, by debugfs."""
    said = run(need("debugfs", "e2fsprogs"), "-R", f"stat {path}", image)
    return int(said.split("Inode:")[1].split()[0])


def make_xfs(image: Path, tree: Path) -> Path:
    """An XFS file system, by mkfs.xfs (300 MiB is the least that it makes; the file is sparse)."""
    mkfs = need("mkfs.xfs", "xfsprogs")
    prototype = image.with_suffix(".proto")
    prototype.write_text(
        f"/dev/null\n0 0\nd--755 0 0\nusr d--755 0 0\nbin d--755 0 0\nprogram ---755 0 0 {tree}/usr/bin/program\n$\n$\n$\n",
        "utf-8",
    )
    image.touch()
    os.truncate(image, 320 << 20)
    run(mkfs, "-q", "-p", prototype, image)
    return image


def xfs_number(image: Path, directory: str, name: str) -> int:
    """The inode number of a file, by xfs_db."""
    said = run(need("xfs_db", "xfsprogs"), "-r", "-c", f"path {directory}", "-c", "ls", image)
    return next(int(words[1]) for words in map(str.split, said.splitlines()) if words[-1] == name or words[-2:-1] == [name])


def make_btrfs(image: Path, tree: Path) -> Path:
    """A btrfs file system, by mkfs.btrfs."""
    mkfs = need("mkfs.btrfs", "btrfs-progs")
    image.touch()
    os.truncate(image, 128 << 20)
    run(mkfs, "-q", "--rootdir", tree, image)
    return image


def btrfs_number(image: Path, name: str) -> int:
    """The inode number of a file by its name, by btrfs-progs: of the item before the one that holds the name."""
    said = run(need("btrfs", "btrfs-progs"), "inspect-internal", "dump-tree", "-t", "5", image)
    before = said[: said.index(f"name: {name}\n")]
    return int(before[before.rindex("INODE_REF") - 40 :].split("key (")[-1].split()[0])


def make_squashfs(image: Path, tree: Path, *options: str) -> Path:
    """A squashfs file system, by mksquashfs."""
    run(need("mksquashfs", "squashfs-tools"), tree, image, "-quiet", "-no-progress", "-noappend", *options)
    return image


def make_vfat(image: Path, tree: Path) -> Path:
    """A FAT file system, by mkfs.vfat and mtools."""
    mkfs, mcopy = need("mkfs.vfat", "dosfstools"), need("mcopy", "mtools")
    image.touch()
    os.truncate(image, 16 << 20)
    run(mkfs, image)
    run(mcopy, "-s", "-i", image, tree / "usr", "::")
    return image


def make_mbr(image: Path, parts: Sequence[Path]) -> Path:
    """A disk with an MBR and these images as primary partitions."""
    entries, data, start = b"", b"", 2048
    for part in parts:
        content = part.read_bytes()
        sectors = len(content) // _SECTOR
        entries += struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", start, sectors)
        data += content
        start += sectors
    sector = bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"
    image.write_bytes(sector.ljust(2048 * _SECTOR, b"\0") + data)
    return image


def make_gpt(image: Path, parts: Sequence[Path]) -> Path:
    """A disk with a GPT, by sfdisk, and these images as partitions."""
    sfdisk = need("sfdisk", "fdisk")
    sizes = [part.stat().st_size // _SECTOR for part in parts]
    image.touch()
    os.truncate(image, (4096 + sum(sizes)) * _SECTOR)
    start, lines = 2048, ["label: gpt"]
    for size in sizes:
        lines.append(f"start={start}, size={size}, type=L")
        start += size
    subprocess.run([sfdisk, "-q", str(image)], input="\n".join(lines), text=True, check=True, capture_output=True)
    with image.open("r+b") as file:
        file.seek(2048 * _SECTOR)
        for part in parts:
            file.write(part.read_bytes())
    return image


def make_lvm(image: Path, part: Path) -> Path:
    """A disk that is an LVM2 physical volume with one logical volume (LVM2's lib/format_text/layout.h and lib/label/label.h)."""
    extent = 4 << 20
    content = part.read_bytes()
    count = -(-len(content) // extent)
    size = (1 << 20) + count * extent
    identifier = b"AbCdEfGhIjKlMnOpQrStUvWxYz012345"
    dashed = "AbCdEf-GhIj-KlMn-OpQr-StUv-WxYz-012345"
    text = (
        'vg0 {\nid = "' + dashed + '"\nseqno = 1\nformat = "lvm2"\nstatus = ["RESIZEABLE", "READ", "WRITE"]\nflags = []\n'
        f"extent_size = {extent // _SECTOR}\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n\n"
        'physical_volumes {\n\npv0 {\nid = "' + dashed + '"\ndevice = "/dev/vda"\nstatus = ["ALLOCATABLE"]\nflags = []\n'
        f"dev_size = {size // _SECTOR}\npe_start = 2048\npe_count = {count}\n}}\n}}\n\n"
        'logical_volumes {\n\nroot {\nid = "' + dashed + '"\nstatus = ["READ", "VISIBLE"]\nflags = []\nsegment_count = 1\n\n'
        f"segment1 {{\nstart_extent = 0\nextent_count = {count}\n\n"
        'type = "striped"\nstripe_count = 1\n\nstripes = [\n"pv0", 0\n]\n}\n}\n}\n\n}\n'
        'contents = "Text Format Volume Group"\nversion = 1\n\n'
        'description = ""\n\ncreation_host = "test"\ncreation_time = 1700000000\n\n\0'
    ).encode()
    label = struct.pack("<8sQII8s", b"LABELONE", 1, 0, 32, b"LVM2 001")
    pv = struct.pack("<32sQ", identifier, size)
    pv += struct.pack("<QQ", 1 << 20, 0) + bytes(16) + struct.pack("<QQ", 4096, (1 << 20) - 4096) + bytes(16)
    area = struct.pack("<I16sIQQ", 0, b" LVM2 x[5A%r0N*>", 1, 4096, (1 << 20) - 4096)
    area += struct.pack("<QQII", 512, len(text), 0, 0) + bytes(24)
    disk = bytearray(size)
    disk[512 : 512 + len(label + pv)] = label + pv
    disk[4096 : 4096 + len(area)] = area
    disk[4608 : 4608 + len(text)] = text
    disk[1 << 20 : (1 << 20) + len(content)] = content
    image.write_bytes(disk)
    return image
