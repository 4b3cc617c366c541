"""How much of the time a guest may be halted for what is not part of a halt's sample.

Where QEMU's process cannot be read, every look at guest memory halts the guest for a moment (``sampler.memory.StubMemory``). What
processes have mapped is looked at again and again, and a guest that starts many of them would stand still most of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guest.memory import PhysicalMemory
from sampler.memory import StubMemory

_SHARE = 0.1
_BURST_NS = 300_000_000
"""What may be used at once: a recording begins with processes of which nothing is known yet."""


class HaltBudget:
    """Counts what is used, in nanoseconds of halted time; the budget grows with time."""

    def __init__(self, halted_ns: Callable[[], int], clock: Callable[[], int] = time.monotonic_ns) -> None:
        """halted_ns: how long the guest has been halted for reads so far. clock: in nanoseconds."""
        self._halted_ns = halted_ns
        self._clock = clock
        self._start_ns = clock()
        self._used_ns = 0

    @classmethod
    def of(cls, memory: PhysicalMemory) -> HaltBudget:
        """For reads of a memory, unlimited where it can be read while the guest runs."""
        return cls(lambda: memory.halted_ns) if isinstance(memory, StubMemory) else cls.unlimited()

    @classmethod
    def unlimited(cls) -> HaltBudget:
        """For reads that may take what they take."""
        return cls(lambda: 0)

    @property
    def has_room(self) -> bool:
        """Whether more may be read now."""
        return self._used_ns <= _BURST_NS + _SHARE * (self._clock() - self._start_ns)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is read in the block counts."""
        before_ns = self._halted_ns()
        try:
            yield
        finally:
            self._used_ns += self._halted_ns() - before_ns
