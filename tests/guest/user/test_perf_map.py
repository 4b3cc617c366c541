"""Maps of code that was made at run time: the last line counts, bad lines do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guest.memory import run_steps
from guest.user.perf_map import parse_perf_map
from recording.symbols import SymbolTable


def parse(text: bytes) -> SymbolTable:
    return run_steps(parse_perf_map(text))


def rows(table: SymbolTable) -> list[tuple[int, str]]:
    return [(symbol.address, symbol.name) for symbol in table]


def name_at(table: SymbolTable, address: int) -> str | None:
    symbol = table.find_at(address)
    return None if symbol is None else symbol.name


def test_lines_become_symbols_with_gaps_between() -> None:
    table = parse(b"7f0000001000 20 LazyCompile:*f file.js:1\n0x7f0000001100 0x10 py::g:/a b.py\n")
    assert rows(table) == [
        (0x7F0000001000, "LazyCompile:*f file.js:1"),
        (0x7F0000001020, ""),
        (0x7F0000001100, "py::g:/a b.py"),
        (0x7F0000001110, ""),
    ]
    assert name_at(table, 0x7F000000101F) == "LazyCompile:*f file.js:1"
    assert name_at(table, 0x7F0000001020) is None


def test_the_later_line_holds_where_ranges_overlap() -> None:
    table = parse(b"1000 100 old\n1040 20 new\n1050 8 newest\n")
    assert rows(table) == [(0x1000, "old"), (0x1040, "new"), (0x1050, "newest"), (0x1058, "new"), (0x1060, "old"), (0x1100, "")]
    assert rows(parse(b"1040 20 small\n1000 100 big\n")) == [(0x1000, "big"), (0x1100, "")]
    assert rows(parse(b"1000 10 a\n1000 10 b\n1010 10 c\n")) == [(0x1000, "b"), (0x1010, "c"), (0x1020, "")]


def test_bad_lines_are_skipped() -> None:
    text = b"\n# comment\n1000 zz name\n-5 10 name\n1000 10\n1000 10 \n2000 0 empty\nffffffffffffffff 2 wraps\n"
    text += b"3000 10 caf\xe9\0\xff\r\n4000 1"
    assert rows(parse(text)) == [(0x3000, "caf\\xe9\\xff"), (0x3010, "")]


def test_the_end_of_the_address_space_has_no_row_after_it() -> None:
    assert rows(parse(b"fffffffffffffff0 10 last\n")) == [(0xFFFFFFFFFFFFFFF0, "last")]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_map(text: bytes) -> None:
    parse(text)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=12))
def test_each_address_has_the_name_of_the_last_line_that_covers_it(lines: list[tuple[int, int]]) -> None:
    table = parse("".join(f"{start:x} {size:x} f{number}\n" for number, (start, size) in enumerate(lines)).encode())
    for address in range(95):
        covering = [number for number, (start, size) in enumerate(lines) if start <= address < start + size]
        assert name_at(table, address) == (f"f{covering[-1]}" if covering else None)
