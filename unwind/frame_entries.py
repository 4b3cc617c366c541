"""Entries of ``.eh_frame`` and ``.debug_frame`` become the rows of functions (LSB Core 5.0, 10.6.1; DWARF 5, 6.4.1).

An entry is a function's (FDE), or what functions have in common (CIE). Both sections have them, and differ in how one names the
other, and what tells them apart:

    .eh_frame       a function's has the distance back to its common entry, a common one 0; addresses are encoded as that says
    .debug_frame    a function's has the common entry's offset in the section, a common one all bits set, both of 8 bytes in 64-bit
                    DWARF; addresses are plain numbers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from recording.errors import BadImageError
from unwind.cfa_program import Common, Program
from unwind.cfa_rows import FunctionRows
from unwind.dwarf import Reader
from unwind.user_abi import UserAbi

_MAX_ENTRY = 1 << 16
"""Bytes of a function's entry; the largest of a Debian system has about 2 KiB."""
_MAX_CACHED = 1 << 12
_EXTENDED: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """place: where it goes on behind its length. data: from there on. id_size: bytes of its first number."""

    place: int
    data: bytes
    id_size: int


class FrameEntries:
    """The entries of one section, by their addresses; those of ``.debug_frame`` are offsets in it."""

    def __init__(
        self, read: Callable[[int, int], bytes], abi: UserAbi, byteorder: Literal["little", "big"], *, is_debug: bool
    ) -> None:
        """read: bytes of the section at (address, size); raises where they are not known."""
        self._read = read
        self._abi = abi
        self._byteorder: Literal["little", "big"] = byteorder
        self._is_debug = is_debug
        self._commons: dict[int, Common] = {}

    def read_entry(self, address: int) -> Entry | None:
        """One entry, None for an end mark or padding. Raises BadImageError where there can be none."""
        length = int.from_bytes(self._read(address, 4), self._byteorder)
        place, id_size = address + 4, 4
        if length == 0:
            return None
        if length == _EXTENDED:
            length = int.from_bytes(self._read(place, 8), self._byteorder)
            place += 8
            id_size = 8 if self._is_debug else 4
        if not 4 < length <= _MAX_ENTRY:
            raise BadImageError(f"an entry at {address:#x} of an unwind table has {length} bytes")
        return Entry(place, self._read(place, length), id_size)

    def is_function(self, entry: Entry) -> bool:
        """Whether an entry is a function's."""
        return not self._is_common(int.from_bytes(entry.data[: entry.id_size], self._byteorder), entry.id_size)

    def _is_common(self, number: int, id_size: int) -> bool:
        return number == ((1 << 8 * id_size) - 1 if self._is_debug else 0)

    def read_range(self, entry: Entry) -> tuple[int, int]:
        """The addresses [start, end) of a function, whose entry this is."""
        return self._open_function(entry)[2:]

    def parse_function(self, address: int) -> FunctionRows | None:
        """The rows of the function whose entry is at an address, None where the entry is damaged."""
        try:
            entry = self.read_entry(address)
            if entry is None:
                return None
            common, reader, start, end = self._open_function(entry)
            if common.has_data:
                reader.block(reader.uleb())
            return FunctionRows(common, start, end, Program(common, reader, start).run())
        except BadImageError:
            return None

    def _open_function(self, entry: Entry) -> tuple[Common, Reader, int, int]:
        """What a function's entry builds upon, a reader that stands behind the function's addresses, and these: [start, end)."""
        reader = self._reader(entry)
        number = reader.number(entry.id_size)
        if self._is_common(number, entry.id_size):
            raise BadImageError(f"the entry at {entry.place:#x} of an unwind table belongs to no function")
        place = number if self._is_debug else entry.place - number
        common = self._commons.get(place)
        if common is None:
            if len(self._commons) >= _MAX_CACHED:
                self._commons.clear()
            common = self._commons[place] = self._parse_common(place)
        start = reader.pointer(common.pointer_encoding)
        # The end is written as a size.
        size = reader.value(common.pointer_encoding & 0x0F)
        return common, reader, start, start + max(0, size)

    def _parse_common(self, address: int) -> Common:
        entry = self.read_entry(address)
        if entry is None:
            raise BadImageError(f"the unwind table's entry at {address:#x} is empty")
        reader = self._reader(entry)
        if not self._is_common(reader.number(entry.id_size), entry.id_size):
            raise BadImageError(f"the unwind table's entry at {address:#x} is not the one that functions name")
        version = reader.byte()
        if version not in (1, 3, 4):
            raise BadImageError(f"the unwind table's entry at {address:#x} has the unknown version {version}")
        augmentation = reader.string()
        if version == 4 and (reader.byte(), reader.byte()) != (self._abi.pointer_size, 0):
            raise BadImageError(f"the unwind table at {address:#x} is of another architecture")
        if augmentation == b"eh":
            reader.number(self._abi.pointer_size)
            augmentation = b""
        code_alignment, data_alignment = reader.uleb(), reader.sleb()
        return_column = reader.byte() if version == 1 else reader.uleb()
        encoding, is_signal = _parse_augmentation(augmentation, reader)
        bare = Common(code_alignment, data_alignment, return_column, encoding, bool(augmentation), is_signal)
        rows = Program(bare, reader, 0).run()
        return Common(code_alignment, data_alignment, return_column, encoding, bool(augmentation), is_signal, rows[-1][1])

    def _reader(self, entry: Entry) -> Reader:
        return Reader(entry.data, entry.place, self._abi.pointer_size, self._byteorder)


def _parse_augmentation(augmentation: bytes, reader: Reader) -> tuple[int, bool]:
    """The encoding of addresses, and whether the functions are signal trampolines."""
    encoding, is_signal = 0, False
    if not augmentation:
        return encoding, is_signal
    if augmentation[:1] != b"z":
        raise BadImageError(f"the unwind table at {reader.address:#x} has the unknown augmentation {augmentation!r}")
    size = reader.uleb()
    stop = reader.position + size
    for letter in augmentation[1:].decode("latin-1"):
        if letter == "R":
            encoding = reader.byte()
        elif letter == "P":
            reader.value(reader.byte())
        elif letter == "L":
            reader.byte()
        elif letter == "S":
            is_signal = True
        else:
            raise BadImageError(f"the unwind table at {reader.address:#x} has the unknown augmentation {augmentation!r}")
    if reader.position > stop:
        raise BadImageError(f"the augmentation of the unwind table at {reader.address:#x} does not fit")
    reader.block(stop - reader.position)
    return encoding, is_signal
