"""``compare`` in all its formats, on made-up boots: golden files, the schema, what is found, and what cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from exporters.compare import CompareView, result_lines, unmatched_lines
from exporters.paint import PLAIN
from exporters.registry import compare_formats
from recording.boots import compare_boots
from recording.reader import Recording
from tests.builders.boots import boot_recording, varied_boot
from tests.builders.recordings import MS
from tests.exporters.html_page import readable
from tests.exporters.report_page import Page
from tests.exporters.schemas import check_schema

Golden = Callable[[str, bytes], None]
Sides = tuple[list[Path], list[Path]]
NAMES = "plain", "spin"


@contextmanager
def viewed(sides: Sequence[Sequence[Path]]) -> Iterator[CompareView]:
    """The comparison, as long as the recordings are open."""
    with ExitStack() as stack:
        first, second = [[stack.enter_context(Recording.open(path)) for path in side] for side in sides]
        yield CompareView(compare_boots((first, second)), NAMES)


def exported(sides: Sequence[Sequence[Path]], name: str) -> bytes:
    with viewed(sides) as view:
        return compare_formats(PLAIN)[name].export(view, "1.2.3")


def document(sides: Sequence[Sequence[Path]]) -> Any:
    return check_schema("compare", exported(sides, "json"))


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """Three of each side; the second side's module spins for 0.3 s."""
    directory = tmp_path_factory.mktemp("boots")
    plain = [varied_boot(directory / f"plain{seed}", seed) for seed in range(3)]
    return plain, [varied_boot(directory / f"spin{seed}", seed, spin=30) for seed in range(3, 6)]


@pytest.mark.parametrize(("name", "suffix"), [("text", "txt"), ("json", "json")])
def test_golden(golden: Golden, boots: Sides, name: str, suffix: str) -> None:
    golden(f"spin.compare.{suffix}", exported(boots, name))


def test_golden_page(golden: Golden, boots: Sides) -> None:
    golden("spin.compare.html.json", readable(exported(boots, "html")))


def test_what_takes_longer_is_found_in_its_phase(boots: Sides) -> None:
    found = document(boots)
    assert found["is_different"]
    differing = [phase for phase in found["phases"] if phase["duration"]["verdict"] == "differs"]
    assert [phase["name"] for phase in differing] == ["init"]
    assert differing[0]["duration"]["low"] < 300 * MS < differing[0]["duration"]["high"]
    first = differing[0]["functions"][0]
    assert (first["name"], first["module"], first["self_time"]["verdict"]) == ("spin", "[spinner]", "differs")
    assert first["self_time"]["change"] == 300 * MS
    for phase in found["phases"]:
        own = {row["name"] for row in phase["functions"] if row["self_time"]["verdict"] == "differs"}
        assert own == ({"spin"} if phase["name"] == "init" else set())
    assert {row["name"] for row in found["one_sided"]} >= {"spin", "spinner_init"}
    assert all(row["side"] == 1 and row["other_has_symbol"] is False for row in found["one_sided"] if row["module"] == "[spinner]")


def test_equal_boots_do_not_differ(tmp_path: Path) -> None:
    """Of forty comparisons of three boots with three no more are called different than the tests promise."""
    made = [varied_boot(tmp_path / str(seed), seed) for seed in range(240)]
    alarms = [document((made[at : at + 3], made[at + 3 : at + 6]))["is_different"] for at in range(0, 240, 6)]
    # 5 % of the durations and 5 % of the functions, at most; more than nine of forty would be so once in a hundred times.
    assert sum(alarms) <= 9


def test_one_boot_of_each_side_tells_functions_alone(boots: Sides) -> None:
    found = document((boots[0][:1], boots[1][:1]))
    assert {phase["duration"]["verdict"] for phase in found["phases"]} == {"untested"}
    assert found["phases"][-1]["functions"][0]["name"] == "spin"
    assert found["phases"][-1]["functions"][0]["self_time"]["verdict"] == "differs"
    assert any("a single boot does not tell how much boots vary" in note for note in found["method"]["notes"])


def test_boundaries_that_are_missing_are_said(tmp_path: Path) -> None:
    """In some boots of both sides: too short to be seen. In none of a side: no boundary."""
    some = [varied_boot(tmp_path / f"a{seed}", seed, levels=seed != 1) for seed in range(3)]
    with viewed((some, some)) as view:
        assert "free_initmem" in [phase.name for phase in view.boots.phases]
        assert unmatched_lines(view) == [
            "free_initmem was too short to be sampled in 1 of 3 boots of plain and 1 of 3 boots of spin: there it took no time"
        ]
    none = [varied_boot(tmp_path / "b", 7, levels=False)]
    with viewed((some, none)) as view:
        assert "free_initmem" not in [phase.name for phase in view.boots.phases]
        (line,) = unmatched_lines(view)
        assert line.startswith("free_initmem was seen in 2 of 3 boots of plain and none of 1 boot of spin: no boundary")


def test_recordings_that_only_end_are_not_compared_in_length(tmp_path: Path) -> None:
    sides = [[varied_boot(tmp_path / f"{name}{seed}", seed, ended="5 s are over") for seed in range(2)] for name in "ab"]
    found = document(sides)
    assert not found["is_bounded"]
    assert found["phases"][-1]["duration"]["verdict"] == found["duration"]["verdict"] == "untested"
    assert found["result"][0].startswith("the recordings are of ")


def test_a_boot_on_two_vcpus_against_itself(tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    found = document(([path], [path]))
    assert not found["is_different"]
    names = [phase["name"] for phase in found["phases"]]
    assert names[:3] == ["firmware", "kernel-entry", "start_kernel"]
    assert sum(phase["duration"]["before"] for phase in found["phases"]) == found["duration"]["before"]


def test_the_page_shows_the_phases(boots: Sides, tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "a.html"
    file.write_bytes(exported(boots, "html"))
    page = Page(browser, file)
    page.click("tab-phases")
    with viewed(boots) as view:
        for line in result_lines(view)[:1]:
            assert line in page["subtitle"].text
    text = page["phases"].text
    assert "init: functions that differ by themselves" in text
    assert "Only spin runs these; plain was never seen to" in text
    button = next(each for each in page.browser.find_elements("css selector", "#phases button") if each.text == "init")
    button.click()
    page.settle()
    boxes = {box["name"] for box in page.boxes()}
    assert "spin" in boxes
    assert "setup_arch" not in boxes
    assert page.was_quiet()


def test_json_is_deterministic(boots: Sides) -> None:
    assert exported(boots, "json") == exported(boots, "json")
    assert orjson.loads(exported(boots, "json"))["phases"]
