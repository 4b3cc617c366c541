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
_ALIGNING = b"\x8d\x4c\x24\x04\x83\xe4\xf0"
"""``lea 4(%esp), %ecx``, ``and $-16, %esp``: with these a function begins that aligns its stack, as ``main`` does."""
_DISTANCE = struct.Struct("<i")
_MAX_SIZE = 1 << 25
"""Bytes of a segment that are looked through."""
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
            self._next *= 2
            self._find()
        called, kept = (_nearest(starts, address) for starts in (self._called, self._kept))
        return list(dict.fromkeys((*called[:1], *kept[:2], *called[1:], *kept[2:])))

    def _find(self) -> None:
        called: set[int] = set()
        kept: set[int] = set()
        self._is_whole = True
        code = [load for load in self._file.segments if load.is_executable]
        for load in self._file.segments:
            for start, data in self._known(load):
                if load.is_executable:
                    for match in _CALL.finditer(data):
                        target = start + match.start() + 5 + _DISTANCE.unpack(match[1])[0]
                        if any(each.holds(target) for each in code):
                            called.add(target)
                    kept.update(start + match.start() for match in re.finditer(re.escape(_ALIGNING), data))
                words = data[-start % 4 :]
                for (word,) in struct.iter_unpack("<I", words[: len(words) & -4]):
                    if any(each.address <= word < each.address + each.file_size for each in code):
                        kept.add(word)
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
