"""``guestprof timeline`` as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from guestprof.commands.timeline import timeline
from recording.errors import UnknownMarkError
from tests.builders.boots import boot_recording


def test_text_is_cut_and_json_is_whole(tmp_path: Path) -> None:
    path = str(boot_recording(tmp_path / "a"))
    done = CliRunner().invoke(timeline, [path])
    assert done.exit_code == 0, done.output
    assert "kernel_init" in done.output
    assert "rows more: --show functions -n 0" in done.output
    assert "Welcome to Debian" not in done.output
    made = json.loads(CliRunner().invoke(timeline, [path, "-f", "json"]).stdout)
    assert len(made["functions"]) > 15
    assert [line["text"] for line in made["console"]][1] == "Welcome to Debian"


def test_console_lines_become_milestones(tmp_path: Path) -> None:
    options = ["--mark", "login=login:", "--mark", "^Welcome", "--show", "milestones", "-f", "json"]
    done = CliRunner().invoke(timeline, [str(boot_recording(tmp_path / "a")), *options])
    names = [row["name"] for row in json.loads(done.stdout)["milestones"]]
    assert names[-4:] == ["init:systemd", "^Welcome", "service", "login"]


def test_a_part_of_the_time(tmp_path: Path) -> None:
    options = ["--since", "init", "--until", "init:systemd", "--show", "phases", "--vcpu", "0", "-f", "json"]
    done = CliRunner().invoke(timeline, [str(boot_recording(tmp_path / "a")), *options])
    made = json.loads(done.stdout)
    assert [(row["name"], row["samples"]) for row in made["phases"]] == [("init", 5)]


@pytest.mark.parametrize(
    ("options", "why"), [(["--mark", "("], "no regular expression"), (["--show", "lunch"], "'lunch' is not one of")]
)
def test_wrong_usage(tmp_path: Path, options: list[str], why: str) -> None:
    done = CliRunner().invoke(timeline, [str(boot_recording(tmp_path / "a")), *options])
    assert done.exit_code == 2
    assert why in done.output


def test_a_moment_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(timeline, [str(boot_recording(tmp_path / "a")), "--since", "lunch"])
    assert isinstance(done.exception, UnknownMarkError)
