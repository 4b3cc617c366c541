"""SPARC V8: as V9, with registers of 32 bits and stack pointers that mean what they are. Code of files (``--elf``) only."""

from __future__ import annotations

from dataclasses import replace

from unwind.arch.sparc64 import GENERAL, SPARC64

_SUPERVISOR = 1 << 7
"""PSR.S (The SPARC Architecture Manual, version 8, 4.2)"""

SPARC = replace(
    SPARC64,
    name="sparc",
    qemu_targets=("sparc",),
    pointer_size=4,
    fixed_registers=tuple(
        # QEMU's target/sparc/gdbstub.c
        (name, 4)
        for name in (*GENERAL, *(f"f{number}" for number in range(32)), "y", "psr", "wim", "tbr", "pc", "npc", "fsr", "csr")
    ),
    is_user=lambda registers: not registers["psr"] & _SUPERVISOR,
    user_abis=(replace(SPARC64.user_abis[0], name="sparc", pointer_size=4, address_bits=32, stack_bias=0),),
    images=replace(SPARC64.images, machines=(2, 18)),
)
