"""Names of data for kernels whose kallsyms has only code (no CONFIG_KALLSYMS_ALL): from other tables in their image.

* Exported symbols (include/linux/export.h, ``struct kernel_symbol``): value, name, namespace. With
  CONFIG_HAVE_ARCH_PREL32_RELOCATIONS these are 32-bit numbers, relative to their own place, else pointers. ``init_task`` is
  exported by every kernel; where its entry is, the others are.
* Per-CPU variables: BTF says where in their section each is (include/uapi/linux/btf.h, BTF_KIND_DATASEC), an exported one where
  that begins.
* BTF itself and the banner: by how they begin.
* Other variables: by the code of a function that uses them (``KernelCode.data_in_code``).
* The table of system calls: by the functions that its first entries point to (``unwind.arch.KernelCode.first_system_calls``).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from guest.btf import parse_btf
from guest.kallsyms_scan import MAX_IMAGE_SIZE
from guest.memory import CHUNK_SIZE, Steps
from guest.paging import AddressSpace
from guest.symbol_rows import SymbolRows, arrange
from guest.words import Words
from recording.errors import BadImageError
from unwind.arch import Architecture

_ANCHOR = b"\0init_task\0"
_BEFORE_STRINGS = 1 << 21
"""Bytes before the names in which their entries lie: in stock kernels 300 KiB."""
_WORDS_PER_STEP = 1 << 15
_ENTRIES_PER_STEP = 1 << 10
_BEHIND_CODE = 1 << 24
"""Bytes that the image has behind its last function at most; a kernel may map all of RAM around its image."""
_MAX_EXPORTS = 1 << 17
_CODE = 256
"""Bytes of a function that are looked at for a variable."""
_LEAST_EXPORTS = 4
_MAX_NAME = 128
_MAX_CANDIDATES = 16
_BTF_HEADER = "HBBIIIII"
_BTF_START = (0xEB9F, 1, 0, 24)
"""Magic number, version, flags, size of the header."""
_LEAST_BTF, _MOST_BTF = 1 << 10, 1 << 26
_BANNER = b"Linux version "
_PER_CPU = ".data..percpu"
_ADDRESS_MASK = (1 << 64) - 1
_Piece = tuple[int, bytes]


def add_data_symbols(space: AddressSpace, image: int, rows: SymbolRows, architecture: Architecture) -> Steps[SymbolRows]:
    """The rows with what data could be named."""
    last = max((address for address in rows.addresses if image <= address < image + MAX_IMAGE_SIZE), default=image)
    pieces = yield from _read_image(space, image, min(last + _BEHIND_CODE, image + MAX_IMAGE_SIZE))
    exports = yield from _exports(pieces, architecture)
    known = set(rows.names)
    found = {name: address for name, address in exports.items() if name not in known}
    yield
    for address, data in pieces:
        banner = data.find(_BANNER)
        if banner >= 0 and "linux_banner" not in found:
            found["linux_banner"] = address + banner
    yield
    table = _find_btf(pieces, Words.of(architecture))
    if table is not None:
        start, data = table
        found |= {"__start_BTF": start, "__stop_BTF": start + len(data)}
        found |= yield from _per_cpu(data, exports, architecture)
    found |= _system_call_tables(pieces, rows, architecture)
    found |= _used_in_code(pieces, rows, architecture)
    yield
    addresses = array("Q", [*rows.addresses, *found.values()])
    return (yield from arrange(SymbolRows(addresses, rows.kinds + b"D" * len(found), [*rows.names, *found])))


def _read_image(space: AddressSpace, image: int, end: int) -> Steps[list[_Piece]]:
    """The image's mapped pieces; what is mapped to elsewhere in RAM is no part of it."""
    pieces: list[_Piece] = []
    offset = None
    for extent in space.mapped(image, end):
        if extent is None:
            yield
            continue
        if offset is None:
            offset = extent.physical - extent.address
        if extent.physical - extent.address != offset:
            continue
        parts = []
        for at in range(0, extent.size, CHUNK_SIZE):
            part = space.memory.read_many([(extent.physical + at, min(CHUNK_SIZE, extent.size - at))])[0]
            yield
            if part is None:
                break
            parts.append(part)
        pieces.append((extent.address, b"".join(parts)))
    return pieces


def _exports(pieces: list[_Piece], architecture: Architecture) -> Steps[dict[str, int]]:
    for address, data in pieces:
        at = data.find(_ANCHOR)
        for _candidate in range(_MAX_CANDIDATES):
            if at < 0:
                break
            entry = yield from _find_entry(data, at + 1, architecture)
            if entry is not None:
                found = yield from _read_table(address, data, entry, architecture)
                if len(found) >= _LEAST_EXPORTS:
                    return found
            found = yield from _read_absolute(address, data, at + 1, architecture)
            if found:
                return found
            at = data.find(_ANCHOR, at + 1)
    return {}


def _words(data: bytes, architecture: Architecture) -> array[int]:
    words = array("i", data)
    if sys.byteorder != architecture.byteorder:
        words.byteswap()
    return words


def _find_entry(data: bytes, name: int, architecture: Architecture) -> Steps[int | None]:
    """The offset of the entry whose name lies at an offset."""
    start = max(0, name - _BEFORE_STRINGS) & -4
    words = _words(data[start : name & -4], architecture)
    for low in range(0, len(words), _WORDS_PER_STEP):
        wanted = name - start - 4 * low
        for index, word in enumerate(words[low : low + _WORDS_PER_STEP]):
            if word + 4 * index == wanted:
                return start + 4 * (low + index) - 4
        yield
    return None


def _read_table(address: int, data: bytes, entry: int, architecture: Architecture) -> Steps[dict[str, int]]:
    """All entries of a table of relative numbers around one."""
    layout = struct.Struct(f"{Words.of(architecture).order}3i")

    def parse(at: int) -> tuple[str | None, int]:
        value, name, _namespace = layout.unpack_from(data, at)
        return _name_at(data, at + 4 + name), address + at + value & _ADDRESS_MASK

    return (yield from _read_entries(data, entry, layout.size, parse))


def _read_absolute(address: int, data: bytes, name: int, architecture: Architecture) -> Steps[dict[str, int]]:
    """All entries of a table of pointers that has one for the name at an offset; none where no such table is found."""
    words = Words.of(architecture)
    pointer = (address + name).to_bytes(words.size, words.byteorder)
    at = data.find(pointer, max(0, name - _BEFORE_STRINGS), name)
    while at >= 0:
        yield
        # Before 5.4 there was no namespace.
        for count in (3, 2) if not at % words.size else ():
            layout = struct.Struct(f"{words.order}{count}{words.format}")
            found = yield from _read_pointers(address, data, at - words.size, layout, architecture)
            if len(found) >= _LEAST_EXPORTS:
                return found
        at = data.find(pointer, at + 1, name)
    return {}


def _read_pointers(
    address: int, data: bytes, entry: int, layout: struct.Struct, architecture: Architecture
) -> Steps[dict[str, int]]:
    def parse(at: int) -> tuple[str | None, int]:
        value, name, *_namespace = layout.unpack_from(data, at)
        return _name_at(data, name - address) if architecture.is_kernel_address(name) else None, value

    return (yield from _read_entries(data, entry, layout.size, parse))


def _read_entries(data: bytes, entry: int, size: int, parse: Callable[[int], tuple[str | None, int]]) -> Steps[dict[str, int]]:
    """All entries around one, until something is none. parse: (name or None, value) of the entry at an offset."""
    found: dict[str, int] = {}
    for step in (-size, size):
        at = entry
        for count in range(_MAX_EXPORTS):
            if not 0 <= at <= len(data) - size:
                break
            text, value = parse(at)
            if text is None:
                break
            found[text] = value
            at += step
            if not count % _ENTRIES_PER_STEP:
                yield
    return found


def _name_at(data: bytes, at: int) -> str | None:
    end = data.find(b"\0", at, at + _MAX_NAME) if at > 0 else -1
    if end <= at:  # What stands before it may be the beginning of a longer name: linkers merge a name with another's end.
        return None
    try:
        text = data[at:end].decode("ascii")
    except UnicodeDecodeError:
        return None
    return text if text.replace(".", "_").isidentifier() else None


def _find_btf(pieces: list[_Piece], words: Words) -> _Piece | None:
    layout = struct.Struct(f"{words.order}{_BTF_HEADER}")
    start = struct.pack(f"{words.order}{_BTF_HEADER[:4]}", *_BTF_START)
    for address, data in pieces:
        at = data.find(start)
        for _candidate in range(_MAX_CANDIDATES):
            if not 0 <= at <= len(data) - layout.size:
                break
            *_head, header, _types, _type_size, strings, string_size = layout.unpack_from(data, at)
            size = header + strings + string_size
            if not at % 4 and _LEAST_BTF <= size <= min(_MOST_BTF, len(data) - at):
                return address + at, data[at : at + size]
            at = data.find(start, at + 1)
    return None


def _per_cpu(btf: bytes, exports: Mapping[str, int], architecture: Architecture) -> Steps[dict[str, int]]:
    """Per-CPU variables by name: their section begins where most of the exported ones say."""
    try:
        structs = yield from parse_btf(btf, Words.of(architecture))
    except BadImageError:
        return {}
    offsets = dict(structs.variables(_PER_CPU))
    starts = Counter(exports[name] - offset for name, offset in offsets.items() if name in exports)
    if not starts:
        return {}
    start = starts.most_common(1)[0][0]
    return {name: start + offset & _ADDRESS_MASK for name, offset in offsets.items()}


def _system_call_tables(pieces: list[_Piece], rows: SymbolRows, architecture: Architecture) -> dict[str, int]:
    found = {}
    for table, functions in architecture.kernel_code.first_system_calls.items():
        addresses = [rows.find(name) for name in functions]
        known = [address for address in addresses if address is not None]
        if len(known) < len(functions):
            continue
        pattern = b"".join(address.to_bytes(architecture.pointer_size, architecture.byteorder) for address in known)
        place = next(_places(pieces, pattern), None)
        if place is not None:
            found[table] = place
    return found


def _used_in_code(pieces: list[_Piece], rows: SymbolRows, architecture: Architecture) -> dict[str, int]:
    found = {}
    for name, (function, find) in architecture.kernel_code.data_in_code.items():
        start = rows.find(function)
        code = (
            b"" if start is None else next((data[start - at :][:_CODE] for at, data in pieces if at <= start < at + len(data)), b"")
        )
        address = find(code)
        if address is not None:
            found[name] = address
    return found


def _places(pieces: list[_Piece], pattern: bytes) -> Iterator[int]:
    return (address + at for address, data in pieces if (at := data.find(pattern)) >= 0)
