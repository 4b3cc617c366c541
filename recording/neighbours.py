"""Who calls a function, and whom it calls: pure functions of a profile."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from recording.errors import UnknownFunctionError
from recording.model import FrameKind
from recording.names import Function
from recording.profile import Profile
from recording.views import Total

_NOBODY = Function("[root]", "", FrameKind.UNKNOWN)
"""Stands for the caller of a function in which stacks begin."""
_ITSELF = Function("[self]", "", FrameKind.UNKNOWN)
"""Stands for what a function did itself."""
_SIMILAR = 3
_Indexes = tuple[int, ...]


def caller_totals(profile: Profile, name: str) -> tuple[Total, list[Total]]:
    """What a function took, and by its direct callers how much of that: a sample counts for the caller of its outermost call.

    self_ns: while the function itself was the innermost. Raises UnknownFunctionError.
    """

    def caller(indexes: _Indexes, wanted: set[int]) -> tuple[int | None, bool]:
        first = next(place for place, index in enumerate(indexes) if index in wanted)
        return (indexes[first - 1] if first else None), indexes[-1] in wanted

    return _neighbours(profile, name, _NOBODY, caller)


def callee_totals(profile: Profile, name: str) -> tuple[Total, list[Total]]:
    """What a function took, and by what it calls directly how much of that: a sample counts for the callee of its innermost call.

    self_ns: while the callee itself was the innermost. ``[self]`` is what the function did without calling anything.
    Raises UnknownFunctionError.
    """

    def callee(indexes: _Indexes, wanted: set[int]) -> tuple[int | None, bool]:
        last = max(place for place, index in enumerate(indexes) if index in wanted)
        return (None, True) if last + 1 == len(indexes) else (indexes[last + 1], last + 2 == len(indexes))

    return _neighbours(profile, name, _ITSELF, callee)


def _neighbours(
    profile: Profile, name: str, nobody: Function, find: Callable[[_Indexes, set[int]], tuple[int | None, bool]]
) -> tuple[Total, list[Total]]:
    """find: the index of a stack's neighbour, None for nobody; and whether its time is self time there."""
    wanted = {index for index, function in enumerate(profile.functions) if function.name == name}
    sums: dict[int | None, list[int]] = {}
    own_ns = 0
    for count in profile.counts:
        indexes = count.stack.indexes
        if wanted.isdisjoint(indexes):
            continue
        neighbour, is_self = find(indexes, wanted)
        row = sums.setdefault(neighbour, [0, 0, 0])
        row[0] += count.weight_ns if is_self else 0
        row[1] += count.weight_ns
        row[2] += count.samples
        own_ns += count.weight_ns if indexes[-1] in wanted else 0
    if not sums:
        raise UnknownFunctionError(unknown_function(profile, name))
    merged: dict[Function, list[int]] = {}
    for index, row in sums.items():
        known = merged.setdefault(nobody if index is None else profile.functions[index], [0, 0, 0])
        for place, value in enumerate(row):
            known[place] += value
    totals = [
        Total(function.name, function.module, function.kind, own, total, samples, None, function.is_inlined)
        for function, (own, total, samples) in merged.items()
    ]
    kinds = {(profile.functions[index].module, profile.functions[index].kind) for index in wanted}
    module, kind = kinds.pop() if len(kinds) == 1 else ("", FrameKind.UNKNOWN)
    whole = Total(name, module, kind, own_ns, sum(total.total_ns for total in totals), sum(total.samples for total in totals))
    return whole, sorted(totals, key=lambda total: (total.name, total.module, total.kind, total.is_inlined))


def unknown_function(profile: Profile, name: str) -> str:
    """A sentence that says so of a function, and which ones are called nearly the same."""
    names = sorted({profile.functions[index].name for count in profile.counts for index in count.stack.indexes})
    inside = [known for known in names if name and name.lower() in known.lower()]
    similar = inside[:_SIMILAR] or get_close_matches(name, names, _SIMILAR)
    hint = f"similar: {', '.join(similar)}" if similar else "guestprof report lists all functions"
    return f"no selected sample shows a function {name}; {hint}"
