"""The timekeeper in hand-made memory: each pointer size, byte order and alignment; by its name, by what it holds, by types."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from guest.found_types import FoundTypes
from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.timekeeper import Timekeeper, find_timekeeper, run_queue_clock
from guest.words import Words
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from unwind.arch import Architecture, PageTables
from unwind.arch.i386 import I386
from unwind.arch.mipsel import MIPSEL
from unwind.arch.s390x import S390X
from unwind.arch.x86_64 import X86_64

SIZE = 0x8_0000
SOURCE = 0x1_2340
"""Offset of the clock source that the timekeeper reads."""
CORE = 0x4_0080
NOTHING = SymbolTable.from_symbols([])


@dataclass
class Data:
    """A kernel's data, mapped from its start on."""

    architecture: Architecture
    alignment: int

    def __post_init__(self) -> None:
        self.low = 0xC000_0000 if self.architecture.pointer_size == 4 else 0xFFFF_FFFF_8200_0000
        self.bytes = bytearray(SIZE)
        self.order = Words.of(self.architecture).order

    def put(self, at: int, form: str, *values: int) -> int:
        struct.pack_into(self.order + form, self.bytes, at, *values)
        return at + struct.calcsize(self.order + form)

    def base(self, at: int, seconds: int, shifted_ns: int, real: int, mult: int = 1 << 23) -> int:
        """A ``struct tk_read_base``; gives where it ends."""
        at = self.put(at, "I" if self.architecture.pointer_size == 4 else "Q", self.low + SOURCE)
        at += -at % self.alignment
        return self.put(at, "QQIIQQQ", (1 << 56) - 1, 77_000, mult, 24, shifted_ns << 24, seconds * 10**9, real)

    def timekeeper(self, at: int, sequence: int | None, *, apart: int | None = None) -> None:
        """7.25 s after the start: the monotonic clock's and the raw reading."""
        if sequence is not None:
            self.put(at - self.alignment, "I", sequence)
        end = self.base(at, 7, 250_000_000, 1_700_000_000 * 10**9)
        self.base(end if apart is None else at + apart, 6, 990_000_000, 0, mult=(1 << 23) + 5)

    def find(self, symbols: SymbolTable = NOTHING, structs: Structs | None = None) -> Timekeeper | None:
        tables = PageTables(
            12,
            (10, 10),
            (2,),
            1,
            (0x80, 0x80),
            0xFFFF_F000,
            4,
            self.architecture.byteorder,
            linear=((self.low, self.low + SIZE, 0),),
        )
        self.space = AddressSpace(BytesMemory({0: bytes(self.bytes)}), tables, 0)
        return run_steps(find_timekeeper(self.space, symbols, (self.low, self.low + SIZE), structs, self.architecture))

    def shown(self, keeper: Timekeeper) -> int | None:
        return keeper.monotonic_ns(bytes(self.bytes[keeper.address - self.low :][: keeper.size]))


KINDS = pytest.mark.parametrize(("architecture", "alignment"), [(X86_64, 8), (S390X, 8), (MIPSEL, 8), (I386, 4)])


@KINDS
def test_by_what_it_holds(architecture: Architecture, alignment: int) -> None:
    data = Data(architecture, alignment)
    # Those of the clocks that may be read in NMIs: two of the same clock each.
    for at, real in ((0x2_0000, 5), (0x3_0000, 0)):
        data.base(data.base(at, 7, 250_000_000, real), 7, 250_000_000, real)
    # The shadow, which has no sequence number in front of it.
    data.timekeeper(0x3_8000, None)
    data.timekeeper(CORE, 2246)
    keeper = data.find()
    assert keeper is not None
    assert (keeper.address - data.low, keeper.base_at, keeper.has_sequence) == (CORE - alignment, alignment, True)
    assert data.shown(keeper) == 7_250_000_000


@KINDS
def test_while_it_is_changed(architecture: Architecture, alignment: int) -> None:
    data = Data(architecture, alignment)
    data.timekeeper(CORE, 2246)
    keeper = data.find()
    assert keeper is not None
    data.put(CORE - alignment, "I", 2247)
    assert data.shown(keeper) is None


def test_by_its_name() -> None:
    data = Data(X86_64, 8)
    data.timekeeper(CORE, 8)
    symbol = SymbolTable.from_symbols([(data.low + CORE - 8, "b", "tk_core")])
    keeper = data.find(symbol)
    assert keeper is not None
    assert data.shown(keeper) == 7_250_000_000
    # Nowhere else is looked then: the kernel has not started its clock yet.
    assert data.find(SymbolTable.from_symbols([(data.low + 0x100, "b", "tk_core")])) is None


def test_by_types_that_have_the_readings_apart() -> None:
    data = Data(X86_64, 8)
    data.timekeeper(CORE, 8, apart=128)
    symbol = SymbolTable.from_symbols([(data.low + CORE - 8, "b", "timekeeper_data")])
    assert data.find(symbol) is None
    base = dict(
        zip(
            ("clock", "mask", "cycle_last", "mult", "shift", "xtime_nsec", "base", "base_real"),
            ((0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 8), (40, 8), (48, 8)),
            strict=True,
        )
    )
    types = FoundTypes({"tk_read_base": base, "timekeeper": {"tkr_mono": (0, 56), "tkr_raw": (128, 56)}})
    structs = Structs(types, Words.of(X86_64))
    keeper = data.find(symbol, structs)
    assert keeper is not None
    assert data.shown(keeper) == 7_250_000_000
    assert run_queue_clock(symbol, structs) is None
    queue = Structs(FoundTypes({"rq": {"clock": (0x9C8, 8)}}), Words.of(X86_64))
    assert run_queue_clock(SymbolTable.from_symbols([(0x3_1980, "A", "runqueues")]), queue) == 0x3_2348


@pytest.mark.parametrize("spoilt", ["mask", "raw", "time"])
def test_what_is_none(spoilt: str) -> None:
    data = Data(X86_64, 8)
    data.timekeeper(CORE, 8)
    at, value = {"mask": (8, 5), "raw": (56 + 16, 3), "time": (40, 1 << 63)}[spoilt]
    data.put(CORE + at, "Q", value)
    assert data.find() is None


def test_hostile_bytes_are_no_time() -> None:
    data = Data(X86_64, 8)
    data.timekeeper(CORE, 8)
    keeper = data.find()
    assert keeper is not None
    for at, form, value in ((CORE + 28, "I", 200), (CORE + 40, "Q", (1 << 64) - 1)):
        kept = bytes(data.bytes)
        data.put(at, form, value)
        assert data.shown(keeper) is None
        data.bytes = bytearray(kept)
