"""A capture: one vCPU as it stood in one halt, everything that unwinding may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capture:
    """Registers by gdb name, and the stack pieces that were copied: (guest virtual address, bytes), lowest address first."""

    vcpu: int
    registers: Mapping[str, int]
    memory: tuple[tuple[int, bytes], ...] = ()

    def read(self, address: int, size: int) -> bytes | None:
        """The bytes at a virtual address, or None where they were not copied whole."""
        for start, piece in self.memory:
            offset = address - start
            if 0 <= offset < len(piece):
                data = piece[offset : offset + size]
                if len(data) == size:
                    return data
                rest = self.read(address + len(data), size - len(data))
                return None if rest is None else data + rest
        return None
