"""Where a kernel without type information and data symbols has its modules: found by what they hold (include/linux/module.h).

    modules         two words of the image that are a ring with modules in it: state, links, name, as all versions begin them
    mem[]           (6.4) base and size of each piece of it, and the module's own address behind these, which the tree of all
                    modules' addresses has there (CONFIG_MODULES_TREE_LOOKUP)
    core_layout     (before) the same with the sizes of its code and of what is read-only between them; then init_layout
    kallsyms        the address of ``mod_kallsyms`` within the module itself, where it is when its start is over

Each is taken only where it is so in all modules.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from guest.found_types import FoundTypes, Members
from guest.kernel_lists import walk_list
from guest.memory import CHUNK_SIZE, Steps
from guest.paging import PAGE_SIZE, AddressSpace
from guest.structs import Structs
from guest.words import Words
from recording.symbols import SymbolTable
from unwind.arch import Architecture

_NAME = re.compile(rb"[A-Za-z0-9_]{1,55}\0")
_NAME_SIZE = 56
_MODULE_SIZE = 0x800
"""Bytes of ``struct module`` in which its members are looked for; those that are wanted lie in the first 600 or so."""
_LEAST_SIZE = 0x180
"""More than up to the last of these in kernels with pointers of 4 bytes."""
_STATES = {"MODULE_STATE_LIVE": 0, "MODULE_STATE_COMING": 1, "MODULE_STATE_GOING": 2, "MODULE_STATE_UNFORMED": 3}
_MAX_MODULES = 4096
_WORDS_PER_STEP = 1 << 13
_LAYOUT_SIZES = 4
"""Numbers of ``struct module_layout``: size, text_size, ro_size, ro_after_init_size."""
_INIT_TEXT = 4
"""MOD_INIT_TEXT, the number of a piece of mem[]."""
_PIECE_WORDS = 9
"""Of mem[]: base, size, and ``struct mod_tree_node``."""
_MAX_SIZE = 1 << 26
_MAX_SYMBOLS = 1 << 19


@dataclass(frozen=True, slots=True)
class FoundModules:
    """What ``guest.modules.ModuleReader`` takes. symbols: the one of the list's head."""

    symbols: SymbolTable
    structs: Structs


@dataclass(frozen=True, slots=True)
class _Module:
    address: int
    data: bytes
    pointers: tuple[int, ...]


def search_modules(space: AddressSpace, image: tuple[int, int], architecture: Architecture) -> Steps[FoundModules | None]:
    """The list and its elements' members; None where no such list is found, as before the first module is loaded.

    image: addresses [start, end) in which its head may lie.
    """
    words = Words.of(architecture)
    heads = yield from _find_heads(space, image, words, architecture.kernel_code.module_area)
    found = []
    for head in heads:
        yield
        modules = _read_modules(space, head, words)
        members = _find_members(space, modules, words) if modules else None
        if members is not None:
            found.append((head, members))
    if len(found) != 1:
        return None
    head, members = found[0]
    word = words.size
    tables: Members = {"symtab": (0, word), "num_symtab": (word, 4), "strtab": (2 * word, word)}
    types = FoundTypes({"module": members, "mod_kallsyms": tables}, {"module_state": _STATES})
    return FoundModules(SymbolTable.from_symbols([(head, "D", "modules")]), Structs(types, words))


def _find_heads(space: AddressSpace, image: tuple[int, int], words: Words, area: tuple[int, int]) -> Steps[list[int]]:
    """Places of two words that lead to something in the modules' area which leads back, with a name behind its links."""
    heads = []
    low, high = area
    pages: dict[int, bool] = {}

    def is_allocated(address: int, offset: int) -> bool:
        """Whether a page of the modules' area is none of the mapping of all RAM, which may reach into it."""
        page = address & -PAGE_SIZE
        if page not in pages:
            physical = space.translate(page)
            pages[page] = physical is not None and physical - page != offset
        return pages[page]

    for extent in space.mapped(*image):
        for at in range(0, extent.size if extent else 0, CHUNK_SIZE):
            yield
            if extent is None:
                continue
            data = space.memory.read_many([(extent.physical + at, min(CHUNK_SIZE, extent.size - at))])[0] or b""
            start = extent.address + at
            pointers = words.pointers(data)
            for first in range(0, len(pointers), _WORDS_PER_STEP):
                part = pointers[first : first + _WORDS_PER_STEP]
                likely = [index for index, each in enumerate(part) if low <= each < high]
                yield
                offset = extent.physical - extent.address
                likely = [index for index in likely if is_allocated(part[index], offset)]
                yield
                places = [(start + words.size * (first + index), part[index]) for index in likely]
                heads += _heads_among(space, words, places)
                yield
    return heads


def _heads_among(space: AddressSpace, words: Words, places: list[tuple[int, int]]) -> list[int]:
    """Those of the (place, pointer there) whose pointer leads to the links of a module which lead back."""
    links, size = words.size, 3 * words.size + _NAME_SIZE
    elements = space.read_many([(pointer - links & words.mask, size) for _place, pointer in places])
    return [
        place
        for (place, _pointer), element in zip(places, elements, strict=True)
        if element is not None
        and words.number(element[:4]) in _STATES.values()
        and words.pointers(element[2 * links : 3 * links])[0] == place
        and _NAME.match(element, 3 * links)
    ]


def _read_modules(space: AddressSpace, head: int, words: Words) -> list[_Module]:
    """The modules of a list; nothing where one of its elements is none."""
    found = []
    for address in walk_list(space, words, head, words.size, _MAX_MODULES):
        # Where it ends with its pages, nothing need be mapped behind them.
        whole, in_page = space.read_many([(address, _MODULE_SIZE), (address, PAGE_SIZE - address % PAGE_SIZE)])
        data = whole or (in_page or b"")[:_MODULE_SIZE]
        if len(data) < _LEAST_SIZE or words.number(data[:4]) not in _STATES.values() or not _NAME.match(data, 3 * words.size):
            return []
        # While a module is loaded its members are not what they will be.
        if words.number(data[:4]) == _STATES["MODULE_STATE_LIVE"]:
            found.append((address, data))
    size = min((len(data) for _address, data in found), default=0)
    return [_Module(address, data[:size], words.pointers(data[:size])) for address, data in found]


def _find_members(space: AddressSpace, modules: list[_Module], words: Words) -> Members | None:
    areas = _find_areas(space, modules, words)
    kallsyms = _find_kallsyms(space, modules, words)
    if areas is None or kallsyms is None:
        return None
    word = words.size
    links: Members = {"next": (0, word), "prev": (word, word)}
    return {
        "state": (0, 4),
        "list": (word, links),
        "name": (3 * word, _NAME_SIZE),
        "kallsyms": (kallsyms, word),
        **areas,
    }


def _find_areas(space: AddressSpace, modules: list[_Module], words: Words) -> Mapping[str, tuple[int, Members]] | None:
    """Where code is, under the names that it had until 6.3: of good code and of that of the start."""
    word = words.size
    own = [index for index in range(len(modules[0].pointers)) if all(each.pointers[index] == each.address for each in modules)]
    for index in own:
        at = index * word - word - 4 * _LAYOUT_SIZES
        if at > 0 and all(_is_layout(each, at, words) for each in modules):
            text: Members = {"base": (0, word), "text_size": (word + 4, 4)}
            following = next((word * (other - index) for other in own if other > index), _layout_size(words))
            return {"core_layout": (at, text), "init_layout": (at + following, text)}
        # Behind mem[0].base and size, which fills a word.
        at = (index - 2) * word
        if at > 0 and all(_is_piece(space, each, at, words) for each in modules):
            text = {"base": (0, word), "text_size": (word, 4)}
            return {"core_layout": (at, text), "init_layout": (at + _INIT_TEXT * _PIECE_WORDS * word, text)}
    return None


def _layout_size(words: Words) -> int:
    """``struct module_layout``: behind its numbers ``struct mod_tree_node``, a pointer and two nodes of trees."""
    return words.size + 4 * _LAYOUT_SIZES + 7 * words.size


def _is_piece(space: AddressSpace, module: _Module, at: int, words: Words) -> bool:
    base, size = words.pointers(module.data[at : at + words.size])[0], words.number(module.data[at + words.size :][:4])
    return bool(base) and not base % PAGE_SIZE and 0 < size <= _MAX_SIZE and space.translate(base) is not None


def _is_layout(module: _Module, at: int, words: Words) -> bool:
    base = words.pointers(module.data[at : at + words.size])[0]
    size, text, read_only, later = struct.unpack_from(f"{words.order}{_LAYOUT_SIZES}I", module.data, at + words.size)
    return (
        bool(base)
        and not base % PAGE_SIZE
        and base <= module.address < base + size <= base + _MAX_SIZE
        and 0 < text <= read_only <= later <= size
    )


def _find_kallsyms(space: AddressSpace, modules: list[_Module], words: Words) -> int | None:
    word = words.size

    def fits(module: _Module, index: int) -> bool:
        at = module.pointers[index] - module.address
        if not 0 < at <= _MODULE_SIZE - 4 * word or at % word:
            return False
        symbols, number, strings = words.pointers(module.data[at : at + 3 * word])
        count = number & 0xFFFF_FFFF if words.byteorder == "little" or word == 4 else number >> 32
        if not 0 < count <= _MAX_SYMBOLS or not symbols or not strings:
            return False
        # The first symbol and the first name are empty (ELF gABI, "Symbol Table", "String Table").
        first, empty = space.read_many([(symbols, 2 * word), (strings, 1)])
        return first is not None and not any(first) and empty == b"\0"

    found = [index for index in range(len(modules[0].pointers)) if all(fits(each, index) for each in modules)]
    return found[0] * word if len(found) == 1 else None
