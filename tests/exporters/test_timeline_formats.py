"""Timelines as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from exporters.registry import TIMELINE_FORMATS
from exporters.timeline import Section, TimelineView
from recording.model import Context, Event, Task
from recording.reader import Selection
from recording.timeline import timeline_of
from tests.builders.boots import boot_recording
from tests.builders.profiles import HOSTILE_NAMES, opened, small_recording
from tests.builders.recordings import Names, Stack, write_recording
from tests.exporters.schemas import check_schema

EVERYTHING = tuple(Section)


def exported(
    path: Path,
    form: str,
    sections: tuple[Section, ...] = EVERYTHING,
    limit: int | None = None,
    selection: Selection | None = None,
) -> str:
    with opened(path, selection) as profile:
        return TIMELINE_FORMATS[form].export(profile, TimelineView(timeline_of(profile), sections, limit)).decode()


def document(path: Path, **options: Any) -> dict[str, Any]:
    """The JSON, which fits its schema."""
    text: dict[str, Any] = check_schema("timeline", exported(path, "json", **options).encode())
    return text


@pytest.mark.parametrize(("form", "suffix"), [("text", "txt"), ("json", "json"), ("csv", "csv")])
def test_golden_files(tmp_path: Path, golden: Callable[[str, bytes], None], form: str, suffix: str) -> None:
    golden(f"boot.timeline.{suffix}", exported(boot_recording(tmp_path / "a"), form).encode())


def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    good = document(boot_recording(tmp_path / "a"))
    for path, wrong in ((("course", "end_ns"), "late"), (("milestones", 0, "boot"), -1), (("functions", 0, "kind"), "magic")):
        spoilt: Any = json.loads(json.dumps(good))
        place = spoilt
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        with pytest.raises(jsonschema.ValidationError):
            check_schema("timeline", json.dumps(spoilt).encode())


def test_each_section_alone(tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    for section in Section:
        text = document(path, sections=(section,))
        assert set(text) == {"meta", "quality", "course", section.value.replace("-", "_")}
    rows = csv.DictReader(io.StringIO(exported(path, "csv", (Section.SYSTEM_CALLS,))))
    assert [(row["what"], row["process"], row["name"], row["time_ns"]) for row in rows] == [
        ("system-call", "init", "finit_module", "190000000"),
        ("system-call", "init", "read", "200000000"),
        ("system-call", "init", "execve", "220000000"),
        ("system-call", "sshd", "read", "260000000"),
    ]
    assert exported(path, "text", (Section.CONSOLE,)).splitlines()[-3:] == [
        "    0.2500      0.2240           Starting ssh.service - OpenBSD Secure Shell server...",
        "    0.2620      0.2366  [  OK  ] Started ssh.service - OpenBSD Secure Shell server.",
        "    0.2650      0.2398  login:",
    ]


def test_a_limit_says_what_it_leaves_out(tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    lines = exported(path, "text", (Section.PROCESSES, Section.MILESTONES), 2).splitlines()
    assert lines[-1] == "  and 6 rows more: --show processes -n 0"
    assert sum(" (" in line for line in lines[lines.index("processes:") :]) == 1  # firmware has no number
    assert len(document(path, limit=2)["functions"]) == 2
    assert len(document(path, limit=2)["milestones"]) == 12


def test_all_formats_tell_the_same(tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    text = document(path)
    rows = list(csv.DictReader(io.StringIO(exported(path, "csv"))))
    count = Counter(row["what"] for row in rows)
    assert count == {
        "milestone": len(text["milestones"]),
        "phase": len(text["phases"]),
        "wait": len(text["waits"]["spans"]),
        "module-load": 2,
        "module-unload": 1,
        "module": 1,
        "module-init": 1,
        "initcall": len(text["initcalls"]),
        "process": len(text["processes"]),
        "group": len(text["groups"]),
        "unit": 2,
        "unit-start": 1,
        "system-call": len(text["system_calls"]),
        "function": len(text["functions"]),
        "event": len(text["events"]),
        "console": len(text["console"]),
    }
    functions = [row for row in rows if row["what"] == "function"]
    assert [(row["name"], int(row["time_ns"]), int(row["samples"])) for row in functions] == [
        (row["name"], row["first_ns"], row["samples"]) for row in text["functions"]
    ]
    # The second vCPU is started after six halts of the kernel.
    assert sum(phase["samples"] for phase in text["phases"]) == text["quality"]["samples"] - 6 == 48


def test_a_recording_without_a_boot_says_so(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack("ret_from_fork kthread")]])
    text = exported(path, "text")
    assert "milestones:\n  none: the recording did not see its guest boot (guestprof boot does)\n" in text
    assert "in 0 spans" in text
    assert "no line was recorded" in text


def test_nothing_is_selected(tmp_path: Path) -> None:
    selection = Selection(since_ns=10**12)
    for form in TIMELINE_FORMATS:
        assert exported(boot_recording(tmp_path / form), form, selection=selection)
    assert document(small_recording(tmp_path / "a"), selection=selection)["phases"] == []


def test_hostile_names(tmp_path: Path) -> None:
    """As functions, processes, control groups, events and console lines; each row stays one line, nothing is a command."""
    names = Names(shown={f"f{index}": name for index, name in enumerate(HOSTILE_NAMES)})
    halts = [
        [Stack(f"f{index}", task=Task(index + 2, index + 2, name, name, False, name), context=Context.KERNEL_THREAD)]
        for index, name in enumerate(HOSTILE_NAMES)
    ]
    events = [Event(1, kind, name) for name in HOSTILE_NAMES for kind in ("console", "mark", "module-loaded", "strange")]
    path = write_recording(tmp_path / "a", halts, names, events)
    for form in ("text", "csv"):
        text = exported(path, form)
        assert all(character.isprintable() or character == "\n" for character in text)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert Counter(row["what"] for row in rows)["function"] == len(HOSTILE_NAMES)
    made = document(path)
    assert {row["name"] for row in made["functions"]} == {
        name.encode("utf-8", "backslashreplace").decode() for name in HOSTILE_NAMES
    }
    assert len(made["console"]) == len(made["modules"]) == len(HOSTILE_NAMES)
    assert max(map(len, exported(path, "text").splitlines())) < 400
