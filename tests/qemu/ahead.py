"""Guests of a list, each booted while the tests still use the one before: never more than two at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from tests.qemu.guests import Guest

K = TypeVar("K")


class GuestsAhead(Generic[K]):
    """Gives out guests in the order of ``wanted``; in another order, too, but then nothing is ahead."""

    def __init__(self, wanted: Sequence[K], start: Callable[[K], Guest]) -> None:
        """start: boots a guest. It is called in a thread of its own, one call at a time."""
        self._wanted = list(dict.fromkeys(wanted))
        self._start = start
        self._pool = ThreadPoolExecutor(1, "boot")
        self._ahead: tuple[K, Future[Guest]] | None = None
        self._current: Guest | None = None

    def take(self, which: K) -> Guest:
        """A running guest. The one that was given before ends, and the next one begins to boot."""
        if self._current is not None:
            self._current.close()
            self._current = None
        if self._ahead is None or self._ahead[0] != which:
            self._drop_ahead()
            self._begin(which)
        assert self._ahead is not None
        ahead, self._ahead = self._ahead, None
        guest = self._current = ahead[1].result()
        guest.execute("cont")
        following = self._wanted[self._wanted.index(which) + 1 :] if which in self._wanted else []
        if following:
            self._begin(following[0])
        return guest

    def _begin(self, which: K) -> None:
        self._ahead = which, self._pool.submit(self._boot, which)

    def _boot(self, which: K) -> Guest:
        """A guest that has booted and stands still, so that it takes no time from the one in use."""
        guest = self._start(which)
        guest.execute("stop")
        return guest

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            failed = self._ahead[1].exception()
            if failed is None:
                self._ahead[1].result().close()
            self._ahead = None

    def close(self) -> None:
        """End what runs. A boot that is under way is waited for."""
        self._drop_ahead()
        self._pool.shutdown()
        if self._current is not None:
            self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
