"""Programs and files for the tests of ELF files: compiled here, or the host's own."""

from __future__ import annotations

import functools
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from guest.user.contents import PAGE_SIZE, BytesContents

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
static __attribute__((noinline)) int inner(int x) { return x * 3 + rand(); }
__attribute__((noinline)) int outer(int x) { return inner(x) + 1; }
__attribute__((weak, noinline)) int weak_one(int x) { return outer(x) - 2; }
int alias_of_outer(int x) __attribute__((alias("outer")));
int main(int argc, char **argv) { printf("%d %s\\n", weak_one(argc), argv[0]); return 0; }
"""


@functools.cache
def need(tool: str) -> str:
    """The path of a program, or a skip that says what is missing."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed: apt-get install gcc g++ binutils")
    return found


def compile_c(directory: Path, *options: str, source: str = SOURCE, compiler: str = "gcc") -> Path:
    """A program of C source; skipped where the compiler cannot make it (32-bit libraries may be missing)."""
    name = directory / "program.c"
    name.write_text(source)
    output = directory / "program"
    result = subprocess.run([need(compiler), "-O1", "-o", output, name, *options], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"{compiler} {' '.join(options)} does not work here: {result.stderr[-200:]}")
    return output


def host_files() -> list[Path]:
    """Files of this system with symbols of all kinds."""
    wanted = (
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/bin/busybox",
        "/usr/bin/python3",
        "/bin/ls",
    )
    return [path for name in wanted if (path := Path(name)).exists()]


def tool_output(tool: str, *arguments: str | Path) -> str:
    """What a program prints."""
    return subprocess.run([need(tool), *arguments], capture_output=True, text=True, check=True, errors="backslashreplace").stdout


class SomePages:
    """A file of which some pages are known."""

    def __init__(self, data: bytes, pages: set[int]) -> None:
        self._whole = BytesContents(data)
        self.pages = pages
        self.most = 0

    @classmethod
    def random(cls, data: bytes, seed: int, share: float) -> SomePages:
        """Each page is known with a probability."""
        chance = random.Random(seed)
        return cls(data, {page for page in range(len(data) // PAGE_SIZE + 1) if chance.random() < share})

    @property
    def size(self) -> int:
        return self._whole.size

    def read(self, offset: int, size: int) -> bytes | None:
        self.most = max(self.most, size)
        if size <= 0 or all(page in self.pages for page in range(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE + 1)):
            return self._whole.read(offset, size)
        return None
