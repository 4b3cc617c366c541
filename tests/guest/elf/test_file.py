"""Files as the loader sees them: where they are mapped, their build IDs and rows, and what becomes of headers that lie."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.elf.file import ElfFile, open_elf
from guest.elf.header import PT_DYNAMIC
from guest.elf.rows import UserRows
from guest.elf.sections import read_sections
from guest.elf.symbols import read_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents, RangeContents
from recording.errors import BadImageError
from tests.guest.elf.programs import SomePages, compile_c, host_files, tool_output
from unwind.arch.x86_64 import X86_64
from unwind.frame_table import Unread
from unwind.rules import Row

LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")
LS = Path("/bin/ls")


def opened(data: bytes) -> ElfFile:
    file = open_elf(BytesContents(data))
    assert file is not None
    return file


def rows_of(file: ElfFile) -> UserRows:
    return UserRows(file, X86_64.user_abis)


class _LoadInfo(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("name", ctypes.c_char_p))


def loaded() -> dict[str, int]:
    """Path -> bias of what this process has loaded, as its loader knows it."""
    found: dict[str, int] = {}
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LoadInfo), ctypes.c_size_t, ctypes.c_void_p)

    def visit(info: ctypes._Pointer[_LoadInfo], _size: int, _data: object) -> int:
        name = os.fsdecode(info.contents.name or b"") or os.path.realpath("/proc/self/exe")
        found[os.path.realpath(name)] = info.contents.address
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(kind(visit), None)
    return found


def test_the_bias_of_each_mapping_of_this_process() -> None:
    biases = loaded()
    seen = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = re.fullmatch(r"([0-9a-f]+)-[0-9a-f]+ (....) ([0-9a-f]+) \S+ \d+ +(/.*)", line)
        if match is None or match[4] not in biases:
            continue
        file = opened(Path(match[4]).read_bytes())
        start, offset = int(match[1], 16), int(match[3], 16)
        if match[2][2] == "x":
            assert file.bias(start, offset) == file.bias(start, offset, is_executable=True) == biases[match[4]], line
            seen.add(match[4])
        else:
            # Two segments of data may begin in one page of the file.
            assert file.bias(start, offset, is_executable=False) in {biases[match[4]], None}, line
    assert len(seen) >= 3
    assert any("libc.so" in path for path in seen)


def test_a_program_at_fixed_addresses_has_no_bias(tmp_path: Path) -> None:
    file = opened(compile_c(tmp_path, "-no-pie", "-static").read_bytes())
    text = next(segment for segment in file.segments if segment.is_executable)
    start = text.address // 4096 * 4096
    assert file.bias(start, text.offset // 4096 * 4096) == 0
    assert file.bias(start + 1, text.offset // 4096 * 4096) is None
    assert file.bias(start, 1 << 40) is None


def test_a_page_of_two_segments_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    file = opened(compile_c(tmp_path, "-Wl,-z,noseparate-code").read_bytes())
    text = next(segment for segment in file.segments if segment.is_executable)
    data = next(segment for segment in file.segments if not segment.is_executable)
    page = data.offset // 4096 * 4096
    assert page < text.offset + text.file_size or page > text.offset
    assert file.link_address(page, is_executable=False) == data.address - data.offset + page
    assert file.link_address(text.offset, is_executable=True) == text.address


@pytest.mark.parametrize("path", host_files(), ids=lambda path: path.name)
def test_build_id_and_unwind_table_are_those_of_readelf(path: Path) -> None:
    file = opened(path.read_bytes())
    assert f"Build ID: {file.build_id}" in tool_output("readelf", "-nW", path)
    match = re.search(r"GNU_EH_FRAME +0x\S+ (0x\S+) 0x\S+ (0x\S+)", tool_output("readelf", "-lW", path))
    assert file.eh_frame_header == (None if match is None else (int(match[1], 16), int(match[2], 16)))
    match = re.search(r"\] \.eh_frame +\S+ +(\S+) \S+ (\S+)", tool_output("readelf", "-SW", path))
    assert file.eh_frame_section() == (None if match is None else (int(match[1], 16), int(match[2], 16)))


@pytest.mark.parametrize("options", [(), ("-m32",), ("-static", "-Wl,--no-eh-frame-hdr")], ids=" ".join)
def test_functions_have_rows(tmp_path: Path, options: tuple[str, ...]) -> None:
    file = opened(compile_c(tmp_path, *options).read_bytes())
    assert (file.eh_frame_header is None) == ("-static" in options)
    outer = run_steps(read_symbols(file)).table.find("main")
    assert outer is not None
    rows = rows_of(file)
    run_steps(rows.prepare())
    first = rows.find_row(outer.address)
    assert isinstance(first, Row)
    assert first.offset == file.pointer_size
    assert first.register == "rsp"
    assert rows.find_row(1) is None


def test_a_file_without_unwind_table_says_so_when_its_sections_are_known(tmp_path: Path) -> None:
    source = "int main(void) { return 0; } void _start(void) { for (;;); }"
    path = compile_c(tmp_path, "-nostdlib", "-static", "-fno-asynchronous-unwind-tables", source=source)
    data = path.read_bytes()
    assert rows_of(opened(data)).find_row(0x401000) is None
    sparse = open_elf(SomePages(data, {0}))
    assert sparse is not None
    assert rows_of(sparse).find_row(0x401000) is Unread.UNREAD


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.sampled_from([0.5, 0.9]))
def test_rows_of_a_file_known_in_part_are_the_right_ones(seed: int, share: float) -> None:
    data = LIBC.read_bytes()
    contents = SomePages.random(data, seed, share)
    contents.pages.add(0)
    file = open_elf(contents)
    assert file is not None
    some, whole = rows_of(file), rows_of(opened(data))
    missing = 0
    for address in range(0x28000, 0x170000, 0xD571):
        row = some.find_row(address)
        missing += row is Unread.UNREAD
        assert row in {Unread.UNREAD, whole.find_row(address)}
    assert missing or share > 0.5  # with nine pages of ten all that these need may be known
    contents.pages.update(range(len(data)))
    assert all(some.find_row(address) == whole.find_row(address) for address in range(0x28000, 0x170000, 0xD571))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no ELF file"),
        (b"#!/bin/sh\necho 1234567", "is no ELF file"),
        (b"\x7fELF\x03\x01\x01" + bytes(60), "class 3"),
        (b"\x7fELF\x02\x03\x01" + bytes(60), "byte order 3"),
        (b"\x7fELF\x02\x01\x01" + bytes(20), "cut short"),
    ],
)
def test_what_is_no_elf_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        open_elf(BytesContents(data))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0x38, b"\xff\xff", "65535 program headers"),
        (0x36, b"\x39\0", "of 57 bytes"),
        (0x20, b"\xff" * 8, "cut short"),
        (0x20, struct.pack("<Q", 1 << 62), "cut short"),
    ],
)
def test_program_headers_that_lie_are_refused(at: int, value: bytes, message: str) -> None:
    data = bytearray(LS.read_bytes())
    data[at : at + len(value)] = value
    with pytest.raises(BadImageError, match=message):
        open_elf(BytesContents(bytes(data)))


def test_a_segment_beyond_4_gib_is_refused() -> None:
    data = bytearray(LS.read_bytes())
    for index in range(opened(bytes(data)).header.segments.__len__()):
        at = 0x40 + 56 * index
        if data[at : at + 4] == b"\x01\0\0\0":
            data[at + 8 : at + 16] = struct.pack("<Q", 1 << 32)
    with pytest.raises(BadImageError, match="beyond 4 GiB"):
        open_elf(BytesContents(bytes(data)))


def test_nothing_is_known_yet() -> None:
    assert open_elf(SomePages(LS.read_bytes(), set())) is None
    assert open_elf(RangeContents(1 << 20, ())) is None


def _interesting(data: bytes) -> list[tuple[int, int]]:
    """[start, end) of the headers and tables that tell where others are."""
    file = opened(data)
    dynamic = file.header.segment(PT_DYNAMIC)
    assert dynamic is not None
    names = (".gnu.hash", ".eh_frame_hdr", ".eh_frame", ".dynsym", ".rela.plt")
    sections = [section for name in names if (section := file.section(name)) is not None]
    return [
        (0, 64),
        (64, 64 + file.header.segments_size),
        (file.header.section_offset, len(data)),
        (dynamic.offset, dynamic.offset + dynamic.file_size),
        *((section.offset, section.offset + min(section.size, 256)) for section in sections),
    ]


LS_DATA = LS.read_bytes()
PLACES = _interesting(LS_DATA)
NASTY = (bytes(8), b"\xff" * 8, b"\xff", b"\xff\xff\xff\x7f", struct.pack("<Q", 1 << 63), b"\x40", b"\x01\0\0\0\0")
VALUES = st.sampled_from(NASTY) | st.binary(min_size=1, max_size=8)
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), st.floats(0, 1, exclude_max=True), VALUES), max_size=4)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHANGES)
def test_headers_that_lie_cost_knowledge_only(changes: list[tuple[tuple[int, int], float, bytes]]) -> None:
    data = bytearray(LS_DATA)
    for (start, end), where, value in changes:
        at = start + int((end - start) * where)
        data[at : at + len(value)] = value[: len(data) - at]
    contents = SomePages(bytes(data), set(range(len(data))))
    try:
        file = open_elf(contents)
        run_steps(read_sections(contents))
    except BadImageError:
        return
    assert file is not None
    run_steps(read_symbols(file))
    rows = rows_of(file)
    for address in (0, 0x4000, 0x5000, 0x12345, 1 << 63):
        rows.find_row(address)
        file.bias(address, address)
    assert file.digest()
    assert contents.most <= len(data)
