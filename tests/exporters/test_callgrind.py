"""Callgrind files, read by callgrind_annotate and gprof2dot."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exporters.callgrind import export_callgrind
from exporters.text import printable
from recording.reader import Selection
from recording.views import function_totals
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, hostile_recording, opened, small_recording
from tests.builders.recordings import MS, Stack, write_recording
from tests.exporters.speedscope_app import imported, needs_speedscope

needs_annotate = pytest.mark.skipif(shutil.which("callgrind_annotate") is None, reason="needs callgrind_annotate: install valgrind")
RECURSION = [
    [Stack("main f g f h")],
    [Stack("main f g f g", weight_ns=20 * MS)],
    [Stack("main g g g", weight_ns=40 * MS)],
    [Stack("main h main f", weight_ns=80 * MS)],
]


def recursive_recording(path: Path) -> Path:
    return write_recording(path, RECURSION)


def annotated(file: Path, *options: str) -> dict[str, tuple[int, int]]:
    """Time and samples of each function, as callgrind_annotate prints them."""
    command = ["callgrind_annotate", "--threshold=100", "--show-percs=no", "--auto=no", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    table = done.stdout.partition("file:function\n")[2].partition("\n")[2]
    rows = [re.fullmatch(r" *([\d,.]+) +([\d,.]+)  ([^\n]*) \[(.*)\]", line) for line in table.strip("\n").splitlines()]
    assert all(rows), table
    found = {}
    for row in rows:
        assert row is not None
        time_ns, samples = (0 if cell == "." else int(cell.replace(",", "")) for cell in (row[1], row[2]))
        found[row[3]] = (time_ns, samples)
    return found


def written(directory: Path, make: Callable[[Path], Path]) -> Path:
    file = directory / "a.callgrind"
    with opened(make(directory / "a")) as profile:
        file.write_bytes(export_callgrind(profile, version="1.2.3"))
    return file


def test_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    golden("small.callgrind", written(tmp_path, small_recording).read_bytes())


@needs_annotate
@pytest.mark.parametrize("make", [small_recording, busy_recording, hostile_recording, recursive_recording])
def test_callgrind_annotate_counts_what_we_count(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    file = written(tmp_path, make)
    with opened(tmp_path / "a") as profile:
        totals = function_totals(profile)
    read = annotated(file, "--inclusive=yes")
    processes = [read.pop(name) for name in list(read) if name.startswith("[process]:")]
    assert sum(time_ns for time_ns, _ in processes) == sum(total.self_ns for total in totals)
    assert read == {f"{total.module}:{printable(total.name)}": (total.total_ns, total.samples) for total in totals}
    own = {name: time_ns for name, (time_ns, _) in annotated(file).items() if time_ns}
    assert own == {f"{total.module}:{printable(total.name)}": total.self_ns for total in totals if total.self_ns}


@needs_annotate
def test_hostile_names(tmp_path: Path) -> None:
    names = {f"[kernel]:{printable(name)}" for name in HOSTILE_NAMES}
    assert set(annotated(written(tmp_path, hostile_recording), "--inclusive=yes")) == {*names, "[process]:all"}


@pytest.mark.parametrize("make", [small_recording, hostile_recording])
def test_gprof2dot_draws_every_function(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    file = written(tmp_path, make)
    command = [sys.executable, "-m", "gprof2dot", "-f", "callgrind", "-n", "0", "-e", "0", str(file)]
    graph = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    with opened(tmp_path / "a") as profile:
        names = {function.name for function in profile.functions}
        total_ns = profile.weight_ns
        rows = {total.name: total.self_ns for total in function_totals(profile)}
    nodes = dict(re.findall(r'^\t("(?:[^"\\]|\\.)*"|\w+) \[color=[^\n]*?%\\n\(([\d.]+)%\)', graph, re.MULTILINE))
    assert len(nodes) == len(names) + 1
    if make is small_recording:
        shares = {name: round(100 * own_ns / total_ns, 2) for name, own_ns in {**rows, "all": 0}.items()}
        assert {name.strip('"'): float(part) for name, part in nodes.items()} == shares


@needs_speedscope
def test_speedscope_reads_it(tmp_path: Path) -> None:
    read = imported(written(tmp_path, small_recording))
    assert [profile["name"].rpartition(" -- ")[2] for profile in read["profiles"]] == ["Time", "Samples"]
    own = {frame["name"]: frame["self"] for frame in read["profiles"][0]["frames"]}
    assert (own["default_idle"], own["copy_to_user"]) == (40 * MS, 30 * MS)


@needs_annotate
def test_nothing_selected(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a"), Selection(vcpus=frozenset())) as profile:
        text = export_callgrind(profile, version="1").decode()
    assert text.endswith("summary: 0 0\n\ntotals: 0 0\n")
