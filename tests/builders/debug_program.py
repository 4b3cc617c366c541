"""A small program with inlined functions, built by the compiler of this machine, and what binutils say of its addresses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_ONE_LINE = ("-gno-statement-frontiers", "-gno-variable-location-views")
"""No two lines at one address, of which gdb and addr2line choose different ones."""
SOURCES = Path(__file__).parents[1] / "guest/elf/lines_program"

needs_compiler = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("gcc", "addr2line", "objcopy")), reason="needs gcc and binutils: install them"
)


def build(directory: Path, *options: str, relocatable: bool = False) -> Path:
    """The program (or one relocatable file, as a kernel module is) with debug information as the options say it."""
    path = directory / ("program.o" if relocatable else "program")
    link = ["-r"] if relocatable else ["-static", "-no-pie", "-Wl,--build-id=sha1"]
    sources = [str(SOURCES / name) for name in ("one.c", "two.c")]
    flags = ["-O2", "-g", "-fno-pic", "-nostdlib", "-ffreestanding", *_ONE_LINE, *options]
    command = ["gcc", *flags, *link, "-o", str(path), *sources]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return path


def addr2line(path: Path, addresses: list[int], section: str | None = None) -> list[list[tuple[str, str]]]:
    """Function and ``file:line`` of each address, innermost first, as ``addr2line -i`` has them."""
    where = [] if section is None else ["-j", section]
    command = ["addr2line", "-a", "-i", "-f", "-e", str(path), *where, *[f"{address:#x}" for address in addresses]]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found: list[list[tuple[str, str]]] = []
    rest = iter(lines)
    for line in rest:
        if line.startswith("0x"):
            found.append([])
        else:
            found[-1].append((line, next(rest).partition(" (discriminator")[0]))
    return found
