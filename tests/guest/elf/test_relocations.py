"""Relocations of debug sections: what they make of an object file is what the linker makes of it, on each machine."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from guest.elf.debug_file import DebugFile
from guest.elf.frame_sections import abi_of, read_frame_section
from guest.elf.relocations import apply_relocations, read_relocations
from recording.errors import BadImageError
from tests.builders.debug_program import SOURCES
from tests.conftest import skip_loudly
from unwind.arch.registry import find_architecture

COMPILERS = [
    ("x86_64", "gcc", ""),
    ("i386", "gcc", "-m32"),
    ("riscv64", "riscv64-linux-gnu-gcc", "-Wl,--no-relax"),
    ("ppc64el", "powerpc64le-linux-gnu-gcc", ""),
    ("s390x", "s390x-linux-gnu-gcc", ""),
    ("mips64el", "mipsel-linux-gnu-gcc", "-mabi=64 -mno-abicalls -G0"),
]


@pytest.mark.parametrize(("architecture", "compiler", "options"), COMPILERS, ids=[each[0] for each in COMPILERS])
def test_an_object_has_the_rows_of_what_the_linker_makes_of_it(
    architecture: str, compiler: str, options: str, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        skip_loudly(f"{compiler} is not installed: relocations of {architecture} are not compared")
    loose, linked = tmp_path / "program.o", tmp_path / "program"
    flags = [
        "-O2",
        "-g",
        "-ffreestanding",
        "-nostdlib",
        "-fno-pic",
        "-no-pie",
        "-fno-asynchronous-unwind-tables",
        "-fno-unwind-tables",
    ]
    flags += options.split()
    sources = [str(SOURCES / name) for name in ("one.c", "two.c")]
    subprocess.run([compiler, *flags, "-r", *sources, "-o", str(loose)], check=True)
    subprocess.run([compiler, *flags, "-static", "-Wl,-e,0", str(loose), "-o", str(linked)], check=True)
    machine = find_architecture(architecture)
    assert machine is not None
    tables, symbols = [], []
    for path in (loose, linked):
        with DebugFile(path) as file:
            section, abi = read_frame_section(file, loaded=False), abi_of(machine, file.pointer_size)
            symbols.append({symbol.name: symbol for symbol in file.symbols() if symbol.size})
            assert section is not None
            assert abi is not None
            tables.append(section.table(abi))
    compared = set()
    for name, symbol in symbols[0].items():
        for offset in range(symbol.size):
            row = tables[0].find_row(symbol.address + offset)
            assert row is not None
            assert row == tables[1].find_row(symbols[1][name].address + offset)
            compared.add(row)
    assert len(symbols[0]) > 4
    assert len(compared) > 2


def applied(machine: str, data: bytes, *rows: tuple[int, int, int, int]) -> bytes:
    changed = bytearray(data)
    table = b"".join(struct.pack("<QQq", offset, symbol << 32 | kind, addend) for offset, symbol, kind, addend in rows)
    apply_relocations(
        changed, read_relocations(table, machine, 8, "little", has_addend=True), (0, 0x1234, 0x1200), machine, "little"
    )
    return bytes(changed)


def test_differences_of_symbols() -> None:
    """RISC-V: the upper two bits of a byte are the instruction (DW_CFA_advance_loc)."""
    assert applied("EM_RISCV", b"\x40", (0, 1, 53, 0), (0, 2, 52, 0)) == b"\x74"
    assert applied("EM_RISCV", bytes(8), (0, 1, 36, 8), (0, 2, 40, 0)) == (0x3C).to_bytes(8, "little")
    assert applied("EM_RISCV", b"\5\0", (0, 1, 34, 0), (0, 2, 38, 0)) == b"\x39\0"
    assert applied("EM_RISCV", b"\5\0", (0, 1, 55, 0), (0, 2, 38, 0)) == b"\x34\0"


def test_a_type_of_nothing() -> None:
    assert applied("EM_X86_64", bytes(8), (0, 1, 0, 0), (0, 1, 1, 4)) == (0x1238).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("machine", "row", "message"),
    [
        ("EM_SPARCV9", (0, 1, 1, 0), "EM_SPARCV9 are not known"),
        ("EM_X86_64", (0, 1, 77, 0), "type 77"),
        ("EM_X86_64", (4, 1, 1, 0), "damaged"),
        ("EM_X86_64", (0, 3, 1, 0), "damaged"),
    ],
)
def test_what_cannot_be_applied(machine: str, row: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        applied(machine, bytes(8), row)
