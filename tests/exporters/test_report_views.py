"""Callers, callees, call trees, colours and schemas of the ``report`` command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from exporters.chrome_trace import export_chrome_trace
from exporters.paint import PLAIN, Paint
from exporters.registry import ReportOptions, report_formats
from exporters.report import GroupBy, Neighbours
from exporters.report_tree import TreeLimits
from guestprof.commands.report import report
from recording.errors import UnknownFunctionError
from recording.model import FrameKind
from recording.neighbours import callee_totals, caller_totals
from recording.reader import Selection
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, hostile_recording, opened, small_recording
from tests.exporters.schemas import check_schema

MS = 1_000_000
_ESCAPES = re.compile(rb"\x1b\[[0-9;]*m")


def test_callers(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        whole, rows = caller_totals(profile, "filemap_read")
        assert (whole.total_ns, whole.self_ns, whole.samples, whole.module) == (30 * MS, 0, 3, "[kernel]")
        assert [(row.name, row.module, row.total_ns, row.self_ns, row.samples) for row in rows] == [
            ("[root]", "", 10 * MS, 0, 1),
            ("ext4_file_read_iter", "[ext4]", 20 * MS, 0, 2),
        ]


def test_callees(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        whole, rows = callee_totals(profile, "default_idle")
        assert (whole.total_ns, whole.self_ns) == (50 * MS, 40 * MS)
        assert [(row.name, row.total_ns, row.self_ns, row.samples) for row in rows] == [
            ("[self]", 40 * MS, 40 * MS, 4),
            ("asm_sysvec_apic_timer_interrupt", 10 * MS, 0, 1),
        ]


def test_recursion_counts_once(tmp_path: Path) -> None:
    """ret_from_fork kthread walk walk walk: the outermost call has the caller, the innermost one what was done."""
    with opened(small_recording(tmp_path / "a")) as profile:
        whole, callers = caller_totals(profile, "walk")
        assert (whole.total_ns, whole.self_ns, whole.samples) == (20 * MS, 20 * MS, 2)
        assert [(row.name, row.total_ns, row.self_ns) for row in callers] == [("kthread", 20 * MS, 20 * MS)]
        _whole, callees = callee_totals(profile, "walk")
        assert [(row.name, row.total_ns) for row in callees] == [("[self]", 20 * MS)]


def test_neighbours_add_up_to_what_the_function_took(tmp_path: Path) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        for name in {profile.functions[index].name for count in profile.counts for index in count.stack.indexes}:
            for find in (caller_totals, callee_totals):
                whole, rows = find(profile, name)
                assert whole.total_ns == sum(row.total_ns for row in rows)
                assert whole.samples == sum(row.samples for row in rows)
                assert all(0 <= row.self_ns <= row.total_ns for row in rows)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("read", "similar: copy_to_user, ext4_file_read_iter"),
        ("filemap_raed", "similar: filemap_read"),
        ("zzz", "guestprof report lists all functions"),
        ("", "guestprof report lists all functions"),
    ],
)
def test_a_function_that_is_not_there(tmp_path: Path, name: str, hint: str) -> None:
    with opened(small_recording(tmp_path / "a"), Selection(vcpus=frozenset({0}))) as profile:
        with pytest.raises(UnknownFunctionError) as error:
            caller_totals(profile, name)
        text = str(error.value)
    assert text.startswith(f"no selected sample shows a function {name}; ")
    assert hint.removeprefix("similar: ").split(", ")[-1] in text


@pytest.mark.parametrize("form", ["text", "json", "csv"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("callers", ReportOptions(neighbours=Neighbours("do_syscall_64", is_callers=True))),
        ("callees", ReportOptions(neighbours=Neighbours("do_idle", is_callers=False))),
        ("tree", ReportOptions(tree=TreeLimits(0.1, 9))),
    ],
)
def test_golden_files(tmp_path: Path, golden: Callable[[str, bytes], None], form: str, name: str, options: ReportOptions) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        data = report_formats()[form].export(profile, options)
    golden(f"busy_{name}.{'txt' if form == 'text' else form}", data)
    if form == "json":
        check_schema("report", data)


def test_tree_limits(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:

        def lines(limits: TreeLimits) -> list[str]:
            text = report_formats()["csv"].export(profile, ReportOptions(tree=limits)).decode()
            return [line.split(",")[1] for line in text.splitlines()[1:]]

        assert lines(TreeLimits(depth=0)) == ["all"]
        assert lines(TreeLimits(depth=1, least_share=0.3)) == ["all", "secondary_startup_64"]
        assert lines(TreeLimits(rows=3)) == ["all", "secondary_startup_64", "cpu_startup_entry"]
        assert len(lines(TreeLimits())) == 27
        assert lines(TreeLimits(least_share=1.0)) == ["all"]


def test_a_tree_of_nothing(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a"), Selection(vcpus=frozenset({7}))) as profile:
        formats, options = report_formats(), ReportOptions(tree=TreeLimits())
        assert formats["text"].export(profile, options).decode().endswith("no samples are selected\n")
        assert check_schema("report", formats["json"].export(profile, options))["tree"] is None
        assert len(formats["csv"].export(profile, options).splitlines()) == 1


@pytest.mark.parametrize("by", list(GroupBy))
def test_reports_are_as_their_schema_says(tmp_path: Path, by: GroupBy) -> None:
    for make in (small_recording, busy_recording, hostile_recording):
        with opened(make(tmp_path / make.__name__)) as profile:
            check_schema("report", report_formats()["json"].export(profile, ReportOptions(by)))


def test_the_schemas_refuse_what_is_wrong(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        data = report_formats()["json"].export(profile, ReportOptions(tree=TreeLimits()))
        trace = b"".join(export_chrome_trace(profile, version="1"))
    check_schema("chrome-trace", trace)
    for wrong in (
        data.replace(b'"tree"', b'"trees"'),
        data.replace(b'"self_ns": 0', b'"self_ns": -1'),
        data.replace(b'"children"', b'"x"'),
    ):
        assert wrong != data
        with pytest.raises(jsonschema.ValidationError):
            check_schema("report", wrong)
    with pytest.raises(jsonschema.ValidationError):
        check_schema("chrome-trace", trace.replace(b'"ph":"X"', b'"ph":"B"'))


def test_colours_change_nothing_but_colours(tmp_path: Path) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        for options in (ReportOptions(), ReportOptions(tree=TreeLimits()), ReportOptions(GroupBy.PROCESS)):
            plain, coloured = (report_formats(paint)["text"].export(profile, options) for paint in (PLAIN, Paint(is_on=True)))
            assert b"\x1b" not in plain
            assert b"\x1b[31m" in coloured
            assert _ESCAPES.sub(b"", coloured).split() == plain.split()


def test_paint() -> None:
    paint = Paint(is_on=True)
    assert paint.share(" 5.00 %", 0.05) == "\x1b[31m 5.00 %\x1b[0m"
    assert paint.share("x", 0.005) == "\x1b[32mx\x1b[0m"
    assert paint.share("x", 0.0049) == "x"
    assert paint.kind("f", FrameKind.USER) == "\x1b[34mf\x1b[0m"
    assert paint.kind("f", FrameKind.UNKNOWN) == "f"
    assert PLAIN.faint("f") == PLAIN.share("f", 1) == PLAIN.kind("f", FrameKind.USER) == "f"


def test_hostile_names_never_reach_a_terminal(tmp_path: Path) -> None:
    with opened(hostile_recording(tmp_path / "a")) as profile:
        for name in HOSTILE_NAMES:
            for options in (ReportOptions(neighbours=Neighbours(name, is_callers=True)), ReportOptions(tree=TreeLimits())):
                text = report_formats()["text"].export(profile, options).decode()
                assert all(character.isprintable() for character in text.replace("\n", ""))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--focus", "filemap", "-n", "0"], {"copy_to_user"}),
        (["--focus", "^filemap_read$", "--ignore", "ext4"], {"copy_to_user"}),
        (["--focus", "ext4"], {"copy_to_user"}),
        (["--module", "ext4"], {"copy_to_user"}),
        (["--module", "[e1000]"], {"e1000_clean"}),
        (["--module", "kernel", "--ignore", "idle|walk|copy|entry_SYSCALL_64$"], {"0xffffffffa0000000"}),
        (["--focus", "(?i)EXT4"], {"copy_to_user"}),
        (["--focus", "nothing"], set()),
        (["--focus", "walk", "--focus", "e1000_clean"], {"walk", "e1000_clean"}),
    ],
)
def test_stacks_by_their_functions(tmp_path: Path, options: list[str], names: set[str]) -> None:
    path = small_recording(tmp_path / "a")
    done = CliRunner().invoke(report, [str(path), "-f", "json", *options])
    assert done.exit_code == 0, done.output
    rows = check_schema("report", done.stdout.encode())["functions"]
    own = {row["name"] for row in rows if row["self_ns"]}
    assert own == names or (names and "0xffffffffa0000000" in names and len(own) <= 1)
    assert sum(row["self_share"] for row in rows) == pytest.approx(1 if names and own else 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--focus", "("], "'(' is no regular expression: missing )"),
        (["--tree", "--callers", "f"], "give one of --by, --callers, --callees and --tree"),
        (["--callers", "f", "--callees", "g"], "give one of --by, --callers, --callees and --tree"),
        (["--by", "module", "--tree"], "give one of --by, --callers, --callees and --tree"),
        (["--tree", "--depth", "-1"], "-1 is not in the range"),
        (["--color", "pink"], "'pink' is not one of 'auto', 'always', 'never'"),
    ],
)
def test_wrong_usage(tmp_path: Path, options: list[str], said: str) -> None:
    done = CliRunner().invoke(report, [str(small_recording(tmp_path / "a")), *options])
    assert done.exit_code == 2
    assert said in done.output


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(small_recording(tmp_path / "a"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    run = CliRunner()
    callers = run.invoke(report, [path, "--callers", "filemap_read"]).output
    assert "callers of filemap_read, which took 18.75 % of the time, 30.00 ms, in 3 samples" in callers
    assert "\x1b" not in callers
    tree = run.invoke(report, [path, "--tree", "--min-percent", "30", "--color", "always"], color=True).output
    assert "\x1b[31m" in tree
    assert [line.split()[-1] for line in _ESCAPES.sub(b"", tree.encode()).decode().splitlines()[-3:]] == [
        "cpu_startup_entry",
        "do_idle",
        "default_idle_call",
    ] or "default_idle" in tree
    missing = run.invoke(report, [path, "--callees", "nobody"])
    assert isinstance(missing.exception, UnknownFunctionError)
