"""The result of a walk, and that of a vCPU which runs no kernel code at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recording.model import Callchain, Frame, Space, StackEnd
from unwind.arch import Architecture


@dataclass(frozen=True, slots=True)
class Unwound:
    """A callchain, and the user registers where the walk stopped at the border to user mode (else None).

    root_sp: the outermost frame's stack pointer, None outside the kernel. After a walk to its end, a task's stack is there.
    """

    callchain: Callchain
    user_registers: Mapping[str, int] | None
    root_sp: int | None = None


_PROTECTED = 1
"""``CR0.PE``"""
_MAX_SELECTOR = 0x1000
"""Firmware and boot loaders have descriptor tables of a few entries: a larger selector is a segment of real mode."""


def code_address(architecture: Architecture, registers: Mapping[str, int]) -> int:
    """Where a vCPU's next instruction is: the program counter, on a PC in real mode behind its segment's base.

    A selector that real mode has left stays in use until the first far jump (Intel SDM, volume 3, 10.9.1).
    """
    pc = registers[architecture.pc]
    segment, control = registers.get("cs"), registers.get("cr0")
    if segment is None or control is None or pc > 0xFFFF or (control & _PROTECTED and segment < _MAX_SELECTOR):
        return pc
    return (segment << 4) + pc


def classify_outside_kernel(architecture: Architecture, registers: Mapping[str, int]) -> Unwound | None:
    """The one-frame result for a vCPU that runs user code or code from before the kernel; None if it runs the kernel."""
    pc = registers[architecture.pc]
    if architecture.is_user(registers):
        return Unwound(Callchain((Frame(pc, pc, Space.USER),), StackEnd.USER_MODE), registers)
    is_kernel = architecture.paging.enabled(registers) if architecture.spaces_overlap else architecture.is_kernel_address(pc)
    if not is_kernel:
        place = code_address(architecture, registers)
        return Unwound(Callchain((Frame(place, place, Space.FIRMWARE),), StackEnd.FIRMWARE), None)
    return None
