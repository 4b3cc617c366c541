"""EHABI tables of Debian's armhf programs: every entry says what ``readelf --unwind`` says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.elf.ehabi_rows import EhabiRows
from guest.elf.file import open_elf
from guest.user.contents import BytesContents
from guestprof.debian import fetch_package
from unwind.arch.armhf import ARMHF
from unwind.rules import Memory, Row, RowKind

pytestmark = pytest.mark.qemu
"""Like all that fetches packages of other architectures."""

ABI = ARMHF.user_abis[0]
_ENTRY = re.compile(r"^(0x[0-9a-f]+)(?: <[^>]*>)?: (?:@?0x[0-9a-f]+)")
_STEP = re.compile(r"^  (?:0x[0-9a-f]{2} )+\s*(.*)$")
_MOVE = re.compile(r"vsp = vsp ([+-]) (\d+)")
_POP = re.compile(r"pop \{(.*)\}")
NUMBERS = {f"r{number}": name for number, name in enumerate((*(f"r{number}" for number in range(13)), "sp", "lr", "pc"))}


def entries(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(start of a function, its unwinding instructions in words; none where readelf does not tell these)."""
    text = subprocess.run(["readelf", "--unwind", path], capture_output=True, text=True, check=True).stdout
    start: int | None = None
    steps: list[str] = []
    for line in text.splitlines():
        entry, step = _ENTRY.match(line), _STEP.match(line)
        if entry is not None:
            if start is not None:
                yield start, steps
            start, steps = int(entry[1], 16), []
        elif step is not None:
            steps.append(step[1])
    if start is not None:
        yield start, steps


def expected(steps: list[str]) -> tuple[str, int, dict[str, int]]:
    """CFA's register and offset, and how far below it registers are, the return address as ``pc``."""
    base, offset, places = "sp", 0, {}
    for step in steps:
        move, pop = _MOVE.search(step), _POP.search(step)
        if move is not None:
            offset += int(move[2]) * (1 if move[1] == "+" else -1)
        elif pop is not None:
            for name in pop[1].split(", "):
                if name.startswith("D"):
                    first, _, last = name.replace("D", "").partition("-")
                    offset += 8 * (int(last or first) - int(first) + 1)
                else:
                    places[NUMBERS[name]] = offset
                    offset += 4
            offset += 4 if "FSTMFDX" in step else 0
        elif step.startswith("vsp = r"):
            base, offset = NUMBERS[step.removeprefix("vsp = ")], 0
        else:
            assert step == "finish", step
    if "lr" in places:
        places["pc"] = places.pop("lr")
    return base, offset, {name: place - offset for name, place in places.items()}


def told(row: Row) -> tuple[str, int, dict[str, int]]:
    assert row.memory is Memory.NONE
    places = {saved.register: saved.offset for saved in row.saved}
    if row.return_address is None:
        places["pc"] = -4
    elif not row.return_address.is_value:
        places["pc"] = row.return_address.offset
    return row.register, row.offset, places


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
@pytest.mark.parametrize(
    ("package", "name"), [("busybox-static", "busybox"), ("libstdc\\+\\+6", "libstdc++.so.6"), ("libc6", "libc.so.6")]
)
def test_every_entry(suite: str, package: str, name: str) -> None:
    path = next(
        found
        for found in fetch_package(suite, "armhf", package).rglob(name)
        if found.is_file() and found.read_bytes()[:4] == b"\x7fELF"
    )
    file = open_elf(BytesContents(path.read_bytes()), is_final=True)
    assert file is not None
    rows = EhabiRows(file, ABI)
    compared = 0
    for start, steps in entries(path):
        row = rows.find_row(start)
        if steps and row is not None:
            assert row.kind is RowKind.CALL
            assert told(row) == expected(steps), f"{start:#x}: {steps}"
            compared += 1
        elif steps:
            # A signal's frame.
            assert "pop {r0, r1, r2, r3}" in steps
    assert compared > 50
