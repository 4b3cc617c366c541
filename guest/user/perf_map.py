"""``/tmp/perf-PID.map`` becomes symbols of code that was made at run time (perf's JIT interface: Linux,
tools/perf/Documentation/jit-interface.txt): lines ``START SIZE name``, numbers hexadecimal, the name up to the line's end.

A program appends to the file as it compiles, and may reuse memory: where ranges overlap, the later line holds.
"""

from __future__ import annotations

import re
from array import array
from heapq import heappop, heappush, merge
from io import BytesIO

from guest.memory import Steps
from recording.symbols import SymbolTable

MAX_FILE = 1 << 25
"""Bytes of the file that are looked at: its end, which holds (a line that is cut there is none, or a wrong one of old code)."""
_MAX_LINES = 1 << 20
_LINES_PER_STEP = 1 << 9
_MAX_NAME = 1 << 12
_LINE = re.compile(rb"(?:0[xX])?([0-9a-fA-F]{1,16})[ \t]+(?:0[xX])?([0-9a-fA-F]{1,16})[ \t]+([^\r\n]*)")
_END = 1 << 64
_JIT_KIND, _GAP_KIND = b"t", b"?"


def parse_perf_map(text: bytes) -> Steps[SymbolTable]:
    """The symbols at run-time addresses. Lines that are none are skipped (the last one may be half written)."""
    ranges: list[tuple[int, int, int]] = []
    names: list[str] = []
    for number, line in enumerate(BytesIO(text[-MAX_FILE:])):
        if not number % _LINES_PER_STEP:
            yield
        match = _LINE.match(line)
        if match is None or number >= _MAX_LINES:
            continue
        start, size = int(match[1], 16), int(match[2], 16)
        name = match[3][:_MAX_NAME].decode("utf-8", "backslashreplace").replace("\0", "").strip()
        if size and name and start + size <= _END:
            ranges.append((start, start + size, -len(names)))
            names.append(name)
    return (yield from _make_table(ranges, names))


def _make_table(ranges: list[tuple[int, int, int]], names: list[str]) -> Steps[SymbolTable]:
    """Of the ranges (start, end, minus line) that cover an address, that of the last line names it."""
    pieces = []
    for first in range(0, len(ranges), _LINES_PER_STEP):
        pieces.append(sorted(ranges[first : first + _LINES_PER_STEP]))
        yield
    waiting = merge(*pieces)
    following = next(waiting, None)
    addresses, kinds, found = array("Q"), bytearray(), list[str]()
    covering: list[tuple[int, int]] = []
    ends: list[int] = []
    owner = 1
    dropped = 0
    # Each range begins once and ends once.
    for number in range(2 * len(ranges)):
        if not number % _LINES_PER_STEP:
            yield
        edge = min(ends[0] if ends else _END, following[0] if following else _END)
        if ends and ends[0] == edge:
            heappop(ends)
        elif following is not None:
            heappush(covering, (following[2], following[1]))
            heappush(ends, following[1])
            following = next(waiting, None)
        if (ends and ends[0] == edge) or (following is not None and following[0] == edge):
            continue
        while covering and covering[0][1] <= edge:
            heappop(covering)
            dropped += 1
            if not dropped % _LINES_PER_STEP:
                yield
        now = covering[0][0] if covering else 1
        if now != owner and edge < _END:
            addresses.append(edge)
            kinds += _JIT_KIND if now <= 0 else _GAP_KIND
            found.append(names[-now] if now <= 0 else "")
        owner = now
    return SymbolTable(addresses, bytes(kinds), found)
