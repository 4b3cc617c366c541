"""``.debug_frame``: literal entries in every form, damage, dropped functions, readelf's word on whole programs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.elf.debug_file import DebugFile
from guest.elf.frame_sections import read_frame_section
from tests.builders.eh_frame import CODE, USUAL, sleb, uleb
from tests.builders.unwind_tables import differs, read_printed_rows
from tests.conftest import skip_loudly
from unwind.arch.x86_64 import X86_64
from unwind.frame_table import FrameTable, Unread
from unwind.rules import Row, RowKind
from unwind.user_abi import UserAbi

I386, AMD64 = X86_64.user_abis
KEPT = ("rbx", "rbp", "r12", "r13", "r14", "r15")
AT_CALL = Row(RowKind.CALL, "rsp", 8, kept=KEPT)
PUSHED = Row(RowKind.CALL, "rsp", 16, kept=KEPT)
PUSH = bytes([0x41, 0x0E, 16])
SOURCE = """
#define ALONE __attribute__((noinline))
int work(int *values, int count);
void store(void *place);
ALONE int plain(int a) { return a * 3; }
ALONE int calls(int *v, int n) { int sum = 0; for (int i = 0; i < n; i++) sum += work(v + i, n) * v[i]; return sum; }
ALONE int grows(int n) { int *v = __builtin_alloca(n * sizeof *v); store(v); return calls(v, n) + v[n / 2]; }
ALONE int late(int *v, int n) { if (n < 3) return n; int a = calls(v, n), b = grows(n); return a * b + plain(n); }
int work(int *values, int count) { return count ? values[count] : late(values, count); }
void store(void *place) { *(volatile int *)place = 1; }
void start(void) { int v[4] = {1, 2, 3, 4}; late(v, 4); for (;;); }
"""


@dataclass
class Section:
    """A ``.debug_frame`` that grows by functions."""

    version: int = 4
    wide: bool = False
    order: Literal["little", "big"] = "little"
    pointer_size: int = 8
    data: bytearray = field(default_factory=bytearray)
    common: int = 0

    def __post_init__(self) -> None:
        self.begin_common()

    def number(self, value: int, size: int) -> bytes:
        return value.to_bytes(size, self.order)

    def entry(self, body: bytes) -> None:
        body += bytes(-len(body) % 4)
        self.data += b"\xff\xff\xff\xff" + self.number(len(body), 8) if self.wide else self.number(len(body), 4)
        self.data += body

    def begin_common(self, address_size: int = 8, segment_size: int = 0) -> None:
        """What the functions from here on build upon."""
        self.common = len(self.data)
        body = b"\xff" * (8 if self.wide else 4) + bytes([self.version, 0])
        if self.version == 4:
            body += bytes([address_size, segment_size])
        self.entry(body + uleb(1) + sleb(-8) + uleb(16) + USUAL)

    def function(self, start: int, size: int, instructions: bytes = b"") -> None:
        body = self.number(self.common, 8 if self.wide else 4)
        self.entry(body + self.number(start, self.pointer_size) + self.number(size, self.pointer_size) + instructions)

    def table(self, abi: UserAbi = AMD64) -> FrameTable:
        return table(bytes(self.data), self.order, abi)


def table(data: bytes, order: Literal["little", "big"] = "little", abi: UserAbi = AMD64) -> FrameTable:
    return FrameTable(lambda at, size: data[at : at + size] if at >= 0 else None, abi, order, frames=(0, len(data)), is_debug=True)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("version", [1, 3, 4])
def test_forms(version: int, wide: bool, order: Literal["little", "big"]) -> None:
    section = Section(version, wide, order)
    section.function(CODE + 0x40, 0x20, PUSH)
    section.begin_common()
    section.function(CODE, 0x40, PUSH)
    rows = section.table()
    assert [rows.find_row(CODE + at) for at in (-1, 0, 1, 0x3F, 0x40, 0x41, 0x60)] == [
        *(None, AT_CALL, PUSHED, PUSHED, AT_CALL, PUSHED, None)
    ]
    assert rows.find_start(CODE + 0x41) == CODE + 0x40


def test_functions_whose_entry_says_nothing_of_its_own() -> None:
    section = Section()
    section.function(CODE, 0x10)
    section.function(CODE + 0x10, 0x10, PUSH)
    section.function(CODE + 0x20, 0x10, bytes([0x0E, 16]))
    assert [section.table().is_bare(CODE + at) for at in (-1, 1, 0x11, 0x21)] == [False, True, False, False]


def test_a_mixture_of_widths() -> None:
    section = Section(wide=True)
    section.function(CODE, 0x10)
    section.wide = False
    section.begin_common()
    section.function(CODE + 0x10, 0x10, PUSH)
    assert [section.table().find_row(CODE + at) for at in (1, 0x11)] == [AT_CALL, PUSHED]


@pytest.mark.parametrize(("address_size", "segment_size"), [(4, 0), (8, 2)])
def test_addresses_of_another_kind(address_size: int, segment_size: int) -> None:
    """They say nothing, and nothing false of the functions behind them."""
    section = Section()
    section.begin_common(address_size, segment_size)
    section.function(CODE, 0x10)
    section.begin_common()
    section.function(CODE + 0x10, 0x10)
    assert [section.table().find_row(CODE + at) for at in (1, 0x11)] == [None, AT_CALL]


def test_functions_that_the_linker_has_dropped() -> None:
    """GNU ld leaves 0 as their address, others all bits."""
    section = Section()
    section.function(0, 0x30, PUSH)
    section.function(0, 0x10, PUSH)
    section.function((1 << 64) - 1, 0x10, PUSH)
    section.function(CODE, 0x20)
    section.function(CODE + 0x10, 0x10, PUSH)
    section.function(0x20, 0x10)
    section.function(0x40, 0x10)
    section.function(0x40, 0x10)
    rows = section.table()
    assert [rows.find_row(at) for at in (0, 0x18, 0x28, 0x48, CODE, CODE + 0x11)] == [None, None, AT_CALL, AT_CALL, None, PUSHED]


def test_an_entry_of_no_length_and_one_that_is_damaged() -> None:
    section = Section()
    section.data += bytes(4)
    section.function(CODE, 0x10)
    section.common = 7
    section.function(CODE + 0x10, 0x10)
    section.common = 0
    section.function(CODE + 0x20, 0x10)
    rows = section.table()
    assert [rows.find_row(CODE + at) for at in (1, 0x11, 0x21)] == [AT_CALL, None, AT_CALL]


def test_the_section_is_read_once() -> None:
    section = Section()
    for number in range(600):
        section.function(CODE + 0x20 * number, 0x20)
    reads = []

    def read(at: int, size: int) -> bytes:
        reads.append(at)
        return bytes(section.data[at : at + size])

    rows = FrameTable(read, AMD64, "little", frames=(0, len(section.data)), is_debug=True)
    assert len(list(rows.prepare())) == 2
    reads.clear()
    assert rows.find_row(CODE + 0x20 * 300 + 7) == AT_CALL
    assert len(reads) == 2
    assert rows.find_row(CODE - 1) is None
    assert len(reads) == 2


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6), st.integers(-8, 0x100), st.booleans())
def test_damage_never_raises(changes: list[tuple[int, int]], offset: int, wide: bool) -> None:
    section = Section(wide=wide)
    for number in range(4):
        section.function(CODE + 0x20 * number, 0x20, PUSH)
    for place, value in changes:
        section.data[place % len(section.data)] = value
    assert isinstance(section.table().find_row(CODE + offset), Row | Unread | None)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["little", "big"]))
def test_random_sections_never_raise(data: bytes, order: Literal["little", "big"]) -> None:
    assert isinstance(table(data, order).find_row(50), Row | Unread | None)


@pytest.mark.parametrize(
    "options",
    [
        "-m64 -O2",
        "-m64 -O0 -fno-omit-frame-pointer",
        "-m64 -O2 -gdwarf64 -fno-dwarf2-cfi-asm",
        # readelf takes addresses for 64 bits wide in files of 32 bits with such entries.
        "-m64 -O1 -Wa,--gdwarf-cie-version=4",
        "-m32 -O2",
        "-m32 -O0 -fno-omit-frame-pointer",
        "-m32 -O2 -gdwarf64 -fno-dwarf2-cfi-asm",
        "-m32 -O2 -gz",
    ],
)
def test_rows_are_those_of_readelf(options: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("readelf") is None:
        skip_loudly("no gcc or readelf: rows of .debug_frame are not compared")
    source, path = tmp_path / "program.c", tmp_path / "program"
    source.write_text(SOURCE)
    flags = ["-g", "-fno-asynchronous-unwind-tables", "-ffreestanding", "-fno-stack-protector"]
    flags += ["-nostdlib", "-static", "-Wl,-e,start"]
    subprocess.run(["gcc", *flags, *options.split(), str(source), "-o", str(path)], check=True)
    with DebugFile(path) as file:
        assert file.section(".eh_frame").size == 0
        abi = AMD64 if file.pointer_size == 8 else I386
        section = read_frame_section(file)
    assert section is not None
    assert section.is_debug
    rows = section.table(abi)
    compared = 0
    for printed in read_printed_rows(path):
        assert differs(rows.find_row(printed.start), printed, abi) is None, printed
        assert rows.find_row(printed.end - 1) == rows.find_row(printed.start)
        assert rows.find_start(printed.end - 1) == printed.function
        compared += 1
    assert compared > 15
