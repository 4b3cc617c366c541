"""Where a kernel keeps its clocks: the monotonic clock's last reading in its timekeeper, printk's in the run queue of each CPU.

The kernel reads a counter at each tick and keeps the time of that moment: of ``CLOCK_MONOTONIC`` in ``tk_core``, of
``local_clock()``, by which printk stamps its lines, in ``rq->clock`` (kernel/time/timekeeping.c, kernel/sched/core.c). From outside
the time of the last tick or wake-up is known, not the counter; both stand still while all CPUs are idle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from guest.found_types import FoundTypes, Members, read_mapped
from guest.memory import CHUNK_SIZE, Steps
from guest.paging import AddressSpace
from guest.records import Record
from guest.structs import Structs
from guest.words import Words
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from unwind.arch import Architecture

_BASE = "tk_read_base"
_MEMBERS = ("clock", "mask", "cycle_last", "mult", "shift", "xtime_nsec", "base", "base_real")
_NAMES = ("tk_core", "timekeeper_data")
"""By kernels up to 6.16, and by later ones, which have several: the first is the one that all kernels have."""
_SAME = re.compile(rb"\0{20,}")
"""A pointer to the source of the clock, a mask and a counter."""
_NOT_ZERO = re.compile(rb"[^\0]")
_SEQUENCE_SIZE = 4
_MAX_SHIFT = 32
_MAX_NS = 1 << 63
_NEAR = 256
"""Bytes behind ``tk_core`` in which its timekeeper begins at most, and that its two readings are apart at most."""


@dataclass(frozen=True, slots=True)
class Timekeeper:
    """The kernel's timekeeper.

    address, size: virtual, of what to read of it: sequence number, if it has one there, and the clock's base.
    base_at: where in that the base begins. has_sequence: odd numbers before it tell that it is being changed.
    """

    address: int
    size: int
    base_at: int
    has_sequence: bool
    record: Record
    words: Words

    def monotonic_ns(self, data: bytes) -> int | None:
        """``CLOCK_MONOTONIC`` as the timekeeper knew it last; None while it is being changed, or where it is none."""
        if self.has_sequence and self.words.number(data[:_SEQUENCE_SIZE]) & 1:
            return None
        base = data[self.base_at : self.base_at + self.record.size]
        _clock, _mask, _last, _mult, shift, nanoseconds, base_ns, _real = self.record.values(base)
        if shift > _MAX_SHIFT:
            return None
        found = int(base_ns) + (int(nanoseconds) >> shift)
        return found if 0 < found < _MAX_NS else None


def has_named_timekeeper(symbols: SymbolTable) -> bool:
    """Whether a symbol says where it is, so that looking for it takes no time to speak of."""
    return _named(symbols) is not None


def _named(symbols: SymbolTable) -> int | None:
    found = next(filter(None, map(symbols.find, _NAMES)), None)
    return None if found is None else found.address


def find_timekeeper(
    space: AddressSpace, symbols: SymbolTable, data_range: tuple[int, int], structs: Structs | None, architecture: Architecture
) -> Steps[Timekeeper | None]:
    """The timekeeper by its name, else by what it holds; None where there is none yet, or the kernel is not known well enough.

    Two readings of the same counter are in it, one adjusted to the time of day and one not (``tkr_mono``, ``tkr_raw``), which no
    other piece of the kernel's data has, but for the timekeeper's own shadow.
    """
    words = Words.of(architecture)
    try:
        layouts = [_Layout.of(structs, words, alignment) for alignment in dict.fromkeys((8, words.size))]
    except BadImageError:
        return None
    start = _named(symbols)
    if start is not None:
        data = read_mapped(space, start, _NEAR + max(layout.size for layout in layouts))
        found = [layout.at(start, data, at) for layout in layouts for at in layout.places(data, data_range)]
    else:
        found = yield from _search(space, data_range, layouts)
    # The shadow has no sequence number.
    return next(chain((each for each in found if each.has_sequence), found), None)


def _search(space: AddressSpace, data_range: tuple[int, int], layouts: Sequence[_Layout]) -> Steps[list[Timekeeper]]:
    """All that look like one in the kernel's data."""
    low, high = data_range
    found: list[Timekeeper] = []
    for extent in space.mapped(low, high):
        if extent is None:
            yield
            continue
        for at in range(0, extent.size, CHUNK_SIZE):
            size = min(CHUNK_SIZE + _NEAR, extent.size - at)
            data = space.memory.read_many([(extent.physical + at, size)])[0]
            yield
            if data is not None:
                address = extent.address + at
                for layout in layouts:
                    found += [layout.at(address, data, place) for place in layout.places(data, data_range)]
                    yield
    return found


def run_queue_clock(symbols: SymbolTable, structs: Structs | None) -> int | None:
    """The address of ``rq->clock`` in a CPU's area without its offset (a per-CPU symbol's); None where that is not known."""
    symbol = symbols.find("runqueues")
    field = None if structs is None else structs.field("rq", "clock")
    return None if symbol is None or field is None else symbol.address + field.offset


@dataclass(frozen=True, slots=True)
class _Layout:
    """Of a ``struct timekeeper`` whose two readings begin ``apart`` bytes from each other; ``size`` reaches to the second's end.

    alignment: of it, and of 64-bit numbers in it.
    """

    record: Record
    apart: int
    size: int
    alignment: int
    words: Words

    @classmethod
    def of(cls, structs: Structs | None, words: Words, alignment: int) -> _Layout:
        """By the kernel's types, or as kernels without them have it (include/linux/timekeeper_internal.h).

        alignment: of 64-bit numbers in structs, where there are no types. Raises BadImageError.
        """
        known = None if structs is None else structs.field("timekeeper", "tkr_raw")
        if structs is None or known is None:
            start = -(-words.size // alignment) * alignment
            sizes = (8, 8, 4, 4, 8, 8, 8)
            members: Members = {"clock": (0, words.size)} | {
                name: (start + sum(sizes[:index]), sizes[index]) for index, name in enumerate(_MEMBERS[1:])
            }
            structs, apart = Structs(FoundTypes({_BASE: members}), words), start + sum(sizes)
        else:
            apart = known.offset - structs.require("timekeeper", "tkr_mono").offset
        record = Record(structs, _BASE, _MEMBERS)
        if record.low or not record.size <= apart <= _NEAR or apart % words.size:
            raise BadImageError("the kernel's timekeeper has an unknown layout; report this kernel")
        return cls(record, apart, apart + record.size, alignment, words)

    def places(self, data: bytes, data_range: tuple[int, int]) -> list[int]:
        """Where in some bytes a timekeeper begins: it has the same bytes ``apart`` from each other."""
        size = len(data) - self.apart
        if size <= 0:
            return []
        differ = int.from_bytes(data[:size], "big") ^ int.from_bytes(data[self.apart :], "big")
        low, high = data_range
        step = self.words.size
        found = []
        for same in _SAME.finditer(differ.to_bytes(size, "big")):
            at = same.start()
            # Much of a kernel's data is zero.
            while (some := _NOT_ZERO.search(data, at, same.end())) is not None:
                at = some.start() // step * step
                if low <= self.words.number(data[at : at + step]) < high and self._is_timekeeper(data, at):
                    found.append(at)
                at += step
        return found

    def _is_timekeeper(self, data: bytes, at: int) -> bool:
        if at + self.size > len(data):
            return False
        clock, mask, last, mult, shift, nanoseconds, base, real = self.record.values(data[at : at + self.record.size])
        second = self.record.values(data[at + self.apart : at + self.size])
        is_same = (clock, mask, last, shift) == (*second[:3], second[4])
        is_counter = mask and not mask & mask + 1 and mult and second[3] and shift <= _MAX_SHIFT
        # The raw clock has no time of day; where the machine has none, the other's is 0 in its first second.
        is_pair = 0 < real < _MAX_NS and not second[7]
        return bool(is_same and is_counter and is_pair and 0 < base + (nanoseconds >> shift) < _MAX_NS)

    def at(self, address: int, data: bytes, at: int) -> Timekeeper:
        """The timekeeper at an offset of bytes at an address."""
        gap = self.alignment
        number = self.words.number(data[at - gap : at - gap + _SEQUENCE_SIZE]) if at >= gap else 0
        has_sequence = number > 0 and not any(data[at - gap + _SEQUENCE_SIZE : at])
        first = at - gap if has_sequence else at
        return Timekeeper(address + first, at - first + self.record.size, at - first, has_sequence, self.record, self.words)
