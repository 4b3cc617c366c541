"""Functions of stripped Go programs: those that the same program has in .symtab."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from guest.elf.file import ElfFile, open_elf
from guest.elf.sections import read_sections
from guest.elf.symbols import read_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents, FileContents
from tests.guest.elf.programs import SomePages, need

SOURCE = """package main
import "os"
//go:noinline
func work(n int) int { if n == 0 { return 0 }; return n + work(n-1) }
func main() { os.Exit(work(len(os.Args)) & 1) }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(SOURCE)
    environment = {**os.environ, "GOCACHE": str(directory / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    output = directory / "program"
    result = subprocess.run(
        [need("go"), "build", "-o", output, directory / "main.go"], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(f"go build does not work here: {result.stderr[-200:]}")
    return output


def opened(contents: FileContents) -> ElfFile:
    file = open_elf(contents)
    assert file is not None
    return file


def test_a_stripped_program_has_the_functions_of_the_whole_one(program: Path) -> None:
    stripped = program.with_name("stripped")
    subprocess.run([need("strip"), "-o", stripped, program], check=True)
    whole = run_steps(read_symbols(opened(BytesContents(program.read_bytes()))))
    data = stripped.read_bytes()
    found = run_steps(read_symbols(opened(BytesContents(data))))
    assert found.has_static
    assert found.is_complete
    work = whole.table.find("main.work")
    assert work is not None
    ours = {symbol.address: symbol.name for symbol in found.table if symbol.name}
    assert ours[work.address] == "main.work"
    # The symbol table tells assembler functions by a suffix, the table of the runtime does not.
    theirs = {symbol.address: symbol.name.removesuffix(".abi0") for symbol in whole.table if symbol.name}
    different = [(name, ours.get(address)) for address, name in theirs.items() if ours.get(address) != name]
    assert all(name.startswith(("go.", "go:", "type..eq.")) for name, _ in different), different
    assert len(different) < 5
    assert len(theirs) > 1000
    kept = run_steps(read_sections(BytesContents(data)))
    assert kept is not None
    assert run_steps(read_symbols(opened(kept))).table.to_blob() == found.table.to_blob()
    truth = {symbol.address: symbol.name for symbol in found.table}
    for seed in range(5):
        some = SomePages.random(data, seed, 0.9)
        some.pages |= {0, *range(len(data) // 4096 - 2, len(data) // 4096 + 1)}
        part = run_steps(read_symbols(opened(some)))
        assert all(truth.get(symbol.address) == symbol.name for symbol in part.table if symbol.name)


def test_a_table_that_lies_costs_names_only(program: Path) -> None:
    stripped = program.with_name("lying")
    subprocess.run([need("strip"), "-o", stripped, program], check=True)
    data = stripped.read_bytes()
    section = opened(BytesContents(data)).section(".gopclntab")
    assert section is not None
    chance = random.Random(1)
    for _ in range(20):
        changed = bytearray(data)
        for _ in range(3):
            at = section.offset + chance.choice((chance.randrange(72), chance.randrange(section.size)))
            changed[at] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))
        run_steps(read_symbols(opened(BytesContents(bytes(changed)))))
