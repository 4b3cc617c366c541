"""Recordings of guests at the same work, and at work of which one function became 30 % slower, compared."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestprof.initramfs import Entry, pack_newc
from recording.comparison import compare
from recording.errors import MissingDependencyError
from recording.profile import Profile
from recording.reader import Recording, Selection
from tests.conftest import skip_loudly
from tests.guests.build import DIFF_TRUTH, build_programs
from tests.qemu.command import guestprof
from tests.qemu.guests import Guest, GuestOptions

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

AT_WORK = "diff-truth: at work"
ENOUGH = 4000
"""Samples of each side, as if evenly spaced: its share, 40 of 100 units against 52 of 112, is then six standard errors larger."""
SECONDS, LONGEST = 4.0, 40.0


@dataclass(frozen=True, slots=True)
class Recordings:
    """Of one guest at its usual work, and of another whose ``grind`` costs 30 % more; each side at least two."""

    usual: list[Path]
    slow: list[Path]


@pytest.fixture(scope="module")
def recordings(guest_kernel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    directory = tmp_path_factory.mktemp("diff")
    try:
        build_programs(directory, (DIFF_TRUTH,))
    except MissingDependencyError as error:
        skip_loudly(str(error))
    initramfs = directory / "initramfs"
    entries = [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "root")),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("init", stat.S_IFREG | 0o755, (directory / DIFF_TRUTH.name).read_bytes()),
    ]
    initramfs.write_bytes(pack_newc(entries))
    made: dict[str, list[Path]] = {}
    for word in ("usual", "slow"):
        options = GuestOptions(guest_kernel("bookworm"), initramfs, append=f"quiet no_timer_check {word}")
        with Guest(options) as guest:
            guest.wait_for(AT_WORK)
            made[word] = recorded(guest, directory / word)
    return Recordings(made["usual"], made["slow"])


def recorded(guest: Guest, name: Path) -> list[Path]:
    """Two recordings, and a third where a busy machine gave too few samples."""
    paths: list[Path] = []
    samples, seconds = 0.0, SECONDS
    while len(paths) < 2 or (len(paths) == 2 and samples < ENOUGH):
        if len(paths) == 2:
            seconds = min(LONGEST, 2 * SECONDS * (ENOUGH / samples - 1) + 1)
        paths.append(name.with_name(f"{name.name}{len(paths)}.guestprof"))
        guestprof("record", "--connect", guest.target, "-F", "700", "-d", f"{seconds:.1f}", "-o", paths[-1], "-q")
        samples += diff_of(paths[-1:], paths[-1:])["before"]["effective_samples"]
    return paths


def diff_of(before: list[Path], after: list[Path], *options: str) -> dict[str, Any]:
    more = [word for side, paths in (("--before", before), ("--after", after)) for path in paths[1:] for word in (side, path)]
    document: dict[str, Any] = json.loads(guestprof("diff", before[0], after[0], *more, "-f", "json", *options).stdout)
    return document


def test_the_same_work_is_told_to_be_the_same(recordings: Recordings) -> None:
    """Two pairs and two pairs of halves: one false alarm in twenty is what the test promises, so one of them may be one."""
    documents = [diff_of(paths[:1], paths[1:2]) for paths in (recordings.usual, recordings.slow)]
    assert all(document["is_testable"] for document in documents)
    for document in documents:
        assert document["is_different"] or document["result"][0].startswith("no significant difference: ")
    alarms = [document["is_different"] for document in documents]
    alarms += [halves_differ(paths[0]) for paths in (recordings.usual, recordings.slow)]
    assert sum(alarms) <= 1
    text = guestprof("diff", recordings.usual[0], recordings.usual[0]).stdout
    assert "result   no significant difference: " in text


def halves_differ(path: Path) -> bool:
    """Whether the first half of a recording differs from the second."""
    with Recording.open(path) as recording:
        times = Profile(recording).halt_times()
        middle_ns = (times[0] + times[-1]) // 2
        halves = [Profile(recording, selection) for selection in (Selection(until_ns=middle_ns), Selection(since_ns=middle_ns))]
        comparison = compare(halves[:1], halves[1:])
        assert comparison.is_testable
        return bool(comparison.differing())


def test_the_function_that_became_30_percent_slower_is_named_first(recordings: Recordings) -> None:
    document = diff_of(recordings.usual, recordings.slow)
    first = document["rows"][0]
    assert (first["name"], first["module"], first["cause"]) == ("grind", "init", 0)
    found = first["self_share"]
    assert found["verdict"] == "differs"
    assert found["low"] > 0
    assert document["result"][0].startswith("1 function differs significantly: grind (+")
    # Nothing else became slower: what has less of the time now has so because of grind.
    others = {row["name"]: row["self_share"] for row in document["rows"][1:]}
    assert {others[name]["verdict"] for name in ("knead", "sift")} <= {"follows", "unsure", "noise"}
    # grind has 40 of 100 units, then 52 of 112, of the time that the workers have.
    workers = [found, others["knead"], others["sift"]]
    shares = [found[side] / sum(worker[side] for worker in workers) for side in ("before", "after")]
    error = (found["high"] - found["low"]) / 2
    assert shares == [pytest.approx(0.4, abs=2 * error), pytest.approx(52 / 112, abs=2 * error)]


def test_the_path_to_it_is_named_first(recordings: Recordings) -> None:
    document = diff_of(recordings.usual, recordings.slow, "--by", "path", "-n", "1")
    (row,) = document["rows"]
    assert row["path"][-3:] == ["main", "turn", "grind"]
    assert row["self_share"]["verdict"] == "differs"
    total = diff_of(recordings.usual, recordings.slow, "--sort", "total")
    (turn,) = [row for row in total["rows"] if row["name"] == "turn"]
    assert turn["total_share"]["verdict"] in {"follows", "unsure", "noise"}
