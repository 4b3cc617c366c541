"""Where functions begin in a file without symbols, as its code and data say: what is called, and what addresses of code are kept.

A byte that looks like a call may be a part of another instruction, and an address that of a label (a ``switch``): whoever uses
these checks what follows from them.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Sequence

from guest.elf.file import ElfFile
from guest.elf.header import Segment
from guest.user.contents import PAGE_SIZE

_CALL = re.compile(rb"\xe8(?=(....))", re.DOTALL)
"""``call rel32`` (Intel SDM volume 2)."""
_ALIGNING = re.compile(rb"\x8d\x4c\x24\x04\x83\xe4\xf0")
"""``lea 4(%esp), %ecx``, ``and $-16, %esp``: with these a function begins that aligns its stack, as ``main`` does."""
_DISTANCE, _WORD = struct.Struct("<i"), struct.Struct("<I")
_MAX_SIZE = 1 << 25
"""Bytes of a segment that are looked through."""
_PATIENCE = 4
_NEAREST = 6
_MAX_DISTANCE = 1 << 16


class FunctionStarts:
    """Of one file, as far as it is known when it is asked; looked for again, more and more seldom, where that was not all of it."""

    def __init__(self, file: ElfFile) -> None:
        self._file = file
        self._called: list[int] = []
        self._kept: list[int] = []
        self._asked, self._next = 0, 1
        self._is_whole = False

    def before(self, address: int) -> Sequence[int]:
        """Where the function of an address may begin, likeliest first."""
        self._asked += 1
        if not self._is_whole and self._asked >= self._next:
            self._next *= _PATIENCE
            self._find()
        called, kept = (_nearest(starts, address) for starts in (self._called, self._kept))
        return list(dict.fromkeys((*called[:1], *kept[:2], *called[1:], *kept[2:])))

    def _find(self) -> None:
        called: set[int] = set()
        kept: set[int] = set()
        self._is_whole = True
        code = [load for load in self._file.segments if load.is_executable]
        low = min((load.address for load in code), default=0)
        high = max((load.address + load.file_size for load in code), default=0)
        for load in self._file.segments:
            for start, data in self._known(load):
                if load.is_executable:
                    targets = ((match.start(), _DISTANCE.unpack(match[1])[0]) for match in _CALL.finditer(data))
                    called.update(target for at, distance in targets if low <= (target := start + at + 5 + distance) < high)
                    kept.update(start + match.start() for match in _ALIGNING.finditer(data))
                else:
                    words = data[-start % 4 :]
                    kept.update(word for (word,) in _WORD.iter_unpack(words[: len(words) & -4]) if low <= word < high)
        self._called, self._kept = sorted(called), sorted(kept)

    def _known(self, load: Segment) -> list[tuple[int, bytes]]:
        """(address, bytes) of the pieces of a segment that are known."""
        size = min(load.file_size, _MAX_SIZE)
        whole = self._file.read(load.address, size)
        if whole is not None:
            return [(load.address, whole)]
        self._is_whole = False
        found = []
        for at in range(0, size, PAGE_SIZE):
            data = self._file.read(load.address + at, min(PAGE_SIZE, size - at))
            if data is not None:
                found.append((load.address + at, data))
        return found


def _nearest(starts: list[int], address: int) -> list[int]:
    index = bisect_right(starts, address)
    return [start for start in reversed(starts[max(0, index - _NEAREST) : index]) if address - start < _MAX_DISTANCE]
