"""Each format with source lines and inlined functions, as its readers want them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from exporters.registry import EXPORT_FORMATS, ExportOptions, ReportOptions, report_formats
from exporters.report import GroupBy, SortBy
from exporters.report_tree import TreeLimits
from recording.profile import Profile
from recording.reader import Recording, Selection
from tests.exporters.html_page import data_of
from tests.exporters.speedscope_app import SCHEMA, imported, needs_speedscope
from tests.exporters.test_pprof import needs_pprof, pprof
from tests.recording.test_sources import inlined_recording


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Profile]:
    with Recording.open(inlined_recording(tmp_path / "a")) as recording:
        yield Profile(recording, Selection(inlined=True))


def exported(profile: Profile, name: str) -> bytes:
    return b"".join(EXPORT_FORMATS[name].pieces(profile, ExportOptions("1")))


def test_folded(profile: Profile) -> None:
    assert exported(profile, "folded").decode().splitlines() == [
        "do_syscall_[k];ksys_read_[k] 1",
        "do_syscall_[k];ksys_read_[k];vfs_read_[k];access_ok_[i];get_user_[i] 3",
    ]


@needs_speedscope
def test_speedscope_itself_reads_files_and_lines(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "a.speedscope.json"
    file.write_bytes(exported(profile, "speedscope"))
    jsonschema.validate(json.loads(file.read_bytes()), json.loads(SCHEMA.read_text("utf-8")))
    (read,) = imported(file)["profiles"]
    assert {(frame["name"], frame["file"], frame["line"]) for frame in read["frames"]} == {
        ("do_syscall", "[kernel]", None),
        ("ksys_read", "fs/read_write.c", 620),
        ("vfs_read", "fs/read_write.c", 450),
        ("access_ok (inlined)", "include/uaccess.h", 40),
        ("get_user (inlined)", "include/uaccess.h", 12),
    }


def test_perf_script(profile: Profile) -> None:
    sample = exported(profile, "perf-script").decode().split("\n\n")[0].splitlines()[-5:]
    assert [line.split(maxsplit=1)[1] for line in sample] == [
        "get_user (inlined)",
        "access_ok (inlined)",
        "vfs_read+0x10 ([kernel.kallsyms])",
        "ksys_read+0x10 ([kernel.kallsyms])",
        "do_syscall+0x10 ([kernel.kallsyms])",
    ]
    assert len({line.split()[0] for line in sample}) == 3, "inlined frames have the address of their frame"


@needs_pprof
def test_pprof_itself_shows_lines(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "a.pb.gz"
    file.write_bytes(exported(profile, "pprof"))
    text = pprof(file, "-lines", "-top", "-sample_index=samples")
    rows = {line.split(maxsplit=5)[5]: line.split()[:4:3] for line in text.partition("cum%\n")[2].splitlines()}
    assert rows["get_user include/uaccess.h:12 (inline)"] == ["3", "3"]
    assert rows["access_ok include/uaccess.h:40 (inline)"] == ["0", "3"]
    assert rows["vfs_read fs/read_write.c:450"] == ["0", "3"]
    assert rows["ksys_read fs/read_write.c:620"] == ["1", "4"]


def test_firefox(profile: Profile) -> None:
    document = json.loads(exported(profile, "firefox"))
    shared, strings = document["shared"], document["shared"]["stringArray"]
    frames, funcs = shared["frameTable"], shared["funcTable"]
    rows = set()
    for func, line, depth in zip(frames["func"], frames["line"], frames["inlineDepth"], strict=True):
        source = funcs["source"][func]
        path = None if source is None else strings[shared["sources"]["filename"][source]]
        rows.add((strings[funcs["name"][func]], path, line, depth))
    assert rows == {
        ("do_syscall", None, None, 0),
        ("ksys_read", "fs/read_write.c", 620, 0),
        ("vfs_read", "fs/read_write.c", 450, 0),
        ("access_ok", "include/uaccess.h", 40, 1),
        ("get_user", "include/uaccess.h", 12, 2),
    }
    assert all(len(column) == shared["sources"]["length"] for name, column in shared["sources"].items() if name != "length")


@pytest.mark.skipif(shutil.which("callgrind_annotate") is None, reason="needs callgrind_annotate: install the package valgrind")
def test_callgrind_annotate_shows_them(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "callgrind.out"
    file.write_bytes(exported(profile, "callgrind"))
    text = subprocess.run(["callgrind_annotate", "--inclusive=yes", str(file)], capture_output=True, text=True, check=True).stdout
    assert "include/uaccess.h:get_user (inlined)" in text
    assert "fs/read_write.c:vfs_read" in text
    lines = file.read_text().splitlines()
    assert "12 30000000 3" in lines, "get_user's own time at its line"
    assert "450 30000000 3" in lines, "the call of access_ok in vfs_read"


def test_flame_graph(profile: Profile) -> None:
    assert "<title>get_user (inlined) [kernel] include/uaccess.h:12: 75.0 %" in exported(profile, "flamegraph").decode()


def test_html_report(profile: Profile) -> None:
    data = data_of(exported(profile, "html"))
    columns = (data["functions"][name] for name in ("name", "path", "line"))
    assert {name: (path, line) for name, path, line in zip(*columns, strict=True) if path or line} == {
        "ksys_read": ("fs/read_write.c", 620),
        "vfs_read": ("fs/read_write.c", 450),
        "access_ok (inlined)": ("include/uaccess.h", 40),
        "get_user (inlined)": ("include/uaccess.h", 12),
    }


def test_report(profile: Profile) -> None:
    formats = report_formats()
    options = ReportOptions(sort=SortBy.SELF)
    text = formats["text"].export(profile, options).decode()
    assert "get_user (inlined)" in text
    rows = json.loads(formats["json"].export(profile, options))["functions"]
    assert {row["name"]: row.get("inlined", False) for row in rows} == {
        "get_user": True,
        "access_ok": True,
        "vfs_read": False,
        "ksys_read": False,
        "do_syscall": False,
    }
    assert "get_user (inlined)," in formats["csv"].export(profile, options).decode()
    tree = formats["text"].export(profile, ReportOptions(tree=TreeLimits())).decode()
    assert "access_ok (inlined)" in tree


def test_report_by_line(profile: Profile) -> None:
    text = report_formats()["text"].export(profile, ReportOptions(GroupBy.LINE)).decode()
    assert text.splitlines()[-5].split() == ["75.00", "%", "30.00", "ms", "75.00", "%", "30.00", "ms", "3", "include/uaccess.h:12"]
    rows = json.loads(report_formats()["json"].export(profile, ReportOptions(GroupBy.LINE)))["lines"]
    assert rows[0]["name"] == "include/uaccess.h:12"
