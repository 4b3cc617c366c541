"""A table of a file that is known only in part: what is known of it, page by page."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from guest.memory import CHUNK_SIZE, Steps
from guest.user.contents import PAGE_SIZE, FileContents

_MAX_NAME = 1 << 12
"""Longer names (of deeply nested templates) are cut off here."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Bytes of which ``data`` has zeros where they are not known; ``missing``: offsets [start, end) of those, ascending."""

    data: bytes
    missing: tuple[tuple[int, int], ...]

    def knows(self, offset: int, size: int) -> bool:
        """Whether these bytes are known."""
        if not 0 <= offset <= offset + size <= len(self.data):
            return False
        before = bisect_left(self.missing, (offset + size, 0))
        return before == 0 or self.missing[before - 1][1] <= offset

    @property
    def most_text(self) -> int:
        """More than the characters of all names together, unless names are made to share text so that they fill our memory."""
        return 2 * len(self.data) + (1 << 20)

    def name(self, offset: int) -> str | None:
        """The text up to the next NUL; None where it is not known or beyond the table."""
        end = self.data.find(b"\0", offset, offset + _MAX_NAME)
        if end < 0:
            end = min(offset + _MAX_NAME, len(self.data))
        if self.missing and not self.knows(offset, end + 1 - offset):
            return None
        return self.data[offset:end].decode("utf-8", "backslashreplace")


def read_partial(contents: FileContents, offset: int, size: int) -> Steps[Partial]:
    """What is known of ``size`` bytes at a file offset, a step for each CHUNK_SIZE. The caller bounds the size."""
    pieces: list[bytes] = []
    missing: list[tuple[int, int]] = []
    for start in range(offset, offset + size, CHUNK_SIZE):
        end = min(start + CHUNK_SIZE, offset + size)
        whole = contents.read(start, end - start)
        if whole is not None:
            pieces.append(whole)
            yield
            continue
        position = start
        while position < end:
            after = min((position // PAGE_SIZE + 1) * PAGE_SIZE, end)
            page = contents.read(position, after - position)
            if page is None:
                page = bytes(after - position)
                if missing and missing[-1][1] == position - offset:
                    missing[-1] = (missing[-1][0], after - offset)
                else:
                    missing.append((position - offset, after - offset))
            pieces.append(page)
            position = after
        yield
    return Partial(b"".join(pieces), tuple(missing))
