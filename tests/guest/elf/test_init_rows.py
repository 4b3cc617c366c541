"""Rows of ``.init`` and ``.fini``."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from guest.elf.file import open_elf
from guest.elf.init_rows import InitRows
from guest.user.contents import BytesContents
from unwind.arch.x86_64 import X86_64
from unwind.rules import Row, RowKind

ABI = X86_64.user_abis[-1]


def _library(directory: Path) -> bytes:
    if shutil.which("gcc") is None:
        warnings.warn("gcc is not installed", stacklevel=1)
        pytest.skip("gcc is not installed")
    source = directory / "library.c"
    source.write_text("int answer(void) { return 42; }\n", "utf-8")
    target = directory / "library.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    return target.read_bytes()


def test_the_stack_pointer_moves_once_and_back(tmp_path: Path) -> None:
    file = open_elf(BytesContents(_library(tmp_path)))
    assert file is not None
    section = file.section(".init")
    assert section is not None
    code = file.read(section.address, section.size)
    assert code is not None
    down = section.address + code.index(b"\x48\x83\xec\x08") + 4
    end = section.address + section.size
    rows = InitRows(file, ABI)
    offsets = {address: row.offset for address in range(section.address, end) if (row := rows.find_row(address)) is not None}
    assert {offsets[section.address], offsets[down - 1], offsets[end - 1]} == {8}
    assert {offsets[address] for address in range(down, end - 4)} == {16}
    assert rows.find_row(section.address) == Row(RowKind.CALL, "rsp", 8, kept=ABI.callee_saved)
    assert rows.find_row(end) is None
    assert rows.find_row(section.address - 1) is None


def test_code_of_another_kind_has_no_rows(tmp_path: Path) -> None:
    data = _library(tmp_path)
    file = open_elf(BytesContents(data.replace(b"\x48\x83\xc4\x08\xc3", b"\x90\x90\x90\x90\xc3")))
    assert file is not None
    section = file.section(".init")
    assert section is not None
    assert InitRows(file, ABI).find_row(section.address) is None
