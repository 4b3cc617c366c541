"""A comparison becomes the HTML report of both sides: each recording as in its own report, and what differs, with what is noise."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from exporters.compare import CompareView
from exporters.compare import method_lines as boots_method
from exporters.compare import result_lines as boots_result
from exporters.diff import DiffView, Worth, method_lines, result_lines, side_line, worth_of
from exporters.html import html_document
from exporters.html_boots import boots_values
from exporters.html_data import Tables, pack
from exporters.html_run import run_values
from recording.collection import no_collection
from recording.comparison import ComparedRow, Comparison, OfRow
from recording.contrast import Measure
from recording.profile import Profile
from recording.rows import CompareBy

_WORTH = list(Worth)
_MOST_NODES = 50_000
"""Of larger trees paths are not tested, only functions: it takes too long."""
_PARTS = {"own": OfRow.SELF, "total": OfRow.TOTAL}


def export_html_diff(view: DiffView, version: str) -> bytes:
    """One HTML document. The page has both measures, every part and every grouping, whatever the view chooses."""
    return _document(view, version, None)


def export_html_compare(view: CompareView, version: str) -> bytes:
    """The same of boots, with their phases."""
    return _document(DiffView(view.boots.functions, view.boots.profiles), version, view)


def _document(view: DiffView, version: str, boots: CompareView | None) -> bytes:
    with no_collection():
        profiles = [profile for side in view.profiles for profile in side]
        runs = [run_values(profile, title=None) for profile in profiles]
        data = pack(profiles, runs, {"version": version}, _Compared(view, boots))
        titles = (runs[0]["title"], runs[len(view.profiles[0])]["title"])
        return html_document(" → ".join(titles), data)


class _Compared:
    """What the page tells of the difference."""

    def __init__(self, view: DiffView, boots: CompareView | None) -> None:
        self._view = view
        self._boots = boots
        self._sides = view.comparison.sides
        self._functions = self._by(CompareBy.FUNCTION)

    def _by(self, by: CompareBy) -> Comparison:
        known = self._view.comparison
        return known if known.by is by else Comparison(*self._sides, by)

    def document(self, tables: Tables) -> dict[str, Any]:
        """``functions``: by the number of the function, of the measures and parts that were tested, the figures and their worth.

        ``share_worth``, ``time_worth``: of the total of each node of the tree, the place of its worth in ``worths``.
        """
        before, after = self._view.profiles
        view = DiffView(self._functions, self._view.profiles)
        results, method = result_lines(view), method_lines(self._functions)
        if self._boots is not None:
            results, method = boots_result(self._boots), boots_method(self._boots)
        sides = [side_line(profiles, side) for profiles, side in zip(self._view.profiles, self._sides, strict=True)]
        paths = list(self._path_worths(tables)) if tables.size <= _MOST_NODES else []
        return {
            "sides": [list(range(len(before))), list(range(len(before), len(before) + len(after)))],
            "testable": self._functions.is_testable,
            "words": "; ".join(results),
            "lines": [
                ["A", sides[0]],
                ["B", sides[1]],
                *(["Result", line] for line in results),
                *(["Method", line] for line in method),
            ],
            "worths": [worth.value for worth in _WORTH],
            **({} if self._boots is None else {"boots": boots_values(self._boots, tables)}),
            "functions": {str(rank): values for rank, values in self._function_values(tables)},
            **{f"{measure.value}_worth": worths for measure, worths in zip(Measure, paths, strict=False)},
        }

    def _function_values(self, tables: Tables) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in self._functions.rows:
            rank = tables.rank(row.key)
            values = {measure.value: _tested(row, measure) for measure in Measure}
            if rank is not None and any(values.values()):
                yield rank, values

    def _path_worths(self, tables: Tables) -> Iterator[array[int]]:
        """For each measure: the worth of every node. Callers that only lead to one callee are worth what that is."""
        paths = self._by(CompareBy.PATH)
        found: dict[int, ComparedRow] = {}
        for side, profiles in zip(self._sides, self._view.profiles, strict=True):
            boots = _boots(profiles)
            for cell in side.cells:
                rows = paths.rows_along(cell)
                nodes = tables.path(cell.stack, cell.origin, boots[id(cell.stack), id(cell.origin)])
                last = None
                for node, row in zip(reversed(nodes), reversed(rows), strict=True):
                    last = row or last
                    if last is not None:
                        found[node] = last
        for measure in Measure:
            worths = array("I", [_WORTH.index(Worth.UNTESTED)]) * tables.size
            for node, row in found.items():
                worths[node] = _WORTH.index(worth_of(row, measure, OfRow.TOTAL))
            yield worths


def _boots(profiles: Sequence[Profile]) -> dict[tuple[int, int], int]:
    """A boot in which each stack of an origin was seen."""
    return {(id(count.stack), id(count.origin)): count.walk.boot for profile in profiles for count in profile.counts}


def _tested(row: ComparedRow, measure: Measure) -> dict[str, tuple[float, float, int, float, float]]:
    """Of each part that was tested [low, high, worth, before, after]."""
    values = {}
    for name, part in _PARTS.items():
        difference = row.differences[measure, part]
        if difference.low is not None and difference.high is not None:
            worth = _WORTH.index(worth_of(row, measure, part))
            values[name] = (difference.low, difference.high, worth, difference.before, difference.after)
    return values
