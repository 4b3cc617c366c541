"""Files that were read are kept on the host: the ranges that unwinding and naming need, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.elf.cache import ElfCache
from guest.elf.file import ElfFile, open_elf
from guest.elf.rows import UserRows
from guest.elf.sections import decode_ranges, encode_ranges, read_sections
from guest.elf.symbols import read_symbols
from guest.memory import CHUNK_SIZE, run_steps
from guest.user.contents import BytesContents, RangeContents
from tests.guest.elf.programs import SomePages, compile_c, host_files
from unwind.arch.x86_64 import X86_64


def opened(data: bytes) -> ElfFile:
    file = open_elf(BytesContents(data), is_final=True)
    assert file is not None
    return file


def kept(data: bytes, directory: Path) -> ElfFile:
    """The file as the cache gives it back."""
    cache = ElfCache(directory)
    ranges = run_steps(read_sections(BytesContents(data)))
    assert ranges is not None
    digest = opened(data).digest()
    assert cache.load_file(digest) is None
    cache.save_file(digest, ranges)
    file = cache.load_file(digest)
    assert file is not None
    assert file.digest() == digest
    return file


def same(one: ElfFile, other: ElfFile) -> bool:
    """Whether two files give the same symbols and rows."""
    tables = [run_steps(read_symbols(file)) for file in (one, other)]
    rows = [UserRows(file, X86_64.user_abis) for file in (one, other)]
    addresses = [symbol.address for symbol in list(tables[0].table)[::7]]
    return (
        tables[0].table.to_blob() == tables[1].table.to_blob()
        and tables[0].is_complete == tables[1].is_complete
        and all(rows[0].find_row(address) == rows[1].find_row(address) for address in addresses)
        and one.build_id == other.build_id
    )


@pytest.mark.parametrize("path", host_files(), ids=lambda path: path.name)
def test_a_file_of_the_cache_answers_like_the_file(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    file = kept(data, tmp_path)
    assert same(file, opened(data))
    assert next(tmp_path.iterdir()).stat().st_size < len(data) // 2


@pytest.mark.parametrize("options", [(), ("-static",), ("-m32",), ("-static", "-Wl,--no-eh-frame-hdr")], ids=" ".join)
def test_a_program_of_the_cache_answers_like_the_program(options: tuple[str, ...], tmp_path: Path) -> None:
    data = compile_c(tmp_path, *options).read_bytes()
    assert same(kept(data, tmp_path / "cache"), opened(data))


def test_a_file_without_section_headers_is_kept_too(tmp_path: Path) -> None:
    data = bytearray(Path("/lib/x86_64-linux-gnu/libc.so.6").read_bytes())
    data[0x28:0x30] = bytes(8)
    file = kept(bytes(data), tmp_path)
    assert same(file, opened(bytes(data)))
    assert len(run_steps(read_symbols(file)).table) > 2000


def test_reads_are_small_and_only_of_what_is_needed() -> None:
    data = Path("/usr/lib/x86_64-linux-gnu/libstdc++.so.6").read_bytes()
    contents = SomePages(data, set(range(len(data))))
    steps = read_sections(contents)
    count = sum(1 for _ in steps)
    assert count >= 5
    assert contents.most <= CHUNK_SIZE


def test_a_file_known_in_part_is_not_kept() -> None:
    data = Path("/bin/ls").read_bytes()
    assert run_steps(read_sections(SomePages(data, {0, 1, 2}))) is None


def test_files_of_one_build_id_are_told_apart() -> None:
    data = bytearray(Path("/bin/ls").read_bytes())
    first = opened(bytes(data))
    longer = opened(bytes(data) + b"\0")
    data[0x28] ^= 1
    other = opened(bytes(data))
    assert len({first.digest(), longer.digest(), other.digest()}) == 3
    assert first.digest() == first.digest(123)
    assert first.build_id is not None
    assert first.digest().startswith(first.build_id)
    assert len(first.digest()) == 56


def test_files_without_build_id_are_told_apart_by_their_time(tmp_path: Path) -> None:
    file = opened(compile_c(tmp_path, "-Wl,--build-id=none").read_bytes())
    assert file.build_id is None
    assert len({file.digest(1), file.digest(2), file.digest()}) == 3
    assert len(file.digest(1)) == 64


@pytest.mark.parametrize("at", [0, 8, 12, 30, 100, -1])
def test_a_damaged_entry_counts_as_absent(at: int, tmp_path: Path) -> None:
    data = Path("/bin/ls").read_bytes()
    digest = kept(data, tmp_path).digest()
    (entry,) = tmp_path.iterdir()
    damaged = bytearray(entry.read_bytes())
    damaged[at] ^= 0xFF
    entry.write_bytes(damaged)
    assert ElfCache(tmp_path).load_file(digest) is None


def test_ranges_that_do_not_fit_together_are_refused() -> None:
    ranges = RangeContents(100, ((0, b"abc"), (10, b"defg")))
    good = encode_ranges(ranges)
    assert decode_ranges(good) == ranges
    assert decode_ranges({}) is None
    assert decode_ranges({**good, "data": b"abcdef"}) is None
    assert decode_ranges({**good, "places": good["places"][:-1]}) is None
    assert decode_ranges({**good, "places": good["places"][16:] + good["places"][:16]}) is None
    assert decode_ranges(encode_ranges(RangeContents(12, ranges.ranges))) is None
