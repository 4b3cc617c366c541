"""Two sides become differential folded stacks, ``root;...;leaf BEFORE AFTER``: what FlameGraph's difffolded.pl writes.

flamegraph.pl draws them with the widths of the second column, coloured by the difference. Stacks that are gone are only seen the
other way round (``diff B A``, and ``flamegraph.pl --negate``).
"""

from __future__ import annotations

from exporters.diff import DiffView
from exporters.folded import folded_name, process_name
from recording.contrast import Measure
from recording.names import Function
from recording.rows import CompareBy, Rows

_PARTS = 1_000_000
_MICROSECOND = 1000


def export_diff_folded(view: DiffView, *, annotate: bool = True) -> bytes:
    """Lines in alphabetical order; both columns are in millionths of the side's time, or in microseconds of a recording.

    Names have no addresses and nothing of what compilers append. annotate: as in ``export_folded``.
    """
    sides = view.comparison.sides
    with_tasks = all(side.has_tasks for side in sides)
    rows = Rows(CompareBy.PATH, with_tasks=with_tasks)
    weights: dict[str, list[int]] = {}
    lines: dict[int, str] = {}
    for index, side in enumerate(sides):
        for cell in side.cells:
            number = rows.place(cell)[-1]
            if number not in lines:
                keys = rows.path_keys(number)
                names = [process_name(key.name) for key in keys[:1]] if with_tasks else []
                names += [folded_name(Function(*key), annotate=annotate) for key in keys[len(names) :]]
                lines[number] = ";".join(names)
            weights.setdefault(lines[number], [0, 0])[index] += sum(cell.weights.values())
    if view.measure is Measure.SHARE:
        scales = [_PARTS / side.weight_ns if side.weight_ns else 0.0 for side in sides]
    else:
        scales = [1 / _MICROSECOND / max(1, side.runs) for side in sides]
    made = []
    for line in sorted(weights):
        before, after = (round(weight * scale) for weight, scale in zip(weights[line], scales, strict=True))
        if before or after:
            made.append(f"{line} {before} {after}\n")
    return "".join(made).encode()
