"""The words of ``guestprof compare``: which sides they name, and what is said where they do not."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from guestprof.commands.compare import compare
from guestprof.compare_run import BootedSide, sides_of
from recording.errors import GuestprofError
from tests.builders.boots import varied_boot
from tests.builders.profiles import busy_recording


def test_two_accelerators_boot_one_command_line() -> None:
    kvm, tcg = sides_of(["qemu", "-m", "1G", "-accel", "xen"], ["kvm", "tcg"], [])
    assert kvm == BootedSide("kvm", ("qemu", "-m", "1G", "-accel", "kvm"))
    assert tcg == BootedSide("tcg", ("qemu", "-m", "1G", "-accel", "tcg"))


def test_two_command_lines() -> None:
    old, new = sides_of("qemu -append --with -m 1G --with new -- qemu -m 2G".split(), [], ["old"])
    assert old == BootedSide("old", ("qemu", "-append", "--with", "-m", "1G"))
    assert new == BootedSide("new", ("qemu", "-m", "2G"))


@pytest.mark.parametrize(
    ("words", "accelerators", "names", "said"),
    [
        ("qemu", ["kvm"], [], "two sides with different names"),
        ("qemu", ["kvm", "kvm"], [], "two sides with different names"),
        ("qemu", ["kvm", "tcg", "hvf"], [], "two sides with different names"),
        ("qemu", ["kvm", "tcg"], ["a"], "not both"),
        ("qemu", [], ["a"], "two sides with different names"),
        ("qemu", [], ["a", "b"], "a QEMU command line of its own"),
        ("qemu --with b --", [], ["a"], "a QEMU command line of its own"),
        ("qemu --with b -- qemu --with c -- qemu", [], ["a"], "two sides with different names"),
        ("qemu --with ../b -- qemu", [], ["a"], "recordings are named so"),
    ],
)
def test_other_words_are_wrong(words: str, accelerators: list[str], names: list[str], said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        sides_of(words.split(), accelerators, names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "give two recordings"),
        (["a", "b", "c"], "give two recordings"),
        (["a", "b", "-F", "200"], "--frequency is for boots"),
        (["a", "b", "--until-symbol", "x"], "--until-symbol is for boots"),
        (["--accel", "kvm", "--accel", "tcg", "--", "qemu"], "say when a boot is over"),
        (["--accel", "kvm", "--accel", "tcg", "-d", "1", "--before", "a", "--", "qemu"], "--runs makes more boots"),
    ],
)
def test_usage(words: list[str], said: str) -> None:
    result = CliRunner().invoke(compare, words)
    assert result.exit_code == 2
    assert said in result.output


def test_recordings_are_compared_into_a_file_that_its_name_chooses(tmp_path: Path) -> None:
    paths = [str(varied_boot(tmp_path / str(seed), seed)) for seed in range(4)]
    more = ["--before", paths[2], "--after", paths[3]]
    for suffix, start in ((".json", b"{"), (".html", b"<!DOCTYPE html>"), (".txt", b"A        A: Linux")):
        file = tmp_path / f"out{suffix}"
        result = CliRunner().invoke(compare, [*paths[:2], *more, "-o", str(file)], catch_exceptions=False)
        assert result.exit_code == 0
        assert file.read_bytes().startswith(start)
        with pytest.raises(GuestprofError, match="exists; give --force"):
            CliRunner().invoke(compare, [*paths[:2], "-o", str(file)], catch_exceptions=False)


def test_a_recording_that_shows_no_boot(tmp_path: Path) -> None:
    paths = [str(varied_boot(tmp_path / "a", 1)), str(busy_recording(tmp_path / "b"))]
    with pytest.raises(GuestprofError, match="b does not show its guest boot"):
        CliRunner().invoke(compare, paths, catch_exceptions=False)
