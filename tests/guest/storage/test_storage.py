"""Images of disks as real tools make them → a file by its identity: contents, or a sentence why not."""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from guest.storage.device import BlockDevice
from guest.storage.files import FoundFile, StorageMiss, WantedFile
from guest.storage.images import ImageFile, open_image
from guest.storage.storage import Disk, Sources, Storage
from recording.errors import StorageError
from tests.builders.disks import (
    LIBRARY,
    MTIME_S,
    PROGRAM,
    btrfs_number,
    ext4_number,
    make_btrfs,
    make_ext4,
    make_gpt,
    make_lvm,
    make_mbr,
    make_squashfs,
    make_tree,
    make_vfat,
    make_xfs,
    need,
    run,
    xfs_number,
)

UUID = bytes.fromhex("00112233445566778899aabbccddeeff")


def wanted(kind: str, number: int, *, uuid: bytes | None = None, mtime_ns: int = MTIME_S * 10**9, **more: object) -> WantedFile:
    file = WantedFile(number, len(PROGRAM), kind, "vda", uuid, mtime_ns, "/usr/bin/program")
    return dataclasses.replace(file, **more)  # type: ignore[arg-type]


def storage(*images: Path, form: str = "raw") -> Storage:
    def opener(image: Path) -> Callable[[], BlockDevice]:
        return lambda: open_image(ImageFile(str(image), form))

    return Storage(Sources(disks=[Disk(f"disk{number}", opener(image)) for number, image in enumerate(images)]))


def contents(found: FoundFile | StorageMiss) -> bytes | None:
    assert isinstance(found, FoundFile), found
    return found.contents.read(0, found.contents.size)


def reason(found: FoundFile | StorageMiss) -> str:
    assert isinstance(found, StorageMiss), found
    return found.reason


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def ext4(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ext4(tmp_path_factory.mktemp("images") / "ext4", tree)


@pytest.fixture(scope="module")
def number(ext4: Path) -> int:
    return ext4_number(ext4, "/usr/bin/program")


def test_ext4(ext4: Path, number: int) -> None:
    found = storage(ext4).find_file(wanted("ext4", number, uuid=UUID))
    assert contents(found) == PROGRAM
    assert isinstance(found, FoundFile)
    assert found.origin == "ext4 on disk0"
    assert found.contents.read(len(PROGRAM) - 3, 3) == PROGRAM[-3:]
    assert found.contents.read(len(PROGRAM) - 3, 4) is None
    assert found.contents.read(-1, 1) is None


def test_xfs(tree: Path, tmp_path: Path) -> None:
    image = make_xfs(tmp_path / "xfs", tree)
    inode = xfs_number(image, "/usr/bin", "program")
    assert contents(storage(image).find_file(wanted("xfs", inode, mtime_ns=0))) == PROGRAM


def test_btrfs(tree: Path, tmp_path: Path) -> None:
    image = make_btrfs(tmp_path / "btrfs", tree)
    inode = btrfs_number(image, "program")
    assert contents(storage(image).find_file(wanted("btrfs", inode))) == PROGRAM


@pytest.mark.parametrize("options", [("-comp", "gzip"), ("-comp", "xz"), ("-comp", "zstd"), ("-comp", "lz4"), ("-no-exports",)])
def test_squashfs(tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = make_squashfs(tmp_path / "squashfs", tree, *options)
    found = [storage(image).find_file(wanted("squashfs", inode)) for inode in range(1, 60)]
    (file,) = [each for each in found if isinstance(each, FoundFile)]
    assert contents(file) == PROGRAM


def test_vfat(tree: Path, tmp_path: Path) -> None:
    image = make_vfat(tmp_path / "vfat", tree)
    # Mounted at /boot/efi; the inode number is one that the kernel made up.
    file = wanted("vfat", 17, path="/boot/efi/usr/bin/program")
    assert contents(storage(image).find_file(file)) == PROGRAM
    assert "no file with its inode number 17 or path" in reason(storage(image).find_file(dataclasses.replace(file, path="/x")))


@pytest.mark.parametrize("make", [make_mbr, make_gpt])
def test_partitions(ext4: Path, number: int, tree: Path, tmp_path: Path, make: Callable[..., Path]) -> None:
    other = make_ext4(tmp_path / "other", tree, size_mib=8, uuid="ffffffff-0000-0000-0000-000000000001")
    image = make(tmp_path / "disk", [other, ext4])
    found = storage(image).find_file(wanted("ext4", number, uuid=UUID))
    assert contents(found) == PROGRAM
    assert isinstance(found, FoundFile)
    assert found.origin == "ext4 on disk0 partition 2"
    assert "no file system ext4 with UUID 6161" in reason(storage(image).find_file(wanted("ext4", number, uuid=b"a" * 16)))


def test_without_a_uuid_the_partition_number_decides(tree: Path, tmp_path: Path) -> None:
    first = make_ext4(tmp_path / "first", tree, size_mib=8, uuid="ffffffff-0000-0000-0000-000000000001")
    inode = ext4_number(first, "/usr/bin/program")
    image = make_mbr(tmp_path / "disk", [first, first])
    found = storage(image).find_file(wanted("ext4", inode, source="vda2"))
    assert isinstance(found, FoundFile)
    assert found.origin == "ext4 on disk0 partition 2"


def test_lvm(ext4: Path, number: int, tmp_path: Path) -> None:
    found = storage(make_lvm(tmp_path / "disk", ext4)).find_file(wanted("ext4", number, uuid=UUID, source="dm-0"))
    assert contents(found) == PROGRAM
    assert isinstance(found, FoundFile)
    assert found.origin == "ext4 on logical volume root"


def test_a_second_disk(ext4: Path, number: int, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 20))
    assert contents(storage(empty, ext4).find_file(wanted("ext4", number, uuid=UUID))) == PROGRAM


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"size": len(PROGRAM) + 1},
            f"has {len(PROGRAM)} bytes and not {len(PROGRAM) + 1}: the guest has not written it there yet",
        ),
        ({"mtime_ns": (MTIME_S + 1) * 10**9}, "is from another time: the guest has written it anew"),
        ({"number": 2}, "has no file with its inode number 2"),
        ({"number": 10**9}, "has no file with its inode number 1000000000"),
        ({"number": 0}, "has no file with its inode number 0"),
        ({"uuid": b"b" * 16}, "no file system ext4 with UUID 6262"),
        ({"file_system": "xfs"}, "no file system xfs (vda) was found on the guest's disks; there are disk0: ext4"),
        ({"file_system": "zfs"}, "file system zfs is not one that can be read from outside; --sysroot DIR"),
        ({"file_system": "tmpfs"}, "it lies in tmpfs, and QEMU was started without -initrd"),
        ({"file_system": "9p"}, "the directory behind its 9p share was not found"),
        ({"file_system": "devtmpfs"}, "files of devtmpfs are only in the guest's memory"),
        ({"size": 0}, "its size is said to be 0 bytes"),
        ({"size": 1 << 60}, "its size is said to be"),
    ],
)
def test_what_does_not_fit_is_no_answer(ext4: Path, number: int, changes: dict[str, object], said: str) -> None:
    file = dataclasses.replace(wanted("ext4", number), **changes)  # type: ignore[arg-type]
    assert said in reason(storage(ext4).find_file(file))


def test_a_file_that_the_guest_writes_later_is_found_then(ext4: Path, number: int, tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(ext4.read_bytes())
    disks = storage(image)
    assert contents(disks.find_file(wanted("ext4", number))) == PROGRAM
    later = tmp_path / "later"
    later.write_bytes(b"later" * 1000)
    run(need("debugfs", "e2fsprogs"), "-w", "-R", f"write {later} later", image)
    inode = ext4_number(image, "/later")
    assert contents(disks.find_file(wanted("ext4", inode, size=5000, mtime_ns=0))) == b"later" * 1000


def test_a_disk_that_cannot_be_opened_is_named(ext4: Path, number: int, tmp_path: Path) -> None:
    disks = storage(tmp_path / "gone", ext4)
    assert contents(disks.find_file(wanted("ext4", number))) == PROGRAM
    said = reason(disks.find_file(wanted("xfs", 7)))
    assert f"disk disk0: cannot open {tmp_path}/gone: No such file or directory" in said


def test_no_permission_says_what_to_do(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    said = reason(storage(ext4).find_file(wanted("ext4", 12)))
    assert f"no permission to read {ext4}; run guestprof as a user who may read it, or as root" in said


def test_without_the_libraries_it_says_what_to_install(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dissect.extfs.extfs", None)
    assert "install it with: pip install 'guestprof[storage]'" in reason(storage(ext4).find_file(wanted("ext4", 12)))


def test_containers_are_named(tmp_path: Path) -> None:
    image = tmp_path / "luks"
    image.write_bytes(b"LUKS\xba\xbe" + bytes(1 << 20))
    assert "there are disk0: LUKS" in reason(storage(image).find_file(wanted("ext4", 12)))


# Formats of images


@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_formats(ext4: Path, number: int, tmp_path: Path, form: str) -> None:
    image = tmp_path / f"disk.{form}"
    run(need("qemu-img", "qemu-utils"), "convert", "-O", form, ext4, image)
    assert contents(storage(image, form=form).find_file(wanted("ext4", number, uuid=UUID))) == PROGRAM


@pytest.mark.parametrize("options", [("-c",), ("-c", "-o", "compression_type=zstd"), ("-o", "cluster_size=4096")])
def test_qcow2_variants(ext4: Path, number: int, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "disk.qcow2"
    run(need("qemu-img", "qemu-utils"), "convert", "-O", "qcow2", *options, ext4, image)
    assert contents(storage(image, form="qcow2").find_file(wanted("ext4", number, uuid=UUID))) == PROGRAM


def test_backing_files(ext4: Path, number: int, tmp_path: Path) -> None:
    qemu_img = need("qemu-img", "qemu-utils")
    (tmp_path / "base").write_bytes(ext4.read_bytes())
    # Relative names lie beside the image that names them.
    run(qemu_img, "create", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "middle.qcow2")
    run(qemu_img, "create", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    top = storage(tmp_path / "top.qcow2", form="qcow2")
    assert contents(top.find_file(wanted("ext4", number, uuid=UUID))) == PROGRAM
    (tmp_path / "base").unlink()
    said = reason(storage(tmp_path / "top.qcow2", form="qcow2").find_file(wanted("ext4", number)))
    assert f"cannot open {tmp_path}/base" in said


def test_a_raw_image_is_what_qemu_was_told(tmp_path: Path) -> None:
    """A guest that writes a qcow2 header into its raw disk does not get at the host's files."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 20000)
    image = tmp_path / "disk"
    run(need("qemu-img", "qemu-utils"), "create", "-f", "qcow2", "-b", secret, "-F", "raw", image)
    device = open_image(ImageFile(str(image), "raw"))
    assert device.read(0, 4) == b"QFI\xfb"
    below = open_image(ImageFile(str(image), None))
    assert below.read(0, 6) == b"secret"


def test_images_that_end_early(ext4: Path, number: int, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    data = ext4.read_bytes()
    at = data.index(PROGRAM[:4096])
    for size in (0, 100, 1024, 1500, 4096, 70000, at, at + 100_000):
        image.write_bytes(data[:size])
        found = storage(image).find_file(wanted("ext4", number))
        if isinstance(found, FoundFile):
            assert found.contents.read(0, len(PROGRAM)) is None
            assert size >= at
        else:
            assert found.reason


def test_an_unknown_format_and_a_format_that_is_not_there(ext4: Path) -> None:
    with pytest.raises(StorageError, match="has the format qed, which is not supported"):
        open_image(ImageFile(str(ext4), "qed"))
    with pytest.raises(StorageError, match=r"\(qcow2\) is damaged, or of a kind that is not supported"):
        open_image(ImageFile(str(ext4), "qcow2"))


def test_a_qcow2_that_is_its_own_backing_file_ends(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    run(need("qemu-img", "qemu-utils"), "create", "-f", "qcow2", "-u", "-b", "disk.qcow2", "-F", "qcow2", image, "1M")
    with pytest.raises(StorageError, match="behind more than 32 overlays"):
        open_image(ImageFile(str(image), "qcow2"))


def test_a_partition_table_that_points_nowhere(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    entry = struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", 0xFFFFFFF0, 0xFFFFFFFF)
    image.write_bytes((bytes(446) + entry * 4 + b"\x55\xaa").ljust(1 << 20, b"\0"))
    assert "no file system ext4" in reason(storage(image).find_file(wanted("ext4", 12)))


def test_another_file_of_the_same_disk(ext4: Path) -> None:
    inode = ext4_number(ext4, "/usr/lib/library.so")
    assert contents(storage(ext4).find_file(wanted("ext4", inode, size=len(LIBRARY)))) == LIBRARY
