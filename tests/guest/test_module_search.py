"""The list of modules and their members, found in hand-made modules: both layouts of their code, either pointer size."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from guest.memory import run_steps
from guest.module_search import FoundModules, search_modules
from guest.modules import ModuleReader
from guest.paging import AddressSpace
from tests.builders.file_memory import BytesMemory
from unwind.arch import Architecture, PageTables
from unwind.arch.i386 import I386

LOW, AREA = 0xC000_0000, 0xE080_0000
SIZE = 0x10_0000
TABLES = PageTables(
    12, (10, 10), (2,), 1, (0x80, 0x80), 0xFFFF_F000, 4, "little", linear=((LOW, LOW + SIZE, 0), (AREA, AREA + SIZE, SIZE))
)
HEAD = LOW + 0x2_0040
IMAGE = (LOW + 0x1_0000, LOW + 0x8_0000)
NAMES = ("overlay", "ext4")
CODE = 0x2_0000
"""Bytes from one module to the next; its struct lies behind its code."""


class Modules:
    """Two modules, each with a symbol of its own, as a kernel of that pointer size has them."""

    def __init__(self, architecture: Architecture, *, pieces: bool) -> None:
        self.word, self.architecture = architecture.pointer_size, architecture
        self.ram, self.area = bytearray(SIZE), bytearray(SIZE)
        self.order = "<" if architecture.byteorder == "little" else ">"
        word = self.word
        self.addresses = [AREA + CODE * number + 0x8040 for number in range(len(NAMES))]
        ring = [HEAD, *(address + word for address in self.addresses)]
        for place, following, before in zip(ring, [*ring[1:], HEAD], [ring[-1], *ring[:-1]], strict=True):
            self.pointers(place, following, before)
        # Other lists of the image: one that is empty, one that leads to the middle of a module.
        self.pointers(HEAD + 0x100, HEAD + 0x100, HEAD + 0x100)
        self.pointers(HEAD + 0x200, self.addresses[0] + 0x40, self.addresses[0] + 0x40)
        self.pointers(HEAD + 0x300, LOW + 0x300, LOW + 0x300)
        for address, name in zip(self.addresses, NAMES, strict=True):
            base = address - 0x8040
            self.bytes(address + 3 * word, name.encode() + b"\0")
            # struct module_kobject has the module's address, too.
            self.numbers(address + 0x70, 1, 7)
            self.pointers(address + 0x80, address)
            at = address + 0x100
            if pieces:
                self.pointers(at, base)
                self.numbers(at + word, 0x3000)
                self.pointers(at + 2 * word, address)
                self.pointers(at + 9 * word, address & -0x1000)
                self.numbers(at + 10 * word, 0x1000)
                self.pointers(at + 11 * word, address)
            else:
                self.pointers(at, base)
                self.numbers(at + word, 0x1_0000, 0x3000, 0x5000, 0x6000)
                self.pointers(at + word + 16, address)
                init = at + 8 * word + 16
                self.pointers(init, 0)
                self.pointers(init + word + 16, address)
            tables = address + 0x300
            self.pointers(address + 0x2C0, tables)
            symbols, strings = base + 0x6000, base + 0x7000
            self.pointers(tables, symbols)
            self.numbers(tables + word, 2)
            self.pointers(tables + 2 * word, strings)
            form, size = ("IIIBBH", 16) if word == 4 else ("IBBHQQ", 24)
            values = (1, base + 0x40, 16, 2, 0, 1) if word == 4 else (1, 2, 0, 1, base + 0x40, 16)
            self.bytes(symbols + size, struct.pack(f"{self.order}{form}", *values))
            self.bytes(strings, b"\0" + name.encode() + b"_init\0")

    def bytes(self, address: int, data: bytes) -> None:
        memory, start = (self.ram, LOW) if address < AREA else (self.area, AREA)
        memory[address - start : address - start + len(data)] = data

    def pointers(self, address: int, *values: int) -> None:
        self.bytes(address, struct.pack(f"{self.order}{len(values)}{'I' if self.word == 4 else 'Q'}", *values))

    def numbers(self, address: int, *values: int) -> None:
        self.bytes(address, struct.pack(f"{self.order}{len(values)}I", *values))

    def space(self) -> AddressSpace:
        return AddressSpace(BytesMemory({0: bytes(self.ram + self.area)}), TABLES, 0)

    def search(self) -> FoundModules | None:
        return run_steps(search_modules(self.space(), IMAGE, self.architecture))


WIDE = replace(I386, pointer_size=8)
BIG = replace(I386, byteorder="big")


@pytest.mark.parametrize("pieces", [True, False], ids=["mem", "core_layout"])
@pytest.mark.parametrize("architecture", [I386, WIDE, BIG], ids=["4 bytes", "8 bytes", "big endian"])
def test_modules_are_found_and_read(architecture: Architecture, pieces: bool) -> None:
    modules = Modules(architecture, pieces=pieces)
    found = modules.search()
    assert found is not None
    reader = ModuleReader(found.symbols, found.structs, None)
    read = run_steps(reader.read(modules.space()))
    assert [module.name for module in read] == list(NAMES)
    assert [module.ranges for module in read] == [((AREA + CODE * number, AREA + CODE * number + 0x3000),) for number in range(2)]
    symbol = read[0].symbols.find_at(AREA + 0x48)
    assert symbol is not None
    assert symbol.name == "overlay_init"


def no_module(modules: Modules) -> None:
    modules.pointers(HEAD, HEAD, HEAD)


def not_its_name(modules: Modules) -> None:
    modules.bytes(modules.addresses[1] + 3 * modules.word, b"\xff\xfe\0")


def no_tree(modules: Modules) -> None:
    modules.pointers(modules.addresses[1] + 0x100 + modules.word + 16, 0)


def no_symbols(modules: Modules) -> None:
    modules.pointers(modules.addresses[0] + 0x300, 0)


def two_lists(modules: Modules) -> None:
    other = AREA + 0x6_0000
    modules.bytes(other, bytes(modules.area[0x8040 : 0x8040 + 0x400]))
    for at in (0x80, 0x100 + modules.word + 16, 0x100 + 9 * modules.word + 32):
        modules.pointers(other + at, other)
    modules.pointers(other + 0x100, AREA + 0x6_0000 & -0x1000)
    modules.pointers(other + 0x2C0, other + 0x300)
    modules.pointers(other + modules.word, HEAD + 0x400, HEAD + 0x400)
    modules.pointers(HEAD + 0x400, other + modules.word, other + modules.word)


@pytest.mark.parametrize("change", [no_module, not_its_name, no_tree, no_symbols, two_lists])
def test_what_is_not_certain_is_not_taken(change: Callable[[Modules], None]) -> None:
    modules = Modules(I386, pieces=False)
    change(modules)
    assert modules.search() is None


def test_a_module_that_is_being_loaded_is_not_looked_at() -> None:
    modules = Modules(I386, pieces=False)
    modules.numbers(modules.addresses[0], 1)
    modules.pointers(modules.addresses[0] + 0x2C0, 0)
    assert modules.search() is not None
