"""What to read in a halt of the guest's own clocks, and what they showed.

Few bytes, at addresses that are known before: out of QEMU's process while the guest stands still, or in the stub's first trip.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.kernel import Kernel
from guest.memory import PhysicalMemory
from guest.timekeeper import Timekeeper, run_queue_clock
from guest.words import Words
from recording.model import ClockReading
from sampler.halt import HaltedState, Read
from unwind.arch import Architecture

_QUEUE_CLOCK_SIZE = 8
_MAX_NS = 1 << 62
_MAX_CPUS = 64
_MAX_QUEUES = 4
"""Run queues that are read in one halt; of guests with more CPUs, others in the next."""


class ClockPlanner:
    """Reads the timekeeper of a kernel, and the clocks of its CPUs' run queues: the CPU that was busy last has the latest."""

    def __init__(self, architecture: Architecture, memory: PhysicalMemory, *, can_peek: bool) -> None:
        """can_peek: ``memory`` may be read while the guest stands still at no cost to speak of."""
        self._memory = memory
        self._can_peek = can_peek
        self._hides_kernel = architecture.hides_kernel
        self._words = Words.of(architecture)
        self._kernel: Kernel | None = None
        self._timekeeper: Timekeeper | None = None
        self._keeper: Read | None = None
        self._queues: list[Read] = []
        self._turn = 0
        self._wanted: list[Read] = []
        self._peeked: list[bytes | None] | None = None

    def set_timekeeper(self, timekeeper: Timekeeper) -> None:
        """Read this one of the kernel from now on."""
        self._timekeeper = timekeeper
        if self._kernel is not None:
            self.set_kernel(self._kernel)

    def set_kernel(self, kernel: Kernel | None) -> None:
        """Use what is known of the kernel from now on. None: it is gone, and its timekeeper with it."""
        self._kernel, self._keeper, self._queues, self._wanted = kernel, None, [], []
        if kernel is None:
            self._timekeeper = None
            return
        if self._timekeeper is not None:
            self._keeper = self._read(kernel, self._timekeeper.address, self._timekeeper.size)
        queue = run_queue_clock(kernel.symbols, kernel.structs)
        if queue is not None:
            offsets = kernel.cpu_offsets[:_MAX_CPUS]
            queues = (self._read(kernel, queue + offset & self._words.mask, _QUEUE_CLOCK_SIZE) for offset in offsets)
            self._queues = [read for read in queues if read is not None]

    def _read(self, kernel: Kernel, address: int, size: int) -> Read | None:
        physical = kernel.space.translate(address)
        is_ram = physical is not None and any(low <= physical <= high - size for low, high in self._memory.ram())
        hides = self._can_peek or self._hides_kernel
        return Read(0, address, size, physical if hides else None) if is_ram else None

    def begin(self) -> Sequence[Read]:
        """A halt begins: what to ask for together with it."""
        count = min(len(self._queues), _MAX_QUEUES)
        queues = [self._queues[(self._turn + index) % len(self._queues)] for index in range(count)]
        self._turn += count
        self._wanted = [] if self._keeper is None else [self._keeper, *queues]
        self._peeked = None
        return () if self._can_peek else self._wanted

    def peek(self) -> None:
        """The guest stands still: read what can be read without asking the stub."""
        if self._can_peek and self._peeked is None and self._wanted:
            self._peeked = self._memory.read_many([(read.physical or 0, read.size) for read in self._wanted])

    def has_asked(self, read: Read) -> bool:
        """Whether a read was for the clocks."""
        return read in self._wanted

    def reading(self, state: HaltedState, halt: int, boot: int) -> ClockReading | None:
        """What the clocks showed in the halt at hand; None where they were not to be read."""
        keeper = self._timekeeper
        if keeper is None or not self._wanted:
            return None
        kept, *queues = self._peeked or [state.reads.get(read) for read in self._wanted]
        monotonic_ns = None if kept is None else keeper.monotonic_ns(kept)
        latest_ns = max((self._words.number(data) for data in queues if data is not None), default=0)
        # Before the scheduler runs, it is 0.
        printk_ns = latest_ns if 0 < latest_ns < _MAX_NS else None
        return None if monotonic_ns is None and printk_ns is None else ClockReading(halt, boot, monotonic_ns, printk_ns)
