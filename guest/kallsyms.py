"""The kernel's kallsyms tables become symbols: all layouts since 4.6 (scripts/kallsyms.c), told apart by their content.

In memory, each part aligned to a pointer's size, in 7.x to 4:

    to 6.3    addresses, or offsets + relative_base; num_syms; names; markers; [seqs_of_names, 6.2]; token_table; token_index
    from 6.4  num_syms; names; markers; token_table; token_index; offsets; [relative_base, to 6.x]; seqs_of_names

A name is a length and that many tokens, the first letter of the text is nm's. The length is one byte; from 6.1 bit 7 says that
a second byte follows. ``markers`` (32 bits since 4.20, before 64) hold the offset of every 256th name: a reading that does not meet
them is wrong. Values are absolute addresses; offsets from relative_base; the same with positive ones absolute
(KALLSYMS_ABSOLUTE_PERCPU); or relative to their own place (a081b5789255d): the reading in which a known symbol lies where it
must is right.
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from guest.memory import Steps
from guest.paging import AddressSpace
from guest.symbol_rows import MAX_SYMBOLS, SymbolRows, arrange
from guest.words import Words
from recording.errors import BadImageError, GuestMemoryError

MAX_NAMES_SIZE = 1 << 26
_MAX_NAME = 1024
_MAX_TEXT = 1 << 27
_NAMES_PER_STEP = 2048
_VALUES_PER_STEP = 1 << 14
_TOKENS = 256
_TOKEN_TABLE_SIZE = 1 << 14
_MARKER_STRIDE = 256
_UNPRINTABLE = re.compile(r"[^!-~]")


@dataclass(frozen=True, slots=True)
class KallsymsPlace:
    """Where the tables are: virtual addresses. values and relative_base: where something says so, else content finds them."""

    count: int
    number: int
    names: int
    token_table: int
    token_index: int
    values: int | None = None
    relative_base: int | None = None


@dataclass(frozen=True, slots=True)
class KallsymsTables:
    """The tables with the names, as they lie in memory: KASLR does not change them. ``names`` reaches to the token table."""

    place: KallsymsPlace
    token_table: bytes
    token_index: bytes
    names: bytes

    def fingerprint(self) -> str:
        """Hexadecimal digest of all names in their order: only a build that differs in nothing but addresses has the same."""
        digest = hashlib.sha256(self.place.count.to_bytes(4, "little") + self.token_table + self.token_index)
        digest.update(self.names)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Values:
    """One way to read the addresses: a table of ``width``-byte values and what makes an address of them."""

    table: int
    width: int
    relative_base: int | None
    addresses: Callable[[Iterator[tuple[int, int]], int], list[int]]


def place_from_symbols(space: AddressSpace, symbols: Mapping[str, int], words: Words) -> KallsymsPlace | None:
    """Where VMCOREINFO's symbols (6.0) say that the tables are, or None where they do not say."""
    wanted = ("num_syms", "names", "token_table", "token_index")
    number, names, token_table, token_index = (symbols.get(f"kallsyms_{name}", 0) for name in wanted)
    if not (number and names and token_table and token_index):
        return None
    data = space.read_many([(number, 4)])[0]
    if data is None:
        return None
    count = words.number(data)
    hints = symbols.get("kallsyms_offsets") or symbols.get("kallsyms_addresses"), symbols.get("kallsyms_relative_base")
    return KallsymsPlace(count, number, names, token_table, token_index, *hints)


def read_kallsyms(space: AddressSpace, place: KallsymsPlace) -> Steps[KallsymsTables]:
    """Read the names as they lie in memory. Raises BadImageError for sizes that cannot be, GuestMemoryError."""
    names_size = place.token_table - place.names
    tokens_size = place.token_index - place.token_table
    if not (0 < place.count <= MAX_SYMBOLS and 0 < names_size <= MAX_NAMES_SIZE and 0 < tokens_size <= _TOKEN_TABLE_SIZE):
        raise BadImageError(
            f"the kernel's symbol table at {place.names:#x} claims {place.count} names in {names_size} bytes and tokens in "
            f"{tokens_size} bytes; it is damaged or of an unknown format"
        )
    token_table = space.read(place.token_table, tokens_size)
    token_index = space.read(place.token_index, 2 * _TOKENS)
    names = yield from space.read_chunks(place.names, names_size)
    return KallsymsTables(place, token_table, token_index, names)


def decode_kallsyms(space: AddressSpace, tables: KallsymsTables, anchors: Mapping[str, int], words: Words) -> Steps[SymbolRows]:
    """All symbols at run-time addresses. ``anchors``: symbols with known addresses, of which one at least must come out right.

    Raises BadImageError where no known layout fits.
    """
    tokens = _parse_tokens(tables, words)
    for is_wide in (True, False):
        decoded = yield from _decode_names(tables.names, tables.place.count, tokens, words, is_wide)
        if decoded is not None:
            kinds, names = decoded
            addresses = yield from _decode_values(space, tables.place, names, anchors, words)
            return (yield from arrange(SymbolRows(addresses, kinds, names)))
    raise BadImageError(
        f"the names of the kernel's symbol table at {tables.place.names:#x} do not meet its markers: an unknown format"
    )


def _parse_tokens(tables: KallsymsTables, words: Words) -> list[str]:
    """The 256 tokens as text; a character that no symbol may have becomes ``?``. Raises BadImageError."""
    tokens: list[str] = []
    for offset in struct.unpack(f"{words.order}{_TOKENS}H", tables.token_index):
        end = tables.token_table.find(b"\0", offset)
        if end < 0 or end - offset > _MAX_NAME:
            raise BadImageError(f"the kernel's symbol token table at {tables.place.token_table:#x} is damaged at offset {offset}")
        tokens.append(_UNPRINTABLE.sub("?", tables.token_table[offset:end].decode("latin-1")))
    return tokens


def _decode_names(data: bytes, count: int, tokens: list[str], words: Words, is_wide: bool) -> Steps[tuple[bytes, list[str]] | None]:
    """Kinds and names, or None where this reading of the lengths does not meet the markers."""
    names: list[str] = []
    kinds: list[str] = []
    marks: list[int] = []
    token = tokens.__getitem__
    position = total = 0
    for start in range(0, count, _NAMES_PER_STEP):
        texts: list[str] = []
        try:
            for index in range(start, min(start + _NAMES_PER_STEP, count)):
                if not index % _MARKER_STRIDE:
                    marks.append(position)
                length = data[position]
                position += 1
                if is_wide and length & 0x80:
                    length = length & 0x7F | data[position] << 7
                    position += 1
                end = position + length
                texts.append("".join(map(token, data[position:end])))
                position = end
        except IndexError:
            return None
        lengths = list(map(len, texts))
        total += sum(lengths)
        if min(lengths) < 1 or max(lengths) > _MAX_NAME or total > _MAX_TEXT or position > len(data):
            return None
        kinds += [text[0] for text in texts]
        names += [text[1:] for text in texts]
        yield
    if not _meets_markers(data, position, marks, words):
        return None
    return "".join(kinds).encode("ascii"), names


def _meets_markers(data: bytes, end_of_names: int, marks: list[int], words: Words) -> bool:
    """Whether the markers that follow the names, in any of their forms, are the offsets that were met."""
    forms = [struct.pack(f"{words.order}{len(marks)}{width}", *marks) for width in "IQ"]
    starts = {end_of_names + alignment - 1 & -alignment for alignment in (8, 4)}
    return any(data.startswith(form, start) for form in forms for start in starts)


def _absolute(values: Iterator[tuple[int, int]], _base: int) -> list[int]:
    return [value for _place, value in values]


def _from_base(values: Iterator[tuple[int, int]], base: int) -> list[int]:
    return [base + (value & 0xFFFF_FFFF) for _place, value in values]


def _from_base_percpu(values: Iterator[tuple[int, int]], base: int) -> list[int]:
    return [value if value >= 0 else base - 1 - value for _place, value in values]


def _from_place(values: Iterator[tuple[int, int]], _base: int) -> list[int]:
    return [place + value for place, value in values]


def _ways(place: KallsymsPlace, words: Words) -> Iterator[_Values]:
    """Every way that a kernel has laid out its addresses, the likeliest first."""
    size = 4 * place.count + words.size - 1 & -words.size
    behind = place.token_index + 2 * _TOKENS
    tables = [(place.values, place.relative_base)] if place.values is not None else []
    tables += [(start, start + size) for start in sorted({behind + 3 & -4, behind + 7 & -8})]
    tables.append((place.number - words.size - size, place.number - words.size))
    for table, base in tables:
        if base is not None:
            yield _Values(table, 4, base, _from_base_percpu)
            yield _Values(table, 4, base, _from_base)
        yield _Values(table, 4, None, _from_place)
    yield _Values(place.values or place.number - words.size * place.count, words.size, None, _absolute)


def _decode_values(
    space: AddressSpace, place: KallsymsPlace, names: list[str], anchors: Mapping[str, int], words: Words
) -> Steps[array[int]]:
    """The addresses in the first reading that puts an anchor where it belongs."""
    known = [(names.index(name), address) for name, address in anchors.items() if name in names]
    yield
    for way in _ways(place, words):
        try:
            base = 0 if way.relative_base is None else words.number(space.read(way.relative_base, words.size))
            probes = [(way.table + way.width * index, way.width) for index, _address in known]
            found = [_values_of(way, at, space.read(at, size), base, words)[0] for at, size in probes]
            if not any(value == address for value, (_index, address) in zip(found, known, strict=True)):
                continue
            data = yield from space.read_chunks(way.table, way.width * place.count)
        except GuestMemoryError:
            continue
        addresses = array("Q")
        for start in range(0, len(data), way.width * _VALUES_PER_STEP):
            addresses.extend(_values_of(way, way.table + start, data[start : start + way.width * _VALUES_PER_STEP], base, words))
            yield
        return addresses
    raise BadImageError(
        f"the addresses of the kernel's symbol table at {place.names:#x} are in no known format: "
        f"{', '.join(anchors) or 'no known symbol'} did not come out right"
    )


def _values_of(way: _Values, at: int, data: bytes, base: int, words: Words) -> list[int]:
    values = struct.unpack(f"{words.order}{len(data) // way.width}{'i' if way.width == 4 else 'Q'}", data)
    places = accumulate([at, *[way.width] * (len(values) - 1)])
    mask = words.mask
    return [address & mask for address in way.addresses(zip(places, values, strict=True), base)]
