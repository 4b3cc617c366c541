"""Unwind tables of files at a guest's addresses: a kernel that was moved, a module in pieces, files of other builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.debug_rows import DebugFiles, DebugRows, PlacedTable
from guest.elf.debug_file import DebugFile
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guest.memory import run_steps
from recording.model import FrameData, FrameKind, Image
from recording.symbols import SymbolTable
from tests.builders.debug_program import build, needs_compiler
from tests.builders.unwind_tables import differs, read_printed_rows
from unwind.arch.x86_64 import X86_64
from unwind.rules import Row

pytestmark = needs_compiler
SLIDE = 0x1_2340_0000
ONLY_DEBUG = ("-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer")
AMD64 = X86_64.user_abis[-1]


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vmlinux"), *ONLY_DEBUG)


def image_of(path: Path, kind: FrameKind = FrameKind.KERNEL, **changes: str | None) -> Image:
    """What a guest shows of a file; each section of a module is moved by another distance."""
    with DebugFile(path) as file:
        symbols = SymbolTable.from_symbols((moved(file, one.address, one.section), "t", one.name) for one in file.symbols())
        build_id = changes.get("build_id", file.build_id)
    return Image("vmlinux" if kind is FrameKind.KERNEL else "some_module", kind, 0, build_id, (), symbols)


def moved(file: DebugFile, address: int, section: int) -> int:
    return address + SLIDE + (0x10000 * section if file.is_relocatable else 0)


def rows_of(directory: Path, files: HostFiles, *images: Image) -> DebugRows | None:
    debug = DebugFiles(HostFinder(files, SourceCache(directory / "cache"), release="6.1.0-test"), X86_64)
    found = run_steps(debug.read(list(enumerate(images))))
    assert run_steps(debug.read(list(enumerate(images)))) is found
    return found


def test_a_kernel_that_was_moved(tmp_path: Path, vmlinux: Path) -> None:
    rows = rows_of(tmp_path, HostFiles(vmlinux), image_of(vmlinux))
    assert rows is not None
    compared = 0
    for printed in read_printed_rows(vmlinux):
        assert differs(rows.find_row(printed.start + SLIDE), printed, AMD64) is None
        assert rows.find_row(printed.start) is None
        compared += 1
    assert compared > 10


def test_only_the_same_build_will_do(tmp_path: Path, vmlinux: Path) -> None:
    for build_id in (None, "ab" * 20):
        image = image_of(vmlinux, build_id=build_id)
        for any_build in (False, True):
            assert rows_of(tmp_path, HostFiles(vmlinux, any_build=any_build), image) is None


def test_a_file_without_a_table(tmp_path: Path) -> None:
    path = build(tmp_path, "-g0", "-fno-asynchronous-unwind-tables")
    assert rows_of(tmp_path, HostFiles(path), image_of(path)) is None


def test_eh_frame_where_there_is_no_other(tmp_path: Path) -> None:
    path = build(tmp_path, "-fasynchronous-unwind-tables")
    rows = rows_of(tmp_path, HostFiles(path), image_of(path))
    assert rows is not None
    assert not rows.tables[0].data.is_debug
    for printed in read_printed_rows(path):
        assert differs(rows.find_row(printed.start + SLIDE), printed, AMD64) is None


def test_a_module_beside_the_kernel(tmp_path: Path, vmlinux: Path) -> None:
    """Its sections are found by its symbols, its entries through relocations."""
    built = build(tmp_path, *ONLY_DEBUG, "-ffunction-sections", "-Wl,--build-id=sha1", relocatable=True)
    directory = tmp_path / "lib/modules/6.1.0-test/kernel"
    directory.mkdir(parents=True)
    path = built.replace(directory / "some_module.ko")
    module, files = image_of(path, FrameKind.MODULE), HostFiles(vmlinux, (tmp_path,))
    assert module.build_id is not None
    rows = rows_of(tmp_path, files, image_of(vmlinux), module)
    assert rows is not None
    with DebugFile(path) as file:
        assert len(file.code) > 3
        for symbol in (each for each in file.symbols() if not each.name.endswith(".cold")):
            row = rows.find_row(moved(file, symbol.address, symbol.section))
            assert isinstance(row, Row)
            assert (row.register, row.offset) == ("rsp", 8)
    assert rows.find_row(SLIDE + 0xFFFF_0000) is None
    alone = rows_of(tmp_path, files, module)
    assert alone is not None
    assert len(alone.tables) == 1


def test_parts_at_the_end_of_the_address_space() -> None:
    """A kernel's addresses are negative, and so may be its move."""
    top = 0xFFFF_FFFF_FFFF_0000
    rows = DebugRows([PlacedTable(FrameData(b"", 0, True, "little", ((top, top + 0xFFF, 0x8000),)), AMD64)])
    assert [rows.find_row(at) for at in (0, top, top + 0x8000, (1 << 64) - 1)] == [None] * 4
