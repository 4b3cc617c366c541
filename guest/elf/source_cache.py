"""What was read of a file's debug information is kept on the host by build ID, so that the next time takes no reading of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from guest.cache import HostCache
from guest.elf.inlined import Inlined, SourceFrame, SourceFunction

T = TypeVar("T")

_MAX_JSON = 1 << 28


class SourceCache(HostCache):
    """What is known of files with debug information, by the file's build ID.

    frames: of addresses that were asked for. functions: what other addresses of these are answered by. anchors: symbols by
    which a kernel's place is told.
    """

    MAGIC = b"GPSRCL1\0"
    SUFFIX = ".lines"
    DIRECTORY = "lines"

    def load_frames(self, key: str) -> dict[int, tuple[SourceFrame, ...]]:
        """By address."""
        return dict(self._load(key, "frames", lambda address, *frames: (address, tuple([SourceFrame(*each) for each in frames]))))

    def load_functions(self, key: str) -> list[SourceFunction]:
        """Those that were kept."""
        texts, *rows = self._load(key, "functions", lambda *row: row) or [()]
        try:
            return [_function(row, texts) for row in rows]
        except (ValueError, TypeError, IndexError):
            return []

    def load_anchors(self, key: str) -> list[tuple[str, int, int]]:
        """Name, section and address of each."""
        return self._load(key, "anchors", lambda name, section, address: (str(name), int(section), int(address)))

    def _load(self, key: str, section: str, make: Callable[..., T]) -> list[T]:
        """The rows of a section, none where there are none or they are damaged."""
        try:
            engine = zlib.decompressobj()
            packed = (self.load(key) or {})[section]
            return [make(*row) for row in json.loads(engine.decompress(packed, _MAX_JSON))]
        except (KeyError, ValueError, TypeError, zlib.error):
            return []

    def save_lines(self, key: str, frames: Mapping[int, Sequence[SourceFrame]], functions: Sequence[SourceFunction]) -> None:
        """Keep these; what was kept before of lines is replaced."""
        texts: dict[str | None, int] = {}
        rows = [_row(function, texts) for function in functions]
        told = [[address, *[[each.name, each.path, each.line] for each in of_it]] for address, of_it in frames.items()]
        self._save(key, {"functions": [list(texts), *rows], "frames": told})

    def save_anchors(self, key: str, anchors: Sequence[tuple[str, int, int]]) -> None:
        """Keep these."""
        self._save(key, {"anchors": anchors})

    def _save(self, key: str, sections: Mapping[str, object]) -> None:
        packed = {name: zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1) for name, rows in sections.items()}
        self.save(key, {**(self.load(key) or {}), **packed})


def _row(function: SourceFunction, texts: dict[str | None, int]) -> list[object]:
    """Plain lists: names and paths by their numbers."""

    def number(text: str | None) -> int:
        return texts.setdefault(text, len(texts))

    inlined = [[number(each.name), each.ranges, number(each.call_path), each.call_line, each.depth] for each in function.inlined]
    addresses, paths, lines = zip(*function.rows, strict=True) if function.rows else ((), (), ())
    return [number(function.name), function.ranges, inlined, addresses, [number(path) for path in paths], lines]


def _function(row: Sequence[Any], texts: Sequence[Any]) -> SourceFunction:
    name, ranges, inlined, addresses, paths, lines = row
    return SourceFunction(
        texts[name],
        _ranges(ranges),
        tuple(Inlined(texts[own], _ranges(where), texts[path], line, depth) for own, where, path, line, depth in inlined),
        tuple(zip(addresses, [texts[path] for path in paths], lines, strict=True)),
    )


def _ranges(rows: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for start, end in rows)
