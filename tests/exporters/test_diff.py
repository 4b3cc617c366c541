"""``diff`` in all its formats: golden files, the JSON's schema, sums, hostile names, and what it says where it cannot tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from exporters.diff import DiffView
from exporters.diff_folded import FoldedSide, export_diff_folded
from exporters.paint import Paint
from exporters.registry import diff_formats
from recording.comparison import OfRow, compare
from recording.contrast import Measure
from recording.model import StackEnd
from recording.profile import Profile
from recording.reader import Recording, Selection
from recording.rows import CompareBy
from tests.builders.profiles import BUSY, hostile_recording
from tests.builders.recordings import MS, Stack, write_recording
from tests.exporters.schemas import check_schema

Golden = Callable[[str, bytes], None]
WORK = ("main parse", "main compute multiply", "main compute", "main write@e1000", "wait")


def work(path: Path, seed: int, *, counts: Sequence[int] = (6, 12, 4, 5, 3), rounds: int = 25) -> Path:
    """A loop whose steps take about so many halts, one after the other."""
    random = Random(seed)
    halts = []
    for _ in range(rounds):
        for frames, count in zip(WORK, counts, strict=True):
            halts += [[Stack(frames)]] * random.choice((count - 1, count, count + 1))
    return write_recording(path, halts)


def exported(
    sides: tuple[Sequence[Path], Sequence[Path]],
    name: str = "text",
    *,
    paint: Paint | None = None,
    by: CompareBy = CompareBy.FUNCTION,
    selection: Selection | None = None,
    **options: Any,
) -> bytes:
    with ExitStack() as stack:
        profiles = [[Profile(stack.enter_context(Recording.open(path)), selection) for path in paths] for paths in sides]
        if name == "folded":
            folded = FoldedSide(), FoldedSide()
            for side, of_side in zip(folded, profiles, strict=True):
                for profile in of_side:
                    side.add(profile)
            return export_diff_folded(*folded, **options)
        view = DiffView(compare(profiles[0], profiles[1], by), (profiles[0], profiles[1]), **options)
        return diff_formats(paint or Paint(is_on=False))[name].export(view, "1.2.3")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """The loop, and the loop with ``multiply`` taking 30 % longer than that."""
    directory = tmp_path_factory.mktemp("pair")
    return [work(directory / "a", 1)], [work(directory / "b", 2, counts=(6, 18, 4, 5, 3))]


def test_golden_files(pair: tuple[list[Path], list[Path]], golden: Golden) -> None:
    golden("slower.diff.txt", exported(pair, limit=8))
    golden("slower_total.diff.txt", exported(pair, part=OfRow.TOTAL))
    golden("slower_path.diff.txt", exported(pair, by=CompareBy.PATH))
    golden("slower.diff.json", exported(pair, "json"))
    golden("slower.diff.folded", exported(pair, "folded"))
    golden("slower_time.diff.folded", exported(pair, "folded", measure=Measure.TIME))


def test_the_slower_function_is_named_first(pair: tuple[list[Path], list[Path]]) -> None:
    text = exported(pair).decode()
    assert re.search(r"^result   1 function differs significantly: multiply \(\+\d+\.\d\d ±\d+\.\d\d points\)$", text, re.MULTILINE)
    first = text.partition("\n\n")[2].splitlines()[1].split()
    assert (first[0], first[-2]) == ("differs", "multiply")


def test_what_only_follows_from_the_slower_function_is_told_so(tmp_path: Path) -> None:
    slower = [work(tmp_path / "a", 1)], [work(tmp_path / "b", 2, counts=(6, 40, 4, 5, 3))]
    own, rest = exported(slower).decode().splitlines()[2:4]
    assert own.startswith("result   1 function differs significantly: multiply (+")
    assert re.fullmatch(r" {9}[2-4] functions more only because of that one: without its samples no difference is left", rest)
    rows = {row["name"]: row for row in check_schema("diff", exported(slower, "json"))["rows"]}
    assert rows["multiply"]["cause"] == 0
    assert {rows[name]["self_share"]["verdict"] for name in ("parse", "write")} == {"follows"}
    assert rows["main"]["total_share"]["verdict"] == "follows"


def test_equal_work_is_told_to_be_equal(tmp_path: Path) -> None:
    pair = [work(tmp_path / "a", 1)], [work(tmp_path / "b", 3)]
    assert re.search(r"^result   no significant difference: \d+ figures tested, all within", exported(pair).decode(), re.MULTILINE)
    document = check_schema("diff", exported(pair, "json"))
    assert document["is_testable"]
    assert not document["is_different"]
    assert {row["self_share"]["verdict"] for row in document["rows"]} <= {"noise", "unsure", "untested"}


@pytest.mark.parametrize("by", list(CompareBy))
def test_the_json_is_what_its_schema_says(tmp_path: Path, pair: tuple[list[Path], list[Path]], by: CompareBy) -> None:
    document = check_schema("diff", exported(pair, "json", by=by))
    assert document["by"] == by.value
    busy = [write_recording(tmp_path / "c", BUSY * 10)], [write_recording(tmp_path / "d", BUSY[:5] * 12)]
    rows = check_schema("diff", exported(busy, "json", by=by))["rows"]
    assert all(("path" in row) is (by is CompareBy.PATH) for row in rows)
    assert all(("self_share" in row) is by.has_callees for row in rows)
    if by is not CompareBy.SYSTEM_CALL:
        part = "self_share" if by.has_callees else "total_share"
        for side in ("before", "after"):
            assert sum(row[part][side] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("halts", [0, 1, 20])
def test_recordings_without_enough_samples(tmp_path: Path, pair: tuple[list[Path], list[Path]], halts: int) -> None:
    short = [write_recording(tmp_path / "short", [[Stack("main f")]] * halts)]
    text = exported((short, pair[1])).decode()
    assert "result   A is too short" in text
    assert "A and B are too short" in exported((short, short)).decode()
    assert "B is too short" in exported((pair[0], short)).decode()
    for by in (CompareBy.FUNCTION, CompareBy.PATH, CompareBy.SYSTEM_CALL):
        for sides in ((short, short), (short, pair[1])):
            document = check_schema("diff", exported(sides, "json", by=by))  # which has no NaN, as JSON does not know it
            assert not document["is_testable"]
            assert not document["is_different"]
    nothing = exported((short, short), "folded").decode()
    assert nothing == ("main_[k];f_[k] 1000000 1000000\n" if halts else "")


def test_nothing_selected(pair: tuple[list[Path], list[Path]]) -> None:
    selection = Selection(processes=frozenset({"nobody"}))
    assert exported(pair, selection=selection).decode().endswith("\n\nno samples are selected\n")
    assert check_schema("diff", exported(pair, "json", selection=selection))["rows"] == []


def test_folded_columns_add_up_and_have_no_addresses(tmp_path: Path) -> None:
    one = [write_recording(tmp_path / "a", [[Stack("main f.isra.0")], [Stack("main ?")], [Stack("@/usr/lib/x/libm.so")]] * 40)]
    other = [write_recording(tmp_path / "b", [[Stack("g")], [Stack("main f")], [Stack("@/usr/lib/y/libm.so")]] * 60)]
    lines = exported((one, other), "folded").decode().splitlines()
    parsed = [re.fullmatch(r"(.*) (\d+) (\d+)", line) for line in lines]
    columns = {match[1]: (int(match[2]), int(match[3])) for match in parsed if match}
    assert columns == {
        "libm.so [no symbol]": (333_333, 333_333),
        "g_[k]": (0, 333_333),
        "main_[k];[unknown] [no symbol]": (333_333, 0),
        "main_[k];f_[k]": (333_333, 333_333),
    }
    times = exported((one, other), "folded", measure=Measure.TIME).decode()
    assert "g_[k] 0 600000\n" in times
    assert "main_[k];f_[k] 400000 600000\n" in times


@pytest.mark.parametrize("by", [CompareBy.FUNCTION, CompareBy.PATH])
def test_hostile_names(tmp_path: Path, by: CompareBy) -> None:
    path = [hostile_recording(tmp_path / "a")]
    text = exported((path, path), by=by).decode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert max(map(len, text.splitlines())) < 300
    document = check_schema("diff", exported((path, path), "json", by=by))
    assert max(len(row["name"]) for row in document["rows"]) == 10_000
    for line in exported((path, path), "folded").decode().splitlines():
        assert re.fullmatch(r"[^\n]*\S \d+ \d+", line)
        # No name ends in what flamegraph.pl takes for a third column.
        assert not re.search(r"\s\d+ \d+ \d+$", line)


def test_colours_only_where_they_are_wanted(pair: tuple[list[Path], list[Path]]) -> None:
    plain, coloured = exported(pair), exported(pair, paint=Paint(is_on=True))
    assert b"\x1b" not in plain
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", coloured) == plain
    assert b"\x1b[31m" in coloured


def test_boots_and_several_recordings_are_told(tmp_path: Path, pair: tuple[list[Path], list[Path]]) -> None:
    boot = [write_recording(tmp_path / "boot", [[Stack("F:", 0, StackEnd.FIRMWARE)], *[[Stack("main f")]] * 200])]
    assert "what varies from boot to boot is not in these errors" in exported((boot, boot)).decode()
    five = exported((pair[0] * 5, pair[1] * 5)).decode()
    assert "from 5 recordings (A) and 5 recordings (B)" in five
    assert "is not in these errors" not in five
    assert check_schema("diff", exported((pair[0] * 5, pair[1]), "json"))["before"]["blocks_are"] == "steady"


def test_running_times_are_not_tested_where_they_tell_how_long_was_recorded(
    tmp_path: Path, pair: tuple[list[Path], list[Path]]
) -> None:
    pieces = pair[0], [work(tmp_path / "long", 4, rounds=60)]
    assert re.search(
        r"running times are of \d\.\d\d s and \d+\.\d\d s, as long as was recorded, and not tested", exported(pieces).decode()
    )
    document = check_schema("diff", exported(pieces, "json"))
    assert not document["is_different"]
    assert {row["self_time"]["verdict"] for row in document["rows"]} == {"untested"}
    # Up to a moment that the user names they are what the work took.
    until = check_schema("diff", exported(pieces, "json", selection=Selection(until_ns=6_000_000_000)))
    assert {row["self_time"]["verdict"] for row in until["rows"]} >= {"noise"}


def test_the_same_bytes_each_time(pair: tuple[list[Path], list[Path]]) -> None:
    for name in diff_formats():
        assert exported(pair, name) == exported(pair, name)
    assert orjson.loads(exported(pair, "json", limit=2))["rows"] == orjson.loads(exported(pair, "json"))["rows"][:2]


def test_late_samples_are_no_surer_than_others(tmp_path: Path, pair: tuple[list[Path], list[Path]]) -> None:
    halts = [[Stack("main f", weight_ns=(500 if index % 20 == 0 else 10) * MS)] for index in range(200)]
    late = [write_recording(tmp_path / "late", halts)]
    # Beyond ten periods nobody knows what ran: 400 ms of each late sample.
    text = exported((late, pair[1])).decode()
    assert "200 samples (as sure as 71 evenly spaced ones), 58.0 % of the time left out as nothing saw it, in" in text
    assert "evenly" not in exported(pair).decode()
    side = check_schema("diff", exported((late, pair[1]), "json"))["before"]
    assert side["effective_samples"] == pytest.approx(2900**2 / 119_000)
    assert (side["weight_ns"], side["left_out_ns"]) == (2900 * MS, 4000 * MS)
