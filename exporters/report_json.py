"""A profile becomes the JSON of ``report -f json``; scripts rely on its shape."""

from __future__ import annotations

from typing import Any

import orjson

from exporters.report import GroupBy, Neighbours, Row, SortBy, report_table
from exporters.text import encodable
from recording.profile import Profile
from recording.quality import Quality

_KEYS = {
    GroupBy.FUNCTION: "functions",
    GroupBy.MODULE: "modules",
    GroupBy.PROCESS: "processes",
    GroupBy.THREAD: "threads",
    GroupBy.VCPU: "vcpus",
    GroupBy.CONTEXT: "contexts",
    GroupBy.SYSTEM_CALL: "system_calls",
    GroupBy.LINE: "lines",
    GroupBy.UNIT: "units",
}


def export_report_json(
    profile: Profile,
    *,
    by: GroupBy = GroupBy.FUNCTION,
    sort: SortBy = SortBy.SELF,
    limit: int | None = None,
    neighbours: Neighbours | None = None,
) -> bytes:
    """``{"meta", "quality", "functions"}``; the last one is ``modules``, ``processes`` and so on in a report by those.

    Of a function's neighbours it is ``callers`` or ``callees``, behind ``function``, which has the figures of the function itself.

    Rows of functions that are inlined elsewhere have ``"inlined": true``. ``samples`` counts those in which the function is
    anywhere on the stack. Rows of processes and threads have a ``pid``, which is null for samples without a task.
    """
    table = report_table(profile, by=by, sort=sort, limit=limit, neighbours=neighbours)
    document = {"meta": encodable_meta(profile), "quality": quality_values(profile.quality())}
    if table.of is not None:
        document["function"] = _row(table.of, by)
    document[_KEYS[by] if neighbours is None else neighbours.word] = [_row(row, by) for row in table.rows]
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def encodable_meta(profile: Profile) -> object:
    """What the recording says of itself, fit for orjson."""
    return _encodable(profile.meta)


def quality_values(quality: Quality) -> dict[str, Any]:
    """The quality block; what is not known is null."""
    return {
        "samples": quality.samples,
        "requested_hz": quality.requested_hz,
        "achieved_hz": quality.achieved_hz,
        "late": quality.late,
        "halted_share": quality.halted_share,
        "complete_share": quality.complete_share,
        "entry_share": quality.entry_share,
        "user_complete_share": quality.user_complete_share,
        "task_share": quality.task_share,
        "ends": {end.value: count for end, count in quality.ends.items()},
        "user_ends": {end.value: count for end, count in quality.user_ends.items()},
    }


def _row(row: Row, by: GroupBy) -> dict[str, Any]:
    total = row.total
    return {
        "name": encodable(total.name),
        **({"pid": total.pid} if by.has_pids else {}),
        **({"inlined": True} if total.is_inlined else {}),
        "module": encodable(total.module),
        "kind": total.kind.value,
        "self_ns": total.self_ns,
        "total_ns": total.total_ns,
        "self_share": row.self_share,
        "total_share": row.total_share,
        "samples": total.samples,
    }


def _encodable(value: object) -> object:
    """Anything that JSON held, fit for orjson, which takes neither lone surrogates nor integers of more than 64 bits."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value)
    return value
