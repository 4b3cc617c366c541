"""QEMU's options and answers → images, initrds, shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.storage.host import Share
from guest.storage.images import ImageFile
from sampler.discovery import parse_command_line
from sampler.drives import Drive, StorageFacts, image_of_query, shared_directory

CWD = Path("/home/me")


def facts(*options: str, cwd: Path | None = CWD) -> StorageFacts:
    return parse_command_line(7, ["/usr/bin/qemu-system-x86_64", *options], cwd).storage


def images(*options: str) -> list[tuple[str, str, str | None]]:
    return [(drive.name, drive.image.path, drive.image.format) for drive in facts(*options).drives]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-drive", "if=virtio,file=d.img,format=raw"], [("virtio0", "/home/me/d.img", "raw")]),
        (["-drive", "/a,,b.qcow2"], [("drive0", "/a,b.qcow2", None)]),
        (["-drive", "id=x,if=none,file=/a"], []),
        (["-drive", "id=x,if=none,file=/a", "-device", "virtio-blk-pci,drive=x"], [("x", "/a", None)]),
        (["-drive", "driver=qcow2,file.driver=file,file.filename=/a"], [("drive0", "/a", "qcow2")]),
        (["-drive", "if=pflash,file=/ovmf,format=raw"], []),
        (["-drive", "file=nbd://host/x"], []),
        (["-drive", "file=json:{}"], []),
        (["-drive", "if=virtio,media=cdrom"], []),
        (["-hda", "/a", "-cdrom", "b.iso"], [("hda", "/a", None), ("cdrom", "/home/me/b.iso", None)]),
        (["-hda", "/odd:name"], [("hda", "/odd:name", None)]),
        (["-blockdev", "driver=raw,node-name=n,file.driver=file,file.filename=/a"], []),
        (
            ["-blockdev", "qcow2,node-name=n,file.driver=file,file.filename=/a", "-device", '{"driver":"scsi-hd","drive":"n"}'],
            [("n", "/a", "qcow2")],
        ),
        (
            [
                *("-blockdev", '{"driver":"host_device","filename":"/dev/vg/root","node-name":"p"}'),
                *("-blockdev", '{"driver":"raw","node-name":"f","file":"p"}', "-device", "virtio-blk-pci,drive=f"),
            ],
            [("f", "/dev/vg/root", "raw")],
        ),
        (["-blockdev", "{nonsense", "-device", "virtio-blk,drive=f", "-device", "{nonsense"], []),
        (["-blockdev", "driver=raw,node-name=a,file=a", "-device", "virtio-blk,drive=a"], []),
        (["-drive"], []),
    ],
)
def test_disks(options: list[str], expected: list[tuple[str, str, str | None]]) -> None:
    assert images(*options) == expected


def test_a_chain_of_blockdevs() -> None:
    found = facts(
        *("-blockdev", '{"driver":"file","filename":"/base","node-name":"s0"}'),
        *("-blockdev", '{"driver":"qcow2","file":"s0","node-name":"f0","backing":null}'),
        *("-blockdev", '{"driver":"file","filename":"top","node-name":"s1"}'),
        *("-blockdev", '{"driver":"qcow2","file":"s1","node-name":"f1","backing":"f0"}'),
        *("-blockdev", '{"driver":"throttle","file":"f1","node-name":"t","throttle-group":"g"}'),
        *("-device", "virtio-blk-pci,drive=t,id=disk"),
    )
    assert found.drives == (Drive("t", ImageFile("/home/me/top", "qcow2", ImageFile("/base", "qcow2"))),)


def test_other_places() -> None:
    found = facts(
        *("-initrd", "boot/initrd.img", "-virtfs", "local,path=/srv/a,mount_tag=a,security_model=none"),
        *("-fsdev", "local,id=f,path=b,security_model=none", "-device", "virtio-9p-pci,fsdev=f,mount_tag=b"),
        *("-fsdev", "synth,id=s", "-chardev", "socket,id=c,path=/run/v.sock", "-device", "vhost-user-fs-pci,chardev=c,tag=v"),
        *("-device", "vhost-user-fs-pci,chardev=gone,tag=w"),
    )
    assert found == StorageFacts(
        (),
        ("/home/me/boot/initrd.img",),
        (Share("9p", "/srv/a", "a"), Share("9p", "/home/me/b", "")),
        (("v", "/run/v.sock"),),
        "/home/me",
    )


def test_what_query_block_says() -> None:
    image = {
        "filename": "o.qcow2",
        "format": "qcow2",
        "backing-image": {"filename": "/d.img", "format": "raw"},
    }
    assert image_of_query(image, "/home/me") == ImageFile("/home/me/o.qcow2", "qcow2", ImageFile("/d.img", "raw"))
    assert image_of_query({"filename": "rbd:pool/x", "format": "raw"}, "/") is None
    assert image_of_query({"filename": "/a", "format": "qcow2", "backing-image": {"filename": "nbd://h"}}, "/") is None
    assert image_of_query({"filename": "/dev/fdset/2", "format": "raw"}, "/") is None
    assert image_of_query({}, "") is None


@pytest.mark.parametrize(
    ("command", "directory"),
    [
        ("/usr/libexec/virtiofsd --socket-path=/run/s --shared-dir /srv", "/srv"),
        ("virtiofsd --shared-dir=/srv", "/srv"),
        ("/usr/lib/qemu/virtiofsd --fd=5 -o cache=auto,source=/srv,sandbox=none", "/srv"),
        ("virtiofsd --fd=5", None),
        ("qemu-system-x86_64 --shared-dir /srv", None),
        ("", None),
    ],
)
def test_virtiofsd(command: str, directory: str | None) -> None:
    assert shared_directory(command.split()) == directory
