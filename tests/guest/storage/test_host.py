"""Shared directories, --sysroot and --symbol-dir: the right file, and never one outside."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from guest.storage.files import FoundFile, StorageMiss, WantedFile, path_suffixes
from guest.storage.host import Share, find_in_share, find_symbol_files, open_beneath
from guest.storage.storage import Sources, Storage
from recording.errors import StorageError

BODY = b"\x7fELF body"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    (directory / "opt/tool").mkdir(parents=True)
    (directory / "opt/tool/run").write_bytes(BODY)
    (tmp_path / "secret").write_bytes(b"\x7fELF host")
    return directory


def wanted(shared: Path, kind: str, path: str = "/mnt/share/opt/tool/run", **changes: object) -> WantedFile:
    about = (shared / "opt/tool/run").stat()
    file = WantedFile(about.st_ino, len(BODY), kind, "none", None, about.st_mtime_ns, path)
    return dataclasses.replace(file, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["9p", "virtiofs"])
def test_below_a_mount_point_that_nobody_told(shared: Path, kind: str) -> None:
    found = Storage(Sources(shares=[Share(kind, str(shared))])).find_file(wanted(shared, kind))
    assert isinstance(found, FoundFile)
    assert (found.contents.read(0, 9), found.origin) == (BODY, f"{kind} share {shared}")


@pytest.mark.parametrize("added", [0, 2])
def test_inode_numbers_as_the_guest_sees_them(shared: Path, added: int) -> None:
    share = Share("9p", str(shared))
    number = (shared / "opt/tool/run").stat().st_ino
    assert find_in_share(share, wanted(shared, "9p", mtime_ns=0, number=number + added)) is not None
    assert find_in_share(share, wanted(shared, "9p", mtime_ns=0, number=number + 7)) is None
    # QEMU may have to number anew (multidevs=remap).
    assert find_in_share(share, wanted(shared, "9p", number=number + 7)) is not None
    assert find_in_share(share, wanted(shared, "9p", size=8)) is None


def test_no_link_is_followed_out_of_a_share(shared: Path, tmp_path: Path) -> None:
    (shared / "absolute").symlink_to(tmp_path / "secret")
    (shared / "relative").symlink_to("../secret")
    (shared / "up").symlink_to("..")
    for parts in (["absolute"], ["relative"], ["up", "secret"], ["..", "secret"]):
        assert open_beneath(str(shared), parts, follow=False) is None
        assert open_beneath(str(shared), parts, follow=True) is None


def test_what_is_no_file_is_not_opened(shared: Path) -> None:
    os.mkfifo(shared / "fifo")
    for parts in (["fifo"], ["opt"], ["opt", "tool", "run", "x"], ["gone"], []):
        assert open_beneath(str(shared), parts, follow=True) is None
    assert open_beneath(str(shared / "gone"), ["x"], follow=True) is None


def test_a_sysroot_is_a_root(shared: Path) -> None:
    (shared / "lib").symlink_to("/opt/tool")
    (shared / "loop").symlink_to("loop")
    (shared / "opt/here").symlink_to("../../../opt/tool/run")
    storage = Storage(Sources(sysroots=["/nonexistent", str(shared)]))
    for path in ("/lib/run", "/opt/tool/run", "/opt/here"):
        found = storage.find_file(wanted(shared, "zfs", path))
        assert isinstance(found, FoundFile), path
        assert found.origin == f"--sysroot {shared}"
    missed = storage.find_file(wanted(shared, "zfs", "/loop"))
    assert isinstance(missed, StorageMiss)
    assert f"no file of that path and size is in /nonexistent, {shared}" in missed.reason


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "/a\0b", "/a" * 65])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(StorageError, match="is no path of a file"):
        list(path_suffixes(path))
    assert isinstance(Storage(Sources(sysroots=["/"])).find_file(WantedFile(1, 5, "zfs", "", None, 0, path)), StorageMiss)


def test_symbol_files(tmp_path: Path) -> None:
    tree = tmp_path / ".build-id/ab"
    tree.mkdir(parents=True)
    (tree / "cdef.debug").write_bytes(b"debug")
    (tree / "cdef").write_bytes(b"plain")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/x.so").write_bytes(b"path")
    (tmp_path / "x.so.debug").write_bytes(b"name")
    found = [each.contents.read(0, 4) for each in find_symbol_files(str(tmp_path), bytes.fromhex("abcdef"), "/usr/lib/x.so")]
    assert found == [b"debu", b"plai", b"path", b"name"]
    assert list(find_symbol_files(str(tmp_path), b"", "/")) == []
    assert Storage(Sources(symbol_dirs=[str(tmp_path)])).find_symbol_files(b"\xab\xcd\xef", "")[0].origin == (
        f"--symbol-dir {tree}/cdef.debug"
    )
