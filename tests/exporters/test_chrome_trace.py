"""Chrome traces: what ran when, read by speedscope and the Firefox Profiler."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.chrome_trace import export_chrome_trace
from exporters.text import encodable
from recording.model import Context, Task
from recording.reader import Selection
from tests.builders.boots import boot_recording
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, opened, small_recording
from tests.builders.recordings import MS, Stack, write_recording
from tests.exporters.profiler_cli import needs_profiler_cli, viewing
from tests.exporters.schemas import check_schema
from tests.exporters.speedscope_app import imported, needs_speedscope


def text_of(recording: Path, selection: Selection | None = None) -> bytes:
    with opened(recording, selection) as profile:
        return b"".join(export_chrome_trace(profile, version="1.2.3"))


def slices(text: bytes) -> list[dict[str, Any]]:
    return [event for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]


def test_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    golden("busy.trace.json", text_of(busy_recording(tmp_path / "a")))


def test_slices_last_as_long_as_one_thread_runs(tmp_path: Path) -> None:
    found = slices(text_of(busy_recording(tmp_path / "a")))
    assert [(row["name"], row["cat"], row["ts"], row["dur"]) for row in found if row["tid"] == 0] == [
        ("[firmware]", "task", 0, 10_000),
        ("python3", "task", 10_000, 30_000),
        ("swapper/0", "task", 40_000, 10_000),
        ("python3", "task", 50_000, 10_000),
    ]
    assert [row["name"] for row in found if row["tid"] == 1] == [
        "[unknown]",
        "idle",
        "pool thread 1",
        "kworker/0:1",
        "idle",
        "[unknown]",
    ]


def test_a_vcpu_that_was_not_sampled_has_a_gap(tmp_path: Path) -> None:
    found = slices(text_of(busy_recording(tmp_path / "a"), Selection(processes=frozenset({"python3"}), vcpus=frozenset({0}))))
    assert [(row["ts"], row["dur"]) for row in found] == [(10_000, 30_000), (50_000, 10_000)]


def test_time_is_all_there(tmp_path: Path) -> None:
    for make in (small_recording, busy_recording):
        recording = make(tmp_path / make.__name__)
        with opened(recording) as profile:
            assert sum(round(row["dur"] * 1000) for row in slices(text_of(recording))) == profile.weight_ns


def test_more_slices_than_a_piece_holds(tmp_path: Path) -> None:
    tasks = [Task(1 + index, 1 + index, f"t{index}", "t", False) for index in range(2)]
    halts = [[Stack("main", task=tasks[index % 2], context=Context.KERNEL_THREAD)] for index in range(5000)]
    assert len(slices(text_of(write_recording(tmp_path / "a", halts)))) == 5000


@needs_speedscope
def test_speedscope_reads_tracks_and_times(tmp_path: Path) -> None:
    file = tmp_path / "a.trace.json"
    file.write_bytes(text_of(busy_recording(tmp_path / "a")))
    first, second = imported(file)["profiles"]
    assert (first["name"].rpartition(", ")[2], first["unit"], first["end"]) == ("vCPU 0 (tid 0)", "microseconds", 60_000)
    assert {frame["name"].partition(" {")[0]: frame["self"] for frame in first["frames"]} == {
        "[firmware]": 10_000,
        "python3": 40_000,
        "swapper/0": 10_000,
    }
    assert {frame["name"]: frame["self"] for frame in second["frames"]}["idle"] == 20_000


@needs_profiler_cli
def test_the_firefox_profiler_reads_slices_and_events_as_markers(tmp_path: Path) -> None:
    tasks = [Task(10 + index, 10, name, "p", False) for index, name in enumerate(HOSTILE_NAMES)]
    recording = write_recording(tmp_path / "a", [[Stack("main", task=task, context=Context.KERNEL_THREAD)] for task in tasks])
    file = tmp_path / "a.trace.json"
    file.write_bytes(text_of(recording))
    with viewing(file) as viewer:
        markers = viewer.ask("thread", "markers", "--thread", "t-0", "--list")["flatMarkers"]
    found = Counter((marker["name"], marker.get("duration")) for marker in markers)
    expected: list[tuple[str, int | None]] = [("kernel-found", None), *((encodable(name), 10) for name in HOSTILE_NAMES)]
    assert found == Counter(expected)


def test_milestones_of_a_boot_are_instants(tmp_path: Path) -> None:
    document = check_schema("chrome-trace", text_of(boot_recording(tmp_path / "a"), Selection(since_ns=50 * MS, until_ns=75 * MS)))
    instants = [row for row in document["traceEvents"] if row["ph"] == "i"]
    assert [(row["name"], row["cat"], row["ts"]) for row in instants] == [
        ("kernel_init", "milestone", 60_000),
        ("initcalls", "milestone", 70_000),
    ]
    # The builder's clock begins with the third halt, at 30 ms.
    assert [row["args"]["guest_clock_s"] for row in instants] == pytest.approx([0.03, 0.04], abs=0.004)


@pytest.mark.parametrize("vcpus", [frozenset[int](), frozenset({7})])
def test_nothing_selected(tmp_path: Path, vcpus: frozenset[int]) -> None:
    document = json.loads(text_of(small_recording(tmp_path / "a"), Selection(vcpus=vcpus)))
    assert {event["ph"] for event in document["traceEvents"]} == {"M", "i"}
