"""What is wanted of a halt and what it gave: reads, registers, and one round trip's packets with the meaning of their replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recording.errors import StubError
from sampler.rsp.registers import RegisterFile
from sampler.stub import decode_read


@dataclass(frozen=True, slots=True)
class Read:
    """``size`` bytes at a guest virtual address, translated by one vCPU. It must not leave its page if the next may be unmapped.

    physical: where they lie in RAM, if that is known and the vCPU's mode may hide them.
    """

    vcpu: int
    address: int
    size: int
    physical: int | None = None


@dataclass(frozen=True, slots=True)
class HaltedState:
    """What one halt gave.

    vcpus: numbers of the sampled vCPUs; registers: theirs, in the same order. reads: bytes, or None where a page is not mapped.
    asked_at_ns: monotonic time before the halt was asked for. halted_ns: from then until the last byte came: an upper bound.
    """

    vcpus: tuple[int, ...]
    registers: tuple[RegisterFile, ...]
    reads: dict[Read, bytes | None]
    asked_at_ns: int
    halted_ns: int
    trips: int


class Planner(Protocol):
    """Decides what is copied in a halt."""

    def probes(self) -> Sequence[Read]:
        """Reads whose addresses are known before the halt."""
        ...

    def plan(self, state: HaltedState) -> tuple[Sequence[Read], bool]:
        """What to read now; True if nothing more will follow, so that the guest resumes behind these reads."""
        ...


class Batch:
    """Packets for one write, and what their replies mean: None is a thread change, a vCPU registers, a Read its next piece.

    Registers come in one piece or several: a size says that a piece must have that many bytes, or counts as not available.
    """

    __slots__ = ("packets", "slots")

    def __init__(self, head: bytes = b"") -> None:
        self.packets = [head] if head else []
        self.slots: list[tuple[int | Read | None, int]] = []

    def add(self, packet: bytes, meaning: int | Read | None, size: int = 0) -> None:
        """A packet and what its reply means; size in bytes of a read's piece, or of a register that is read alone."""
        self.packets.append(packet)
        self.slots.append((meaning, size))

    def sort(
        self,
        replies: Sequence[bytes],
        make_registers: Callable[[bytes], RegisterFile],
        registers: dict[int, RegisterFile],
        reads: dict[Read, bytes | None],
    ) -> None:
        """Put replies where they belong; raises StubError if a vCPU is unknown or a reply is no hexadecimal."""
        digits: dict[int, bytes] = {}
        for (meaning, size), reply in zip(self.slots, replies, strict=True):
            if meaning is None:
                if reply != b"OK":
                    raise StubError(f"the stub no longer knows a vCPU (it answers {reply[:20]!r}); was it unplugged?")
            elif isinstance(meaning, Read):
                piece = decode_read(reply, size)
                before = reads.get(meaning, b"")
                reads[meaning] = None if piece is None or before is None else before + piece
            elif size:
                digits[meaning] += reply if len(reply) == 2 * size else b"x" * (2 * size)
            else:
                digits[meaning] = reply
        for vcpu, found in digits.items():
            registers[vcpu] = make_registers(found)
