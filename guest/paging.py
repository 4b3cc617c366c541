"""Virtual addresses become physical ones by walking the guest's page tables, and memory is read through them.

Reading physically through the kernel's own table works in every mode of the vCPU: neither KPTI nor a user-mode vCPU hides
anything. Formats: ``unwind.arch.PageTables``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from guest.memory import CHUNK_SIZE, MAX_READ, PhysicalMemory, Steps
from recording.errors import GuestMemoryError
from unwind.arch import PageTables

PAGE_SIZE = 0x1000
_MAX_TABLES = 4096
_MAX_LEVELS = 5
_ENTRY_FORMATS = {4: "I", 8: "Q"}
_ADDRESS_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of virtual memory that is mapped to contiguous physical memory."""

    address: int
    physical: int
    size: int


def _levels(tables: PageTables) -> tuple[tuple[int, int, bool, int, int], ...]:
    """Of each level from the top: how far an address is shifted for its index, the index' mask, whether entries may be large, and

    which bits of a valid entry have what value, beside ``PageTables.present``.
    """
    if not 1 <= len(tables.index_bits) <= _MAX_LEVELS:
        raise GuestMemoryError(
            f"page tables of {len(tables.index_bits)} levels do not exist; the registers of this guest are not understood"
        )
    found = []
    shift = tables.page_shift
    for level, bits in enumerate(tables.index_bits, start=1):
        valid_mask, valid = tables.valid[level - 1] if tables.valid else (0, 0)
        found.append((shift, (1 << bits) - 1, level in tables.large_levels, valid_mask, valid))
        shift += bits
    return tuple(reversed(found))


def linear_address(tables: PageTables, address: int) -> int | None:
    """Physical address of one that the processor maps without tables, else None."""
    for low, high, physical in tables.linear:
        if low <= address < high:
            return physical + address - low
    return None


def _address_in(tables: PageTables, entry: int) -> int:
    """The physical address in an entry."""
    bits, shift = entry & tables.address_mask, tables.address_shift
    return bits << shift if shift >= 0 else bits >> -shift


class AddressSpace:
    """One set of page tables. Tables are remembered, so it is for mappings that stand still, or for one halt: see ``forget``."""

    def __init__(self, memory: PhysicalMemory, tables: PageTables, root: int) -> None:
        """``root``: physical address of the top-level table."""
        self.memory = memory
        self.root = root
        self.tables = tables
        self._levels = _levels(tables)
        order, entry = "<" if tables.byteorder == "little" else ">", _ENTRY_FORMATS[tables.entry_size]
        self._formats = {mask: struct.Struct(f"{order}{mask + 1}{entry}") for _shift, mask, *_facts in self._levels}
        self._tables: dict[int, tuple[int, ...] | None] = {}

    def forget(self) -> None:
        """Read the tables anew from now on: the guest ran and may have changed mappings."""
        self._tables.clear()

    def _table(self, address: int, mask: int) -> tuple[int, ...] | None:
        if address not in self._tables:
            if len(self._tables) >= _MAX_TABLES:
                self._tables.clear()
            layout = self._formats[mask]
            data = self.memory.read_many([(address, layout.size)])[0]
            self._tables[address] = None if data is None or len(data) != layout.size else layout.unpack(data)
        return self._tables[address]

    def _walk(self, address: int) -> tuple[int | None, int]:
        """Physical address of a virtual one (None where it is not mapped), and how many bytes from there on share the answer."""
        tables = self.tables
        for low, high, physical in tables.linear:
            if low <= address < high:
                return physical + address - low, high - address
        present, (large_mask, large) = tables.present, tables.large
        table_address = self.root
        for shift, mask, may_be_large, valid_mask, valid in self._levels:
            left = (1 << shift) - (address & (1 << shift) - 1)
            table = self._table(table_address, mask)
            # A table at an address that was met before may be of another size where tables are damaged.
            index = address >> shift & mask
            entry = 0 if table is None or index >= len(table) else table[index]
            is_last = shift == tables.page_shift
            is_large = not is_last and entry & large_mask == large
            if is_last and tables.own_entry and not entry & present:
                table = self._table(table_address + tables.own_entry, mask)
                own = 0 if table is None or index >= len(table) else table[index]
                entry = own | present if own & tables.own_present else 0
            if tables.has_pointers and not is_last and not is_large:
                pointed = linear_address(tables, entry)
                if pointed is None:
                    return None, left
                table_address = pointed
                continue
            if not entry & present or entry & valid_mask != valid or (is_large and not may_be_large):
                return None, left
            table_address = _address_in(tables, entry)
            if is_large or is_last:
                return table_address & -1 << shift | address & (1 << shift) - 1, left
        return None, 1 << tables.page_shift

    def is_linear(self, address: int) -> bool:
        """Whether the processor maps an address without tables."""
        return linear_address(self.tables, address) is not None

    def translate(self, address: int) -> int | None:
        """Physical address of a virtual one, or None where it is not mapped."""
        return self._walk(address & _ADDRESS_MASK)[0]

    def mapped(self, start: int, end: int) -> Iterator[Extent | None]:
        """The mapped pieces of [start, end), one for each run of contiguous physical memory; None now and then, for a pause."""
        extent: Extent | None = None
        address = start
        steps = 0
        while address < end:
            physical, left = self._walk(address)
            size = min(left, end - address)
            if extent and physical == extent.physical + extent.size and address == extent.address + extent.size:
                extent = Extent(extent.address, extent.physical, extent.size + size)
            else:
                if extent:
                    yield extent
                extent = None if physical is None else Extent(address, physical, size)
            address += size
            steps += 1
            if steps % 1024 == 0:
                yield None
        if extent:
            yield extent

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at a virtual address. Raises GuestMemoryError where not all of them are mapped RAM."""
        data = self.read_many([(address, size)])[0]
        if data is None:
            raise GuestMemoryError(f"{size} bytes at guest address {address:#x} are not mapped or not RAM")
        return data

    def read_many(self, requests: list[tuple[int, int]]) -> list[bytes | None]:
        """One answer to each (virtual address, size), None where not all of it can be read; one batch for the memory."""
        pieces: list[tuple[int, int]] = []
        counts: list[int] = []
        for address, size in requests:
            extents = self._extents(address, size)
            counts.append(len(extents))
            pieces += extents
        answers = iter(self.memory.read_many(pieces))
        results: list[bytes | None] = []
        for (_address, size), count in zip(requests, counts, strict=True):
            parts = [next(answers) for _ in range(count)]
            data = b"".join(part for part in parts if part is not None)
            results.append(data if len(data) == size else None)
        return results

    def _extents(self, address: int, size: int) -> list[tuple[int, int]]:
        """(physical address, size) of the pieces of a read, or none where not all of it is mapped."""
        if not 0 <= size <= MAX_READ:
            raise GuestMemoryError(f"refused to read {size} bytes at guest address {address:#x}: no kernel table is that long")
        extents = [extent for extent in self.mapped(address, address + size) if extent]
        if sum(extent.size for extent in extents) != size:
            return []
        return [(extent.physical, extent.size) for extent in extents]

    def read_chunks(self, address: int, size: int) -> Steps[bytes]:
        """``read`` in steps of CHUNK_SIZE."""
        if not 0 <= size <= MAX_READ:
            raise GuestMemoryError(f"refused to read {size} bytes at guest address {address:#x}: no kernel table is that long")
        pieces: list[bytes] = []
        for offset in range(0, size, CHUNK_SIZE):
            pieces.append(self.read(address + offset, min(CHUNK_SIZE, size - offset)))
            yield
        return b"".join(pieces)


class FreshSpace:
    """One set of page tables as they are at this moment, for a few small reads while the guest stands still.

    Entries are read one by one and remembered until ``forget``: what a process, or the kernel for its stacks, maps changes all the
    time.
    """

    def __init__(self, memory: PhysicalMemory, tables: PageTables, root: int) -> None:
        """See ``AddressSpace``."""
        self.memory = memory
        self.tables = tables
        self._levels = _levels(tables)
        self._root = root
        self._entries: dict[int, int] = {}

    def forget(self) -> None:
        """The guest ran."""
        self._entries.clear()

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes at a virtual address, None where not all of them are mapped RAM."""
        parts = []
        while size > 0:
            length = min(size, PAGE_SIZE - address % PAGE_SIZE)
            physical = self.translate(address)
            if physical is None:
                return None
            try:
                parts.append(self.memory.read(physical, length))
            except GuestMemoryError:
                return None
            address += length
            size -= length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _entry(self, place: int) -> int | None:
        """The entry at a physical address, None where there is no RAM."""
        entry = self._entries.get(place)
        if entry is None:
            try:
                data = self.memory.read(place, self.tables.entry_size)
            except GuestMemoryError:
                return None
            entry = self._entries[place] = int.from_bytes(data, self.tables.byteorder)
        return entry

    def translate(self, address: int) -> int | None:
        """Physical address of a virtual one, or None where it is not mapped."""
        tables = self.tables
        if (physical := linear_address(tables, address)) is not None:
            return physical
        present, (large_mask, large) = tables.present, tables.large
        table = self._root
        for shift, mask, may_be_large, valid_mask, valid in self._levels:
            place = table + tables.entry_size * (address >> shift & mask)
            entry = self._entry(place)
            is_last = shift == tables.page_shift
            if is_last and tables.own_entry and entry is not None and not entry & present:
                own = self._entry(place + tables.own_entry) or 0
                entry = own | present if own & tables.own_present else 0
            if entry is None:
                return None
            is_large = not is_last and entry & large_mask == large
            if tables.has_pointers and not is_last and not is_large:
                pointed = linear_address(tables, entry)
                if pointed is None:
                    return None
                table = pointed
                continue
            if not entry & present or entry & valid_mask != valid or (is_large and not may_be_large):
                return None
            table = _address_in(tables, entry)
            if is_large or is_last:
                return table & -1 << shift | address & (1 << shift) - 1
        return None
