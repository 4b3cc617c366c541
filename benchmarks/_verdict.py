"""A callchain of guestprof's and gdb's → whether they are equal, and if not, which class of difference it is.

The classes are decided from the two chains alone; docs/accuracy.md shows a sample of each and says why the rule is right. What no
rule explains is guestprof's fault until somebody has looked at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from benchmarks._truth import Reach, Truth, TruthFrame
from recording.model import Callchain


class Verdict(StrEnum):
    """What a comparison came to."""

    EQUAL = "equal"
    NOT_COMPARED = "not compared"
    GDB_INVENTED = "gdb invents a frame behind assembler code without DWARF"
    ENTRY_FRAME = "guestprof leaves out a frame of entry code, as the kernel's own table does"
    TRUNCATED = "guestprof's chain is right as far as it goes, but ends early"
    DIFFERENT = "guestprof's chain is another one"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A verdict, and the function in gdb's last frame that is equal ("" where nothing differs)."""

    verdict: Verdict
    function: str = ""


def compare_chains(chain: Callchain, truth: Truth) -> Comparison:
    """Compare program counters frame by frame. With k for the first place where the chains differ:

    ENTRY_FRAME: without gdb's frame k they are equal, and that and the frame before it are entry code.
    GDB_INVENTED: gdb's frame k - 1 has no call frame information, and behind a few frames more gdb's chain goes on as guestprof's
    does from k. TRUNCATED: guestprof has the frames before k alone.
    """
    if truth.reach not in (Reach.END, Reach.HELPED):
        return Comparison(Verdict.NOT_COMPARED)
    ours = [frame.pc for frame in chain.frames]
    theirs = [frame.pc for frame in truth.frames]
    if ours == theirs:
        return Comparison(Verdict.EQUAL)
    k = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    last = truth.frames[k - 1].name if k else ""
    if _skips_entry_code(truth.frames, k) and theirs[:k] + theirs[k + 1 :] == ours:
        return Comparison(Verdict.ENTRY_FRAME, last)
    more = len(theirs) - len(ours)
    if 0 < k < len(ours) and more > 0 and not truth.frames[k - 1].has_dwarf and ours[k:] == theirs[k + more :]:
        return Comparison(Verdict.GDB_INVENTED, last)
    return Comparison(Verdict.TRUNCATED if k == len(ours) else Verdict.DIFFERENT, last)


def _skips_entry_code(frames: tuple[TruthFrame, ...], k: int) -> bool:
    return 0 < k < len(frames) and frames[k].is_entry and frames[k - 1].is_entry
