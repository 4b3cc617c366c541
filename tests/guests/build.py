"""The C and C++ sources beside this file become programs for a guest: one source, built in every way that users build theirs.

The guest's C library is Debian 12's: on a machine with a newer one the sources bind nothing that the guest's does not have.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from recording.errors import MissingDependencyError

_SOURCES = Path(__file__).parent
# A call in the last place would otherwise replace its caller's frame by the callee's: rightly absent from a stack.
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-fno-optimize-sibling-calls", "-fno-stack-protector", "-pthread")


@dataclass(frozen=True, slots=True)
class Program:
    """A program to build. name: of its file, and so the comm of its process (at most 15 bytes)."""

    name: str
    source: str
    flags: tuple[str, ...]

    @property
    def compiler(self) -> str:
        """The compiler of its language."""
        return "g++" if self.source.endswith(".cc") else "gcc"


USER_TRUTH = (
    Program("ut-pie", "user_truth.c", ("-fPIE", "-pie")),
    Program("ut-no-pie", "user_truth.c", ("-fno-pie", "-no-pie")),
    Program("ut-static", "user_truth.c", ("-fno-pie", "-no-pie", "-static")),
    Program("ut-static-pie", "user_truth.c", ("-fPIE", "-static-pie")),
    # Frame pointers and no tables: the program's own code has no call frame information, the C library's has nothing else.
    Program(
        "ut-fp",
        "user_truth.c",
        (
            "-fPIE",
            "-pie",
            "-fno-omit-frame-pointer",
            "-fno-asynchronous-unwind-tables",
            "-fno-unwind-tables",
        ),
    ),
    Program("ut-stripped", "user_truth.c", ("-fPIE", "-pie", "-s")),
    Program("ut-cxx", "user_truth_cxx.cc", ("-fPIE", "-pie")),
    Program(
        "ut-32",
        "user_truth_32.c",
        ("-m32", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-fcf-protection=none", "-Wl,--eh-frame-hdr"),
    ),
)
"""The programs with known call paths; user_truth.c and its neighbours say which."""
TASK_TRUTH = Program("task-truth", "task_truth.c", ("-fno-pie", "-no-pie", "-static"))
"""Tasks that share processors, and the guest's own account of them."""
PROGRAMS = (*USER_TRUTH, TASK_TRUTH)
"""What the root file system holds."""
INIT = Program("init", "init.c", ("-fno-pie", "-no-pie", "-static"))
"""The initramfs' first process."""

DIFF_TRUTH = Program("diff-truth", "diff_truth.c", ("-fno-pie", "-no-pie", "-static"))
"""The first process of a guest that two recordings are made of, to be compared."""


def build_programs(directory: Path, programs: tuple[Program, ...] = PROGRAMS) -> None:
    """Compile into a directory. Raises MissingDependencyError where there is no compiler, or it cannot."""
    for program in programs:
        command = [program.compiler, *_FLAGS, *program.flags, str(_SOURCES / program.source), "-o", str(directory / program.name)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            message = f"{program.compiler} is not installed, so the guest's programs cannot be built; install gcc and g++"
            raise MissingDependencyError(message) from None
        if result.returncode != 0:
            message = f"{' '.join(command)} failed: {result.stderr.strip()[:2000]}; install gcc, g++ and libc6-dev"
            raise MissingDependencyError(message)


def fingerprint() -> str:
    """Changes with the sources, the ways they are built, and the compiler."""
    digest = hashlib.sha256(repr((_FLAGS, PROGRAMS)).encode())
    for path in sorted(_SOURCES.iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    for compiler in sorted({program.compiler for program in PROGRAMS}):
        try:
            digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout)
        except FileNotFoundError:
            digest.update(b"none")
    return digest.hexdigest()[:16]
