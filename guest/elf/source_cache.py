"""What was read of a file's debug information is kept on the host by build ID, so that the next time takes no reading of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from guest.cache import HostCache
from guest.elf.inlined import Inlined, SourceFunction

_MAX_JSON = 1 << 28


class SourceCache(HostCache):
    """Functions of files with debug information, by the file's build ID."""

    MAGIC = b"GPSRCL1\0"
    SUFFIX = ".lines"
    DIRECTORY = "lines"

    def load_functions(self, key: str) -> list[SourceFunction]:
        """Those that were kept, none where there are none or they are damaged."""
        sections = self.load(key)
        if sections is None:
            return []
        try:
            engine = zlib.decompressobj()
            texts, rows = json.loads(engine.decompress(sections["functions"], _MAX_JSON))
            return [_function(row, texts) for row in rows]
        except (KeyError, ValueError, TypeError, IndexError, zlib.error):
            return []

    def save_functions(self, key: str, functions: Iterable[SourceFunction]) -> None:
        """Keep all of these; what was kept before is replaced."""
        texts: dict[str | None, int] = {}
        rows = [_row(function, texts) for function in functions]
        data = json.dumps([list(texts), rows], separators=(",", ":")).encode("utf-8", "surrogateescape")
        self.save(key, {"functions": zlib.compress(data, 1)})


def _row(function: SourceFunction, texts: dict[str | None, int]) -> list[object]:
    """Plain lists: names and paths by their numbers."""

    def number(text: str | None) -> int:
        return texts.setdefault(text, len(texts))

    inlined = [[number(each.name), each.ranges, number(each.call_path), each.call_line, each.depth] for each in function.inlined]
    addresses, paths, lines = zip(*function.rows, strict=True) if function.rows else ((), (), ())
    return [number(function.name), function.ranges, inlined, addresses, [number(path) for path in paths], lines]


def _function(row: list[Any], texts: list[str | None]) -> SourceFunction:
    name, ranges, inlined, addresses, paths, lines = row
    return SourceFunction(
        texts[name],
        _ranges(ranges),
        tuple(Inlined(texts[own], _ranges(where), texts[path], line, depth) for own, where, path, line, depth in inlined),
        tuple(zip(addresses, [texts[path] for path in paths], lines, strict=True)),
    )


def _ranges(rows: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for start, end in rows)
