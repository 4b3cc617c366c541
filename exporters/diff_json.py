"""A comparison becomes the JSON of ``diff -f json`` (``exporters/schemas/diff.schema.json``); scripts rely on its shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from exporters.diff import DiffView, method_lines, result_lines, worth_of
from exporters.report_json import encodable_meta, quality_values
from exporters.text import encodable
from recording.blocks import Side
from recording.comparison import ComparedRow
from recording.contrast import CONFIDENCE, LEVEL, Difference, Measure
from recording.profile import Profile


def export_diff_json(view: DiffView) -> bytes:
    """One document: both sides, the method, the result and the rows, in the order of the table."""
    comparison = view.comparison
    document = {
        "before": side_values(view.profiles[0], comparison.sides[0]),
        "after": side_values(view.profiles[1], comparison.sides[1]),
        "by": comparison.by.value,
        "method": {
            "confidence": CONFIDENCE,
            "level": LEVEL,
            "tests": comparison.tests,
            "notes": method_lines(comparison),
        },
        "is_testable": comparison.is_testable,
        "is_different": bool(comparison.differing()),
        "result": [encodable(line) for line in result_lines(view)],
        "rows": [row_values(row, view) for row in view.rows()],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def side_values(profiles: Sequence[Profile], side: Side) -> dict[str, Any]:
    """One side of a comparison: its recordings, and what its blocks are."""
    return {
        "recordings": [{"meta": encodable_meta(profile), "quality": quality_values(profile.quality())} for profile in profiles],
        "samples": side.samples,
        "effective_samples": side.effective_samples,
        "weight_ns": side.weight_ns,
        "left_out_ns": side.left_out_ns,
        "running_time_ns": side.duration_ns,
        "blocks": len(side.weights),
        "blocks_are": "recordings" if side.by_run else "course" if side.is_course else "steady",
    }


def row_values(row: ComparedRow, view: DiffView) -> dict[str, Any]:
    """A row with its differences, by part and measure."""
    return {
        "name": encodable(row.name),
        "module": encodable(row.key.module),
        "kind": row.key.kind.value,
        **({"path": [encodable(name) for name in row.path]} if row.path else {}),
        "samples": list(row.samples),
        "cause": row.cause,
        **{
            f"{part.value}_{measure.value}": difference_values(row.differences[measure, part], measure)
            | {"verdict": worth_of(row, measure, part).value}
            for part in view.comparison.parts
            for measure in Measure
        },
    }


def difference_values(difference: Difference, measure: Measure) -> dict[str, Any]:
    """Both figures, what is more, and how sure that is."""

    def figure(value: float | None) -> float | int | None:
        return value if value is None or measure is Measure.SHARE else round(value)

    return {
        "before": figure(difference.before),
        "after": figure(difference.after),
        "change": figure(difference.change),
        "low": figure(difference.low),
        "high": figure(difference.high),
        "p": difference.p,
        "corrected_p": difference.corrected_p,
    }
