"""Recordings of guests without Linux have no tasks, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.report_text import head_lines
from recording.model import Callchain, Frame, Halt, Sample, StackEnd
from recording.profile import Profile
from recording.reader import Recording
from recording.store import RecordingWriter
from recording.views import process_totals, thread_totals


def recorded(path: Path, meta: dict[str, object]) -> Path:
    """A sample of code and one of firmware."""
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for key, value in meta.items():
            writer.set_meta(key, value)
        for end in (StackEnd.TASK_ROOT, StackEnd.FIRMWARE):
            writer.add_sample(Sample(writer.add_halt(Halt(0, 0, 1, 0)), 0, 0, 1, Callchain((Frame(1, 1),), end)))
    return path


@pytest.mark.parametrize(
    ("meta", "said", "owner"),
    [
        (
            {"elf_files": ["os.elf"]},
            "tasks    none: no Linux was seen, and of other kernels only the code is known",
            "[no tasks]",
        ),
        ({"engine": "GNU gdb 13.1"}, "tasks    none: gdb does not tell which task runs", "[no tasks]"),
        (
            {"elf_files": ["fw.elf"], "kernel_release": "6.1.0"},
            "tasks    0.00 % of the samples outside of firmware have a known task",
            "[unknown]",
        ),
        ({}, "tasks    0.00 % of the samples outside of firmware have a known task", "[unknown]"),
    ],
)
def test_what_is_said_of_tasks(tmp_path: Path, meta: dict[str, object], said: str, owner: str) -> None:
    with Recording.open(recorded(tmp_path / "a", meta)) as recording:
        profile = Profile(recording)
        assert [line for line in head_lines(profile) if line.startswith("tasks")] == [said]
        for totals in (process_totals(profile), thread_totals(profile)):
            assert {(total.name, total.samples) for total in totals} == {(owner, 1), ("[firmware]", 1)}
