"""Profiles for the Firefox Profiler: our own invariants, and the profiler's own program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.firefox import export_firefox
from exporters.per import Per
from exporters.text import encodable
from recording.reader import Selection
from recording.views import function_totals
from tests.builders.boots import boot_recording
from tests.builders.profiles import (
    HOSTILE_NAMES,
    IDLE_1,
    busy_recording,
    hostile_recording,
    opened,
    small_recording,
)
from tests.builders.recordings import MS
from tests.exporters.profiler_cli import needs_profiler_cli, viewing


def written(file: Path, recording: Path, per: Per = Per.VCPU, selection: Selection | None = None) -> dict[str, Any]:
    with opened(recording, selection) as profile:
        file.write_bytes(export_firefox(profile, version="1.2.3", per=per))
    document: dict[str, Any] = json.loads(file.read_bytes())
    for table in ("stackTable", "frameTable", "funcTable", "resourceTable"):
        columns = dict(document["shared"][table])
        length = columns.pop("length")
        assert {len(column) for column in columns.values()} == {length}
    offsets = document["shared"]["stackTable"]["prefixOffset"]
    assert all(0 <= offset <= index for index, offset in enumerate(offsets))
    return document


def labelled(name: str, module: str) -> tuple[str, str]:
    """As the profiler names a function: one that is called as its module is, is named once."""
    return ("" if name == module else encodable(module), encodable(name))


@pytest.mark.parametrize("form", list(Per))
def test_golden_files(tmp_path: Path, golden: Callable[[str, bytes], None], form: Per) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        output = export_firefox(profile, version="1.2.3", per=form)
    golden(f"busy_{form}.firefox.json", json.dumps(json.loads(output), indent=1, ensure_ascii=False).encode() + b"\n")


@needs_profiler_cli
def test_the_profiler_counts_what_we_count(tmp_path: Path) -> None:
    recording = small_recording(tmp_path / "a")
    written(tmp_path / "a.json", recording)
    with viewing(tmp_path / "a.json") as viewer:
        threads = viewer.threads()
        assert [(thread["name"], thread["pid"], thread["tid"]) for thread in threads] == [
            ("vCPU 0", "0", "vCPU 0"),
            ("vCPU 1", "0", "vCPU 1"),
        ]
        for vcpu in (0, 1):
            with opened(recording, Selection(vcpus=frozenset({vcpu}))) as profile:
                counted = {labelled(total.name, total.module): [0, total.samples] for total in function_totals(profile)}
                for count in profile.counts:
                    leaf = count.stack.functions[-1]
                    counted[labelled(leaf.name, leaf.module)][0] += count.samples
            assert {function: list(pair) for function, pair in viewer.functions(vcpu).items()} == counted


@needs_profiler_cli
def test_processes_and_markers(tmp_path: Path) -> None:
    written(tmp_path / "a.json", busy_recording(tmp_path / "a"), Per.PROCESS)
    with viewing(tmp_path / "a.json") as viewer:
        threads = viewer.threads()
        assert [(thread["name"], thread["pid"]) for thread in threads] == [
            ("python3", "417"),
            ("swapper/1", "0"),
            ("[unknown]", "[unknown]"),
            ("swapper/0", "0.1"),
            ("kworker/0:1", "12"),
            ("[firmware]", "[firmware]"),
        ]
        assert sum(own for own, _ in viewer.functions(0).values()) == 5
        markers = viewer.ask("thread", "markers", "--thread", "t-0", "--list")["flatMarkers"]
        assert [(marker["name"], marker["label"], marker["start"]) for marker in markers[:2]] == [
            ("kernel-found", "found Linux 6.1.0-18-amd64", 0),
            ("file-unreadable", "/opt/tool0: vda1 cannot be opened; run as root", 1),
        ]


@needs_profiler_cli
def test_milestones_of_a_boot_are_markers(tmp_path: Path) -> None:
    written(tmp_path / "a.json", boot_recording(tmp_path / "a"), selection=Selection(since_ns=50 * MS, until_ns=100 * MS))
    columns = json.loads((tmp_path / "a.json").read_bytes())["threads"][0]["markers"]
    # The builder's clock begins with the third halt, at 30 ms.
    by_guest = [start - data["guest"] for start, data in zip(columns["startTime"], columns["data"], strict=True)]
    assert by_guest == pytest.approx([30, 30, 30], abs=4)
    with viewing(tmp_path / "a.json") as viewer:
        markers = viewer.ask("thread", "markers", "--thread", "t-0", "--list")["flatMarkers"]
    assert [(marker["name"], marker["label"], marker["start"]) for marker in markers] == [
        # The viewer counts from where the selection begins.
        ("kernel_init", "the task that becomes init runs", 10),
        ("initcalls", "initcalls; the kernel's symbols do not tell their levels", 20),
        ("smp_init", "the other CPUs are started", 30),
    ]


@needs_profiler_cli
def test_stacks_of_vcpus_begin_with_the_process(tmp_path: Path) -> None:
    written(tmp_path / "a.json", busy_recording(tmp_path / "a"))
    with viewing(tmp_path / "a.json") as viewer:
        functions = viewer.functions(0)
    assert functions["[process]", "python3"] == (0, 4)
    assert functions["[process]", "swapper"] == (0, 1)


@needs_profiler_cli
def test_hostile_names(tmp_path: Path) -> None:
    written(tmp_path / "a.json", hostile_recording(tmp_path / "a"))
    with viewing(tmp_path / "a.json") as viewer:
        assert viewer.functions(0) == {("[kernel]", encodable(name)): (1, 2) for name in HOSTILE_NAMES}


def test_categories_tell_what_ran(tmp_path: Path) -> None:
    document = written(tmp_path / "a.json", busy_recording(tmp_path / "a"))
    names = [category["name"] for category in document["meta"]["categories"]]
    shared = document["shared"]
    frames = shared["stackTable"]["frame"]
    seen = [
        [names[shared["frameTable"]["category"][frames[stack]]] for stack in thread["samples"]["stack"] if stack is not None]
        for thread in document["threads"]
    ]
    assert seen == [
        ["Firmware", "Kernel", "User", "User", "Module", "Kernel"],
        ["Other", "Idle", "User", "Module", "Idle", "Kernel"],
    ]


def test_samples_stand_at_their_halts(tmp_path: Path) -> None:
    selection = Selection(since_ns=20 * MS, until_ns=60 * MS, processes=frozenset({IDLE_1.process}))
    document = written(tmp_path / "a.json", busy_recording(tmp_path / "a"), selection=selection)
    (thread,) = document["threads"]
    assert (thread["samples"]["timeDeltas"], thread["samples"]["stack"][0]) == ([20, 0, 30], None)
    assert thread["markers"]["length"] == 0


def test_an_empty_recording(tmp_path: Path) -> None:
    document = written(tmp_path / "a.json", small_recording(tmp_path / "a"), selection=Selection(vcpus=frozenset()))
    assert document["threads"] == []
