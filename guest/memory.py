"""Guest physical memory as every reader of guest knowledge sees it, and long reads in small steps.

The recorder is single threaded and samples between steps, so a job that takes longer than a few milliseconds is a generator:
it yields None after each piece of work and returns its result.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol, TypeAlias, TypeVar

from recording.errors import GuestMemoryError

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""A job in steps of a few milliseconds: ``result = yield from job`` inside another, ``run_steps(job)`` where nothing else waits."""

CHUNK_SIZE = 1 << 18
"""Bytes of one step of a long read: about 3 ms through a stub, less from process memory."""
MAX_READ = 1 << 28
"""More than any table or text of a kernel: a longer read means that a length from the guest is wrong."""


class PhysicalMemory(Protocol):
    """Reads guest physical memory. Addresses are guest physical, sizes are bytes."""

    def ram(self) -> Sequence[tuple[int, int]]:
        """[start, end) of each piece of RAM, ascending."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises GuestMemoryError where not all of it is RAM."""
        ...

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """One answer to each (address, size), None where it cannot be read: one round trip where the transport allows it."""
        ...


def run_steps(steps: Steps[T]) -> T:
    """Run a job to its end without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


def read_chunks(memory: PhysicalMemory, address: int, size: int) -> Steps[bytes]:
    """Read ``size`` bytes of physical memory, a step for each CHUNK_SIZE. Raises GuestMemoryError."""
    if not 0 <= size <= MAX_READ:
        raise GuestMemoryError(f"refused to read {size} bytes at physical {address:#x}: no kernel table is that long")
    pieces: list[bytes] = []
    for offset in range(0, size, CHUNK_SIZE):
        pieces.append(memory.read(address + offset, min(CHUNK_SIZE, size - offset)))
        yield
    return b"".join(pieces)
