"""``/tmp/perf-PID.map`` becomes symbols of code that was made at run time (perf's JIT interface: Linux,
tools/perf/Documentation/jit-interface.txt): lines ``START SIZE name``, numbers hexadecimal, the name up to the line's end.

A program appends to the file as it compiles, and may reuse memory: where ranges overlap, the later line holds.
"""

from __future__ import annotations

import re
from array import array
from heapq import heappop, heappush
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
    ranges.sort()
    edges = sorted({edge for start, end, _ in ranges for edge in (start, end)})
    addresses, kinds, found = array("Q"), bytearray(), list[str]()
    covering: list[tuple[int, int]] = []
    owner, position = 1, 0
    yield
    for number, edge in enumerate(edges):
        if not number % _LINES_PER_STEP:
            yield
        while position < len(ranges) and ranges[position][0] == edge:
            _, end, order = ranges[position]
            heappush(covering, (order, end))
            position += 1
        while covering and covering[0][1] <= edge:
            heappop(covering)
        now = covering[0][0] if covering else 1
        if now != owner and edge < _END:
            addresses.append(edge)
            kinds += _JIT_KIND if now <= 0 else _GAP_KIND
            found.append(names[-now] if now <= 0 else "")
        owner = now
    return SymbolTable(addresses, bytes(kinds), found)
