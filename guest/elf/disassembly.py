"""Code of a file of this machine → its instructions as text, by capstone, an optional package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from guest.elf.debug_file import DebugFile
from recording.errors import BadImageError, MissingDependencyError

_ENGINES: dict[tuple[str, int], tuple[str, tuple[str, ...]]] = {
    ("EM_X86_64", 8): ("X86", ("64",)),
    ("EM_386", 4): ("X86", ("32",)),
    ("EM_ARM", 4): ("ARM", ("ARM",)),
    ("EM_AARCH64", 8): ("ARM64", ("ARM",)),
    ("EM_RISCV", 8): ("RISCV", ("RISCV64", "RISCVC")),
    ("EM_RISCV", 4): ("RISCV", ("RISCV32", "RISCVC")),
    ("EM_PPC64", 8): ("PPC", ("64",)),
    ("EM_PPC", 4): ("PPC", ("32",)),
    ("EM_S390", 8): ("SYSZ", ()),
    ("EM_MIPS", 8): ("MIPS", ("MIPS64",)),
    ("EM_MIPS", 4): ("MIPS", ("MIPS32",)),
    ("EM_SPARC", 4): ("SPARC", ()),
    ("EM_SPARCV9", 8): ("SPARC", ("V9",)),
    ("EM_68K", 4): ("M68K", ("M68K_040",)),
}
"""capstone's architecture and modes by ``e_machine`` and the size of a pointer."""
_MAX_SIZE = 1 << 18


@dataclass(frozen=True, slots=True)
class Instruction:
    """One at an address; its length in bytes."""

    address: int
    size: int
    text: str


def disassemble(file: DebugFile, start: int, end: int, *, shown: int | None = None) -> list[Instruction]:
    """The instructions of a file's code between two addresses; what is none is left out.

    shown: the address that the first is told with, and by which targets of jumps are; None for its own.

    Raises BadImageError where the file has no such code, or is of an architecture that capstone does not know,
    MissingDependencyError where capstone is not installed.
    """
    try:
        capstone = import_module("capstone")
    except ImportError as error:
        message = "disassembly needs the package capstone; install it with: pip install 'guestprof[disassembly]'"
        raise MissingDependencyError(message) from error
    code = file.code_at(start, min(end - start, _MAX_SIZE))
    engine = _ENGINES.get((file.machine, file.pointer_size))
    if code is None or engine is None:
        why = "has no code there" if code is None else f"is of {file.machine}, which is not disassembled"
        raise BadImageError(f"{file.path} {why}; name the file that the guest runs")
    name, modes = engine
    # SystemZ and 68k have one byte order, and capstone no word for it.
    mode = capstone.CS_MODE_BIG_ENDIAN if file.order == "big" else capstone.CS_MODE_LITTLE_ENDIAN
    for each in modes:
        mode |= getattr(capstone, f"CS_MODE_{each}")
    machine: Any = capstone.Cs(getattr(capstone, f"CS_ARCH_{name}"), mode)
    machine.skipdata = True
    return [
        Instruction(address, size, f"{mnemonic} {operands}".strip())
        for address, size, mnemonic, operands in machine.disasm_lite(code, start if shown is None else shown)
    ]
