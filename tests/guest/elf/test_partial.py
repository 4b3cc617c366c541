"""Tables that are known in part, and tables that are made to cost time or memory."""

from __future__ import annotations

import struct
import time

from hypothesis import given
from hypothesis import strategies as st

from guest.elf.header import read_header
from guest.elf.partial import Partial, read_partial
from guest.elf.symbol_rows import Code, make_table, parse_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents
from tests.guest.elf.programs import SomePages, host_files

PAGE = 4096


@given(
    st.sets(st.integers(0, 9)), st.integers(0, 9 * PAGE), st.integers(0, 3 * PAGE), st.integers(0, 3 * PAGE), st.integers(0, 200)
)
def test_what_is_known_of_a_table(pages: set[int], start: int, size: int, offset: int, length: int) -> None:
    data = bytes(range(1, 256)) * 200
    table = run_steps(read_partial(SomePages(data, pages), start, size))
    assert len(table.data) == size
    inside = offset + length <= size
    bytes_known = all((start + at) // PAGE in pages for at in range(offset, offset + length))
    if inside and length:
        assert table.knows(offset, length) == bytes_known
    if table.knows(offset, length):
        assert table.data[offset : offset + length] == data[start + offset : start + offset + length]


def test_names_end_at_nul_and_are_cut_off() -> None:
    names = Partial(b"\0one\0caf\xe9\0" + b"x" * 5000, ())
    assert [names.name(at) for at in (0, 1, 2, 5)] == ["", "one", "ne", "caf\\xe9"]
    assert names.name(10) == "x" * 4096
    assert names.name(1 << 40) == ""
    partly = Partial(b"\0one\0two\0", ((6, 9),))
    assert [partly.name(at) for at in (1, 5)] == ["one", None]


def test_symbols_that_share_a_long_name_do_not_fill_memory() -> None:
    header = read_header(BytesContents(host_files()[0].read_bytes()))
    assert header is not None
    entry = header.format.symbol.pack(0 + 1, 0x12, 0, 1, 0x1000, 16)
    entries = Partial(entry * 100_000, ())
    names = Partial(b"\0" + b"a" * 8192, ())
    found = run_steps(parse_symbols(header, entries, names, Code([(0x1000, 0x2000)], is_exact=True)))
    assert sum(len(symbol.name) for symbol in found) < 2 << 20


def test_many_gaps_cost_no_more_time_than_few() -> None:
    header = read_header(BytesContents(host_files()[0].read_bytes()))
    assert header is not None
    size = header.format.symbol.size
    entries = bytes(b for number in range(20_000) for b in struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0x1000 + number, 16))
    gaps = tuple((at, at + size) for at in range(0, len(entries), 2 * size))
    code = Code([(0x1000, 0x100000)], is_exact=True)
    start = time.process_time()
    found = run_steps(parse_symbols(header, Partial(entries, gaps), Partial(b"\0f\0", ()), code))
    assert len(found) == 10_000
    assert time.process_time() - start < 2


def test_functions_within_functions_and_gaps() -> None:
    header = read_header(BytesContents(host_files()[0].read_bytes()))
    assert header is not None
    names = Partial(b"\0outer\0inner\0label\0unsized\0next\0_alias\0", ())
    rows = [(1, 0x12, 0x1000, 0x100), (7, 2, 0x1020, 0x10), (13, 0, 0x1080, 0), (19, 0x12, 0x1200, 0), (27, 0x12, 0x1240, 8)]
    rows += [(32, 0x12, 0x1240, 8), (27, 0x16, 0x1300, 8), (27, 0x12, 0x9000, 8)]
    entries = b"".join(struct.pack("<IBBHQQ", name, info, 0, 1, address, size) for name, info, address, size in rows)
    for is_exact, reach in ((True, None), (False, 0x1210)):
        code = Code([(0x1000, 0x2000)], is_exact=is_exact)
        table = run_steps(make_table(run_steps(parse_symbols(header, Partial(entries, ()), names, code)), code))
        expected = [(0x1000, "outer"), (0x1020, "inner"), (0x1030, "outer"), (0x1100, ""), (0x1200, "unsized")]
        expected += [] if reach is None else [(reach, "")]
        expected += [(0x1240, "next"), (0x1248, "")]
        assert [(symbol.address, symbol.name) for symbol in table] == expected
        assert table.find_at(0x1150) is None
