"""Guests without an operating system, built from ``tests/guests/bare``: known call paths, in known shares, on many machines."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from recording.errors import MissingDependencyError

_SOURCES = Path(__file__).parent.parent / "guests" / "bare"
_POLL_S = 0.02
# A call in the last place would otherwise replace its caller's frame by the callee's: rightly absent from a stack.
_FLAGS = (
    *("-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
    *("-fno-stack-protector", "-fno-optimize-sibling-calls", "-fasynchronous-unwind-tables", "-Wl,--build-id=sha1"),
)
SHARES = {"leaf_five": 0.5, "leaf_three": 0.3, "leaf_two": 0.2}
"""Of the time that the guest works."""
DEPTH = 6
"""How often ``recurse`` is in a stack with ``leaf_three``."""
PATHS = {
    "leaf_five": ["main", "serve", "middle_five", "leaf_five"],
    "leaf_three": ["main", "serve", "middle_three", *["recurse"] * DEPTH, "leaf_three"],
    "leaf_two": ["main", "serve", "dispatch", "leaf_two"],
}
"""Callers of each, outermost first, from ``main`` on."""


@dataclass(frozen=True, slots=True)
class BareMachine:
    """What to build for, and what to run it on.

    name: guestprof's of the architecture. source: of its startup code. compiler: Debian's package of it has the same name.
    """

    name: str
    source: str
    compiler: str
    flags: tuple[str, ...]
    qemu: tuple[str, ...]


X86_64_FLAGS = (
    *("-mno-red-zone", "-mgeneral-regs-only", "-fcf-protection=none"),
    *("-Wl,-z,max-page-size=4096", "-Wl,-Ttext-segment=0x100000"),
)
X86_64 = BareMachine("x86_64", "x86_64.S", "gcc", X86_64_FLAGS, ("qemu-system-x86_64",))
X86_64_RING3 = BareMachine("x86_64", "x86_64.S", "gcc", (*X86_64_FLAGS, "-DRING"), ("qemu-system-x86_64",))
"""Its work is done in ring 3, which also hypervisors run that interpret ring 0."""


def build(machine: BareMachine, path: Path, *, rounds: int = 0, flags: tuple[str, ...] = ()) -> Path:
    """Compile into a file. rounds: of work until it prints "done", 0: never. Raises MissingDependencyError without a compiler."""
    command = [machine.compiler, *_FLAGS, *machine.flags, *flags, f"-DROUNDS={rounds}", f"-DDEPTH={DEPTH}"]
    command += [str(_SOURCES / machine.source), str(_SOURCES / "work.c"), "-o", str(path)]
    if shutil.which(machine.compiler) is None:
        raise MissingDependencyError(f"{machine.compiler} is not installed, so the guest cannot be built (Debian has it)")
    subprocess.run(command, check=True)
    return path


class BareGuest:
    """A running one, with a gdb stub on a unix socket and its console in a file. Ends when the ``with`` block ends."""

    def __init__(self, machine: BareMachine, kernel: Path, *extra: str, mark: str = "ready", timeout_s: float = 60.0) -> None:
        """Starts it, and waits until the console shows the mark."""
        self._directory = Path(tempfile.mkdtemp(prefix="gp-bare-"))
        self._console = self._directory / "console"
        self.target = f"unix:{self._directory / 'gdb'}"
        self.process = subprocess.Popen(
            [
                *machine.qemu,
                *("-nodefaults", "-display", "none", "-m", "64", "-serial", f"file:{self._console}", "-kernel", str(kernel)),
                *("-chardev", f"socket,id=g0,path={self._directory / 'gdb'},server=on,wait=off", "-gdb", "chardev:g0", *extra),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            self.wait_for(mark, timeout_s)
        except BaseException:
            self.close()
            raise

    def console_text(self) -> str:
        """Everything that the guest has printed."""
        return self._console.read_text("latin-1") if self._console.exists() else ""

    def wait_for(self, mark: str, timeout_s: float = 60.0) -> None:
        """Wait until the console shows a mark."""
        deadline = time.monotonic() + timeout_s
        while mark not in self.console_text():
            assert self.process.poll() is None, f"QEMU ended before the guest printed {mark!r}: {self.console_text()!r}"
            assert time.monotonic() < deadline, f"the guest did not print {mark!r}: {self.console_text()!r}"
            time.sleep(_POLL_S)

    def close(self) -> None:
        """End QEMU, by its process id."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
