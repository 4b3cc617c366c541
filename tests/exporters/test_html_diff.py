"""The HTML page of a difference: both recordings whole, what differs with its interval, in the file and in a real browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from exporters.diff import DiffView, Worth, result_lines, worth_of
from exporters.html_diff import export_html_diff
from recording.comparison import OfRow, compare
from recording.contrast import Measure
from recording.model import StackEnd
from recording.profile import Profile
from recording.reader import Recording
from recording.rows import CompareBy
from recording.views import function_totals
from tests.builders.profiles import busy_recording, small_recording
from tests.builders.recordings import MS, Names, Stack, write_recording
from tests.exporters.html_page import data_of, paths_of, readable, samples_of

BEFORE = ["work heavy"] * 3 + ["work light"] * 3 + ["gone"] * 2
AFTER = ["work heavy"] * 4 + ["work light"] * 3 + ["fresh.isra.0"]
HALTS = 800
NAMES = {"work", "heavy", "light", "gone", "fresh"}


def steady_recording(path: Path, stacks: Sequence[str]) -> Path:
    """Halts that go round these stacks."""
    halts = [[Stack(stacks[index % len(stacks)], 0, StackEnd.TASK_ROOT)] for index in range(HALTS)]
    return write_recording(path, halts, Names())


@contextmanager
def viewed(before: Sequence[Path], after: Sequence[Path], by: CompareBy = CompareBy.FUNCTION) -> Iterator[DiffView]:
    """The comparison of two sides, as long as their recordings are open."""
    with ExitStack() as stack:
        sides = [[Profile(stack.enter_context(Recording.open(path))) for path in paths] for paths in (before, after)]
        yield DiffView(compare(sides[0], sides[1], by), (sides[0], sides[1]))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of each side."""
    directory = tmp_path_factory.mktemp("diff")
    return steady_recording(directory / "a", BEFORE), steady_recording(directory / "b", AFTER)


@pytest.fixture(scope="module")
def page_bytes(recordings: tuple[Path, Path]) -> bytes:
    """Their page."""
    with viewed(recordings[:1], recordings[1:]) as view:
        return export_html_diff(view, "0.0")


def test_golden_data(page_bytes: bytes, golden: Callable[[str, bytes], None]) -> None:
    golden("steady.diff.html.json", readable(page_bytes))


def test_each_run_has_its_own_samples_in_common_names(page_bytes: bytes) -> None:
    data = data_of(page_bytes)
    nodes, names = paths_of(data), data["functions"]["name"]
    for run, stacks in enumerate((BEFORE, AFTER)):
        found: Counter[str] = Counter()
        for _, stack, _, weight, _ in samples_of(data, run):
            found[" ".join(names[function] for function in nodes[data["stacks"]["node"][stack]][1:])] += weight
        wanted = Counter(stack.partition(".")[0] for stack in stacks)
        assert found == {stack: count * HALTS // 8 * 10 * MS for stack, count in wanted.items()}
    assert data["comparison"]["sides"] == [[0], [1]]


def test_figures_are_the_comparison_s(recordings: tuple[Path, Path], page_bytes: bytes) -> None:
    data = data_of(page_bytes)
    told, names = data["comparison"], data["functions"]["name"]
    with viewed(recordings[:1], recordings[1:]) as view:
        assert told["words"] == "; ".join(result_lines(view))
        assert {row.name.partition(".")[0] for row in view.comparison.rows} == NAMES
        for row in view.comparison.rows:
            values = told["functions"][str(names.index(row.key.name))]
            for measure in Measure:
                for part, of_row in (("own", OfRow.SELF), ("total", OfRow.TOTAL)):
                    difference = row.differences[measure, of_row]
                    worth = list(Worth).index(worth_of(row, measure, of_row))
                    assert values[measure.value].get(part) == (
                        None
                        if difference.low is None
                        else [difference.low, difference.high, worth, difference.before, difference.after]
                    )


def test_paths_are_worth_what_the_comparison_by_path_says(recordings: tuple[Path, Path], page_bytes: bytes) -> None:
    data = data_of(page_bytes)
    names, worths = data["functions"]["name"], data["comparison"]["worths"]
    told = {
        tuple(names[function] for function in path[1:]): worths[worth]
        for path, worth in zip(paths_of(data), data["comparison"]["share_worth"], strict=True)
    }
    with viewed(recordings[:1], recordings[1:], CompareBy.PATH) as view:
        for row in view.comparison.rows:
            path = tuple(name.partition(".")[0] for name in row.path)
            assert told[path] == worth_of(row, Measure.SHARE, OfRow.TOTAL).value
    assert told["gone",] in {"differs", "follows"}
    assert told["work", "light"] == "noise"


def test_sides_of_several_recordings(tmp_path: Path) -> None:
    before = [steady_recording(tmp_path / f"a{index}", BEFORE) for index in range(3)]
    after = [steady_recording(tmp_path / f"b{index}", AFTER) for index in range(3)]
    with viewed(before, after) as view:
        data = data_of(export_html_diff(view, "0.0"))
    assert data["comparison"]["sides"] == [[0, 1, 2], [3, 4, 5]]
    assert [sum(row[3] for row in samples_of(data, run)) for run in range(6)] == [HALTS * 10 * MS] * 6


def test_recordings_of_which_one_knows_no_tasks(tmp_path: Path) -> None:
    with viewed([small_recording(tmp_path / "a")], [busy_recording(tmp_path / "b")]) as view:
        data = data_of(export_html_diff(view, "0.0"))
    roots = {data["functions"]["name"][path[1]] for path in paths_of(data) if len(path) == 2}
    assert "python3" not in roots
    assert not data["comparison"]["testable"]


def test_equal_bytes(recordings: tuple[Path, Path], page_bytes: bytes) -> None:
    with viewed(recordings[:1], recordings[1:], CompareBy.MODULE) as view:
        assert export_html_diff(view, "0.0") == page_bytes


@pytest.fixture
def page(browser: Any, page_bytes: bytes, tmp_path: Path) -> Iterator[Any]:
    """The page, opened; whatever a test does with it, it is quiet and fetches nothing."""
    from tests.exporters.report_page import Page  # noqa: PLC0415 - skips where there is no selenium

    (tmp_path / "a.html").write_bytes(page_bytes)
    opened = Page(browser, tmp_path / "a.html")
    yield opened
    assert opened.was_quiet()


def differences(page: Any) -> dict[str, tuple[float, float, float, str]]:
    """Rows of the table: before, after, difference, what it is worth."""
    return {
        name: (*figures, worth)
        for name, figures, worth in page.browser.execute_script("""
        return Array.from(document.querySelectorAll('#table tbody tr'), row => [
            row.querySelector('.name').textContent,
            Array.from(row.querySelectorAll('data'), data => Number(data.value)),
            row.querySelector('.worth').textContent,
        ]);
    """)
    }


def test_the_page_begins_with_the_difference(page: Any, recordings: tuple[Path, Path]) -> None:
    assert page["title"].text.startswith("A: Linux 6.1.0-18-amd64")
    assert "differ significantly" in page["subtitle"].text
    found = differences(page)
    assert {name: row[:3] for name, row in found.items()} == {
        "gone": (0.25, 0, -0.25),
        "heavy": (0.375, 0.5, 0.125),
        "fresh": (0, 0.125, 0.125),
        "light": (0.375, 0.375, 0),
        "work": (0, 0, 0),
    }
    with viewed(recordings[:1], recordings[1:]) as view:
        worths = {row.name.partition(".")[0]: worth_of(row, Measure.SHARE, OfRow.SELF).value for row in view.comparison.rows}
    assert {name: row[3] for name, row in found.items()} == worths
    assert next(iter(found)) == "gone"
    page.choose("part", "total")
    assert differences(page)["work"][:3] == (0.75, 0.875, 0.125)
    page.choose("measure", "running time")
    assert differences(page)["heavy"][:3] == (3000 * MS, 4000 * MS, 1000 * MS)
    page.choose("by", "module")
    assert differences(page)["[kernel]"][:3] == (8000 * MS, 8000 * MS, 0)


def test_both_directions_in_colours(page: Any) -> None:
    def colours() -> dict[str, tuple[int, ...]]:
        return {box["name"]: tuple(bytes.fromhex(box["colour"][1:])) for box in page.boxes()}

    after = colours()
    assert after.keys() == {"all", "work", "heavy", "light", "fresh"}
    assert after["light"] == after["all"]
    assert after["heavy"][0] > after["heavy"][2]
    assert after["fresh"][0] > after["fresh"][2]
    page.choose("widths", "before (A)")
    before = colours()
    assert before.keys() == {"all", "work", "heavy", "light", "gone"}
    assert before["gone"][2] > before["gone"][0]
    page.click_box("gone")
    assert "A 25.0 %, B 0.0 %: \u221225.00 points on this path" in page["details"].text
    assert "more than noise" in page["details"].text


def test_filters_and_ranges_take_the_intervals_away(page: Any) -> None:
    page.type("search", "heavy")
    page.click("only")
    assert differences(page) == {"heavy": (1, 1, 0, "")}
    page.click("clear")
    assert differences(page)["heavy"][3] == "follows"
    page.drag(page["overview-0"], 0.1, 0.3)
    assert differences(page)["gone"][3] == ""
    samples = page["selected"].get_attribute("data-samples").split()
    assert int(samples[0]) < HALTS // 4
    assert int(samples[1]) == HALTS
    page.click("wholetime")
    assert differences(page)["gone"][3] == "differs"


def test_each_side_alone(page: Any, recordings: tuple[Path, Path]) -> None:
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415 - optional

    page.browser.find_element("css selector", "#runs button").send_keys(Keys.ARROW_RIGHT)
    page.settle()
    for run, path in enumerate(recordings):
        with Recording.open(path) as recording:
            totals = {
                (total.name.partition(".")[0], total.self_ns, total.total_ns, total.samples)
                for total in function_totals(Profile(recording))
            }
        assert {(row[0], *row[2:]) for row in page.rows()} == totals
        if run == 0:
            page.click("tab-chart")
            assert {box["name"] for box in page.boxes("#chart canvas[tabindex]")} == {"work", "heavy", "light", "gone"}
            page.browser.find_elements("css selector", "#runs button")[2].click()
            page.click("tab-graph")
    page.browser.find_element("css selector", "#runs button").click()
    page.settle()
    assert differences(page).keys() == NAMES
    page.click("tab-about")
    assert "How they are compared" in page["about"].text
