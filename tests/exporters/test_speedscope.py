"""speedscope files: our own invariants, the JSON schema of speedscope's package, and speedscope itself under jsdom."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from exporters.folded import export_folded
from exporters.per import Per
from exporters.speedscope import export_speedscope
from recording.reader import Selection
from recording.views import function_totals
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, hostile_recording, opened, small_recording
from tests.builders.recordings import MS
from tests.exporters.speedscope_app import SCHEMA, imported, needs_speedscope


def check_invariants(document: dict[str, Any]) -> None:
    """What the format asks for and neither the schema nor the importer checks."""
    frames = document["shared"]["frames"]
    assert len({(frame["name"], frame["file"]) for frame in frames}) == len(frames)
    assert 0 <= document["activeProfileIndex"] < len(document["profiles"])
    for profile in document["profiles"]:
        assert profile["unit"] == "nanoseconds"
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(weight >= 0 for weight in profile["weights"])
        assert profile["endValue"] - profile["startValue"] == sum(profile["weights"])
        assert all(0 <= index < len(frames) for stack in profile["samples"] for index in stack)
        assert all(before != after for before, after in zip(profile["samples"], profile["samples"][1:], strict=False))


def exported(path: Path, selection: Selection | None = None, per: Per = Per.VCPU) -> dict[str, Any]:
    with opened(path, selection) as profile:
        document: dict[str, Any] = json.loads(export_speedscope(profile, version="1.2.3", per=per))
    check_invariants(document)
    return document


def test_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    with opened(small_recording(tmp_path / "a")) as profile:
        output = export_speedscope(profile, version="1.2.3")
    check_invariants(json.loads(output))
    golden("small.speedscope.json", output)


def test_one_profile_for_each_vcpu_in_time_order(tmp_path: Path) -> None:
    document = exported(small_recording(tmp_path / "a"))
    names = [frame["name"] for frame in document["shared"]["frames"]]
    first, second = document["profiles"]
    assert (first["name"], second["name"], first["endValue"], second["endValue"]) == ("vCPU 0", "vCPU 1", 80 * MS, 80 * MS)
    assert [names[stack[-1]] for stack in first["samples"]] == [
        "[firmware]",
        "copy_to_user",
        "[user]",
        "entry_SYSCALL_64",
        "walk",
        "copy_to_user",
    ]
    assert [weight // MS for weight in first["weights"]] == [10, 20, 20, 10, 10, 10]
    assert document["exporter"] == "guestprof@1.2.3"
    assert document["activeProfileIndex"] == 0  # vCPU 1 idles more


def test_idle_that_is_not_selected_is_a_gap(tmp_path: Path) -> None:
    document = exported(small_recording(tmp_path / "a"), Selection(vcpus=frozenset({1}), idle=False))
    (profile,) = document["profiles"]
    assert [len(stack) for stack in profile["samples"]] == [1, 0, 8, 0, 5, 1]
    assert [weight // MS for weight in profile["weights"]] == [10, 20, 10, 20, 10, 10]


def test_stacks_of_vcpus_begin_with_the_process(tmp_path: Path) -> None:
    document = exported(busy_recording(tmp_path / "a"))
    names = [frame["name"] for frame in document["shared"]["frames"]]
    roots = [[names[stack[0]] for stack in profile["samples"]] for profile in document["profiles"]]
    assert roots == [
        ["[firmware]", "python3", "python3", "python3", "swapper", "python3"],
        ["[unknown]", "swapper", "python3", "kworker/0:1", "swapper", "[unknown]"],
    ]
    assert {frame["name"]: frame["file"] for frame in document["shared"]["frames"]}["python3"] == "[process]"


@pytest.mark.parametrize("form", list(Per))
def test_golden_files_with_tasks(tmp_path: Path, golden: Callable[[str, bytes], None], form: Per) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        golden(f"busy_{form}.speedscope.json", export_speedscope(profile, version="1.2.3", per=form))


def test_one_profile_for_each_process(tmp_path: Path) -> None:
    document = exported(busy_recording(tmp_path / "a"), per=Per.PROCESS)
    assert [(profile["name"], profile["endValue"] // MS) for profile in document["profiles"]] == [
        ("python3 (417)", 50),
        ("[unknown]", 20),
        ("swapper/1 (0)", 20),
        ("[firmware]", 10),
        ("kworker/0:1 (12)", 10),
        ("swapper/0 (0)", 10),
    ]
    names = [frame["name"] for frame in document["shared"]["frames"]]
    assert [names[stack[-1]] for stack in document["profiles"][0]["samples"]] == [
        "copy_to_user",
        "libfoo.so.1+0x234",
        "[anon]",
        "tool+0x234",
        "asm_sysvec_apic_timer_interrupt",
    ]
    assert document["activeProfileIndex"] == 0


@pytest.mark.parametrize("make", [small_recording, busy_recording, hostile_recording])
@needs_speedscope
def test_the_json_schema_of_speedscope(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    validator = jsonschema.Draft7Validator(schema)
    document = exported(make(tmp_path / "a"))
    assert [error.message for error in validator.iter_errors(document)] == []
    document["profiles"][0]["unit"] = "ns"
    assert list(validator.iter_errors(document))


@needs_speedscope
def test_speedscope_reads_the_totals_that_we_count(tmp_path: Path) -> None:
    path = small_recording(tmp_path / "a")
    answers = {}
    for vcpu in (0, 1):
        with opened(path, Selection(vcpus=frozenset({vcpu}))) as profile:
            answers[vcpu] = {total.name: (total.self_ns, total.total_ns) for total in function_totals(profile)}
    file = tmp_path / "a.speedscope.json"
    with opened(path) as profile:
        file.write_bytes(export_speedscope(profile, version="1.2.3"))
    read = imported(file)
    assert (read["name"], read["activeProfileIndex"]) == ("Linux 6.1.0-18-amd64 on x86_64, TCG, 2 vCPUs", 0)
    assert [(p["name"], p["unit"], p["end"]) for p in read["profiles"]] == [
        ("vCPU 0", "nanoseconds", 80 * MS),
        ("vCPU 1", "nanoseconds", 80 * MS),
    ]
    for vcpu, profile_read in enumerate(read["profiles"]):
        assert {frame["name"]: (frame["self"], frame["total"]) for frame in profile_read["frames"]} == answers[vcpu]


@needs_speedscope
def test_speedscope_reads_one_profile_for_each_process(tmp_path: Path) -> None:
    file = tmp_path / "a.speedscope.json"
    with opened(busy_recording(tmp_path / "a")) as profile:
        file.write_bytes(export_speedscope(profile, version="1.2.3", per=Per.PROCESS))
    read = {row["name"]: {frame["name"]: frame["self"] for frame in row["frames"]} for row in imported(file)["profiles"]}
    assert read["swapper/0 (0)"]["e1000_clean"] == 10 * MS
    assert sum(read["python3 (417)"].values()) == 50 * MS


@needs_speedscope
def test_speedscope_reads_hostile_names(tmp_path: Path) -> None:
    file = tmp_path / "a.speedscope.json"
    with opened(hostile_recording(tmp_path / "a")) as profile:
        file.write_bytes(export_speedscope(profile, version="1.2.3"))
    (profile_read,) = imported(file)["profiles"]
    names = {name.replace("\udcff", "\\udcff") for name in HOSTILE_NAMES}
    assert {frame["name"] for frame in profile_read["frames"]} == names
    assert all(frame["self"] == 10 * MS for frame in profile_read["frames"])


@needs_speedscope
def test_speedscope_reads_folded_stacks(tmp_path: Path) -> None:
    file = tmp_path / "a.folded"
    with opened(small_recording(tmp_path / "a")) as profile:
        file.write_bytes(export_folded(profile, annotate=False))
        counts = {total.name: total.samples for total in function_totals(profile)}
    (profile_read,) = imported(file)["profiles"]
    assert profile_read["end"] == 16
    assert {frame["name"]: frame["total"] for frame in profile_read["frames"]} == counts


def test_a_file_that_is_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    with opened(small_recording(tmp_path / "a")) as profile:
        export_speedscope(profile, version="1", warn=warnings.append)
        assert warnings == []
        monkeypatch.setattr("exporters.speedscope.WARN_ABOVE_BYTES", 1000)
        export_speedscope(profile, version="1", warn=warnings.append)
    assert warnings == ["the file has 0 MB, which speedscope shows slowly; select less with --since and --until"]


def test_an_empty_recording(tmp_path: Path) -> None:
    with opened(small_recording(tmp_path / "a"), Selection(vcpus=frozenset())) as profile:
        assert json.loads(export_speedscope(profile, version="1"))["profiles"] == []
