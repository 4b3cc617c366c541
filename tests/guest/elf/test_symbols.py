"""Symbols of files: what nm, readelf and objdump say, and where a file is known in part, right answers or none."""

from __future__ import annotations

import functools
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.elf.file import ElfFile, open_elf
from guest.elf.symbols import ElfSymbols, read_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents
from recording.errors import BadImageError
from recording.symbols import Symbol, SymbolTable
from tests.guest.elf.programs import SomePages, compile_c, host_files, need, tool_output

_READELF = re.compile(r"\s*\d+: ([0-9a-f]+) +(\d+|0x[0-9a-f]+) (FUNC|IFUNC|NOTYPE) +(\w+) +\w+ +(?:\[.*\] +)?(\w+) (\S+)")
_PLT = re.compile(r"^([0-9a-f]+) <([^>+]+@plt)>:$", re.MULTILINE)


def opened(data: bytes) -> ElfFile:
    file = open_elf(BytesContents(data), is_final=True)
    assert file is not None
    return file


def symbols_of(path: Path) -> ElfSymbols:
    return run_steps(read_symbols(opened(path.read_bytes())))


def name_at(table: SymbolTable, address: int) -> str | None:
    found = table.find_at(address)
    return None if found is None else found.name


class Truth:
    """The defined functions of a file by readelf: address -> names -> sizes."""

    def __init__(self, path: Path, *options: str) -> None:
        self.names: dict[int, dict[str, int]] = defaultdict(dict)
        self._near: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
        for line in tool_output("readelf", "-sW", *options, path).splitlines():
            match = _READELF.match(line)
            if match and match[3] != "NOTYPE" and match[5] not in {"UND", "ABS"}:
                start, size, name = int(match[1], 16), int(match[2], 0), match[6].partition("@")[0]
                self.names[start][name] = size
                for page in range(start >> 12, (start + max(size, 16) >> 12) + 1):
                    self._near[page].append((start, start + max(size, 16), name))

    def covering(self, address: int) -> set[str]:
        """Names of functions that an address may belong to."""
        return {name for start, end, name in self._near[address >> 12] if start <= address < end}


def is_entry(symbol: Symbol, path: Path) -> bool:
    """Whether a name is the one that we give to a program's entry point, of which readelf knows nothing."""
    known = readelf(path, "--dyn-syms").names.get(symbol.address, {})
    return symbol.name == "_start" and symbol.name not in known and symbol.address == opened(path.read_bytes()).entry


readelf = functools.cache(Truth)
found_in = functools.cache(symbols_of)


@pytest.mark.parametrize("path", host_files(), ids=lambda path: path.name)
def test_a_stripped_files_functions_are_those_of_readelf(path: Path) -> None:
    truth, found = readelf(path, "--dyn-syms"), found_in(path)
    assert found.is_complete
    rows = [symbol for symbol in found.table if not is_entry(symbol, path)]
    named = [symbol for symbol in rows if symbol.name and not symbol.name.endswith("@plt")]
    assert set(truth.names) <= {symbol.address for symbol in named}
    for address, names in truth.names.items():
        assert name_at(found.table, address) in names
    assert {symbol.name for symbol in named} <= {name for names in truth.names.values() for name in names}
    for symbol in rows:
        if symbol.name in truth.names[symbol.address] and not truth.names[symbol.address][symbol.name]:
            continue  # without a size it reaches to the next one, or its section's end
        if symbol.name and not symbol.name.endswith("@plt") and symbol.size:
            assert symbol.name in truth.covering(symbol.address + max(symbol.size - 16, 0))


@pytest.mark.parametrize("path", host_files(), ids=lambda path: path.name)
def test_stubs_have_the_names_that_objdump_gives_them(path: Path) -> None:
    output = subprocess.run(
        [need("objdump"), "-d", "-j", ".plt", "-j", ".plt.sec", path], capture_output=True, text=True, check=False
    ).stdout
    truth = {int(address, 16): name for address, name in _PLT.findall(output) if not name.startswith("*ABS*")}
    found = {symbol.address: symbol.name for symbol in found_in(path).table if symbol.name.endswith("@plt")}
    assert {address: name.partition("@")[0] for address, name in found.items()} == {
        address: name.partition("@")[0] for address, name in truth.items()
    }


@pytest.mark.parametrize(
    "options", [(), ("-static",), ("-no-pie",), ("-m32",), ("-Wl,-z,now", "-fcf-protection=full")], ids=" ".join
)
def test_an_unstripped_program(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = compile_c(tmp_path, *options)
    truth = readelf(path)
    found = symbols_of(path)
    assert found.is_complete
    assert found.has_static
    addresses = {name: address for address, names in truth.names.items() for name in names}
    assert {name_at(found.table, addresses[name]) for name in ("main", "inner", "weak_one")} == {"main", "inner", "weak_one"}
    assert name_at(found.table, addresses["outer"]) == "alias_of_outer"
    for address, names in truth.names.items():
        assert name_at(found.table, address) in names


def test_a_debug_file_names_what_was_stripped(tmp_path: Path) -> None:
    path = compile_c(tmp_path)
    truth = readelf(path)
    debug, stripped = tmp_path / "program.debug", tmp_path / "stripped"
    subprocess.run([need("objcopy"), "--only-keep-debug", path, debug], check=True)
    subprocess.run([need("strip"), "-o", stripped, path], check=True)
    inner = next(address for address, names in truth.names.items() if "inner" in names)
    file, more = opened(stripped.read_bytes()), opened(debug.read_bytes())
    alone = run_steps(read_symbols(file))
    assert (name_at(alone.table, inner), alone.has_static) == (None, False)
    both = run_steps(read_symbols(file, more))
    assert (name_at(both.table, inner), both.has_static) == ("inner", True)
    assert any(symbol.name == "printf@plt" for symbol in both.table)
    assert more.eh_frame_section() is None
    with pytest.raises(BadImageError, match="is not of the file of build"):
        run_steps(read_symbols(file, opened(Path("/bin/ls").read_bytes())))


def test_debugdata_names_what_was_stripped(tmp_path: Path) -> None:
    path = compile_c(tmp_path)
    inner = next(address for address, names in readelf(path).names.items() if "inner" in names)
    mini, stripped = tmp_path / "mini", tmp_path / "stripped"
    subprocess.run([need("objcopy"), "-S", "--remove-section", ".comment", "--keep-symbol=inner", path, mini], check=True)
    subprocess.run([need("objcopy"), "--only-keep-debug", mini, mini], check=True)
    subprocess.run([need("xz"), "-f", mini], check=True)
    subprocess.run([need("strip"), "-o", stripped, path], check=True)
    subprocess.run([need("objcopy"), f"--add-section=.gnu_debugdata={mini}.xz", stripped], check=True)
    data = stripped.read_bytes()
    found = run_steps(read_symbols(opened(data)))
    assert (name_at(found.table, inner), found.has_static) == ("inner", True)
    packed = Path(f"{mini}.xz").read_bytes()
    at = data.index(packed)
    for damaged in (packed[:40] + bytes(len(packed) - 40), bytes(len(packed))):
        found = run_steps(read_symbols(opened(data[:at] + damaged + data[at + len(packed) :])))
        assert (name_at(found.table, inner), found.has_static) == (None, False)


def test_without_section_headers_the_dynamic_segment_tells(tmp_path: Path) -> None:
    data = bytearray(Path("/lib/x86_64-linux-gnu/libc.so.6").read_bytes())
    whole = symbols_of(Path("/lib/x86_64-linux-gnu/libc.so.6"))
    data[0x28:0x30] = bytes(8)
    found = run_steps(read_symbols(opened(bytes(data))))
    wanted = {symbol.address: symbol.name for symbol in whole.table if symbol.name and not symbol.name.endswith("@plt")}
    assert {symbol.address: symbol.name for symbol in found.table if symbol.name} == wanted
    assert len(wanted) > 2000


def test_names_that_are_not_utf_8_and_versions_and_files() -> None:
    found = symbols_of(Path("/lib/x86_64-linux-gnu/libc.so.6")).table
    assert not any("@" in symbol.name and not symbol.name.endswith("@plt") for symbol in found)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.sampled_from([0.1, 0.5, 0.9, 0.98]), st.booleans(), st.sampled_from(host_files()[:2]))
def test_pages_that_are_not_known_cost_names_and_give_no_wrong_ones(seed: int, share: float, has_first: bool, path: Path) -> None:
    data = path.read_bytes()
    contents = SomePages.random(data, seed, share)
    if has_first:
        contents.pages.add(0)
    file = open_elf(contents)
    if file is None:
        assert 0 not in contents.pages
        return
    truth, whole = readelf(path, "--dyn-syms"), found_in(path)
    plt = {symbol.address: symbol.name for symbol in whole.table if symbol.name.endswith("@plt")}
    found = run_steps(read_symbols(file))
    for symbol in found.table:
        if symbol.name.endswith("@plt"):
            assert plt[symbol.address] == symbol.name
        elif symbol.name and not is_entry(symbol, path):
            assert symbol.name in truth.covering(symbol.address)
    assert file.build_id in {None, opened(data).build_id}
    if found.is_complete:
        assert found.table.to_blob() == whole.table.to_blob()


def test_the_entry_of_a_stripped_program_is_named(tmp_path: Path) -> None:
    program = compile_c(tmp_path)
    stripped = tmp_path / "stripped"
    subprocess.run([need("strip"), "-o", stripped, program], check=True)
    whole = symbols_of(program).table.find("_start")
    file = opened(stripped.read_bytes())
    table = run_steps(read_symbols(file)).table
    found = table.find("_start")
    assert whole is not None
    assert found is not None
    assert found.address == whole.address == file.entry
    assert found.size == 64 or found.address + found.size == min(row.address for row in table if row.address > found.address)
    after = table.find_at(found.address + 64)
    assert after is None or after.name != "_start"


def test_the_entry_of_a_library_is_no_function(tmp_path: Path) -> None:
    library = compile_c(tmp_path, "-shared", "-fPIC", "-Wl,-e,outer")
    file = opened(library.read_bytes())
    assert file.entry is not None
    assert run_steps(read_symbols(file)).table.find("_start") is None
