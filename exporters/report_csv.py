"""A profile becomes a table of comma-separated values (RFC 4180), with the columns of the JSON report."""

from __future__ import annotations

import csv
import io

from exporters.report import GroupBy, Neighbours, SortBy, report_table
from exporters.text import printable
from recording.profile import Profile


def export_report_csv(
    profile: Profile,
    *,
    by: GroupBy = GroupBy.FUNCTION,
    sort: SortBy = SortBy.SELF,
    limit: int | None = None,
    neighbours: Neighbours | None = None,
) -> bytes:
    """One heading and one line a row, also where names hold line breaks: what is not visible is written as an escape.

    Inlined functions have ``(inlined)`` behind their names. Rows of processes and threads have a column ``pid`` after the
    name, empty for samples without a task.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pid = ["pid"] if by.has_pids else []
    writer.writerow(["name", *pid, "module", "kind", "self_ns", "total_ns", "self_share", "total_share", "samples"])
    for row in report_table(profile, by=by, sort=sort, limit=limit, neighbours=neighbours).rows:
        total = row.total
        writer.writerow(
            [
                printable(total.label),
                *([total.pid] if by.has_pids else []),
                printable(total.module),
                total.kind.value,
                total.self_ns,
                total.total_ns,
                f"{row.self_share:.6f}",
                f"{row.total_share:.6f}",
                total.samples,
            ]
        )
    return text.getvalue().encode()
