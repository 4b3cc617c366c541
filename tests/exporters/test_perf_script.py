"""Text like perf script's, read by the Firefox Profiler, speedscope and gprof2dot."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exporters.perf_script import export_perf_script
from exporters.text import printable
from recording.model import StackEnd, Task
from recording.reader import Selection
from recording.views import function_totals
from tests.builders.profiles import HOSTILE_NAMES, IDLE_0, busy_recording, hostile_recording, opened, small_recording
from tests.builders.recordings import Stack, write_recording
from tests.exporters.profiler_cli import needs_profiler_cli, viewing
from tests.exporters.speedscope_app import imported, needs_speedscope

STACKCOLLAPSE_HEAD = re.compile(r"^(\S.+?)\s+(\d+)/*(\d+)*\s+")


def text_of(recording: Path, selection: Selection | None = None) -> str:
    with opened(recording, selection) as profile:
        return b"".join(export_perf_script(profile)).decode()


def test_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    golden("busy.linux-perf.txt", text_of(busy_recording(tmp_path / "a")).encode())


def test_every_sample_in_time_order(tmp_path: Path) -> None:
    heads = [line for line in text_of(small_recording(tmp_path / "a")).splitlines() if line.endswith("guest-clock: ")]
    assert len(heads) == 16
    times = [float(line.split()[3].removesuffix(":")) for line in heads]
    assert times == sorted(times)
    assert [line.split()[2] for line in heads] == ["[000]", "[001]"] * 8


def test_threads_of_any_name(tmp_path: Path) -> None:
    names = ["a", "a 12/13 b", "new\nline", "", "\udcff;x"]
    halts = [[Stack("main", task=Task(2 + index, 1, name, name, False))] for index, name in enumerate(names)]
    text = text_of(write_recording(tmp_path / "a", halts))
    heads = [STACKCOLLAPSE_HEAD.match(line) for line in text.splitlines() if line.endswith("guest-clock: ")]
    assert [None if head is None else (head[1].strip(), head[2], head[3]) for head in heads] == [
        ("a", "1", "2"),
        ("a_12/13_b", "1", "3"),
        (r"new\nline", "1", "4"),
        ("?", "1", "5"),
        (r"\udcff;x", "1", "6"),
    ]


@needs_profiler_cli
@pytest.mark.parametrize("make", [small_recording, hostile_recording])
def test_the_firefox_profiler_counts_what_we_count(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    recording = make(tmp_path / "a")
    file = tmp_path / "a.linux-perf.txt"
    with opened(recording) as profile:
        counted = {printable(total.name): total.samples for total in function_totals(profile)}
    file.write_text(text_of(recording), "utf-8")
    with viewing(file) as viewer:
        found: dict[str, int] = {}
        for thread in range(len(viewer.threads())):
            for (_, name), (_, total) in viewer.functions(thread).items():
                plain = re.sub(r" \(in [^()]*\)$", "", name)
                found[plain] = found.get(plain, 0) + total
    assert found == counted


@needs_speedscope
def test_speedscope_reads_threads_and_frames(tmp_path: Path) -> None:
    file = tmp_path / "a.linux-perf.txt"
    file.write_text(text_of(busy_recording(tmp_path / "a")), "utf-8")
    profiles = {row["name"]: {frame["name"] for frame in row["frames"]} for row in imported(file)["profiles"]}
    assert {"python3 pid: 417 tid: 417", "swapper/0", "kworker/0:1 pid: 12 tid: 12"} <= profiles.keys()
    assert {"_start", "foo::bar<3>", "libfoo.so.1+0x234", "copy_to_user"} <= profiles["python3 pid: 417 tid: 417"]


@pytest.mark.parametrize("make", [small_recording, hostile_recording])
def test_gprof2dot_draws_every_function(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text_of(make(tmp_path / "a")), "utf-8")
    command = [sys.executable, "-m", "gprof2dot", "-f", "perf", "--total=callstacks", "-n", "0", "-e", "0", str(file)]
    graph = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    nodes = re.findall(r'^\t"(?:[^"\\]|\\.)*" \[color=[^\n]*label="(?:[^"\\]|\\.)*\\n([\d.]+)%\\n\(', graph, re.MULTILINE)
    with opened(tmp_path / "a") as profile:
        shares = sorted(100 * total.samples / profile.samples for total in function_totals(profile))
    assert sorted(map(float, nodes)) == pytest.approx(shares, abs=0.01)


def test_hostile_names_stand_on_one_line(tmp_path: Path) -> None:
    lines = text_of(hostile_recording(tmp_path / "a")).splitlines()
    frames = [re.fullmatch(r"\t *\w+ (.+)\+0x10 \(\[kernel\.kallsyms\]\)", line) for line in lines if line.startswith("\t")]
    assert {frame[1] for frame in frames if frame is not None} == {printable(name) for name in HOSTILE_NAMES}


def test_a_stack_without_frames(tmp_path: Path) -> None:
    lines = text_of(write_recording(tmp_path / "a", [[Stack("", 0, StackEnd.NO_KERNEL, task=IDLE_0)]])).splitlines()
    assert "\t               0 [no-kernel] ([unknown])" in lines


def test_nothing_selected(tmp_path: Path) -> None:
    text = text_of(small_recording(tmp_path / "a"), Selection(vcpus=frozenset()))
    assert all(line.startswith("# ") for line in text.splitlines())
