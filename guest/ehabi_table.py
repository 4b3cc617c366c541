"""The kernel's own unwind tables of the Arm EHABI: by its linker symbols, else by what an index looks like.

``.ARM.exidx`` lies between code and boot code, ``.ARM.extab`` right behind it (arch/arm/include/asm/vmlinux.lds.h). Some kernels
have no symbols of them without CONFIG_KALLSYMS_ALL (6.1; 6.12 has); but an index has tens of thousands of entries, each of which
begins with the distance to a function, sorted by these.
"""

from __future__ import annotations

from array import array

from guest.memory import Steps
from guest.paging import AddressSpace
from recording.errors import BadImageError, GuestMemoryError
from recording.symbols import SymbolTable
from unwind.ehabi import EhabiTable

_MAX_SIZE = 1 << 24
_ENTRY = 8
_PROBE_STEP = 1 << 12
_PROBED = 32
"""Entries in a row that are taken for a piece of the index, if a quarter needs no table."""
_LEAST_ENTRIES = 1 << 10
_ENTRIES_PER_STEP = 1 << 13
_INLINE = 0x8000_0000
_CANTUNWIND = 1
_LAST_INSTRUCTIONS = 256
"""Bytes that the last of the unwinding instructions have at most."""


def read_ehabi(space: AddressSpace, symbols: SymbolTable) -> Steps[EhabiTable]:
    """Read the tables. Raises BadImageError where the kernel has none or they cannot be read."""
    places = [symbols.find(name) for name in ("__start_unwind_idx", "__stop_unwind_idx", "__stop_unwind_tab")]
    try:
        if places[0] is not None and places[1] is not None and places[2] is not None:
            start, middle, end = (place.address for place in places if place is not None)
            if not 0 < middle - start <= end - start <= _MAX_SIZE:
                raise BadImageError(f"the kernel's unwind tables at {start:#x} have {end - start} bytes, which cannot be")
            data = yield from space.read_chunks(start, end - start)
            return EhabiTable(start, data[: middle - start], data[middle - start :])
        code, boot = (symbols.find(name) for name in ("_etext", "_sinittext"))
        first = symbols.find("_stext")
        if code is None or boot is None or first is None or not 0 < boot.address - code.address <= _MAX_SIZE:
            raise BadImageError("the kernel's symbols do not say where its unwind tables are")
        data = yield from space.read_chunks(code.address, boot.address - code.address)
    except GuestMemoryError as error:
        raise BadImageError(f"the kernel's unwind tables cannot be read: {error}") from error
    found = yield from _find_index(data, code.address, first.address)
    if found is None:
        raise BadImageError("the kernel was built without unwind tables (CONFIG_ARM_UNWIND)")
    low, high = found
    return EhabiTable(code.address + low, data[low:high], data[high : _table_end(data, low, high)])


def _find_index(data: bytes, address: int, text: int) -> Steps[tuple[int, int] | None]:
    """[start, end) of the index in data at an address, before and behind which there is code; None where there is none."""
    words, boot = array("I", data[: len(data) & -4]), address + len(data)

    def target(at: int) -> int:
        word = words[at]
        return 0 if word & _INLINE else address + 4 * at + word - (word << 1 & 0x8000_0000)

    def fits(at: int) -> bool:
        """Whether an entry begins there, and another one behind it."""
        function, what = target(at), words[at + 1]
        if not (text <= function < address or boot <= function < boot + _MAX_SIZE) or function >= target(at + 2):
            return False
        return what == _CANTUNWIND or what >> 24 == _INLINE >> 24 or 0 < target(at + 1) - address < len(data)

    def extend(at: int, step: int) -> Steps[int]:
        for count in range(len(words) // 2):
            if not (0 <= at + step <= len(words) - 4 and fits(at + step)):
                break
            at += step
            if not count % _ENTRIES_PER_STEP:
                yield
        return at

    for probe in range(0, len(words) - 2 * _PROBED - 3, _PROBE_STEP // 4):
        for first in (probe, probe + 1):
            marks = [words[at] for at in range(first + 1, first + 2 * _PROBED, 2)]
            plain = sum(mark == _CANTUNWIND or mark >> 24 == _INLINE >> 24 for mark in marks)
            if plain >= _PROBED // 4 and all(fits(at) for at in range(first, first + 2 * _PROBED, 2)):
                low, high = (yield from extend(first, -2)), (yield from extend(first, 2))
                if high - low >= 2 * _LEAST_ENTRIES:
                    # The last one has none behind it.
                    return 4 * low, 4 * high + 2 * _ENTRY
        yield
    return None


def _table_end(data: bytes, low: int, high: int) -> int:
    """Behind the last unwinding instructions that an index in [low, high) leads to."""
    words = array("I", data[low:high])
    ends = [high]
    for at in range(1, len(words), 2):
        word = words[at]
        if word != _CANTUNWIND and not word & _INLINE:
            ends.append(low + 4 * at + word + _LAST_INSTRUCTIONS)
    return min(max(ends), len(data))
