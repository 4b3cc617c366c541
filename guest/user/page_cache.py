"""An inode and a page's index become the page as the guest's page cache holds it, whether or not a process has it mapped.

``inode->i_mapping->i_pages`` is an xarray (include/linux/xarray.h) of folios, or of pages before 5.16; the array of all
``struct page`` tells where their memory is. Only what is up to date, and still belongs to the file after its bytes were read, is
believed. (Files of hugetlbfs are counted in huge pages before 6.7: do not ask for them.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from guest.paging import AddressSpace
from guest.records import Record, Values, read_records, read_slices
from guest.structs import Structs
from guest.user.page_structs import PageStructs
from recording.errors import BadImageError
from recording.symbols import SymbolTable

_MAX_PAGES = 1 << 12
"""Pages of one call: 16 MiB."""
_MAX_LEVELS = 12
_MAX_SLOTS = 64
_LARGEST_INTERNAL = 4096
_MAX_FOLIO_PAGES = 1 << 13
"""A folio of the page cache is 2 MiB long at most (MAX_PAGECACHE_ORDER); some room for larger pages."""


@dataclass(frozen=True, slots=True)
class _Node:
    """shift: bits of an index that the slots' own entries take care of."""

    shift: int
    slots: tuple[int, ...]


class PageTree:
    """The xarrays of a kernel, by their heads."""

    def __init__(self, space: AddressSpace, structs: Structs) -> None:
        """Raises BadImageError where the kernel's types lack what is needed."""
        self._space = space
        shift, slots = structs.require("xa_node", "shift"), structs.require("xa_node", "slots")
        self._slot_count = slots.size // structs.words.size
        if not 0 < self._slot_count <= _MAX_SLOTS or self._slot_count & self._slot_count - 1:
            raise BadImageError(f"nodes of the page cache have {self._slot_count} slots; report this kernel")
        self._shift_at, self._slots_at = shift.offset, slots.offset
        self._node_size = max(shift.offset + 1, slots.offset + slots.size)
        self._slots = struct.Struct(f"{structs.words.order}{self._slot_count}{structs.words.format}")

    def find(self, root: int, indexes: Sequence[int]) -> dict[int, int]:
        """Address of the struct by which each page is kept (of a large folio the first page's)."""
        found: dict[int, int] = {}
        waiting: dict[int, int] = {}
        if _is_node(root):
            waiting = dict.fromkeys(indexes, root)
        elif _is_pointer(root):
            # A tree of one entry has it for index 0.
            found = {index: root for index in indexes if index == 0}
        shifts: dict[int, int] = {}
        for _level in range(_MAX_LEVELS):
            if not waiting:
                break
            nodes = self._read_nodes(list(dict.fromkeys(waiting.values())))
            below: dict[int, int] = {}
            for index, entry in waiting.items():
                node = nodes.get(entry)
                limit = shifts.get(index)
                if node is None or (node.shift >= limit if limit is not None else index >> node.shift >= self._slot_count):
                    continue
                shifts[index] = node.shift
                child = node.slots[index >> node.shift & self._slot_count - 1]
                if child & 3 == 2 and child >> 2 < self._slot_count:
                    # A sibling: the slot that it names has the entry of both.
                    child = node.slots[child >> 2]
                if _is_node(child) and node.shift:
                    below[index] = child
                elif _is_pointer(child):
                    found[index] = child
            waiting = below
        return found

    def _read_nodes(self, entries: list[int]) -> dict[int, _Node]:
        nodes = {}
        for entry, data in zip(entries, read_slices(self._space, [(entry - 2, self._node_size) for entry in entries]), strict=True):
            if data is not None:
                nodes[entry] = _Node(data[self._shift_at], self._slots.unpack_from(data, self._slots_at))
        return nodes


class PageCache:
    """Reads pages of files by a kernel's own structs."""

    def __init__(self, space: AddressSpace, symbols: SymbolTable, structs: Structs) -> None:
        """Raises BadImageError where the kernel's types or symbols lack what is needed."""
        self._space = space
        self._inode = Record(structs, "inode", ("i_mapping",))
        self._mapping = Record(structs, "address_space", ("i_pages.xa_head",))
        self._tree = PageTree(space, structs)
        name = "folio" if structs.field("folio", "mapping") else "page"
        self._folio = Record(structs, name, ("mapping", "index", "flags"))
        self._page_size = structs.size_of("page") or 0
        self._page_structs = PageStructs(space, symbols, structs)
        self.page_size = structs.page_size
        """Bytes of the pages that indexes count."""
        uptodate = structs.enumerator("pageflags", "PG_uptodate")
        if not self._page_size or uptodate is None:
            missing = "PG_uptodate" if self._page_size else "struct page"
            raise BadImageError(f"the kernel's page cache cannot be read without {missing}; report this kernel")
        self._uptodate = 1 << uptodate
        self._pages_at = 0

    def read_page(self, inode: int, index: int) -> bytes | None:
        """The bytes of a file from ``index * 4096`` to the page's end (0 behind the file's). None where the page is not there."""
        return self.read_pages(inode, (index,))[0]

    def read_pages(self, inode: int, indexes: Sequence[int]) -> list[bytes | None]:
        """As ``read_page`` for many: a batch of reads for each level of the file's tree, and three more. At most 4096 pages."""
        mapping = self._find_mapping(inode)
        wanted = [index for index in dict.fromkeys(indexes) if index >= 0][:_MAX_PAGES]
        if mapping is None or not wanted:
            return [None] * len(indexes)
        address, root = mapping
        folios = self._tree.find(root, wanted)
        before = self._read_folios(folios.values())
        places = {
            index: place
            for index, folio in folios.items()
            if (place := self._place(index, folio, before.get(folio), address)) is not None
        }
        contents = self._space.memory.read_many([(place, self.page_size) for place in places.values()])
        after = self._read_folios(folios[index] for index in places)
        pages = {
            index: data
            for index, data in zip(places, contents, strict=True)
            if data is not None and len(data) == self.page_size and after[folios[index]] == before[folios[index]]
        }
        return [pages.get(index) for index in indexes]

    def _find_mapping(self, inode: int) -> tuple[int, int] | None:
        """Address of a file's ``struct address_space``, and the head of its tree."""
        if not self._pages_at:
            # The kernel sets it early in boot: not before there are processes.
            self._pages_at = self._page_structs.find()
        (owner,) = read_records(self._space, [(self._inode, inode)])
        if owner is None or not owner[0]:
            return None
        (tree,) = read_records(self._space, [(self._mapping, owner[0])])
        return None if tree is None else (owner[0], tree[0])

    def _read_folios(self, addresses: Iterable[int]) -> dict[int, Values | None]:
        """mapping, index and flags of folios."""
        wanted = list(dict.fromkeys(addresses))
        return dict(zip(wanted, read_records(self._space, [(self._folio, address) for address in wanted]), strict=True))

    def _place(self, index: int, folio: int, values: Values | None, mapping: int) -> int | None:
        """Physical address of a file's page in a folio, None where the folio is not that file's or not up to date."""
        if values is None or values[0] != mapping or not values[2] & self._uptodate:
            return None
        number, rest = divmod(folio - self._pages_at, self._page_size)
        page: int = index - values[1]
        if rest or number < 0 or not self._pages_at or not 0 <= page < _MAX_FOLIO_PAGES:
            return None
        # Large folios are aligned to their own size: a page beyond the folio's end would need a larger number than its index has.
        if page and page & number:
            return None
        return (number + page) * self.page_size


def _is_node(entry: int) -> bool:
    return entry & 3 == 2 and entry > _LARGEST_INTERNAL


def _is_pointer(entry: int) -> bool:
    return entry & 3 == 0 and entry > _LARGEST_INTERNAL
