"""Unwinding instructions of the Arm EHABI and their tables, as literal bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording.errors import BadImageError
from unwind.ehabi import EHABI_VERSION, EhabiTable, lower
from unwind.rules import Memory, Row, RowKind, Saved

CALLEE_SAVED = ("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11")
LINK = Saved("pc", "lr", 0, is_value=True)


def call(
    register: str,
    offset: int,
    *saved: tuple[str, int],
    return_address: Saved | None = None,
    kept: tuple[str, ...] | None = None,
) -> Row:
    names = {name for name, _at in saved}
    return Row(
        RowKind.CALL,
        register,
        offset,
        saved=tuple(Saved(name, None, at) for name, at in saved),
        kept=tuple(name for name in CALLEE_SAVED if name not in names) if kept is None else kept,
        return_address=return_address,
    )


@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("b0", call("sp", 0, return_address=LINK)),
        ("a8 b0 b0", call("sp", 8, ("r4", -8))),  # pop {r4, lr}
        ("02 aa b0", call("sp", 28, ("r4", -16), ("r5", -12), ("r6", -8))),  # sp += 12; pop {r4-r6, lr}
        ("a1 b0", call("sp", 8, ("r4", -8), ("r5", -4), return_address=LINK)),
        ("84 00 b0", call("sp", 4)),  # pop {lr}
        ("88 01 b0", call("sp", 8, ("r4", -8))),  # pop {r4, pc}
        ("9b 84 80 b0", call("r11", 8, ("r11", -8))),  # sp = r11; pop {r11, lr}
        ("9b 46 af", call("r11", 8, *((f"r{4 + i}", 4 * i - 36) for i in range(8)))),  # sp = r11 - 28; pop {r4-r11, lr}
        ("b1 08 84 00 b0", call("sp", 8, ("r3", -8), kept=CALLEE_SAVED)),  # pop {r3}; pop {lr}
        ("b2 04 84 00", call("sp", 0x204 + 16 + 4)),
        ("b2 81 01 84 00", call("sp", 0x204 + 129 * 4 + 4)),
        ("c9 83 84 00", call("sp", 36)),  # vpop {d8-d11}
        ("d1 84 00", call("sp", 20)),  # vpop {d8, d9}
        ("b3 81 84 00", call("sp", 24)),  # fldmfdx {d8, d9}
        ("b9 84 00", call("sp", 24)),
        ("c1 84 00", call("sp", 20)),  # pop {wR10, wR11}
        ("c6 a2 84 00", call("sp", 28)),  # pop {wR10-wR12}
        ("c7 05 84 00", call("sp", 12)),  # pop {wCGR0, wCGR2}
        ("b4 84 00", call("sp", 8)),  # pop {ra_auth_code}
        # pop {fp, sp, lr}, as functions with frames of the old kind do
        (
            "9b 40 86 80",
            Row(
                RowKind.CALL,
                "r11",
                0,
                Memory.BEFORE,
                (Saved("r11", "r11", -4),),
                CALLEE_SAVED[:-1],
                return_address=Saved("pc", "r11", 4),
            ),
        ),
    ],
)
def test_instructions(code: str, row: Row) -> None:
    assert lower(bytes.fromhex(code)) == row


@pytest.mark.parametrize(
    "code",
    [
        "80 00",  # refuse to unwind
        "80",  # cut off
        "b1 00",
        "b1 10",
        "b2 80",
        "b5",
        "b6",  # spare
        "c7 00",
        "c7 10",
        "9d",
        "9f",
        "a8 94 b0",  # sp = r4, which was popped
        "ca 00",
        "e0",
        "ff",
    ],
)
def test_instructions_that_say_nothing(code: str) -> None:
    assert lower(bytes.fromhex(code)) is None


@given(st.binary(max_size=40))
def test_any_instructions(code: bytes) -> None:
    row = lower(code)
    assert row is None or row.kind is RowKind.CALL


ADDRESS = 0xC100_0000
TEXT = 0xC030_0000


def prel31(place: int, target: int) -> int:
    return target - place & 0x7FFF_FFFF


def table() -> EhabiTable:
    """Five functions, 0x100 bytes each; their instructions: none, inline, a table's of one word, of two words, a language's own."""
    rest = ADDRESS + 8 * 5
    words: list[int] = []
    for number, second in enumerate((1, 0x80A8_B0B0, rest, rest + 4, rest + 12)):
        at = ADDRESS + 8 * number
        words += [prel31(at, TEXT + 0x100 * number), prel31(at + 4, second) if number > 1 else second]
    index = struct.pack("<10I", *words)
    return EhabiTable(
        ADDRESS,
        index,
        struct.pack("<5I", 0x80A8_B184, 0x8101_0284, 0x00B0_B0B0, prel31(rest + 12, TEXT), 0x00A8_B0B0),
    )


@pytest.mark.parametrize(
    ("pc", "start", "row"),
    [
        (TEXT - 1, 0, None),
        (TEXT, TEXT, None),
        (TEXT + 0x1FF, TEXT + 0x100, call("sp", 8, ("r4", -8))),
        (TEXT + 0x200, TEXT + 0x200, None),  # its last instruction is cut off
        (TEXT + 0x300, TEXT + 0x300, call("sp", 16)),
        (TEXT + 0x4000, TEXT + 0x400, call("sp", 8, ("r4", -8))),
    ],
)
def test_entries(pc: int, start: int, row: Row | None) -> None:
    for each in (table(), EhabiTable.from_data(table().to_data())):
        assert each.find(pc) == (start, row)


def test_a_table_that_leads_nowhere() -> None:
    index = struct.pack("<2I", prel31(ADDRESS, TEXT), prel31(ADDRESS + 4, ADDRESS + 0x1000))
    assert EhabiTable(ADDRESS, index, b"").find(TEXT) == (TEXT, None)
    index = struct.pack("<2I", prel31(ADDRESS, TEXT), prel31(ADDRESS + 4, ADDRESS + 8))
    assert EhabiTable(ADDRESS, index, struct.pack("<I", 0x81FF_B0B0)).find(TEXT) == (TEXT, None)


def test_what_a_recording_keeps() -> None:
    data = table().to_data()
    assert (data.version, data.address, len(data.ip_table), len(data.entries)) == (EHABI_VERSION, ADDRESS, 40, 20)
    assert len(EhabiTable.from_data(data)) == 5


@pytest.mark.parametrize(
    "index",
    [
        b"",
        bytes(7),
        struct.pack("<4I", prel31(ADDRESS, TEXT + 4), 1, prel31(ADDRESS + 8, TEXT), 1),
    ],
)
def test_no_index(index: bytes) -> None:
    with pytest.raises(BadImageError):
        EhabiTable(ADDRESS, index, b"")
