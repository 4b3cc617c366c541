"""Captures on their way to being samples: those taken just now, and those that wait for something to become known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from sampler.samples import Made, Pending

_MAX_WAITING_BYTES = 256 << 20
"""Captures are kept for being walked again up to this; later ones keep what was found at first."""
_MAX_LAG_NS = 100_000_000
"""Captures wait for their first walk no longer than this, whatever rate was asked for: a killed profiler loses what waits."""


class Backlog:
    """Who is next: fresh captures before those that are walked again."""

    def __init__(self) -> None:
        self._fresh: deque[Pending] = deque()
        self._again: deque[Pending | Made] = deque()
        self._for_kernel: list[Pending] = []
        self._for_files: dict[int, list[Made]] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether any capture can be walked now."""
        return bool(self._fresh or self._again)

    def add(self, pending: Pending) -> None:
        """A capture that was taken just now."""
        self._fresh.append(pending)

    def pop(self) -> Pending | Made:
        """The next one to walk: as a whole, or its user stack again."""
        return (self._fresh or self._again).popleft()

    def is_late(self, now_ns: int) -> bool:
        """Whether fresh captures have waited for too long."""
        return bool(self._fresh) and now_ns - self._fresh[0].taken_ns > _MAX_LAG_NS

    def wait_for_kernel(self, pending: Pending) -> None:
        """Keep a capture until more is known of the kernel, where there is room."""
        if self._has_room(pending):
            self._for_kernel.append(pending)

    def kernel_known(self) -> None:
        """More is known of the kernel: those that waited for that are walked again."""
        self._again.extend(self._for_kernel)
        self.kernel_gone()

    def kernel_gone(self) -> None:
        """No kernel will explain those that wait for one."""
        self._free(self._for_kernel)
        self._for_kernel.clear()

    def wait_for_files(self, made: Made) -> None:
        """Keep a sample's capture until one of its files becomes known, where there is room."""
        if self._has_room(made.pending):
            self._for_files.setdefault(min(made.unread), []).append(made)

    def file_known(self, image: int) -> None:
        """Those that waited for a file are walked again (and may then wait for another one)."""
        waiting = self._for_files.pop(image, [])
        self._free([made.pending for made in waiting])
        self._again.extend(waiting)

    def _has_room(self, pending: Pending) -> bool:
        if self._bytes + pending.size > _MAX_WAITING_BYTES:
            return False
        self._bytes += pending.size
        return True

    def _free(self, pending: Iterable[Pending]) -> None:
        self._bytes -= sum(each.size for each in pending)
