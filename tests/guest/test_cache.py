"""The cache on the host: whole entries or none, bounded, and never a reason to fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest.cache import KernelCache

A, B, C = "aa" * 20, "bb" * 20, "cc" * 20


def test_sections_come_back(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "new" / "kernels")
    cache.save(A, {"symbols": b"\0\1\2", "empty": b""})
    assert cache.load(A) == {"symbols": b"\0\1\2", "empty": b""}
    assert cache.load(B) is None


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "AA" * 20, "a" * 65, "g" * 40, "aa\n" + "a" * 20])
def test_only_a_digest_makes_a_file_name(tmp_path: Path, key: str) -> None:
    cache = KernelCache(tmp_path)
    cache.save(key, {"symbols": b"x"})
    assert list(tmp_path.iterdir()) == []
    assert cache.load(key) is None


@pytest.mark.parametrize("at", [0, 8, 12, 20, -1])
def test_a_damaged_entry_counts_as_absent(tmp_path: Path, at: int) -> None:
    cache = KernelCache(tmp_path)
    cache.save(A, {"symbols": b"content"})
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    data[at] ^= 0xFF
    entry.write_bytes(data)
    assert cache.load(A) is None
    entry.write_bytes(b"")
    assert cache.load(A) is None


def test_the_longest_unused_entries_go_first(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path, limit=2500)
    for number, key in enumerate((A, B)):
        cache.save(key, {"symbols": b"x" * 1000})
        os.utime(tmp_path / f"{key}.kernel", (number, number))
    assert cache.load(A) is not None
    cache.save(C, {"symbols": b"x" * 1000})
    assert [cache.load(key) is not None for key in (A, B, C)] == [True, False, True]


def test_an_entry_above_the_limit_is_not_written(tmp_path: Path) -> None:
    KernelCache(tmp_path, limit=100).save(A, {"symbols": b"x" * 1000})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    KernelCache(tmp_path).save(A, {"symbols": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_no_directory_keeps_nothing() -> None:
    cache = KernelCache(None)
    cache.save(A, {"symbols": b"x"})
    assert cache.load(A) is None


def test_the_users_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    KernelCache.of_user().save(A, {"symbols": b"x"})
    assert [path.name for path in (tmp_path / "guestprof" / "kernels").iterdir()] == [f"{A}.kernel"]
