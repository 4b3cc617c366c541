"""What processes have mapped, of kernels without type information: all that ``guest.user`` reads is found by what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from guest.found_types import FoundTypes, Members
from guest.memory import Steps
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.user.area_search import AreaLayout, Process, is_code, maple_layouts, read_processes, search_areas
from guest.user.file_search import FileLayout, FileSearch
from guest.user.page_search import MappedFile, search_pages
from recording.errors import BadImageError
from recording.symbols import SymbolTable
from unwind.arch import Architecture, PageTables

UNKNOWN = (
    "the kernel has no type information (BTF): the code that it generates, control groups, and the names of code that programs made"
    " cannot be told"
)
"""What stays unknown of a kernel whose structs were found."""
_MAX_PIECES = 256


def search_user_structs(
    space: AddressSpace, symbols: SymbolTable, structs: Structs, architecture: Architecture, tables: PageTables
) -> Steps[Structs]:
    """What is known of the kernel's structs, and those of processes' mappings, of files and, where they show, of their pages.

    tables: the shape of processes' page tables. Raises BadImageError where not even mappings and files can be told.
    """
    words = structs.words
    processes = read_processes(space, symbols, structs)
    yield
    areas, processes = yield from search_areas(space, words, architecture, tables, processes)
    page_size = processes[0].page_size
    yield
    files = yield from FileSearch(space, words, architecture, areas.files(processes)).find(areas.ends(processes, page_size))
    yield
    memory: Members = {**_known_table(structs), **areas.mm}
    if "pgd" not in memory:
        raise BadImageError("no process shows where its page table is")
    found: dict[str, Members] = {
        "mm_struct": memory,
        "vm_area_struct": areas.area,
        "vm_special_mapping": {"name": (0, words.size)},
        **maple_layouts(words.size),
        **files.structs,
    }
    places = {} if areas.special_operations is None else {"special_mapping_vmops": areas.special_operations}
    pieces = list(_pieces(space, tables, areas, files, processes, words.size))[:_MAX_PIECES]
    pages = search_pages(space, words, pieces, page_size.bit_length() - 1)
    if pages is None:
        return structs.extended(FoundTypes(found), page_size, places)
    for name, members in pages.structs.items():
        found[name] = {**found.get(name, {}), **members}
    enums = {"pageflags": {"PG_uptodate": pages.uptodate}}
    return structs.extended(FoundTypes(found, enums, {"page": pages.size}), page_size, {**places, "vmemmap": pages.start})


def _known_table(structs: Structs) -> Members:
    """Where the page table was known to be before."""
    table = structs.field("mm_struct", "pgd")
    return {} if table is None else {"pgd": (table.offset, table.size)}


def _pieces(
    space: AddressSpace, tables: PageTables, areas: AreaLayout, files: FileLayout, processes: Sequence[Process], word: int
) -> Iterator[MappedFile]:
    """What processes may run, and not write, of files whose pages are known to be kept somewhere."""
    for process in processes:
        table = areas.page_table(process, word)
        root = None if table is None else space.translate(table)
        if root is None:
            continue
        own = AddressSpace(space.memory, tables, root)
        for area in process.areas:
            mapping = files.mappings.get(area.words[areas.file])
            if mapping is not None and is_code(area.words[areas.flags]):
                yield MappedFile(own, area.start, area.end, area.words[areas.file - 1], mapping)
