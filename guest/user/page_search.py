"""Layouts of the page cache, for kernels without type information: found by what the structs hold, and by where pages lie.

``include/linux/fs.h``, ``xarray.h``, ``mm_types.h``, ``page-flags.h``. Where programs' code is in memory is said twice: by page
tables, and by the tree of the file's pages. So:

    address_space.i_pages.xa_head   the first words behind the host that lead to pages
    page                            flags, two words of a list, the file's ``address_space``, the page's index in the file: in all
                                    versions; believed where the last two are what they must be
    the array of all pages          their structs are as far from each other as the pages are, times one number: the size
    PG_uptodate                     a bit that all pages of these files have, and another two further (PG_lru)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guest.found_types import FoundTypes, Members
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.user.page_cache import PageTree
from guest.words import Words

_SLOTS = 64
"""Of a node (XA_CHUNK_SIZE)."""
_MAX_PAIRS = 2048
_MIN_PAIRS = 16
_PER_AREA = 64
_MAX_PAGES = 1024
"""Of a file whose flags are looked at."""
_SIZES = range(32, 257, 4)
"""Bytes that a ``struct page`` may have."""
_UPTODATE = ((3, 5), (2, 4))
"""Numbers of PG_uptodate and PG_lru, which all pages of files have, since 6.7 and before.

Where both pairs are there in all of them, bit 3 may also be PG_dirty, of the older kind: pages that have it are up to date, too.
"""


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A piece of a file that a process may run and not write: [start, end) by its page tables, from a page of the file on.

    mapping: address of the file's ``struct address_space``.
    """

    space: AddressSpace
    start: int
    end: int
    page: int
    mapping: int


@dataclass(frozen=True, slots=True)
class PageLayout:
    """structs: members by struct. size, start: of ``struct page``, and where the one of physical address 0 is or would be."""

    structs: dict[str, Members]
    size: int
    start: int
    uptodate: int


def search_pages(space: AddressSpace, words: Words, pieces: Sequence[MappedFile], page_shift: int) -> PageLayout | None:
    """None where pages do not show how they are kept."""
    size = words.size
    node: Members = {"shift": (0, 1), "slots": (5 * size, _SLOTS * size)}
    tree = PageTree(space, Structs(FoundTypes({"xa_node": node}), words))
    page: Members = {"flags": (0, size), "mapping": (3 * size, size), "index": (4 * size, size)}
    found = []
    for head in (2 * size, 8 + size, size + 4):
        pairs = dict(_find_pairs(space, words, tree, pieces, (head, page_shift)))
        place = _find_array(sorted(pairs.items())) if len(pairs) >= _MIN_PAIRS else None
        if place is not None:
            found.append((head, pairs, *place))
    heads = {head for head, *_rest in found}
    if len(heads) != 1:
        return None
    head, pairs, page_size, start = found[0]
    uptodate = _find_uptodate(space, words, tree, pieces, head)
    if uptodate is None:
        return None
    structs: dict[str, Members] = {
        "address_space": {"i_pages": (0, {"xa_head": (head, size)})},
        "xa_node": node,
        "page": page,
    }
    return PageLayout(structs, page_size, start, uptodate)


def _find_uptodate(space: AddressSpace, words: Words, tree: PageTree, pieces: Sequence[MappedFile], head_at: int) -> int | None:
    """The bit, by all pages of the files: those that programs use are marked as such, others are not."""
    mappings = dict.fromkeys(piece.mapping for piece in pieces)
    heads = [words.number(data) for data in space.read_many([(mapping + head_at, words.size) for mapping in mappings]) if data]
    pages = {page for head in heads for page in tree.find(head, range(_MAX_PAGES)).values()}
    common = ~0
    for data in space.read_many([(page, words.size) for page in pages]):
        common &= ~0 if data is None else words.number(data)
    return next((bit for bit, listed in _UPTODATE if common >> bit & 1 and common >> listed & 1), None)


def _find_pairs(
    space: AddressSpace, words: Words, tree: PageTree, pieces: Sequence[MappedFile], places: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Address of a page's struct, and the page's number in physical memory."""
    head_at, page_shift = places
    size = words.size
    count = 0
    for piece in pieces:
        (data,) = space.read_many([(piece.mapping + head_at, size)])
        head = 0 if data is None else words.number(data)
        wanted = {}
        for number in range(min(piece.end - piece.start >> page_shift, _PER_AREA)):
            physical = piece.space.translate(piece.start + (number << page_shift))
            if physical is not None:
                wanted[piece.page + number] = physical >> page_shift
        pages = tree.find(head, list(wanted))
        structs = space.read_many([(address, 5 * size) for address in pages.values()])
        for (index, address), data in zip(pages.items(), structs, strict=True):
            known = () if data is None else words.pointers(data)
            if known[3:] == (piece.mapping, index):
                yield address, wanted[index]
                count += 1
        if count > _MAX_PAIRS:
            return


def _find_array(pairs: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Bytes of a struct, and the address of the first, with which all pairs agree."""
    (first, first_page), (last, last_page) = pairs[0], pairs[-1]
    if first_page == last_page:
        return None
    size, rest = divmod(last - first, last_page - first_page)
    start = first - first_page * size
    if rest or size not in _SIZES or any(address != start + page * size for address, page in pairs):
        return None
    return size, start
