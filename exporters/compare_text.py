"""A comparison of boots becomes what ``compare`` prints: the answer, phases, functions that differ, what only one side runs."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.compare import (
    CompareView,
    change_of,
    method_lines,
    result_lines,
    side_lines,
    unmatched_lines,
)
from exporters.diff import Worth
from exporters.diff_text import table_lines
from exporters.paint import PLAIN, Paint
from exporters.text import counted, duration, percent, printable, shortened
from recording.boots import WHOLE, ComparedPhase, OneSided, Shares
from recording.comparison import OfRow
from recording.contrast import Difference

_NAME_WIDTH = 40
_FUNCTION_WIDTH = 50
_MODULE_WIDTH = 30


def export_compare_text(view: CompareView, *, paint: Paint = PLAIN) -> bytes:
    """Lines of text. Long names are cut; the JSON has them whole."""
    lines = [f"{letter}        {line}" for letter, line in zip("AB", side_lines(view), strict=True)]
    for word, told in (("result", result_lines(view)), ("bounds", unmatched_lines(view)), ("method", method_lines(view))):
        lines += [f"{word if index == 0 else '':<9}{line}" for index, line in enumerate(told)]
    lines += ["", *_phases(view, paint)]
    for phase in view.boots.phases:
        lines += _functions(view, phase, paint)
    for side in (0, 1):
        lines += _one_sided(view, side, paint)
    seldom = view.seldom()
    if seldom:
        lines += ["", f"{counted(seldom, 'function')} more on one side alone, too seldom to say that the other never runs them"]
    return ("\n".join(lines) + "\n").encode()


def _phases(view: CompareView, paint: Paint) -> Iterator[str]:
    extent = f"{'shortest-longest':>19}"
    yield f"{'':8}  {'A':>9}  {extent}  {'B':>9}  {extent}  {'B - A':>22}  {'idle A':>7}  {'B':>7}  phase"
    for phase in view.boots.phases:
        yield _phase_line(phase.name, phase.duration, [_reach(phase, side) for side in (0, 1)], phase.shares, paint)
    lengths = [[boot.duration_ns for boot in side] for side in view.boots.sides]
    yield _phase_line(WHOLE, view.boots.whole, [_extent(values) for values in lengths], None, paint)


def _phase_line(
    name: str,
    difference: Difference,
    extents: list[str],
    shares: tuple[Shares | None, Shares | None] | None,
    paint: Paint,
) -> str:
    worth = Worth.of(difference.verdict)
    idle = ["" if each is None else percent(each.idle) if each.idle else "-" for each in shares or (None, None)]
    change = f"{change_of(difference):>22}"
    coloured = paint.change(change, difference.change) if worth is Worth.DIFFERS else paint.faint(change)
    cells = [f"{worth.value:<8}", f"{duration(difference.before):>9}", f"{extents[0]:>19}"]
    cells += [f"{duration(difference.after):>9}", f"{extents[1]:>19}", coloured, f"{idle[0]:>7}", f"{idle[1]:>7}"]
    return "  ".join([*cells, shortened(printable(name), _NAME_WIDTH)])


def _reach(phase: ComparedPhase, side: int) -> str:
    return _extent([span.duration_ns for span in phase.common.spans[side]])


def _extent(values: list[int]) -> str:
    """The shortest and the longest of several."""
    return f"{duration(min(values))}-{duration(max(values))}" if len(values) > 1 else ""


def _functions(view: CompareView, phase: ComparedPhase, paint: Paint) -> Iterator[str]:
    """The tables of a phase in which any function differs."""
    for part in phase.functions.parts:
        rows = view.differing(phase, part)
        if not rows:
            continue
        shown = rows[: view.limit]
        of = "by themselves" if part is OfRow.SELF else "with what they call"
        yield from ("", f"{printable(phase.name)}: functions that differ {of}")
        yield from table_lines(view.of_phase(phase, part), shown, paint)
        if len(rows) > len(shown):
            yield f"and {len(rows) - len(shown):,} more; -n 0 shows all"


def _one_sided(view: CompareView, side: int, paint: Paint) -> Iterator[str]:
    rows = view.one_sided(side)
    if not rows:
        return
    name, other = printable(view.names[side]), printable(view.names[1 - side])
    yield from ("", f"only {name} runs these; {other} was never seen to", f"{'self':>10}  {'samples':>8}  function")
    for row in rows[: view.limit]:
        yield f"{duration(row.time_ns):>10}  {row.row.samples[side]:>8,}  {_one(row, other, paint)}"
    if len(rows) > len(rows[: view.limit]):
        yield f"and {len(rows) - len(rows[: view.limit]):,} more; -n 0 shows all"


def _one(row: OneSided, other: str, paint: Paint) -> str:
    name = shortened(printable(row.row.name), _FUNCTION_WIDTH)
    module = paint.faint(shortened(printable(row.row.key.module), _MODULE_WIDTH))
    missing = "" if row.has_symbol is not False else f"  ({other} has no such function)"
    return f"{paint.kind(name, row.row.key.kind)}  {module}{missing}"
