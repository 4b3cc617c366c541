"""A comparison becomes what ``diff`` prints: what was compared, the answer, and a table with the sampling error of each row."""

from __future__ import annotations

from collections.abc import Sequence

from exporters.diff import DiffView, Worth, label, method_lines, reach, result_lines, side_line, signed, worth_of, worth_of_row
from exporters.paint import PLAIN, Paint
from exporters.text import duration, percent, printable, shortened
from recording.comparison import ComparedRow, OfRow
from recording.contrast import Measure
from recording.rows import CompareBy

_NAME_WIDTH = 60
_PATH_WIDTH = 110
_MODULE_WIDTH = 30
_HEADS = {Measure.SHARE: "B - A, points", Measure.TIME: "B - A, time"}


def export_diff_text(view: DiffView, *, paint: Paint = PLAIN) -> bytes:
    """Lines of text. Long names are cut, paths to their innermost functions; the JSON has them whole."""
    comparison = view.comparison
    lines = [
        f"{letter}        {side_line(profiles, side)}"
        for letter, profiles, side in zip("AB", view.profiles, comparison.sides, strict=True)
    ]
    lines += [f"{'result' if index == 0 else '':<9}{line}" for index, line in enumerate(result_lines(view))]
    lines += [f"{'method' if index == 0 else '':<9}{line}" for index, line in enumerate(method_lines(comparison))]
    rows = view.rows()
    if not rows:
        return ("\n".join([*lines, "", "no samples are selected"]) + "\n").encode()
    lines += ["", *table_lines(view, rows, paint)]
    left = len(comparison.rows) - len(rows)
    if left > 0:
        lines.append(f"and {left:,} more rows; -n 0 shows all")
    return ("\n".join(lines) + "\n").encode()


def table_lines(view: DiffView, rows: Sequence[ComparedRow], paint: Paint) -> list[str]:
    """The table of these rows, with its heading."""
    comparison, part = view.comparison, view.shown_part
    of = f"{part.value} " if len(comparison.parts) > 1 else ""
    width = max(8, min(_NAME_WIDTH, max(len(printable(row.name)) for row in rows)))
    name = {CompareBy.FUNCTION: f"{'function':<{width}}  module", CompareBy.PATH: "path, innermost last"}.get(
        comparison.by, comparison.by.value
    )
    heads = [f"{of}share, A".rjust(13), f"{'B':>8}", f"{_HEADS[Measure.SHARE]:>16}"]
    heads += [f"{of}time, A".rjust(13), f"{'B':>9}", f"{_HEADS[Measure.TIME]:>22}"]
    return ["  ".join([" " * 8, *heads, name]), *(_line(row, view, width, paint) for row in rows)]


def _line(row: ComparedRow, view: DiffView, width: int, paint: Paint) -> str:
    part = view.shown_part
    worth = worth_of_row(row, part)
    figures = [_coloured(paint, f"{worth.value:<8}", worth, row, part)]
    for measure in Measure:
        difference = row.differences[measure, part]
        wide = 13, 8 if measure is Measure.SHARE else 9
        for value, size in zip((difference.before, difference.after), wide, strict=True):
            figures.append(f"{percent(value, 2) if measure is Measure.SHARE else duration(value):>{size}}")
        change = f"{signed(measure, difference.change)} {reach(measure, difference)}".rstrip()
        text = f"{change:>{16 if measure is Measure.SHARE else 22}}"
        figures.append(_coloured(paint, text, worth_of(row, measure, part), row, part))
    return "  ".join([*figures, _name(row, view, width, paint)]).rstrip()


def _coloured(paint: Paint, text: str, worth: Worth, row: ComparedRow, part: OfRow) -> str:
    """What is no difference of its own is faint; what is more is red, what is less is green."""
    if worth is Worth.DIFFERS:
        return paint.change(text, row.differences[Measure.SHARE, part].change)
    return text if worth is Worth.FOLLOWS else paint.faint(text)


def _name(row: ComparedRow, view: DiffView, width: int, paint: Paint) -> str:
    name = label(row, _PATH_WIDTH if row.path else _NAME_WIDTH)
    if view.comparison.by is not CompareBy.FUNCTION:
        return name
    return f"{paint.kind(f'{name:<{width}}', row.key.kind)}  {paint.faint(shortened(printable(row.key.module), _MODULE_WIDTH))}"
