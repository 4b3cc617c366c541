"""gdb's frames of a stack, one for each function also where it is inlined → callchains, with one frame for each activation.

gdb lists what is inlined at an address as frames of their own with the same address. A function that calls itself has frames of one
address too; there the names repeat, which those of an inlined function do not.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from recording.model import SourceLine, StackEnd
from sampler.gdb.mi import GdbProtocolError
from sampler.gdb.target import DEPTH_LIMIT, ToldStack

HANDLER = "<signal handler called>"
"""The name of the frame that the processor or the kernel has pushed for an exception: what is above was interrupted there."""
_UNKNOWN = "??"
_STOPPED = "Backtrace stopped: "
_ENDS = (
    ("annot access memory", StackEnd.UNREADABLE_MEMORY),
    ("not enough registers or memory", StackEnd.UNREADABLE_MEMORY),
    ("identical to this frame", StackEnd.DID_NOT_ADVANCE),
    ("inner to this frame", StackEnd.DID_NOT_ADVANCE),
    ("limit of", StackEnd.DEPTH_LIMIT),
)
"""What gdb gives as the reason for a stack's end (gdb/unwind_stop_reasons.def) → ours; NO_UNWIND_INFO for any other."""


@dataclass(frozen=True, slots=True)
class Activation:
    """One frame of the stack. pc, lookup_pc: see ``recording.model.Frame``.

    lines: the functions there, innermost first, the last one not inlined; none where gdb knows no function.
    guess: gdb came to it through code that it knows nothing of.
    """

    pc: int
    lookup_pc: int
    lines: tuple[SourceLine, ...]
    guess: bool = False

    def is_of(self, functions: Container[str]) -> bool:
        """Whether it is of one of these functions."""
        return bool(self.lines) and (self.lines[-1].name or "") in functions


@dataclass(frozen=True, slots=True)
class GdbStack:
    """The activations of a stack, leaf first, and why it ends."""

    activations: tuple[Activation, ...]
    end: StackEnd


@dataclass(frozen=True, slots=True)
class _Listed:
    """A frame as gdb lists it; line: None where gdb knows no function."""

    pc: int
    line: SourceLine | None


def parse_stack(told: ToldStack, roots: Container[str] = (), *, guesses: bool = False) -> GdbStack:
    """What gdb answered about one vCPU.

    roots: functions that nothing calls: a stack that ends in one is whole, whatever gdb looked for above it.
    guesses: keep what gdb makes of code that it knows nothing of, marked as such.

    Raises GdbProtocolError where the answer is damaged.
    """
    if told.frames.is_error:
        return GdbStack((), StackEnd.UNREADABLE_MEMORY)
    listed = _listed(told.frames.result.results().get("stack"))
    activations = _activations(listed)
    end = _end(told, len(listed))
    sure = _sure(activations)
    kept, others = activations[:sure], activations[sure:]
    if kept and kept[-1].is_of(roots) and (others or end is not StackEnd.DEPTH_LIMIT):
        return GdbStack(tuple(kept), StackEnd.TASK_ROOT)
    if not others:
        unknown = bool(kept) and not kept[-1].lines
        return GdbStack(tuple(kept), StackEnd.NO_UNWIND_INFO if unknown else end)
    guessed = (replace(each, guess=True) for each in others) if guesses else ()
    return GdbStack((*kept, *guessed), StackEnd.NO_UNWIND_INFO)


def _sure(activations: Sequence[Activation]) -> int:
    """How many activations are more than a guess of gdb's.

    Where it has no unwind data it looks at the code of the function, and where it knows no function at the stack alone. In a file
    with debug information a function without any is assembler code, which looks like no compiler's.
    """
    has_debug_information = any(line.path is not None for each in activations for line in each.lines)
    for index, each in enumerate(activations):
        if not each.lines:
            return max(1, index)
        if has_debug_information and each.lines[-1].path is None and each.lines[-1].name != HANDLER:
            return index + 1
    return len(activations)


def _listed(stack: object) -> list[_Listed]:
    if not isinstance(stack, list) or not all(isinstance(frame, dict) for frame in stack):
        raise GdbProtocolError("gdb's list of frames holds something else; check the program given to --gdb")
    return [_one(frame) for frame in stack[:DEPTH_LIMIT]]


def _one(frame: dict[str, object]) -> _Listed:
    try:
        pc = int(str(frame["addr"]), 16)
    except (KeyError, ValueError) as error:
        raise GdbProtocolError(f"gdb lists a frame without an address ({frame!r:.60}); check the program given to --gdb") from error
    name = str(frame.get("func", _UNKNOWN))
    number = str(frame.get("line", ""))
    path = frame.get("fullname", frame.get("file"))
    line = SourceLine(name, None if path is None else str(path), int(number) if number.isdecimal() else None)
    return _Listed(pc & 0xFFFF_FFFF_FFFF_FFFF, None if name == _UNKNOWN else line)


def _activations(listed: Sequence[_Listed]) -> list[Activation]:
    activations: list[Activation] = []
    is_exact = True
    for pc, group in groupby(listed, key=lambda frame: frame.pc):
        run = list(group)
        size = _period(run)
        for start in range(0, len(run), size):
            lines = tuple(frame.line for frame in run[start : start + size] if frame.line is not None)
            activations.append(Activation(pc, pc if is_exact else max(0, pc - 1), lines))
            is_exact = bool(lines) and lines[-1].name == HANDLER
    return activations


def _period(run: Sequence[_Listed]) -> int:
    """How many frames of one address make an activation."""
    sizes = (size for size in range(1, len(run)) if len(run) % size == 0)
    return next((size for size in sizes if all(run[at] == run[at - size] for at in range(size, len(run)))), len(run))


def _end(told: ToldStack, listed: int) -> StackEnd:
    if listed >= DEPTH_LIMIT:
        return StackEnd.DEPTH_LIMIT
    _before, stopped, reason = told.last.console().rpartition(_STOPPED)
    if told.last.is_error:
        return StackEnd.UNREADABLE_MEMORY
    if not stopped:
        return StackEnd.TASK_ROOT if listed else StackEnd.NO_UNWIND_INFO
    return next((end for words, end in _ENDS if words in reason), StackEnd.NO_UNWIND_INFO)
