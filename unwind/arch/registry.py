"""The architectures that guestprof knows, and which one a name from QEMU means."""

from __future__ import annotations

from unwind.arch import Architecture
from unwind.arch.arm64 import ARM64
from unwind.arch.armhf import ARMHF
from unwind.arch.i386 import I386
from unwind.arch.m68k import M68K
from unwind.arch.mips64el import MIPS64EL
from unwind.arch.mips_be import MIPS
from unwind.arch.mipsel import MIPSEL
from unwind.arch.powerpc import POWERPC
from unwind.arch.ppc64el import PPC64EL
from unwind.arch.riscv64 import RISCV64
from unwind.arch.s390x import S390X
from unwind.arch.sparc import SPARC
from unwind.arch.sparc64 import SPARC64
from unwind.arch.x86_64 import X86_64

ARCHITECTURES: tuple[Architecture, ...] = (
    *(X86_64, ARM64, RISCV64, S390X, PPC64EL, I386, MIPS64EL, MIPSEL, ARMHF),
    *(MIPS, M68K, POWERPC, SPARC, SPARC64),
)


def find_architecture(name: str) -> Architecture | None:
    """The architecture that gdb's target description, ``query-target`` or the end of ``qemu-system-…`` calls by this name."""
    for architecture in ARCHITECTURES:
        if name == architecture.name or name in architecture.gdb_architectures or name in architecture.qemu_targets:
            return architecture
    return None
