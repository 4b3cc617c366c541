"""The command line of ``diff``: which files are of which side, which samples count, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from guestprof.commands.diff import diff
from recording.errors import BadRecordingError, GuestprofError
from tests.builders.boots import boot_recording
from tests.builders.profiles import busy_recording
from tests.builders.recordings import Stack, write_recording


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(diff, [str(argument) for argument in arguments])


def document_of(*arguments: str | Path) -> dict[str, Any]:
    done = run(*arguments, "-f", "json")
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    halts = [[Stack("main f")], [Stack("main g")]]
    return write_recording(tmp_path / "a.guestprof", halts * 100), write_recording(
        tmp_path / "b.guestprof", [*halts, halts[0]] * 100
    )


def test_before_and_after(pair: tuple[Path, Path]) -> None:
    row = document_of(*pair)["rows"][0]
    assert row["name"] == "f"
    assert row["self_share"]["before"] == 0.5
    assert row["self_share"]["after"] == pytest.approx(2 / 3)
    text = run(*pair).stdout
    assert text.startswith("A        Linux 6.1.0-18-amd64 on x86_64, TCG, 2 vCPUs; 200 samples")
    assert "\x1b" not in text
    assert "\x1b" in run(*pair, "--color", "always").stdout


def test_more_recordings_of_each_side(pair: tuple[Path, Path]) -> None:
    before, after = pair
    document = document_of(before, after, *("--before", before) * 4, *("--after", after) * 4)
    assert [len(document[side]["recordings"]) for side in ("before", "after")] == [5, 5]
    assert document["before"]["blocks_are"] == "recordings"
    assert document["after"]["samples"] == 1500


def test_the_same_samples_of_both_sides_are_chosen(tmp_path: Path) -> None:
    busy = busy_recording(tmp_path / "a.guestprof")
    document = document_of(busy, busy, "--process", "python3", "--no-idle")
    assert [document[side]["samples"] for side in ("before", "after")] == [5, 5]
    boot = boot_recording(tmp_path / "b.guestprof")
    phase = document_of(boot, boot, "--since", "kernel_init", "--until", "init")
    assert [phase[side]["samples"] for side in ("before", "after")] == [24, 24]


def test_a_moment_that_one_recording_does_not_have(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    boot = boot_recording(tmp_path / "boot.guestprof")
    done = run(boot, pair[1], "--since", "kernel_init")
    assert isinstance(done.exception, GuestprofError)
    assert str(done.exception).startswith(f"{pair[1]}: 'kernel_init' is no moment of this recording")


def test_files_that_are_no_recordings(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    text = tmp_path / "notes"
    text.write_text("not a recording")
    for arguments in ((tmp_path / "absent", pair[1]), (pair[0], text), (*pair, "--after", text)):
        done = run(*arguments)
        assert isinstance(done.exception, BadRecordingError)
        assert str(done.exception).count("\n") == 0
    assert run(pair[0]).exit_code == 2


def test_a_file_as_output(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    path = tmp_path / "out.folded"
    assert run(*pair, "-f", "folded", "-o", path).exit_code == 0
    assert path.read_text() == "main_[k];f_[k] 500000 666667\nmain_[k];g_[k] 500000 333333\n"
    assert isinstance(run(*pair, "-f", "folded", "-o", path).exception, GuestprofError)
    assert run(*pair, "-f", "folded", "--measure", "time", "-o", path, "--force").exit_code == 0
    assert path.read_text() == "main_[k];f_[k] 1000000 2000000\nmain_[k];g_[k] 1000000 1000000\n"


def test_rows_are_limited_in_text_and_on_demand(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.guestprof", [[Stack(f"main f{index}")] for index in range(60)])
    assert "and 21 more rows; -n 0 shows all" in run(path, path).stdout
    assert "more rows" not in run(path, path, "-n", "0").stdout
    assert len(document_of(path, path)["rows"]) == 61
    assert len(document_of(path, path, "-n", "7")["rows"]) == 7
