"""A file that the guest's console is written to becomes lines, while it grows."""

from __future__ import annotations

from pathlib import Path

_READ_LIMIT = 1 << 20
_LINE_LIMIT = 2000
"""Bytes that are kept of a line: the first of one that is whole, the last of one that is being written."""


class Console:
    """Reads what is new of the file each time. It need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> tuple[list[str], str]:
        """The new lines that are whole, and what stands of the one that is being written."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ_LIMIT)
        except OSError:
            data = b""
        self._offset += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LINE_LIMIT:]
        return [_text(line[:_LINE_LIMIT]) for line in lines], _text(self._rest)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
