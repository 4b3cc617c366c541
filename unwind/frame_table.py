"""``.eh_frame_hdr`` and ``.eh_frame``, or ``.debug_frame``, become rows by address (LSB Core 5.0, 10.5 and 10.6; DWARF 5, 6.4).

Of a file that lies in a guest only pieces may be known. So everything is read when an address is asked for, and little of it: a few
pages of the sorted table in ``.eh_frame_hdr``, and the entries of one function (an FDE and the CIE that it names). A section
without such a table (``.debug_frame`` never has one) is read through once, for where each function's entry is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, Literal

from recording.errors import BadImageError
from unwind.cfa_rows import FunctionRows, Lowering
from unwind.dwarf import OMIT, Reader, fixed_encoding
from unwind.frame_entries import FrameEntries
from unwind.frame_index import FunctionIndex, SearchTable
from unwind.rules import Row
from unwind.user_abi import UserAbi

_PAGE: Final = 4096
_MAX_FUNCTIONS = 1 << 20
"""Of a table without a sorted header; a kernel has 100,000."""
_MAX_END_MARKS = 64
_MAX_PAGES = 256
_MAX_CACHED = 1 << 16
"""Rows by address that are kept; then all are forgotten."""
_MAX_CACHED_FUNCTIONS = 1 << 12
_STEP = 256


class Unread(Enum):
    """The answer of a table whose bytes are not known now; when more of the file was read there may be another."""

    UNREAD = 0


class _UnreadError(Exception):
    """Bytes that are needed are not known now."""


class FrameTable:
    """The unwind table of one file, at link-time addresses."""

    def __init__(
        self,
        read: Callable[[int, int], bytes | None],
        abi: UserAbi,
        byteorder: Literal["little", "big"],
        *,
        header: tuple[int, int] | None = None,
        frames: tuple[int, int] | None = None,
        is_debug: bool = False,
    ) -> None:
        """``header``, ``frames``: address and size of ``.eh_frame_hdr`` and ``.eh_frame``, as far as they are known.

        read: bytes of the file by link-time address, None where they are not known now. is_debug: ``frames`` is ``.debug_frame``,
        at address 0, and ``read`` reads it.
        """
        self._read = read
        self._abi = abi
        self._byteorder: Literal["little", "big"] = byteorder
        self._header = header
        self._frames = frames
        self._lowering = Lowering(abi, byteorder)
        self._rows: dict[int, Row | None] = {}
        self._starts: dict[int, int] = {}
        self._functions: dict[int, FunctionRows | None] = {}
        self._entries = FrameEntries(self._bytes, abi, byteorder, is_debug=is_debug)
        self._pages: dict[int, bytes] = {}
        self._table: SearchTable | None = None
        self._index: FunctionIndex | None = None

    def find_row(self, address: int) -> Row | Unread | None:
        """The row for a link-time address; None where the table says nothing about it, or is damaged there."""
        try:
            return self._rows[address]
        except KeyError:
            pass
        try:
            row = self._find(address)
        except BadImageError:
            row = None
        except _UnreadError:
            return Unread.UNREAD
        if len(self._rows) >= _MAX_CACHED:
            self._rows.clear()
            self._starts.clear()
        self._rows[address] = row
        return row

    def find_start(self, address: int) -> int | None:
        """Where the function begins whose row ``find_row`` has just given, None where it gave none."""
        return self._starts.get(address)

    def prepare(self) -> Iterator[None]:
        """Make what ``find_row`` would else make at its first call, in small steps: an unsorted table has to be read whole."""
        try:
            if self._find_table() is None and self._index is None:
                yield from self._build_index()
        except (BadImageError, _UnreadError):
            return

    def is_bare(self, address: int) -> bool:
        """Whether the function whose row ``find_row`` has just given has no other row than the one at its start."""
        function = self._function_at(address)
        return function is not None and function.is_bare

    def _find(self, address: int) -> Row | None:
        function = self._function_at(address)
        row = None if function is None else function.find(address, self._lowering)
        if function is not None and row is not None:
            self._starts[address] = function.start
        return row

    def _function_at(self, address: int) -> FunctionRows | None:
        """The last function that begins at or below an address."""
        table = self._find_table()
        if table is not None:
            entry = table.find(address)
        else:
            if self._index is None:
                for _ in self._build_index():
                    pass
            entry = None if self._index is None else self._index.find(address)
        if entry is None:
            return None
        return self._functions[entry] if entry in self._functions else self._parse_function(entry)

    def _find_table(self) -> SearchTable | None:
        """The sorted table of the header, None if there is none."""
        if self._table is None and self._header is not None:
            address, size = self._header
            reader = self._reader(address, self._read_header(address, min(size, 32)))
            if reader.byte() != 1:
                raise BadImageError(f"the unwind table's header at {address:#x} has an unknown version")
            frames_encoding, count_encoding, table_encoding = reader.byte(), reader.byte(), reader.byte()
            if frames_encoding != OMIT:
                start = reader.pointer(frames_encoding, address)
                if self._frames is None:
                    self._frames = (start, 0)
            encoding = fixed_encoding(table_encoding, self._abi.pointer_size, self._byteorder, address)
            if OMIT in (count_encoding, table_encoding) or encoding is None:
                self._header = None
                return None
            count = reader.pointer(count_encoding, address)
            start = address + reader.position
            count = min(count, (size - reader.position) // (2 * encoding.size))
            mask = (1 << 8 * self._abi.pointer_size) - 1
            self._table = SearchTable(start, count, encoding, mask, self._read_header)
        return self._table

    def _build_index(self) -> Iterator[None]:
        """The functions of a section without a sorted table. A size of 0 means: up to its end mark."""
        if self._frames is None:
            return
        start, size = self._frames
        address, index, marks = start, FunctionIndex(), 0
        for number in range(_MAX_FUNCTIONS):
            if size and address >= start + size:
                break
            try:
                entry = self._entries.read_entry(address)
            except BadImageError:
                break
            if entry is None:
                marks += 1
                if not size or marks > _MAX_END_MARKS:
                    break
                address += 4
                continue
            if self._entries.is_function(entry):
                # One that is damaged says nothing; its length led to the next.
                with contextlib.suppress(BadImageError):
                    index.add(*self._entries.read_range(entry), address)
            address = entry.place + len(entry.data)
            if number % _STEP == _STEP - 1:
                yield
        index.finish()
        self._index = index

    def _parse_function(self, address: int) -> FunctionRows | None:
        function = self._entries.parse_function(address)
        if len(self._functions) >= _MAX_CACHED_FUNCTIONS:
            self._functions.clear()
        self._functions[address] = function
        return function

    def _reader(self, address: int, data: bytes) -> Reader:
        return Reader(data, address, self._abi.pointer_size, self._byteorder)

    def _bytes(self, address: int, size: int) -> bytes:
        data = self._read(address, size)
        if data is None or len(data) != size:
            raise _UnreadError
        return data

    def _read_header(self, address: int, size: int) -> bytes:
        """Bytes of the header section, in pages that are kept."""
        offset = address % _PAGE
        page = self._read_page(address - offset)
        data = page[offset : offset + size]
        return data if len(data) == size else data + self._read_page(address - offset + _PAGE)[: size - len(data)]

    def _read_page(self, address: int) -> bytes:
        """A page as far as the section goes; zeros where it has not begun."""
        page = self._pages.get(address)
        if page is None:
            if self._header is None:
                raise _UnreadError
            start = max(address, self._header[0])
            end = min(address + _PAGE, self._header[0] + self._header[1])
            page = bytes(start - address) + self._bytes(start, end - start) if start < end else b""
            if len(self._pages) >= _MAX_PAGES:
                self._pages.clear()
            self._pages[address] = page
        return page
