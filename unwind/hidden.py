"""What an exception has interrupted, where QEMU's stub does not tell it: how QEMU is made to. Facts of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MonitorRegisters:
    """Registers that QEMU's human monitor tells.

    registers: (name, bytes). is_needed: whether a vCPU stands where they tell what was interrupted, and nothing else does.
    commands: of the monitor, one after the other; ``{vcpu}`` in them is the vCPU's number.
    pattern: of their output, a hexadecimal group for each register.
    """

    registers: tuple[tuple[str, int], ...]
    is_needed: Callable[[Mapping[str, int]], bool]
    commands: tuple[str, ...]
    pattern: str


@dataclass(frozen=True, slots=True)
class EntryRun:
    """A vCPU that runs on, alone, from an exception vector to where the kernel has saved all registers of what was interrupted.

    landings: (registers, what reads kernel memory) -> addresses at one of which it arrives soon, whatever it has interrupted, with
        interrupts disabled on the way; () where it does not stand at a vector, or there is no telling.
    """

    landings: Callable[[Mapping[str, int], Callable[[int, int], bytes | None]], tuple[int, ...]]


Hidden = MonitorRegisters | EntryRun
