"""The kernel's own top-level page table, where no symbol says which it is (no CONFIG_KALLSYMS_ALL): a page of its image.

It maps the image as the table of the vCPU does (or as the processor does without tables), data too (PTI's table of user mode lacks
them) and itself among them, and nothing below the kernel's half (a table for booting maps RAM there as well). One page of the image
alone can be so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from guest.memory import CHUNK_SIZE, Steps
from guest.paging import PAGE_SIZE, AddressSpace
from unwind.arch import PageTables

_FORMATS = {4: "I", 8: "Q"}
_PAGES_PER_STEP = 64


def find_pointer_table(current: AddressSpace, image: tuple[int, int], alignment: int) -> Steps[int | None]:
    """The first page of the image's data that is full of addresses of pages: the physical address of the kernel's own table.

    So it is where tables are the kernel's own affair (``PageTables.has_pointers``); processes' tables lie behind the image.
    alignment: of the table, 0 where this is not so.
    """
    low, high = image
    size = current.tables.entry_size
    form = f"{'<' if current.tables.byteorder == 'little' else '>'}{PAGE_SIZE // size}{_FORMATS[size]}"
    for count, page in enumerate(range((low + alignment - 1) & -alignment, high, alignment) if alignment else ()):
        if not count % _PAGES_PER_STEP:
            yield
        data = current.read_many([(page, PAGE_SIZE)])[0]
        if data is not None and all(
            each and not each % PAGE_SIZE and current.is_linear(each) for each in struct.unpack(form, data)
        ):
            return current.translate(page)
    return None


def find_own_table(
    current: AddressSpace, tables: PageTables, image: tuple[int, int], wanted: Sequence[int], kernel_half: int
) -> Steps[int | None]:
    """Its physical address, None where no page is such a table, or several are.

    tables: its shape. image: addresses [start, end) to look at. wanted: some of the image's that it must map as ``current`` does.
    kernel_half: the lowest address of the kernel's.
    """
    tables = replace(tables, linear=())
    expected = [(address, current.translate(address)) for address in wanted]
    found = []
    for extent in current.mapped(image[0] & -PAGE_SIZE, image[1]):
        for at in range(0, extent.size if extent else 0, CHUNK_SIZE):
            yield
            if extent is None:
                continue
            data = current.memory.read_many([(extent.physical + at, min(CHUNK_SIZE, extent.size - at))])[0] or b""
            for offset in _likely_pages(tables, data, wanted[0], kernel_half):
                page, root = extent.address + at + offset, extent.physical + at + offset
                space = AddressSpace(current.memory, tables, root)
                if all(space.translate(address) == physical for address, physical in (*expected, (page, root))):
                    found.append(root)
    yield
    return found[0] if len(found) == 1 else None


def _likely_pages(tables: PageTables, data: bytes, address: int, kernel_half: int) -> Iterator[int]:
    """Offsets of the pages whose entries, as a top-level table, map nothing below the kernel's half, but an address in it."""
    shift, mask = tables.page_shift + sum(tables.index_bits[:-1]), (1 << tables.index_bits[-1]) - 1
    lower, index = kernel_half >> shift & mask, address >> shift & mask
    order = "<" if tables.byteorder == "little" else ">"
    layout = struct.Struct(f"{order}{max(lower, index + 1)}{_FORMATS[tables.entry_size]}")
    for offset in range(0, len(data) - layout.size + 1, PAGE_SIZE):
        entries = layout.unpack_from(data, offset)
        if entries[index] & tables.present and not any(entry & tables.present for entry in entries[:lower]):
            yield offset
