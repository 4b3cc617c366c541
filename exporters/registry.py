"""The names of output formats become the functions that write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from exporters.callgrind import export_callgrind
from exporters.chrome_trace import export_chrome_trace
from exporters.compare import CompareView
from exporters.compare_json import export_compare_json
from exporters.compare_text import export_compare_text
from exporters.diff import DiffView
from exporters.diff_json import export_diff_json
from exporters.diff_text import export_diff_text
from exporters.firefox import export_firefox
from exporters.flamegraph import export_flamegraph
from exporters.folded import export_folded
from exporters.html import export_html
from exporters.html_diff import export_html_compare, export_html_diff
from exporters.paint import PLAIN, Paint
from exporters.per import Per
from exporters.perf_script import export_perf_script
from exporters.pprof import export_pprof
from exporters.report import GroupBy, Neighbours, SortBy
from exporters.report_csv import export_report_csv
from exporters.report_json import export_report_json
from exporters.report_text import export_report_text
from exporters.report_tree import TreeLimits, export_tree_csv, export_tree_json, export_tree_text
from exporters.speedscope import export_speedscope
from exporters.timeline import TimelineView
from exporters.timeline_csv import export_timeline_csv
from exporters.timeline_json import export_timeline_json
from exporters.timeline_text import export_timeline_text
from recording.profile import Profile


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the command line may say about an export; each format takes what concerns it.

    version: of guestprof, for files that name their writer.
    title: over the picture; None for one made from the recording's meta.
    per: what each profile of a file is of, where the format has several (speedscope, firefox).
    annotate: mark kernel frames where the format has no other way (folded).
    warn: told what the user should know about the output.
    """

    version: str
    title: str | None = None
    annotate: bool = True
    warn: Callable[[str], None] | None = None
    per: Per = Per.VCPU


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format of the ``export`` command, with the suffix that files of it have. What is large comes in pieces."""

    name: str
    suffix: str
    export: Callable[[Profile, ExportOptions], bytes | Iterator[bytes]]

    def pieces(self, profile: Profile, options: ExportOptions) -> Iterator[bytes]:
        """The file's bytes; the recording must stay open until the last one is taken."""
        made = self.export(profile, options)
        yield from ((made,) if isinstance(made, bytes) else made)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report shows: rows by, sorted by, at most so many; or the neighbours of a function; or a call tree."""

    by: GroupBy = GroupBy.FUNCTION
    sort: SortBy = SortBy.SELF
    limit: int | None = None
    neighbours: Neighbours | None = None
    tree: TreeLimits | None = None


class _WriteTable(Protocol):
    def __call__(
        self, profile: Profile, *, by: GroupBy, sort: SortBy, limit: int | None, neighbours: Neighbours | None
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ReportFormat:
    """A format of the ``report`` command: what writes a table, what writes a tree."""

    name: str
    table: _WriteTable
    tree: Callable[[Profile, TreeLimits], bytes]

    def export(self, profile: Profile, options: ReportOptions) -> bytes:
        """The report's bytes. Raises UnknownFunctionError for the neighbours of a function that is not there."""
        if options.tree is not None:
            return self.tree(profile, options.tree)
        return self.table(profile, by=options.by, sort=options.sort, limit=options.limit, neighbours=options.neighbours)


@dataclass(frozen=True, slots=True)
class TimelineFormat:
    """A format of the ``timeline`` command."""

    name: str
    export: Callable[[Profile, TimelineView], bytes]


@dataclass(frozen=True, slots=True)
class DiffFormat:
    """A format of the ``diff`` command; the function also takes guestprof's version."""

    name: str
    export: Callable[[DiffView, str], bytes]


@dataclass(frozen=True, slots=True)
class CompareFormat:
    """A format of the ``compare`` command; the function also takes guestprof's version."""

    name: str
    export: Callable[[CompareView, str], bytes]


EXPORT_FORMATS = {
    known.name: known
    for known in (
        ExportFormat(
            "speedscope",
            ".speedscope.json",
            lambda profile, options: export_speedscope(
                profile, version=options.version, title=options.title, warn=options.warn, per=options.per
            ),
        ),
        ExportFormat("folded", ".folded", lambda profile, options: export_folded(profile, annotate=options.annotate)),
        ExportFormat(
            "firefox",
            ".firefox.json",
            lambda profile, options: export_firefox(profile, version=options.version, title=options.title, per=options.per),
        ),
        ExportFormat("pprof", ".pb.gz", lambda profile, _options: export_pprof(profile)),
        ExportFormat("callgrind", ".callgrind", lambda profile, options: export_callgrind(profile, version=options.version)),
        ExportFormat("perf-script", ".linux-perf.txt", lambda profile, _options: export_perf_script(profile)),
        ExportFormat("chrome-trace", ".trace.json", lambda profile, options: export_chrome_trace(profile, version=options.version)),
        ExportFormat("html", ".html", lambda profile, options: export_html(profile, version=options.version, title=options.title)),
        ExportFormat("flamegraph", ".svg", lambda profile, options: export_flamegraph(profile, title=options.title)),
    )
}
TIMELINE_FORMATS = {
    known.name: known
    for known in (
        TimelineFormat("text", export_timeline_text),
        TimelineFormat("json", export_timeline_json),
        TimelineFormat("csv", lambda _profile, view: export_timeline_csv(view)),
    )
}


def report_formats(paint: Paint = PLAIN) -> dict[str, ReportFormat]:
    """The formats of the ``report`` command by name. paint: for the one that is for people."""
    text = ReportFormat("text", partial(export_report_text, paint=paint), partial(export_tree_text, paint=paint))
    others = ReportFormat("json", export_report_json, export_tree_json), ReportFormat("csv", export_report_csv, export_tree_csv)
    return {known.name: known for known in (text, *others)}


def diff_formats(paint: Paint = PLAIN) -> dict[str, DiffFormat]:
    """The formats of the ``diff`` command that show a comparison, by name. paint: for the one that is for people."""
    return {
        known.name: known
        for known in (
            DiffFormat("text", lambda view, _version: export_diff_text(view, paint=paint)),
            DiffFormat("json", lambda view, _version: export_diff_json(view)),
            DiffFormat("html", export_html_diff),
        )
    }


def compare_formats(paint: Paint = PLAIN) -> dict[str, CompareFormat]:
    """The formats of the ``compare`` command by name. paint: for the one that is for people."""
    return {
        known.name: known
        for known in (
            CompareFormat("text", lambda view, _version: export_compare_text(view, paint=paint)),
            CompareFormat("json", lambda view, _version: export_compare_json(view)),
            CompareFormat("html", export_html_compare),
        )
    }
