"""A guest that only gdb can unwind: an AVR microcontroller that runs tests/guests/avr, built here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from sampler.qmp import Qmp
from tests.conftest import skip_loudly

SOURCES = Path(__file__).parent.parent / "guests" / "avr"
TOOLS = {"avr-gcc": "gcc-avr", "avr-gdb": "gdb-avr", "qemu-system-avr": "qemu-system-misc"}
_START_TIMEOUT_S = 20.0
_POLL_S = 0.01


def build(directory: Path) -> Path:
    """The program, with debug information; skips the test where there are no tools for it."""
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            skip_loudly(f"{tool} is not installed (Debian: {package})")
    program = directory / "known_paths.elf"
    # The bare core: parts that are named by their device need avr-libc.
    flags = ["-mmcu=avr6", "-O2", "-gdwarf-3", "-Wall", "-Werror", "-fno-optimize-sibling-calls", "-nostartfiles", "-nodefaultlibs"]
    places = ["-Wl,-Ttext=0", "-Wl,-Tdata=0x800200"]
    sources = [str(SOURCES / "start.S"), str(SOURCES / "known_paths.c")]
    subprocess.run(["avr-gcc", *flags, *places, *sources, "-o", str(program)], check=True)
    return program


def line_of(function: str) -> int:
    """The line of known_paths.c in which most of a function's time is spent, or its call is."""
    lines = (SOURCES / "known_paths.c").read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if f"/* line of {function} */" in line)


class AvrGuest:
    """QEMU with the program, a gdb stub and QMP for the test itself. Ends when the ``with`` block ends."""

    def __init__(self, program: Path) -> None:
        self.program = program
        # Not under pytest's tmp_path: a unix socket's path may have 107 bytes (unix(7)).
        self.directory = Path(tempfile.mkdtemp(prefix="gp-"))
        self.target, self.qmp = f"unix:{self.directory / 'gdb'}", self.directory / "qmp"
        sockets = ["-chardev", f"socket,id=g0,path={self.directory / 'gdb'},server=on,wait=off", "-gdb", "chardev:g0"]
        monitor = ["-chardev", f"socket,id=q0,path={self.qmp},server=on,wait=off", "-mon", "chardev=q0,mode=control"]
        command = [
            "qemu-system-avr",
            "-M",
            "mega2560",
            "-bios",
            str(program),
            "-display",
            "none",
            "-serial",
            "none",
            "-monitor",
            "none",
        ]
        self.process = subprocess.Popen([*command, *sockets, *monitor], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.qmp.exists():
            assert self.process.poll() is None, "qemu-system-avr ended"
            assert time.monotonic() < deadline, "qemu-system-avr did not start"
            time.sleep(_POLL_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def status(self) -> str:
        """``running``, ``paused`` ..."""
        with Qmp.open(str(self.qmp)) as machine:
            return machine.status()


def gdb_of(profiler: int) -> psutil.Process:
    """The gdb that a guestprof process has started."""
    found = [child for child in psutil.Process(profiler).children() if "gdb" in child.name()]
    assert len(found) == 1
    return found[0]
