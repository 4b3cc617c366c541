"""ORC entries of all four versions as rows, and telling the versions apart."""

from __future__ import annotations

import struct

import pytest

from recording.errors import BadImageError
from unwind.orc import OrcTable, OrcVersion, detect_version, lower
from unwind.rules import Memory, Row, RowKind, Saved

V1, V2, V3, V4 = OrcVersion


def entry(sp_offset: int, bp_offset: int, flags: int) -> bytes:
    return struct.pack("<hhH", sp_offset, bp_offset, flags)


CASES = [
    # A function behind `push %rbp; mov %rsp,%rbp`: CFA = rbp + 16, rbp = *(CFA - 16).
    (V1, entry(16, -16, 0x014), Row(RowKind.CALL, "rbp", 16, saved=(Saved("rbp", None, -16),))),
    (V3, entry(16, -16, 0x214), Row(RowKind.CALL, "rbp", 16, saved=(Saved("rbp", None, -16),))),
    (V4, entry(16, -16, 0x284), Row(RowKind.CALL, "rbp", 16, saved=(Saved("rbp", None, -16),))),
    # A function's start: CFA = rsp + 8, rbp is not touched.
    (V1, entry(8, 0, 0x005), Row(RowKind.CALL, "rsp", 8, kept=("rbp",))),
    (V2, entry(8, 0, 0x005), Row(RowKind.CALL, "rsp", 8, kept=("rbp",))),
    (V3, entry(8, 0, 0x205), Row(RowKind.CALL, "rsp", 8, kept=("rbp",))),
    (V4, entry(8, 0, 0x203), Row(RowKind.CALL, "rsp", 8, kept=("rbp",))),
    # The same number means another register in version 4.
    (V3, entry(8, 0, 0x203), Row(RowKind.CALL, "rdi", 0, kept=("rbp",))),
    (V4, entry(0, 0, 0x205), Row(RowKind.CALL, "rdi", 0, kept=("rbp",))),
    (V4, entry(0, 0, 0x201), Row(RowKind.CALL, "rax", 0, kept=("rbp",))),
    (V3, entry(0, 0, 0x201), Row(RowKind.UNDEFINED)),
    # Stack switches.
    (V1, entry(24, 0, 0x009), Row(RowKind.CALL, "rsp", 24, Memory.AFTER, kept=("rbp",))),
    (V3, entry(24, 0, 0x209), Row(RowKind.CALL, "rsp", 24, Memory.AFTER, kept=("rbp",))),
    (V4, entry(24, 0, 0x209), Row(RowKind.CALL, "rsp", 24, Memory.AFTER, kept=("rbp",))),
    (V3, entry(-24, 0, 0x208), Row(RowKind.CALL, "rbp", -24, Memory.BEFORE, kept=("rbp",))),
    (V4, entry(-24, 0, 0x20A), Row(RowKind.CALL, "rbp", -24, Memory.BEFORE, kept=("rbp",))),
    # A hint of a kernel before 5.12: saved registers through *(rsp + offset).
    (V1, entry(8, 0, 0x109), Row(RowKind.TRAP, "rsp", 8, Memory.BEFORE, kept=("rbp",))),
    # Saved registers, with and without the signal bit of each version.
    (V1, entry(0, 0, 0x105), Row(RowKind.TRAP, "rsp", 0, kept=("rbp",))),
    (V1, entry(0, 0, 0x205), Row(RowKind.TRAP_PARTIAL, "rsp", 0, kept=("rbp",))),
    (V2, entry(0, 0, 0x505), Row(RowKind.TRAP, "rsp", 0, kept=("rbp",))),
    (V3, entry(0, 0, 0xB05), Row(RowKind.TRAP, "rsp", 0, kept=("rbp",))),
    (V3, entry(0, 0, 0xC05), Row(RowKind.TRAP_PARTIAL, "rsp", 0, kept=("rbp",))),
    (V4, entry(0, 0, 0xC03), Row(RowKind.TRAP_PARTIAL, "rsp", 0, kept=("rbp",))),
    # The end, and nothing known.
    (V1, entry(0, 0, 0x400), Row(RowKind.END)),
    (V1, entry(0, 0, 0x000), Row(RowKind.UNDEFINED)),
    (V2, entry(0, 0, 0x800), Row(RowKind.END)),
    (V2, entry(0, 0, 0x400), Row(RowKind.UNDEFINED)),
    (V3, entry(0, 0, 0x100), Row(RowKind.END)),
    (V3, entry(0, 0, 0x000), Row(RowKind.UNDEFINED)),
    (V4, entry(0, 0, 0x700), Row(RowKind.UNDEFINED)),
]


@pytest.mark.parametrize(("version", "data", "row"), CASES)
def test_lower(version: OrcVersion, data: bytes, row: Row) -> None:
    assert lower(data, version) == row


HEADERS = {
    V2: "db84aed4103b31dd51e017f8f79783ca985c2c51",
    V3: "fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24",
    V4: "137c36ad7627c4dd55932176bb0ecdbd5041fc82",
}
CONTENT = {
    V1: entry(8, 0, 0x005) * 8 + entry(0, 0, 0x105) + entry(0, 0, 0x400),
    V2: entry(8, 0, 0x005) * 8 + entry(0, 0, 0x505) + entry(0, 0, 0x800),
    V3: entry(8, 0, 0x205) * 8 + entry(0, 0, 0xB05) + entry(0, 0, 0x100),
    V4: entry(8, 0, 0x203) * 8 + entry(0, 0, 0xB03) + entry(0, 0, 0x100),
}


@pytest.mark.parametrize("version", list(OrcVersion))
def test_version_by_content(version: OrcVersion) -> None:
    assert detect_version(None, CONTENT[version]) is version


@pytest.mark.parametrize("version", [V2, V3, V4])
def test_version_by_header(version: OrcVersion) -> None:
    assert detect_version(bytes.fromhex(HEADERS[version]), CONTENT[version]) is version


def test_unknown_header_is_refused() -> None:
    with pytest.raises(BadImageError, match="unknown format 0102030405060708090a0b0c0d0e0f1011121314"):
        detect_version(bytes(range(1, 21)), CONTENT[V3])


def test_header_that_the_content_contradicts_is_refused() -> None:
    with pytest.raises(BadImageError, match="header says version 4, its entries look like version 3"):
        detect_version(bytes.fromhex(HEADERS[V4]), CONTENT[V3])


@pytest.mark.parametrize("entries", [b"", b"12345", b"\xff" * 60])
def test_content_that_is_no_table(entries: bytes) -> None:
    with pytest.raises(BadImageError):
        detect_version(None, entries)


def table(*rows: tuple[int, bytes], address: int = 0x1_0000) -> OrcTable:
    ips = b"".join(struct.pack("<i", ip - (address + 4 * index)) for index, (ip, _) in enumerate(rows))
    return OrcTable.parse(ips, address, b"".join(data for _, data in rows), V3)


def test_find_row_takes_the_last_entry_at_or_below() -> None:
    start, body, end = entry(8, 0, 0x205), entry(16, 0, 0x205), entry(0, 0, 0)
    rows = table((0x1000, end), (0x1000, start), (0x1004, body), (0x1010, end))
    assert rows.find_row(0xFFF) is None
    assert rows.find_row(0x1000) == Row(RowKind.CALL, "rsp", 8, kept=("rbp",))
    assert rows.find_row(0x1003) == Row(RowKind.CALL, "rsp", 8, kept=("rbp",))
    assert rows.find_row(0x100F) == Row(RowKind.CALL, "rsp", 16, kept=("rbp",))
    assert rows.find_row(0x1010) == Row(RowKind.UNDEFINED)
    assert len(rows) == 4


def test_tables_of_different_length_are_refused() -> None:
    with pytest.raises(BadImageError, match="do not fit together: 8 and 6 bytes"):
        OrcTable.parse(bytes(8), 0, bytes(6), V3)


def test_unsorted_table_is_refused() -> None:
    with pytest.raises(BadImageError, match="not sorted"):
        table((0x2000, entry(8, 0, 0x205)), (0x1000, entry(8, 0, 0x205)))
