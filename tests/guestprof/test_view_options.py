"""The options of ``report`` and ``export`` that choose what of a recording is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from guestprof.commands.export import export
from guestprof.commands.report import report
from recording.errors import GuestprofError, UnknownMarkError
from tests.builders.boots import boot_recording
from tests.builders.profiles import busy_recording


@pytest.mark.parametrize(
    ("options", "contexts"),
    [
        ([], {"user": 3, "system-call": 1, "hard-irq": 2, "idle": 2, "kernel-thread": 1, "firmware": 1, "unknown": 2}),
        (["--no-idle", "--vcpu", "1"], {"user": 1, "kernel-thread": 1, "unknown": 2}),
        (["--process", "python3"], {"user": 3, "system-call": 1, "hard-irq": 1}),
        (["--process", "12", "--process", "swapper/1"], {"kernel-thread": 1, "idle": 2}),
        (["--context", "hard-irq", "--context", "idle", "--process", "swapper"], {"hard-irq": 1, "idle": 2}),
        (["--process", "nobody"], {}),
    ],
)
def test_report_of_some_samples(tmp_path: Path, options: list[str], contexts: dict[str, int]) -> None:
    path = busy_recording(tmp_path / "a.guestprof")
    done = CliRunner().invoke(report, [str(path), "--by", "context", "-f", "json", *options])
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    assert {row["name"]: row["samples"] for row in document["contexts"]} == contexts
    assert document["quality"]["samples"] == sum(contexts.values())


def test_an_unknown_context_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(busy_recording(tmp_path / "a")), "--context", "lunch"])
    assert done.exit_code == 2
    assert "'lunch' is not one of 'user', 'system-call'" in done.output


@pytest.mark.parametrize(("per", "names"), [("vcpu", ["vCPU 0"]), ("process", ["swapper/0 (0)"])])
def test_export_of_one_process(tmp_path: Path, per: str, names: list[str]) -> None:
    path = busy_recording(tmp_path / "a.guestprof")
    done = CliRunner().invoke(export, [str(path), "-f", "speedscope", "--per", per, "--vcpu", "0", "--process", "swapper"])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "a.speedscope.json").read_bytes())
    assert [profile["name"] for profile in document["profiles"]] == names


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        (["--since", "0.02", "--until", "40ms"], 4),
        (["--since", "kernel_init", "--until", "init"], 24),
        (["--since", "console:login"], 2),
        (["--until", "function:setup_arch"], 6),
    ],
)
def test_moments_by_name(tmp_path: Path, options: list[str], samples: int) -> None:
    done = CliRunner().invoke(report, [str(boot_recording(tmp_path / "a")), "-f", "json", *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["quality"]["samples"] == samples


def test_moments_that_cannot_be(tmp_path: Path) -> None:
    path = str(boot_recording(tmp_path / "a"))
    for moment in ("-1", ""):
        done = CliRunner().invoke(report, [path, "--since", moment])
        assert done.exit_code == 2
        assert "is no moment: give seconds of guest running time or a milestone" in done.output
    for options, said in (
        (["--since", "tomorrow"], "'tomorrow' is no moment of this recording"),
        (["--since", "init", "--until", "kernel_init"], "there is no time between --since init ("),
    ):
        done = CliRunner().invoke(report, [path, *options])
        assert isinstance(done.exception, UnknownMarkError)
        assert said in str(done.exception)


def test_lines_that_nobody_read(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(busy_recording(tmp_path / "a")), "--by", "line"])
    assert isinstance(done.exception, GuestprofError)
    assert "has no source lines; guestprof symbolize" in str(done.exception)
