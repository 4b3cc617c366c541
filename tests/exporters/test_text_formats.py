"""Folded stacks and the three reports."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from exporters.folded import export_folded, folded_name
from exporters.registry import EXPORT_FORMATS, ExportOptions, ReportOptions, report_formats
from exporters.report import GroupBy, SortBy
from exporters.report_csv import export_report_csv
from exporters.report_json import export_report_json
from exporters.report_text import export_report_text
from exporters.text import duration, encodable, machine, percent, printable, shortened
from recording.model import Context, Event, FrameKind, StackEnd, Task, UserEnd
from recording.names import Function
from recording.reader import Selection
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, hostile_recording, opened, small_recording
from tests.builders.recordings import MS, Names, Stack, write_recording

FLAMEGRAPH_PL = re.compile(r"^(.*)\s+?(\d+(?:\.\d*)?)$")


def test_folded_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        golden("small.folded", export_folded(profile))


def test_folded_counts_add_up_to_the_samples(tmp_path: Path) -> None:
    for annotate in (True, False):
        with opened(small_recording(tmp_path / str(annotate))) as profile:
            lines = export_folded(profile, annotate=annotate).decode().splitlines()
        assert sum(int(line.rpartition(" ")[2]) for line in lines) == 16
        assert lines == sorted(lines)
        assert any("_[k]" in line for line in lines) is annotate


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vfs_read", "vfs_read"),
        ("a;b", "a:b"),
        ("weird 12", "weird_12"),
        ("weird 1.", "weird_1."),
        ("weird\t12.5", "weird?12.5"),
        ("12", "12"),
        ("a 1 2", "a 1_2"),
        (" c ", " c "),
        ("a\nb\rc\x00\x1b\u2028\udcff", "a?b?c????"),
        ("", "?"),
    ],
)
def test_folded_names(name: str, expected: str) -> None:
    user = Function(name, "[user]", FrameKind.USER)
    assert folded_name(user, annotate=True) == expected
    assert folded_name(Function(name, "[kernel]", FrameKind.KERNEL), annotate=True) == expected + "_[k]"


def test_folded_lines_of_hostile_names_are_read_as_they_were_meant(tmp_path: Path) -> None:
    with opened(hostile_recording(tmp_path / "a")) as profile:
        text = export_folded(profile, annotate=False).decode()
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == len(HOSTILE_NAMES)
    for line in lines:
        match = FLAMEGRAPH_PL.match(line)
        assert match is not None
        assert match[2] == "1"
        assert match[1].count(";") == 1
        assert FLAMEGRAPH_PL.match(match[1]) is None  # else flamegraph.pl sees two columns


@pytest.mark.parametrize("by", [GroupBy.FUNCTION, GroupBy.MODULE, GroupBy.VCPU])
@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_report_golden_files(tmp_path: Path, golden: Callable[[str, bytes], None], form: str, by: GroupBy) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        golden(f"report_{by}.{'txt' if form == 'text' else form}", report_formats()[form].export(profile, ReportOptions(by)))


@pytest.mark.parametrize("by", [GroupBy.FUNCTION, GroupBy.PROCESS, GroupBy.THREAD, GroupBy.CONTEXT, GroupBy.SYSTEM_CALL])
@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_report_golden_files_with_tasks(tmp_path: Path, golden: Callable[[str, bytes], None], form: str, by: GroupBy) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        golden(f"busy_{by}.{'txt' if form == 'text' else form}", report_formats()[form].export(profile, ReportOptions(by)))


def test_folded_stacks_begin_with_the_process_where_tasks_are_known(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        golden("busy.folded", export_folded(profile))
    hostile = Task(1, 1, "a", " semi;colon 12\n\udcff", False)
    with opened(write_recording(tmp_path / "b", [[Stack("main", task=hostile)], [Stack("main")]])) as profile:
        assert export_folded(profile) == b"[unknown];main_[k] 1\n_semi:colon_12?\\udcff;main_[k] 1\n"


def test_user_stacks_that_nobody_asked_for(tmp_path: Path) -> None:
    stack = Stack("U:16", 0, StackEnd.USER_MODE, user_end=UserEnd.NOT_WANTED)
    with opened(write_recording(tmp_path / "a", [[stack]])) as profile:
        assert "user     no user stacks were asked for (--no-user)" in export_report_text(profile).decode().splitlines()
        quality = json.loads(export_report_json(profile))["quality"]
    assert (quality["user_complete_share"], quality["user_ends"], quality["task_share"]) == (None, {"not-wanted": 1}, 0.0)


def test_what_cannot_be_known_of_a_kernel(tmp_path: Path) -> None:
    said = "the kernel has no type information (BTF): its \x1bmodules cannot be told"
    # What is said last of a kernel counts; each kernel has its own.
    later = (Event(5, "unknown", "less"), Event(6, "kernel-found", "again"), Event(7, "unknown", "much"), Event(8, "unknown", said))
    events = (Event(0, "unknown", "more"), Event(3, "unknown", said), Event(4, "kernel-found", "another"), *later)
    with opened(write_recording(tmp_path / "a", [[Stack("U:16", 0, StackEnd.USER_MODE)]], Names(), events)) as profile:
        lines = export_report_text(profile).decode().splitlines()
    assert [line for line in lines if line.startswith("unknown")] == [
        "unknown  the kernel has no type information (BTF): its \\x1bmodules cannot be told",
        "unknown  less",
    ]


def test_rows_of_processes(tmp_path: Path) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        report = json.loads(export_report_json(profile, by=GroupBy.PROCESS))
        text = export_report_text(profile, by=GroupBy.PROCESS).decode()
    assert report["processes"][0] == {
        "name": "python3",
        "pid": 417,
        "module": "",
        "kind": "user",
        "self_ns": 50 * MS,
        "total_ns": 50 * MS,
        "self_share": 5 / 12,
        "total_share": 5 / 12,
        "samples": 5,
    }
    assert {row["name"]: row["pid"] for row in report["processes"]} == {
        "python3": 417,
        "kworker/0:1": 12,
        "swapper/0": 0,
        "swapper/1": 0,
        "[firmware]": None,
        "[unknown]": None,
    }
    assert [line.split("  ")[-1] for line in text.splitlines() if "417" in line] == ["python3 (417)"]


def test_long_paths_keep_their_files(tmp_path: Path) -> None:
    path = "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so"
    with opened(write_recording(tmp_path / "a", [[Stack(f"main@{path}", context=Context.USER)]])) as profile:
        assert export_report_text(profile).decode().splitlines()[-1].endswith("main      …temd/libsystemd-shared-252.so")


def test_report_json_has_the_shape_that_scripts_rely_on(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        report = json.loads(export_report_json(profile, sort=SortBy.TOTAL, limit=1))
    assert set(report) == {"meta", "quality", "functions"}
    assert report["meta"]["kernel_release"] == "6.1.0-18-amd64"
    assert list(report["quality"]) == [
        "samples",
        "requested_hz",
        "achieved_hz",
        "late",
        "halted_share",
        "complete_share",
        "entry_share",
        "user_complete_share",
        "task_share",
        "ends",
        "user_ends",
    ]
    assert report["functions"] == [
        {
            "name": "default_idle",
            "module": "[kernel]",
            "kind": "kernel",
            "self_ns": 40_000_000,
            "total_ns": 50_000_000,
            "self_share": 0.25,
            "total_share": 0.3125,
            "samples": 5,
        }
    ]


def test_reports_sort_and_cut(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        rows = list(csv.DictReader(io.StringIO(export_report_csv(profile, limit=3).decode())))
        assert [row["name"] for row in rows] == ["default_idle", "copy_to_user", "[firmware]"]
        rows = list(csv.DictReader(io.StringIO(export_report_csv(profile, sort=SortBy.TOTAL, limit=3).decode())))
        assert [row["name"] for row in rows] == ["default_idle", "cpu_startup_entry", "default_idle_call"]


def test_reports_of_hostile_names(tmp_path: Path) -> None:
    with opened(hostile_recording(tmp_path / "a")) as profile:
        text = export_report_text(profile).decode()
        table = export_report_csv(profile).decode()
        report = json.loads(export_report_json(profile))
    assert all(line.isprintable() for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 160
    assert len(text.splitlines()) == 9 + len(HOSTILE_NAMES)
    assert {row["name"] for row in csv.DictReader(io.StringIO(table))} == {printable(name) for name in HOSTILE_NAMES}
    assert len(table.splitlines()) == 1 + len(HOSTILE_NAMES)
    assert {row["name"] for row in report["functions"]} == {encodable(name) for name in HOSTILE_NAMES}


def test_hostile_meta(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        profile.meta.update({"kernel_release": "6.1\n\x1b[0m\udcff", "big": [1 << 70, {"k\udcff": None}], "requested_hz": [1]})
        report = json.loads(export_report_json(profile))
        assert report["meta"]["kernel_release"] == "6.1\n\x1b[0m\\udcff"
        assert report["meta"]["big"] == [str(1 << 70), {"k\\udcff": None}]
        assert export_report_text(profile).decode().splitlines()[0] == "Linux 6.1\\n\\x1b[0m\\udcff on x86_64, TCG, 2 vCPUs"


def test_nothing_selected(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a"), Selection(since_ns=10**12)) as profile:
        assert export_folded(profile) == b""
        assert export_report_text(profile).decode().splitlines()[-1] == "no samples are selected"
        report = json.loads(export_report_json(profile))
        assert (report["functions"], report["quality"]["samples"], report["quality"]["halted_share"]) == ([], 0, None)


def test_the_same_recording_gives_the_same_bytes(tmp_path: Path) -> None:
    options = ExportOptions("1")
    for known in EXPORT_FORMATS.values():
        outputs = set()
        for attempt in range(2):
            with opened(small_recording(tmp_path / f"{known.name}{attempt}")) as profile:
                outputs.add(b"".join(known.pieces(profile, options)))
        assert len(outputs) == 1


def test_suffixes() -> None:
    assert {name: known.suffix for name, known in EXPORT_FORMATS.items()} == {
        "speedscope": ".speedscope.json",
        "folded": ".folded",
        "firefox": ".firefox.json",
        "pprof": ".pb.gz",
        "callgrind": ".callgrind",
        "perf-script": ".linux-perf.txt",
        "chrome-trace": ".trace.json",
        "html": ".html",
        "flamegraph": ".svg",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.0, "0.0 %"), (0.0001, "< 0.1 %"), (0.5, "50.0 %"), (0.99999, "99.9 %"), (1.0, "100.0 %")],
)
def test_percent_says_all_and_none_only_where_it_is_so(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_text_helpers() -> None:
    assert [duration(ns) for ns in (0, 1500, 2_500_000, 3_210_000_000)] == ["0.00 µs", "1.50 µs", "2.50 ms", "3.21 s"]
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert printable("tab\t\u202eevil\x1b[0m\ufffe\udcff é") == "tab\\t\\u202eevil\\x1b[0m\\ufffe\\udcff é"
    assert machine({}) == "QEMU guest"
    assert machine({"vcpus": 1, "architecture": "x86_64"}) == "QEMU guest on x86_64, 1 vCPU"
