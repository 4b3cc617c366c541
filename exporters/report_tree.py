"""A profile becomes a call tree from the roots down: lines of text, nested JSON, or rows of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from exporters.paint import PLAIN, Paint
from exporters.report_json import encodable_meta, quality_values
from exporters.report_text import head_lines
from exporters.text import duration, encodable, percent, printable, share, shortened
from recording.profile import Profile
from recording.views import TreeNode, call_tree

_NAME_WIDTH = 80
_MAX_DEPTH = 512


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """What is left out: functions with a smaller share of all time, those that lie deeper, rows beyond so many; None for none."""

    least_share: float = 0.0
    depth: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    depth: int
    node: TreeNode


def export_tree_text(profile: Profile, limits: TreeLimits, paint: Paint = PLAIN) -> bytes:
    """A line for each function of each chain of callers, indented below its caller, the largest first."""
    lines = [*head_lines(profile), f"{'total %':>8}  {'self %':>8}  {'total time':>10}  {'samples':>9}  function"]
    for row in _rows(profile, limits):
        node = row.node
        name = paint.kind(shortened(printable(node.function.label), _NAME_WIDTH), node.function.kind)
        shares = [share(value, profile.weight_ns) for value in (node.total_ns, node.self_ns)]
        figures = "  ".join(paint.share(f"{percent(value, 2):>8}", value) for value in shares)
        lines.append(f"{figures}  {duration(node.total_ns):>10}  {node.samples:>9,}  {'  ' * row.depth}{name}".rstrip())
    if not profile.samples:
        lines.append("no samples are selected")
    return ("\n".join(lines) + "\n").encode()


def export_tree_csv(profile: Profile, limits: TreeLimits) -> bytes:
    """The same rows, callers before what they call; ``depth`` is 0 for the root of all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["depth", "name", "module", "kind", "self_ns", "total_ns", "self_share", "total_share", "samples"])
    for row in _rows(profile, limits):
        function, node = row.node.function, row.node
        shares = [f"{share(value, profile.weight_ns):.6f}" for value in (node.self_ns, node.total_ns)]
        names = [printable(function.label), printable(function.module), function.kind.value]
        writer.writerow([row.depth, *names, node.self_ns, node.total_ns, *shares, node.samples])
    return text.getvalue().encode()


def export_tree_json(profile: Profile, limits: TreeLimits) -> bytes:
    """``{"meta", "quality", "tree"}``: each node has its ``children``, the largest first."""
    stack: list[dict[str, Any]] = []
    for row in _rows(profile, limits):
        del stack[row.depth :]
        value = _values(row.node, profile.weight_ns)
        if stack:
            stack[-1]["children"].append(value)
        stack.append(value)
    document = {"meta": encodable_meta(profile), "quality": quality_values(profile.quality()), "tree": stack[0] if stack else None}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _values(node: TreeNode, weight_ns: int) -> dict[str, Any]:
    function = node.function
    return {
        "name": encodable(function.name),
        **({"inlined": True} if function.is_inlined else {}),
        "module": encodable(function.module),
        "kind": function.kind.value,
        "self_ns": node.self_ns,
        "total_ns": node.total_ns,
        "self_share": share(node.self_ns, weight_ns),
        "total_share": share(node.total_ns, weight_ns),
        "samples": node.samples,
        "children": [],
    }


def _rows(profile: Profile, limits: TreeLimits) -> Iterator[_Row]:
    """The tree's nodes, callers before what they call."""
    least_ns = limits.least_share * profile.weight_ns
    deepest = _MAX_DEPTH if limits.depth is None else limits.depth
    waiting = [_Row(0, call_tree(profile))] if profile.samples else []
    left = -1 if limits.rows is None else limits.rows
    while waiting and left:
        row = waiting.pop()
        yield row
        left -= 1
        if row.depth < deepest:
            shown = [child for child in row.node.children.values() if child.total_ns >= least_ns]
            # The last one that waits comes next.
            shown.sort(key=lambda node: (-node.total_ns, node.function.name), reverse=True)
            waiting += [_Row(row.depth + 1, child) for child in shown]
