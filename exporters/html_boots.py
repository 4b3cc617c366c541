"""A comparison of boots becomes what the HTML page tells of their phases; figures are text already, as ``compare`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exporters.compare import CompareView, change_of, unmatched_lines
from exporters.diff import Worth, label, worth_of
from exporters.html_data import Tables
from exporters.text import duration, percent, printable, shortened
from recording.boots import WHOLE, ComparedPhase, OneSided
from recording.comparison import ComparedRow, OfRow
from recording.contrast import Difference, Measure

_MOST = 25
_WIDTH = 100


def boots_values(view: CompareView, tables: Tables) -> dict[str, Any]:
    """names: of both sides. phases: with their functions that differ. only: what each side alone runs. unmatched: sentences."""
    return {
        "names": [printable(name) for name in view.names],
        "phases": [*(_phase(view, phase, tables) for phase in view.boots.phases), _duration(WHOLE, view.boots.whole)],
        "only": [[_only(row, tables) for row in view.one_sided(side)[:_MOST]] for side in (0, 1)],
        "unmatched": unmatched_lines(view),
    }


def _duration(name: str, difference: Difference) -> dict[str, Any]:
    worth = Worth.of(difference.verdict)
    return {
        "name": shortened(printable(name), _WIDTH),
        "before": duration(difference.before),
        "after": duration(difference.after),
        "change": change_of(difference),
        "more": difference.change if worth is Worth.DIFFERS else 0,
        "worth": worth.value,
    }


def _phase(view: CompareView, phase: ComparedPhase, tables: Tables) -> dict[str, Any]:
    """spans: of each run its begin and end, for the page to choose; functions: with the page's number of each."""
    return {
        **_duration(phase.name, phase.duration),
        "title": printable(phase.common.title),
        "idle": ["" if shares is None else percent(shares.idle) for shares in phase.shares],
        "spans": [[span.start_ns, span.end_ns] for spans in phase.common.spans for span in spans],
        "functions": list(_functions(view, phase, tables)),
    }


def _functions(view: CompareView, phase: ComparedPhase, tables: Tables) -> Iterator[dict[str, Any]]:
    for part in phase.functions.parts:
        for row in view.differing(phase, part)[:_MOST]:
            yield {"part": part.value, **_row(row, part, tables)}


def _row(row: ComparedRow, part: OfRow, tables: Tables) -> dict[str, Any]:
    difference = row.differences[Measure.TIME, part]
    return {
        "name": label(row, _WIDTH),
        "module": shortened(printable(row.key.module), _WIDTH),
        "code": tables.rank(row.key),
        "before": duration(difference.before),
        "after": duration(difference.after),
        "change": change_of(difference),
        "more": difference.change,
        "worth": worth_of(row, Measure.TIME, part).value,
    }


def _only(row: OneSided, tables: Tables) -> dict[str, Any]:
    return {
        "name": label(row.row, _WIDTH),
        "module": shortened(printable(row.row.key.module), _WIDTH),
        "code": tables.rank(row.row.key),
        "time": duration(row.time_ns),
        "samples": row.row.samples[row.side],
        "missing": row.has_symbol is False,
    }
