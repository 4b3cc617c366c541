"""Pages of files out of the guest's page cache: trees of any depth, large folios, pages that are not there, damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.user.page_cache import PageCache
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from tests.builders.kernel_structs import COMMON, HEAP, HEAP_PHYSICAL, PAGES, PAGES_SIZE, UPTODATE, Heap

MAX_BATCHES = 40


class CachedFile:
    """A file whose pages lie in the upper half of the heap, page N of it filled with N."""

    def __init__(self) -> None:
        self.heap = Heap()
        self.mapping = self.heap.take(64)
        self.inode = self.heap.put("inode", i_mapping=self.mapping)
        self.heap.put("address_space", self.mapping, host=self.inode)
        for page in range(32):
            self.heap.write(HEAP + 0x2_0000 + page * 0x1000, bytes([page]) * 0x1000)

    def folio(self, page: int, index: int, flags: int = UPTODATE, mapping: int | None = None) -> int:
        """The struct of the folio that begins with a page of the heap's upper half."""
        address = PAGES + 64 * ((HEAP_PHYSICAL + 0x2_0000 >> 12) + page)
        return self.heap.put("folio", address, flags=flags, mapping=self.mapping if mapping is None else mapping, index=index)

    def node(self, shift: int, slots: dict[int, int]) -> int:
        """An entry for a node."""
        address = self.heap.put("xa_node", shift=shift)
        for slot, entry in slots.items():
            self.heap.write(address + 16 + 8 * slot, struct.pack("<Q", entry))
        return address | 2

    def head(self, entry: int) -> None:
        self.heap.put("address_space", self.mapping, i_pages__xa_head=entry)

    def cache(self) -> PageCache:
        return PageCache(self.heap.space, self.heap.symbols, self.heap.structs)


def test_a_tree_of_two_levels() -> None:
    file = CachedFile()
    low = file.node(0, {0: file.folio(4, 0), 63: file.folio(5, 63)})
    high = file.node(0, {1: file.folio(6, 129)})
    file.head(file.node(6, {0: low, 2: high}))
    cache = file.cache()
    assert cache.read_pages(file.inode, [0, 63, 129, 1, 64, 4096]) == [
        b"\x04" * 4096,
        b"\x05" * 4096,
        b"\x06" * 4096,
        None,
        None,
        None,
    ]
    assert cache.read_page(file.inode, 129) == b"\x06" * 4096
    assert cache.read_page(file.inode, -1) is None


def test_a_file_of_one_page_and_of_none() -> None:
    file = CachedFile()
    file.head(file.folio(9, 0))
    assert file.cache().read_pages(file.inode, [0, 1]) == [b"\x09" * 4096, None]
    file.head(0)
    assert file.cache().read_page(file.inode, 0) is None
    assert file.cache().read_page(0x1234, 0) is None


def test_large_folios() -> None:
    """By siblings, by an entry above the lowest level, and by the same entry in each slot (before 5.17)."""
    file = CachedFile()
    siblings = {4: file.folio(4, 4), **dict.fromkeys((5, 6, 7), 4 << 2 | 2)}
    file.head(file.node(0, siblings))
    assert [page and page[0] for page in file.cache().read_pages(file.inode, range(3, 9))] == [None, 4, 5, 6, 7, None]
    file.head(file.node(0, dict.fromkeys(range(8, 12), file.folio(8, 8))))
    assert [page and page[0] for page in file.cache().read_pages(file.inode, range(7, 13))] == [None, 8, 9, 10, 11, None]
    file.head(file.node(6, {0: file.folio(16, 0)}))
    assert [page and page[0] for page in file.cache().read_pages(file.inode, range(3))] == [16, 17, 18]


def test_what_is_not_there() -> None:
    """Shadow entries of pages that were dropped, pages that are still read from disk, reserved entries, another file's page."""
    file = CachedFile()
    slots = {
        0: 0x1235,
        1: file.folio(4, 1, flags=1),
        2: 0x402,
        3: 0x406,
        4: file.folio(5, 4, mapping=HEAP),
        5: file.folio(6, 9),
        6: HEAP + 0x100,
        7: file.folio(7, 7),
    }
    file.head(file.node(0, slots))
    assert [page and page[0] for page in file.cache().read_pages(file.inode, range(8))] == [None] * 7 + [7]


def test_pages_outside_ram_are_not_read() -> None:
    file = CachedFile()
    address = PAGES + 64 * 0x300
    file.heap.put("folio", address, flags=UPTODATE, mapping=file.mapping, index=0)
    file.head(file.node(0, {0: address}))
    assert file.cache().read_page(file.inode, 0) is None


@pytest.mark.parametrize("missing", ["xa_node", "address_space", "page"])
def test_a_kernel_without_a_struct_is_refused(missing: str) -> None:
    heap = Heap({name: layout for name, layout in COMMON.items() if name != missing})
    with pytest.raises(BadImageError, match=missing):
        PageCache(heap.space, heap.symbols, heap.structs)


def test_a_kernel_without_the_array_of_pages_is_refused() -> None:
    heap = Heap()
    with pytest.raises(BadImageError, match="vmemmap_base"):
        PageCache(heap.space, SymbolTable.from_symbols([]), heap.structs)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damage_costs_pages_and_no_more(data: st.DataObject) -> None:
    """Nodes that lead to themselves or each other, wrong shifts, wrong folios: never an error, never many reads."""
    file = CachedFile()
    low = file.node(0, {slot: file.folio(slot, slot) for slot in range(8)})
    top = file.node(6, {0: low})
    file.head(top)
    entries = [low, top, file.folio(1, 1), 0, 2, 6, 0x402, HEAP, HEAP + 2, (1 << 64) - 2, (1 << 64) - 4, 0x1001]
    for node in data.draw(st.lists(st.sampled_from([low, top]), max_size=8)):
        at = node - 2 + data.draw(st.sampled_from([0, *range(16, 96, 8)]))
        value = data.draw(st.sampled_from([*entries, data.draw(st.integers(0, (1 << 64) - 1))]))
        file.heap.write(at, struct.pack("<Q", value))
    for page in data.draw(st.lists(st.integers(0, 8), max_size=4)):
        file.folio(page, data.draw(st.integers(0, (1 << 64) - 1)), data.draw(st.integers(0, 7)))
    file.heap.put("address_space", file.mapping, i_pages__xa_head=data.draw(st.sampled_from([top, top, *entries])))
    before = file.heap.memory.batches
    indexes = [*range(10), 64, 1 << 20, 1 << 63, (1 << 70) - 1]
    pages = file.cache().read_pages(file.inode, indexes)
    assert len(pages) == len(indexes)
    assert all(page is None or len(page) == 4096 for page in pages)
    assert file.heap.memory.batches - before <= MAX_BATCHES
    assert file.heap.memory.ram()[-1][1] % PAGES_SIZE == 0
