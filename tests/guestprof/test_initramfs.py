"""The initramfs: the archive's bytes, what is in it, and which busybox is good enough."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from guestprof.initramfs import Entry, build_initramfs, find_busybox, is_static_elf, pack_newc
from recording.errors import MissingDependencyError


def elf(machine: int = 62, segments: tuple[int, ...] = (1,), *, bits: int = 64) -> bytes:
    """An ELF header with program headers of these types, and nothing else."""
    if bits == 64:
        head = struct.pack(
            "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
        )
        return head + b"".join(struct.pack("<I52x", segment) for segment in segments)
    head = struct.pack("<4sBBBB8xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 0, 2, machine, 1, 0, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
    return head + b"".join(struct.pack("<I28x", segment) for segment in segments)


def test_newc_bytes() -> None:
    archive = pack_newc([Entry("init", 0o100755, b"hello"), Entry("dev", 0o040755), Entry("dev/console", 0o020600, device=(5, 1))])
    # inode, mode, uid, gid, links, mtime, size, device's major and minor, node's major and minor, length of the name, check
    expected = (
        ("00000001 000081ed 00000000 00000000 00000001 00000000 00000005", "00000000 00000000 00000005", b"init\0\0hello\0\0\0"),
        ("00000002 000041ed 00000000 00000000 00000002 00000000 00000000", "00000000 00000000 00000004", b"dev\0\0\0"),
        ("00000003 00002180 00000000 00000000 00000001 00000000 00000000", "00000005 00000001 0000000c", b"dev/console\0\0\0"),
        ("00000004 00000000 00000000 00000000 00000001 00000000 00000000", "00000000 00000000 0000000b", b"TRAILER!!!\0\0\0\0"),
    )
    pieces = [f"070701 {head} 00000000 00000000 {tail} 00000000".replace(" ", "").encode() + data for head, tail, data in expected]
    assert archive == b"".join(pieces)


def test_the_same_busybox_gives_the_same_bytes() -> None:
    first = build_initramfs(b"busybox")
    assert first == build_initramfs(b"busybox")
    assert first[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio (package cpio) is not installed: nobody else to read the archive")
def test_cpio_reads_it() -> None:
    archive = gzip.decompress(build_initramfs(b"busybox"))
    listed = subprocess.run(["cpio", "-itvn", "--quiet"], input=archive, capture_output=True, check=True).stdout.decode()
    assert [(line.split()[0], line.split()[-1]) for line in listed.splitlines()] == [
        ("drwxr-xr-x", "bin"),
        ("drwxr-xr-x", "dev"),
        ("drwxr-xr-x", "proc"),
        ("drwxr-xr-x", "sys"),
        ("drwxr-xr-x", "tmp"),
        ("crw-------", "dev/console"),
        ("-rwxr-xr-x", "bin/busybox"),
        ("-rwxr-xr-x", "init"),
    ]


@pytest.mark.parametrize(
    ("data", "architecture", "expected"),
    [
        (elf(), "amd64", True),
        (elf(segments=(6, 3, 1)), "amd64", False),
        (elf(machine=183), "amd64", False),
        (elf(machine=183), "arm64", True),
        (elf(machine=3, bits=32), "i386", True),
        (elf(machine=3, segments=(1, 3), bits=32), "i386", False),
        (elf(machine=0), "vax", False),
        (b"#!/bin/sh\n" + bytes(60), "amd64", False),
        (elf()[:40], "amd64", False),
        (b"", "amd64", False),
    ],
)
def test_static_elf(data: bytes, architecture: str, expected: bool) -> None:
    assert is_static_elf(data, architecture) is expected


def test_the_machines_static_busybox_is_taken(tmp_path: Path) -> None:
    dynamic, static = tmp_path / "a", tmp_path / "b"
    for directory, name, data in ((dynamic, "busybox", elf(segments=(3, 1))), (static, "busybox.static", elf())):
        directory.mkdir()
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o755)
    assert find_busybox(path=f"{dynamic}:{static}") == elf()


def test_without_busybox_and_apt_the_remedy_is_told(tmp_path: Path) -> None:
    def no_apt(command: object, directory: Path) -> subprocess.CompletedProcess[str]:
        raise MissingDependencyError("apt-get is not installed")

    with pytest.raises(MissingDependencyError, match=r"^no static busybox for amd64 .*apt-get is not installed.*; install one"):
        find_busybox(cache_dir=tmp_path, path=str(tmp_path), run=no_apt)
