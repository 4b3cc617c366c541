"""Unwind tables of user code: literal tables, damage, pieces that are not known, and readelf's word on the host's own files."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.eh_frame import CODE, FRAMES, HEADER, Sections, sleb, uleb
from tests.builders.unwind_tables import TableOfFile, differs, read_printed_rows
from unwind.arch.x86_64 import X86_64
from unwind.frame_table import FrameTable, Unread
from unwind.rules import Expression, Memory, Operation, Operator, Row, RowKind, Saved

I386, AMD64 = X86_64.user_abis
CALLEE_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
AT_CALL = Row(RowKind.CALL, "rsp", 8, kept=CALLEE_SAVED)


def table(sections: Sections, *, encoding: int = 0x3B) -> FrameTable:
    header = sections.header(encoding)
    return FrameTable(sections.reader(header), AMD64, "little", header=(HEADER, len(header)))


def unsorted_table(sections: Sections, size: int | None = None) -> FrameTable:
    frames = (FRAMES, len(sections.frames) if size is None else size)
    return FrameTable(sections.reader(b""), AMD64, "little", frames=frames)


def saved(name: str, offset: int) -> Saved:
    return Saved(name, None, offset)


CASES = [
    pytest.param(b"", 0, AT_CALL, id="the common entry's own row"),
    pytest.param(bytes([0x41, 0x0E, 16]), 0, AT_CALL, id="before advance_loc"),
    pytest.param(bytes([0x41, 0x0E, 16]), 1, Row(RowKind.CALL, "rsp", 16, kept=CALLEE_SAVED), id="def_cfa_offset"),
    pytest.param(bytes([2, 4, 0x0E, 24]), 4, Row(RowKind.CALL, "rsp", 24, kept=CALLEE_SAVED), id="advance_loc1"),
    pytest.param(bytes([3, 0, 1, 0x0E, 24]), 0x100, Row(RowKind.CALL, "rsp", 24, kept=CALLEE_SAVED), id="advance_loc2"),
    pytest.param(bytes([4, 0, 1, 0, 0, 0x0E, 24]), 0xFF, AT_CALL, id="before advance_loc4"),
    pytest.param(
        bytes([0x0E, 16, 0x86, 2]),
        0,
        Row(RowKind.CALL, "rsp", 16, saved=(saved("rbp", -16),), kept=CALLEE_SAVED[:1] + CALLEE_SAVED[2:]),
    ),
    pytest.param(
        bytes([0x0C, 6, 16, 0x05, 3, 3]),
        0,
        Row(RowKind.CALL, "rbp", 16, saved=(saved("rbx", -24),), kept=CALLEE_SAVED[1:]),
        id="def_cfa, offset_extended",
    ),
    pytest.param(bytes([0x0D, 10]), 0, Row(RowKind.CALL, "r10", 8, kept=CALLEE_SAVED), id="def_cfa_register"),
    pytest.param(bytes([0x13, *sleb(-2)]), 0, Row(RowKind.CALL, "rsp", 16, kept=CALLEE_SAVED), id="def_cfa_offset_sf"),
    pytest.param(bytes([0x12, 6, *sleb(-3)]), 0, Row(RowKind.CALL, "rbp", 24, kept=CALLEE_SAVED), id="def_cfa_sf"),
    pytest.param(
        bytes([0x11, 3, *sleb(2)]),
        0,
        Row(RowKind.CALL, "rsp", 8, saved=(saved("rbx", -16),), kept=CALLEE_SAVED[1:]),
        id="offset_extended_sf",
    ),
    pytest.param(
        bytes([0x2F, 3, 2]),
        0,
        Row(RowKind.CALL, "rsp", 8, saved=(saved("rbx", 16),), kept=CALLEE_SAVED[1:]),
        id="negative_offset_extended",
    ),
    pytest.param(bytes([0x2E, *uleb(300), 0x0E, 16]), 0, Row(RowKind.CALL, "rsp", 16, kept=CALLEE_SAVED), id="args_size"),
    pytest.param(
        bytes([0x14, 3, 1]),
        0,
        Row(RowKind.CALL, "rsp", 8, saved=(Saved("rbx", None, -8, True),), kept=CALLEE_SAVED[1:]),
        id="val_offset",
    ),
    pytest.param(
        bytes([0x15, 7, *sleb(-1)]),
        0,
        Row(RowKind.CALL, "rsp", 8, saved=(Saved("rsp", None, 8, True),), kept=CALLEE_SAVED),
        id="val_offset_sf",
    ),
    pytest.param(
        bytes([0x09, 16, 9]),
        0,
        Row(RowKind.CALL, "rsp", 8, kept=CALLEE_SAVED, return_address=Saved("rip", "r9", 0, True)),
        id="register",
    ),
    pytest.param(bytes([0x07, 16]), 0, Row(RowKind.END), id="undefined return address"),
    pytest.param(bytes([0x07, 3]), 0, Row(RowKind.CALL, "rsp", 8, kept=CALLEE_SAVED[1:]), id="undefined"),
    pytest.param(bytes([0x08, 10]), 0, Row(RowKind.CALL, "rsp", 8, kept=(*CALLEE_SAVED, "r10")), id="same_value"),
    pytest.param(bytes([0x0E, 16, 0x83, 2, 0x42, 0x0E, 8, 0xC3]), 2, AT_CALL, id="restore"),
    pytest.param(bytes([0x0E, 16, 0x83, 2, 0x42, 0x0E, 8, 0x06, 3]), 2, AT_CALL, id="restore_extended"),
    pytest.param(bytes([0x0A, 0x0E, 16, 0x83, 2, 0x42, 0x0B]), 2, AT_CALL, id="remember_state, restore_state"),
    pytest.param(
        bytes([0x90, 3]),
        0,
        Row(RowKind.CALL, "rsp", 8, kept=CALLEE_SAVED, return_address=saved("rip", -24)),
        id="moved return address",
    ),
    pytest.param(
        bytes([0x0F, 3, 0x76, *sleb(-8), 0x06]),
        0,
        Row(RowKind.CALL, "rbp", -8, Memory.BEFORE, kept=CALLEE_SAVED),
        id="def_cfa_expression that a plain row can say",
    ),
    pytest.param(
        bytes([0x10, 3, 2, 0x77, 16]),
        0,
        Row(RowKind.CALL, "rsp", 8, saved=(Saved("rbx", "rsp", 16),), kept=CALLEE_SAVED[1:]),
        id="expression",
    ),
    pytest.param(
        bytes([0x16, 3, 2, 0x76, 0]),
        0,
        Row(RowKind.CALL, "rsp", 8, saved=(Saved("rbx", "rbp", 0, True),), kept=CALLEE_SAVED[1:]),
        id="val_expression",
    ),
    pytest.param(
        bytes([0x10, 3, 2, 0x23, 24]),
        0,
        Row(
            RowKind.CALL,
            "rsp",
            8,
            saved=(Saved("rbx", Expression((Operation(Operator.CONSTANT, 24), Operation(Operator.ADD)), 8), 0),),
            kept=CALLEE_SAVED[1:],
        ),
        id="expression on the CFA",
    ),
    pytest.param(bytes([0x0F, 1, 0x50]), 0, Row(RowKind.UNDEFINED), id="an expression that no table needs"),
    pytest.param(bytes([0x0D, 17]), 0, Row(RowKind.UNDEFINED), id="a CFA in a vector register"),
    pytest.param(bytes([0x3F]), 0, None, id="unknown instruction"),
    pytest.param(bytes([0x0B]), 0, None, id="restore_state alone"),
    pytest.param(bytes([0x0F, 99]), 0, None, id="an expression that is cut off"),
]


@pytest.mark.parametrize(("instructions", "offset", "expected"), CASES)
def test_rows(instructions: bytes, offset: int, expected: Row | None) -> None:
    sections = Sections()
    sections.function(CODE, 0x200, instructions)
    assert table(sections).find_row(CODE + offset) == expected


def test_plt() -> None:
    """ld's row for a PLT: the CFA is 8 further behind the push, 11 bytes into each entry of 16."""
    sections = Sections()
    program = bytes.fromhex("7708 8000 3f1a 3b2a 3324 22")
    sections.function(CODE, 0x200, bytes([0x0F, len(program)]) + program)
    row = table(sections).find_row(CODE)
    assert isinstance(row, Row)
    assert row.expression is not None
    assert [operation.operator.name for operation in row.expression.operations] == (
        "REGISTER REGISTER CONSTANT AND CONSTANT SWAP LESS_OR_EQUAL CONSTANT SHIFT_LEFT ADD".split()
    )


@pytest.mark.parametrize("encoding", [0x00, 0x02, 0x03, 0x04, 0x0B, 0x0C, 0x10, 0x1B, 0x1C, 0x01, 0x09])
def test_encodings_of_functions(encoding: int) -> None:
    sections = Sections(encoding=encoding)
    start = 0x4000 if encoding == 2 else CODE
    sections.function(start, 0x20)
    for rows in (table(sections), unsorted_table(sections)):
        assert [rows.find_row(start + offset) for offset in (-1, 0, 0x1F, 0x20)] == [None, AT_CALL, AT_CALL, None]


@pytest.mark.parametrize("encoding", [0x00, 0x03, 0x04, 0x0B, 0x0C, 0x1B, 0x3B, 0x3C])
def test_encodings_of_the_header(encoding: int) -> None:
    sections = Sections()
    for number in range(5):
        sections.function(CODE + 0x40 * number, 0x20)
    rows = table(sections, encoding=encoding)
    assert [rows.find_row(CODE + offset) for offset in (0x10, 0x30, 0x100, 0x11F, 0x120)] == [AT_CALL, None, AT_CALL, AT_CALL, None]


@pytest.mark.parametrize("version", [1, 3, 4])
@pytest.mark.parametrize(("augmentation", "data"), [(b"zR", b"\x1b"), (b"zPLR", b"\x9b\1\2\3\4\x1b\x1b"), (b"zR", b"\x1b\0\0")])
def test_versions_and_augmentations(version: int, augmentation: bytes, data: bytes) -> None:
    sections = Sections(version=version, augmentation=augmentation, common_data=data)
    sections.function(CODE, 0x20)
    assert table(sections).find_row(CODE) == AT_CALL


@pytest.mark.parametrize("augmentation", [b"", b"eh"])
def test_old_augmentations(augmentation: bytes) -> None:
    sections = Sections(augmentation=augmentation, encoding=0)
    sections.function(CODE, 0x20)
    assert table(sections).find_row(CODE) == AT_CALL


@pytest.mark.parametrize(
    "sections",
    [
        Sections(augmentation=b"zQ"),
        Sections(augmentation=b"R"),
        Sections(version=2),
        Sections(version=4, pointer_size=4),
        Sections(common_data=b"\x9b"),
        Sections(common_data=b"\x2b"),
    ],
)
def test_what_is_not_understood_says_nothing(sections: Sections) -> None:
    sections.function(CODE, 0x20)
    assert table(sections).find_row(CODE) is None


def test_signal_frame() -> None:
    sections = Sections(augmentation=b"zRS", initial=bytes([0x0F, 4, 0x77, *sleb(160), 0x06, 0x10, 16, 3, 0x77, *sleb(168)]))
    sections.function(CODE, 0x20)
    assert table(sections).find_row(CODE) == Row(
        RowKind.CALL, "rsp", 160, Memory.BEFORE, kept=CALLEE_SAVED, return_address=Saved("rip", "rsp", 168), is_signal=True
    )


def test_i386() -> None:
    sections = Sections(column=8, pointer_size=4, data_alignment=-4, initial=bytes([0x0C, 4, 4, 0x88, 1]))
    sections.function(CODE, 0x20, bytes([0x41, 0x0E, 8, 0x85, 2]))
    header = sections.header()
    rows = FrameTable(sections.reader(header), I386, "little", header=(HEADER, len(header)))
    assert rows.find_row(CODE + 1) == Row(RowKind.CALL, "rsp", 8, saved=(saved("rbp", -8),), kept=("rbx", "rsi", "rdi"))


def test_only_what_is_needed_is_read() -> None:
    sections = Sections()
    for number in range(4000):
        sections.function(CODE + 0x20 * number, 0x20)
    rows = table(sections)
    assert rows.find_row(CODE + 0x20 * 1234 + 5) == AT_CALL
    assert len(sections.reads) <= 12
    assert sum(size for _address, size in sections.reads) < 5 * 4096
    sections.reads.clear()
    assert rows.find_row(CODE + 0x20 * 1234 + 5) == AT_CALL
    assert rows.find_start(CODE + 0x20 * 1234 + 5) == CODE + 0x20 * 1234
    assert sections.reads == []


@pytest.mark.parametrize("page", [HEADER, FRAMES])
def test_bytes_that_are_not_known_yet(page: int) -> None:
    sections = Sections(hidden={page})
    sections.function(CODE, 0x20)
    rows = table(sections)
    assert rows.find_row(CODE) is Unread.UNREAD
    assert rows.find_row(CODE) is Unread.UNREAD
    sections.hidden.clear()
    assert rows.find_row(CODE) == AT_CALL


def test_without_a_header() -> None:
    sections = Sections(hidden={FRAMES + 4096})
    for number in reversed(range(600)):
        sections.function(CODE + 0x20 * number, 0x10)
    rows = unsorted_table(sections)
    assert rows.find_row(CODE) is Unread.UNREAD
    sections.hidden.clear()
    assert len(list(rows.prepare())) == 2
    sections.reads.clear()
    assert rows.find_row(CODE + 0x20 * 77 + 0xF) == AT_CALL
    assert len(sections.reads) == 2
    assert rows.find_row(CODE + 0x20 * 77 + 0x10) is None
    assert rows.find_start(CODE + 0x20 * 77 + 0xF) == CODE + 0x20 * 77
    assert rows.find_start(CODE + 0x20 * 77 + 0x10) is None


def test_header_without_a_table() -> None:
    sections = Sections()
    sections.function(CODE, 0x20)
    sections.frames += bytes(4)
    header = bytes([1, 0x1B, 0xFF, 0xFF]) + (FRAMES - HEADER - 4).to_bytes(4, "little")
    rows = FrameTable(sections.reader(header), AMD64, "little", header=(HEADER, len(header)))
    assert rows.find_row(CODE) == AT_CALL


def test_table_of_nothing() -> None:
    assert FrameTable(lambda _address, size: bytes(size), AMD64, "little").find_row(CODE) is None
    assert FrameTable(lambda _address, size: bytes(size), AMD64, "little", frames=(FRAMES, 1 << 40)).find_row(CODE) is None
    assert FrameTable(lambda _address, size: bytes(size), AMD64, "little", header=(HEADER, 1 << 40)).find_row(CODE) is None
    assert FrameTable(lambda _address, size: b"\xff" * size, AMD64, "little", frames=(FRAMES, 1 << 40)).find_row(CODE) is None


def test_a_program_that_grows_is_refused() -> None:
    sections = Sections()
    many = b"".join(bytes([0x05, *uleb(1000 + number), 1, 0x41]) for number in range(8000))
    sections.function(CODE, 1 << 20, many)
    sections.function(CODE + (1 << 20), 16)
    rows = table(sections)
    assert rows.find_row(CODE + 3) is None
    assert rows.find_row(CODE + (1 << 20)) == AT_CALL


def _sample() -> Sections:
    sections = Sections()
    for number in range(8):
        sections.function(
            CODE + 0x40 * number, 0x40, bytes([0x41, 0x0E, 16, 0x86, 2, 0x43, 0x0D, 6, 0x0A, 0x48, 0x0B, 0x0F, 2, 0x76, 8])
        )
    return sections


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.integers(0, 0x220), st.booleans())
def test_damaged_tables_never_raise(changes: list[tuple[int, int]], offset: int, has_header: bool) -> None:
    sections = _sample()
    header = bytearray(sections.header())
    for place, value in changes:
        if place < len(header):
            header[place] = value
        sections.frames[place % len(sections.frames)] = value
    reader = sections.reader(bytes(header))
    rows = (
        FrameTable(reader, AMD64, "little", header=(HEADER, len(header)))
        if has_header
        else FrameTable(reader, AMD64, "little", frames=(FRAMES, len(sections.frames)))
    )
    assert rows.find_row(CODE + offset) is None or isinstance(rows.find_row(CODE + offset), Row | Unread)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_programs_never_raise(program: bytes) -> None:
    sections = Sections()
    sections.function(CODE, 0x40, program)
    row = table(sections).find_row(CODE + 0x20)
    assert row is None or isinstance(row, Row)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_random_sections_never_raise(data: bytes, has_header: bool) -> None:
    def read(address: int, size: int) -> bytes | None:
        piece = data[address : address + size] if address >= 0 else b""
        return piece if len(piece) == size else None

    where = (0, len(data))
    rows = FrameTable(read, AMD64, "little", header=where) if has_header else FrameTable(read, AMD64, "little", frames=where)
    assert rows.find_row(50) is None or isinstance(rows.find_row(50), Row | Unread)


@pytest.mark.parametrize("sorted_header", [True, False])
@pytest.mark.parametrize(
    ("path", "every"), [("/lib64/ld-linux-x86-64.so.2", 1), ("/lib/x86_64-linux-gnu/libc.so.6", 9), ("/lib32/ld-linux.so.2", 3)]
)
def test_rows_of_the_hosts_files_are_those_of_readelf(path: str, every: int, sorted_header: bool) -> None:
    if shutil.which("readelf") is None or not Path(path).exists():
        warnings.warn(f"not compared with readelf: {path}", stacklevel=1)
        pytest.skip("no readelf, or no such file")
    file = TableOfFile(Path(path).read_bytes())
    rows = file.table(sorted_header=sorted_header)
    assert rows is not None
    compared = 0
    for number, printed in enumerate(read_printed_rows(Path(path))):
        if number % every == 0:
            assert differs(rows.find_row(printed.start), printed, file.abi) is None, printed
            assert rows.find_row(printed.end - 1) == rows.find_row(printed.start)
            assert rows.find_start(printed.end - 1) == printed.function
            compared += 1
    assert compared > 1000
