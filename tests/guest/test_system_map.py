"""A System.map as a source of names of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.system_map import SystemMap, is_system_map
from recording.errors import BadImageError
from recording.symbols import SymbolTable

BASE, SLIDE = 0xFFFF_FFFF_8100_0000, 0x1234_0000
CODE = [(BASE + 16 * index, "T" if index % 2 else "t", f"function_{index}") for index in range(200)]
DATA = [(0x1F000, "D", "runqueues"), (BASE + 0x10_0000, "D", "modules"), (BASE + 0x10_0040, "b", "swapper_pg_dir")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "System.map"
    path.write_text("".join(f"{address:016x} {kind} {name}\n" for address, kind, name in sorted(DATA + CODE)))
    return path


def test_data_is_moved_with_the_code_and_offsets_are_not(path: Path) -> None:
    assert is_system_map(path)
    shown = SymbolTable.from_symbols((address + SLIDE, kind, name) for address, kind, name in CODE)
    table = SystemMap(path).with_data(shown)
    assert table is not None
    names = ("runqueues", "modules", "swapper_pg_dir")
    found = {name: symbol.address for name in names if (symbol := table.find(name)) is not None}
    assert found == {"runqueues": 0x1F000, "modules": BASE + 0x10_0000 + SLIDE, "swapper_pg_dir": BASE + 0x10_0040 + SLIDE}
    at = table.find_at(BASE + SLIDE + 16 * 7 + 3)
    assert at is not None
    assert at.name == "function_7"


def test_names_that_the_guest_has_stay_where_it_has_them(path: Path) -> None:
    rows = [*((address + SLIDE, kind, name) for address, kind, name in CODE), (0x1000, "d", "modules")]
    table = SystemMap(path).with_data(SymbolTable.from_symbols(rows))
    assert table is not None
    symbol = table.find("modules")
    assert symbol is not None
    assert symbol.address == 0x1000


def test_one_of_another_kernel_is_not_taken(path: Path) -> None:
    other = SymbolTable.from_symbols((BASE + 32 * index, "t", f"function_{index}") for index in range(200))
    assert SystemMap(path).with_data(other) is None


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    stub = tmp_path / "System.map-6.1"
    stub.write_text("ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n")
    assert is_system_map(stub)
    with pytest.raises(BadImageError, match="-dbg package"):
        SystemMap(stub)
    assert not is_system_map(tmp_path / "absent")
    (tmp_path / "elf").write_bytes(b"\x7fELF" + bytes(200))
    assert not is_system_map(tmp_path / "elf")
