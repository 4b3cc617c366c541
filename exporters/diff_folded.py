"""Two sides become differential folded stacks, ``root;...;leaf BEFORE AFTER``: what FlameGraph's difffolded.pl writes.

flamegraph.pl draws them with the widths of the second column, coloured by the difference. Stacks that are gone are only seen the
other way round (``diff B A``, and ``flamegraph.pl --negate``).
"""

from __future__ import annotations

from collections import Counter

from exporters.folded import folded_name, process_name
from recording.blocks import longest_ns
from recording.contrast import Measure
from recording.matching import UNNAMED, function_key, task_name
from recording.names import Function
from recording.profile import Origin, Profile, Stack

_PARTS = 1_000_000
_MICROSECOND = 1000


class FoldedSide:
    """The stacks of one side. Its recordings are added one after the other, none of which is needed any more then.

    weights: nanoseconds by process and frames. Names have no addresses and nothing of what compilers append.
    """

    def __init__(self, *, annotate: bool = True) -> None:
        """annotate: as in ``export_folded``."""
        self._annotate = annotate
        self.weights: Counter[tuple[str, str]] = Counter()
        self.runs = 0
        self.has_tasks = False

    def add(self, profile: Profile) -> None:
        """One more recording. What late samples stand for and nobody saw is left out, as in other formats of ``diff``."""
        self.runs += 1
        self.has_tasks |= profile.has_tasks
        names = [folded_name(_common(each), annotate=self._annotate) for each in profile.functions]
        known: dict[tuple[int, int], tuple[str, str]] = {}
        frames: dict[int, str] = {}

        def key_of(stack: Stack, origin: Origin) -> tuple[str, str]:
            key = known.get((id(stack), id(origin)))
            if key is None:
                if id(stack) not in frames:
                    frames[id(stack)] = ";".join([names[index] for index in stack.indexes])
                process = process_name(task_name(origin.process.root_name))
                key = known[id(stack), id(origin)] = process, frames[id(stack)]
            return key

        for count in profile.counts:
            self.weights[key_of(count.stack, count.origin)] += count.weight_ns
        most_ns = longest_ns(profile.halt_times())
        for batch in profile.batches(lambda walk, origin: key_of(walk.stack, origin)):
            if max(batch.weights_ns, default=0) > most_ns:
                for key, weight_ns in zip(batch.values, batch.weights_ns, strict=True):
                    self.weights[key] -= max(0, weight_ns - most_ns)

    @property
    def weight_ns(self) -> int:
        """Of all stacks."""
        return self.weights.total()


def _common(function: Function) -> Function:
    """What a function is called on both sides; code of a program without symbols is told by the program."""
    key = function_key(function)
    return Function(f"{key.module} {UNNAMED}" if key.name == UNNAMED and key.module else key.name, key.module, key.kind)


def export_diff_folded(before: FoldedSide, after: FoldedSide, measure: Measure = Measure.SHARE) -> bytes:
    """Lines in alphabetical order; both columns are in millionths of the side's time, or in microseconds of a recording."""
    sides = before, after
    with_tasks = before.has_tasks and after.has_tasks
    weights: dict[str, list[int]] = {}
    for index, side in enumerate(sides):
        for (process, frames), weight in side.weights.items():
            line = f"{process};{frames}" if with_tasks else frames
            weights.setdefault(line, [0, 0])[index] += weight
    if measure is Measure.SHARE:
        scales = [_PARTS / side.weight_ns if side.weight_ns else 0.0 for side in sides]
    else:
        scales = [1 / _MICROSECOND / max(1, side.runs) for side in sides]
    made = []
    for line in sorted(weights):
        columns = [round(weight * scale) for weight, scale in zip(weights[line], scales, strict=True)]
        if any(columns):
            made.append(f"{line} {columns[0]} {columns[1]}\n")
    return "".join(made).encode()
