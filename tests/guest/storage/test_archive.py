"""initrds as cpio and the compressors make them → the programs in them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.storage.archive import read_archive
from guest.storage.files import FoundFile, StorageMiss, WantedFile
from guest.storage.storage import Sources, Storage
from recording.errors import StorageError
from tests.builders.disks import LIBRARY, PROGRAM, make_tree, need


def member(name: str, data: bytes, *, mode: int = 0o100755, links: int = 1, number: int = 1) -> bytes:
    words = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0"
    header += bytes(-len(header) % 4)
    return header + data + bytes(-len(data) % 4)


END = member("TRAILER!!!", b"", mode=0)
ELF = b"\x7fELF-one"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """By cpio itself."""
    tree = make_tree(tmp_path_factory.mktemp("tree"))
    (tree / "usr/bin/same").hardlink_to(tree / "usr/bin/program")
    (tree / "module.ko").write_bytes(PROGRAM)
    names = subprocess.run(["find", "."], cwd=tree, check=True, capture_output=True).stdout
    command = [need("cpio", "cpio"), "-o", "-H", "newc", "--quiet"]
    return subprocess.run(command, cwd=tree, input=names, check=True, capture_output=True).stdout


def compressed(program: str, package: str, *options: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        return subprocess.run([need(program, package), *options], input=data, check=True, capture_output=True).stdout

    return run


@pytest.mark.parametrize(
    "compress",
    [
        lambda data: data,
        gzip.compress,
        bz2.compress,
        lzma.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        compressed("zstd", "zstd", "-19", "-c"),
        compressed("lz4", "lz4", "-l", "-c"),
        compressed("lzop", "lzop", "-9"),
    ],
    ids=["plain", "gzip", "bzip2", "xz", "lzma", "zstd", "lz4", "lzo"],
)
@pytest.mark.parametrize("microcode", [False, True])
def test_compressions(archive: bytes, tmp_path: Path, compress: Callable[[bytes], bytes], microcode: bool) -> None:
    path = tmp_path / "initrd"
    early = (member("kernel/x86/microcode/x.bin", b"\1" * 99) + END).ljust(4096, b"\0") if microcode else b""
    path.write_bytes(early + compress(archive))
    files = read_archive(path)
    assert sorted(files) == ["usr/bin/program", "usr/bin/same", "usr/lib/library.so"]
    assert files["usr/bin/program"].read(0, len(PROGRAM)) == PROGRAM
    assert files["usr/bin/same"].read(0, len(PROGRAM)) == PROGRAM
    assert files["usr/lib/library.so"].read(5, 9) == LIBRARY[5:14]
    assert files["usr/lib/library.so"].read(len(LIBRARY) - 1, 2) is None


def test_later_archives_win(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    first = gzip.compress(member("./bin/a", ELF) + member("b", ELF) + END)
    path.write_bytes(first + bytes(7) + member("bin/a", b"\x7fELF-two") + END + bytes(512))
    files = read_archive(path)
    assert {name: file.read(0, 8) for name, file in files.items()} == {"bin/a": b"\x7fELF-two", "b": ELF}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ""),
        (b"nonsense", "it begins with 6e6f6e73656e"),
        (member("a", ELF)[:-2], "it ends in the middle of a file"),
        (member("a", ELF), "no header of a file at 0x78"),
        (b"070701" + b"z" * 104, "a damaged header of a file at 0x0"),
        (b"070701" + b"F" * 104, "a file of 4294967295 bytes with a name of 4294967295 at 0x0"),
        (gzip.compress(member("a", ELF) + END, mtime=0)[:-20], "no header"),
        (b"\x1f\x8b" + b"\xff" * 50, "its compressed part is damaged"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "its compressed part is damaged"),
        (b"\x02\x21\x4c\x18\x05\0\0\0" + b"\xff" * 50, "its lz4 part is damaged"),
    ],
)
def test_damage_is_said(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(data)
    if said:
        with pytest.raises(StorageError, match="the initrd .*/initrd is damaged, or of an unknown format: .*" + said):
            read_archive(path)
    else:
        assert read_archive(path) == {}


def test_an_initrd_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read the initrd .*: No such file"):
        read_archive(tmp_path / "gone")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_end_in_an_error_or_in_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(member("a", ELF) + member("b/c", ELF * 20, links=2) + END + bytes(5) + gzip.compress(member("d", ELF) + END))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(whole)
    with contextlib.suppress(StorageError):
        read_archive(path)


def test_programs_of_the_initramfs(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(lzma.compress(archive))
    storage = Storage(Sources(initrds=[str(path)]))
    file = WantedFile(7, len(PROGRAM), "rootfs", "rootfs", None, 0, "/usr/bin/program")
    found = storage.find_file(file)
    assert isinstance(found, FoundFile)
    assert (found.origin, found.contents.read(0, 100)) == ("initrd", PROGRAM[:100])
    path.unlink()
    # It is read once.
    missed = storage.find_file(WantedFile(7, 5, "tmpfs", "tmpfs", None, 0, "/usr/bin/program"))
    assert missed == StorageMiss("it lies in tmpfs, and the initrd holds no program of that path and size")
