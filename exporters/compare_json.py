"""A comparison of boots becomes the JSON of ``compare -f json`` (``exporters/schemas/compare.schema.json``)."""

from __future__ import annotations

from typing import Any

import orjson

from exporters.compare import CompareView, method_lines, result_lines, unmatched_lines
from exporters.diff import Worth
from exporters.diff_json import difference_values, row_values, side_values
from exporters.text import encodable
from recording.boots import ComparedPhase, OneSided, Shares
from recording.comparison import OfRow
from recording.contrast import CONFIDENCE, LEVEL, Difference, Measure


def export_compare_json(view: CompareView) -> bytes:
    """One document: both sides, the result, the phases with their functions, and what one side alone runs."""
    boots = view.boots
    sides = zip(view.names, boots.profiles, boots.functions.sides, boots.sides, strict=True)
    document = {
        "sides": [
            {
                "name": encodable(name),
                **side_values(profiles, side),
                "durations_ns": [boot.duration_ns for boot in of_side],
            }
            for name, profiles, side, of_side in sides
        ],
        "method": {
            "clock": "guest" if boots.by_guest_clock else "running",
            "confidence": CONFIDENCE,
            "level": LEVEL,
            "notes": method_lines(view),
        },
        "is_bounded": boots.is_bounded,
        "is_different": _is_different(view),
        "result": [encodable(line) for line in result_lines(view)],
        "duration": _duration(boots.whole),
        "phases": [_phase(view, phase) for phase in boots.phases],
        "unmatched": [
            {"name": encodable(each.name), "boots": list(each.found), "is_misplaced": each.is_misplaced, "text": encodable(line)}
            for each, line in zip(boots.unmatched, unmatched_lines(view), strict=False)
        ],
        "one_sided": [_one_sided(row) for side in (0, 1) for row in view.one_sided(side)[: view.limit]],
        "one_sided_seldom": view.seldom(),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _is_different(view: CompareView) -> bool:
    """Whether any duration or function differs by more than noise."""
    durations = [view.boots.whole, *(phase.duration for phase in view.boots.phases)]
    return any(Worth.of(each.verdict) is Worth.DIFFERS for each in durations) or any(
        view.differing(phase, part) for phase in view.boots.phases for part in phase.functions.parts
    )


def _duration(difference: Difference) -> dict[str, Any]:
    return difference_values(difference, Measure.TIME) | {"verdict": Worth.of(difference.verdict).value}


def _phase(view: CompareView, phase: ComparedPhase) -> dict[str, Any]:
    shown = view.of_phase(phase, OfRow.SELF)
    return {
        "name": encodable(phase.name),
        "title": encodable(phase.common.title),
        "is_bounded": phase.is_bounded,
        "unseen": list(phase.common.unseen),
        "duration": _duration(phase.duration),
        "durations_ns": [[span.duration_ns for span in spans] for spans in phase.common.spans],
        "begins_ns": [[span.start_ns for span in spans] for spans in phase.common.spans],
        "shares": [_shares(each) for each in phase.shares],
        "is_testable": phase.functions.is_testable,
        "functions": [row_values(row, shown) for row in shown.rows()],
    }


def _shares(shares: Shares | None) -> dict[str, float] | None:
    return None if shares is None else {"idle": shares.idle, "user": shares.user, "firmware": shares.firmware}


def _one_sided(row: OneSided) -> dict[str, Any]:
    return {
        "name": encodable(row.row.name),
        "module": encodable(row.row.key.module),
        "kind": row.row.key.kind.value,
        "side": row.side,
        "samples": row.row.samples[row.side],
        "self_ns": round(row.time_ns),
        "other_has_symbol": row.has_symbol,
    }
