"""The last resort where a kernel stack cannot be walked on: every word above that can be a return address is a frame, as a guess.

A stack also holds return addresses of calls that are over, so guesses name functions that may have nothing to do with it, and none
is left out. The reason for which the walk ended stays what it was: a stack with guesses never counts as whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from recording.model import Callchain, Frame, StackEnd
from unwind.capture import Capture
from unwind.outside import Unwound

_MAX_WORDS = 512
_MAX_GUESSES = 32
_WITHOUT_STACK = frozenset({StackEnd.ENTRY_WINDOW, StackEnd.NO_KERNEL})


def scan_stack(unwound: Unwound, capture: Capture, word_size: int, return_address: Callable[[bytes], int | None]) -> Unwound:
    """A callchain that did not come to its end, with guesses behind it from the outermost frame's stack pointer up.

    return_address: the one that a stack's word (as it lies in memory) may be, None where it can be none.
    """
    end, sp = unwound.callchain.end, unwound.root_sp
    if sp is None or not end.is_kernel or end.is_proper or end in _WITHOUT_STACK:
        return unwound
    guesses: list[Frame] = []
    start = sp & -word_size
    for address in range(start, start + _MAX_WORDS * word_size, word_size):
        data = capture.read(address, word_size)
        if data is None or len(guesses) >= _MAX_GUESSES:
            break
        pc = return_address(data)
        if pc is not None:
            guesses.append(Frame(pc, pc - 1, guess=True))
    return replace(unwound, callchain=Callchain((*unwound.callchain.frames, *guesses), end))
