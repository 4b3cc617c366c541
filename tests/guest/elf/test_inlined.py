"""Lines and inlined functions, of each address of a program, against ``addr2line -i``."""

from __future__ import annotations

import posixpath
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from guest.elf.debug_file import DebugFile, supplementary_of
from guest.elf.dwarf_units import Dwarf
from guest.elf.inlined import SourceFrame, SourceFunction, SourceIndex
from recording.errors import BadImageError
from tests.builders.debug_program import addr2line, build, needs_compiler

pytestmark = needs_compiler


def code_of(file: DebugFile) -> dict[str, list[int]]:
    """Addresses within functions by the name of their section."""
    names = {index: section.name for index, section in file.code.items()}
    found: dict[str, list[int]] = {}
    for symbol in file.symbols():
        if symbol.size:
            found.setdefault(names[symbol.section], []).extend(range(symbol.address, symbol.address + symbol.size))
    return found


def frames_at(functions: list[SourceFunction], address: int) -> list[SourceFrame]:
    (function,) = [each for each in functions if any(start <= address < end for start, end in each.ranges)]
    return list(function.frames(address))


def told(frames: list[SourceFrame]) -> list[tuple[str, str]]:
    return [(frame.name or "??", f"{posixpath.basename(frame.path or '??')}:{frame.line or '?'}") for frame in frames]


def expected(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, posixpath.basename(place)) for name, place in rows]


BUILDS = {
    "dwarf-5": ("-gdwarf-5",),
    "dwarf-4": ("-gdwarf-4",),
    "dwarf-3": ("-gdwarf-3", "-gstrict-dwarf"),
    "compressed": ("-gdwarf-5", "-gz=zlib"),
    "sections": ("-gdwarf-5", "-ffunction-sections"),
    "os": ("-gdwarf-5", "-Os"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_every_address_is_as_addr2line_has_it(tmp_path: Path, name: str) -> None:
    path = build(tmp_path, *BUILDS[name])
    with DebugFile(path) as file:
        addresses = sorted(address for of_section in code_of(file).values() for address in of_section)
        functions = list(SourceIndex(Dwarf(file)).functions(addresses))
        found = [told(frames_at(functions, address)) for address in addresses]
    assert found == [expected(rows) for rows in addr2line(path, addresses)]
    assert max(map(len, found)) >= 3, "leaf in middle in another function"
    assert {function.name for function in functions} >= {"first", "second", "apart", "outer", "rare", "_start"}


@pytest.mark.parametrize("version", [4, 5])
def test_a_relocatable_file_as_modules_are(tmp_path: Path, version: int) -> None:
    path = build(tmp_path, f"-gdwarf-{version}", relocatable=True)
    with DebugFile(path) as file:
        assert file.is_relocatable
        by_section = code_of(file)
        assert len(by_section) >= 3
        starts = {section.name: section.start for section in file.code.values()}
        index = SourceIndex(Dwarf(file))
        for section, addresses in by_section.items():
            functions = list(index.functions(addresses))
            found = [told(frames_at(functions, address)) for address in addresses]
            wanted = addr2line(path, [address - starts[section] for address in addresses], section)
            assert found == [expected(rows) for rows in wanted], section


def test_without_aranges_the_units_tell_where_they_are(tmp_path: Path) -> None:
    path = build(tmp_path, "-gdwarf-5")
    with DebugFile(path) as file:
        addresses = sorted(address for of_section in code_of(file).values() for address in of_section)
        wanted = list(SourceIndex(Dwarf(file)).functions(addresses))
    subprocess.run(["objcopy", "--remove-section", ".debug_aranges", str(path)], check=True)
    with DebugFile(path) as file:
        assert list(SourceIndex(Dwarf(file)).functions(addresses)) == wanted


def test_a_debug_file_apart_from_its_program(tmp_path: Path) -> None:
    path = build(tmp_path, "-gdwarf-5")
    apart = tmp_path / "program.debug"
    subprocess.run(["objcopy", "--only-keep-debug", str(path), str(apart)], check=True)
    with DebugFile(path) as whole, DebugFile(apart) as file:
        assert file.build_id == whole.build_id is not None
        addresses = sorted(address for of_section in code_of(whole).values() for address in of_section)
        assert code_of(file) == code_of(whole)
        assert list(SourceIndex(Dwarf(file)).functions(addresses)) == list(SourceIndex(Dwarf(whole)).functions(addresses))


def test_addresses_outside_of_all_units_are_of_no_function(tmp_path: Path) -> None:
    with DebugFile(build(tmp_path, "-gdwarf-5")) as file:
        assert list(SourceIndex(Dwarf(file)).functions([0, 0x10, 1 << 63])) == []


def test_a_file_without_debug_information_is_refused(tmp_path: Path) -> None:
    with DebugFile(build(tmp_path, "-g0")) as file:
        assert not file.has_lines
        assert file.has_symbols
        with pytest.raises(BadImageError, match="-dbg package"):
            SourceIndex(Dwarf(file))


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, seed: int) -> None:
    path = build_once(tmp_path)
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    with DebugFile(path) as file:
        addresses = sorted(address for of_section in code_of(file).values() for address in of_section)
        places = [
            file.section(name) for name in (".debug_info", ".debug_line", ".debug_abbrev", ".debug_aranges", ".debug_rnglists")
        ]
        spans = [(window.start, window.size) for window in places]
    for _ in range(6):
        start, size = rng.choice(spans)
        data[start + rng.randrange(size)] = rng.randrange(256)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    with DebugFile(damaged) as file:
        try:
            for function in SourceIndex(Dwarf(file)).functions(addresses):
                for start, end in function.ranges:
                    function.frames((start + end) // 2)
        except BadImageError:
            pass


_BUILT: list[bytes] = []


def build_once(directory: Path) -> Path:
    """The program, built the first time that it is asked for."""
    if not _BUILT:
        _BUILT.append(build(directory, "-gdwarf-5").read_bytes())
    path = directory / "program"
    path.write_bytes(_BUILT[0])
    return path


def test_what_is_no_elf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"", b"\x7fELF", b"\x7fELF" + bytes(60), b"#!/bin/sh\n" * 20):
        path.write_bytes(data)
        with pytest.raises(BadImageError, match="; name "):
            DebugFile(path)


@pytest.mark.skipif(shutil.which("dwz") is None, reason="needs dwz: install it")
def test_entries_that_two_files_share(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build(tmp_path / name, "-gdwarf-5")
    path = tmp_path / "one/program"
    with DebugFile(path) as file:
        addresses = sorted(address for of_section in code_of(file).values() for address in of_section)
        wanted = list(SourceIndex(Dwarf(file)).functions(addresses))
    command = ["dwz", "-m", "shared.debug", "-M", "/no/such/tree/shared.debug", "one/program", "two/program"]
    subprocess.run(command, check=True, cwd=tmp_path)
    (tmp_path / "no/such/tree").mkdir(parents=True)
    with DebugFile(path) as file:
        assert supplementary_of(file) is None
        (tmp_path / "shared.debug").rename(tmp_path / "no/such/tree/shared.debug")
        shared = supplementary_of(file)
        assert shared is not None
        with shared:
            found = list(SourceIndex(Dwarf(file, Dwarf(shared))).functions(addresses))
    assert found == wanted
