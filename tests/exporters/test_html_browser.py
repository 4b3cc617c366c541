"""The HTML report in a real browser: it shows what the profile holds, by mouse and by keyboard, and fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters.html import export_html
from exporters.text import duration, percent, printable
from recording.milestones import find_milestones
from recording.model import Context
from recording.phases import course_of
from recording.reader import Selection
from recording.timeline import timeline_of
from recording.views import function_totals
from recording.waits import wait_totals
from tests.builders.boots import boot_recording
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, hostile_recording, opened
from tests.builders.recordings import MS
from tests.exporters.report_page import Page
from tests.recording.test_sources import inlined_recording

pytest.importorskip("selenium", reason="needs selenium: pip install 'guestprof[test]'")
keys = pytest.importorskip("selenium.webdriver.common.keys").Keys


FIRST_SEEN = """
    return Array.from(document.querySelectorAll('#table tbody tr'), row => [
        row.querySelector('.name').textContent, Number(row.querySelector('[data-first]').dataset.first),
    ]);
"""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording."""
    return busy_recording(tmp_path_factory.mktemp("html") / "a")


@pytest.fixture(scope="module")
def file(busy: Path) -> Path:
    """Its page."""
    with opened(busy) as profile:
        busy.with_suffix(".html").write_bytes(export_html(profile, version="0.0"))
    return busy.with_suffix(".html")


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Page]:
    """The page, opened; whatever a test does with it, it is quiet and fetches nothing."""
    opened_page = Page(browser, file)
    yield opened_page
    assert opened_page.was_quiet()


def totals(path: Path, selection: Selection | None = None) -> list[list[Any]]:
    with opened(path, selection) as profile:
        rows = [
            [printable(total.name), printable(total.module), total.self_ns, total.total_ns, total.samples]
            for total in function_totals(profile)
        ]
    return sorted(rows)


def test_the_table_is_the_profile_s_and_can_be_sorted(page: Page, busy: Path) -> None:
    rows = page.rows()
    assert sorted(rows) == totals(busy)
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    heads = page.browser.find_elements("css selector", "#table thead th")
    assert [head.get_attribute("aria-sort") for head in heads] == ["none", "descending", "none", "none", "none"]
    heads[0].find_element("tag name", "button").click()
    page.settle()
    assert [row[0] for row in page.rows()] == sorted(row[0] for row in rows)
    assert page.browser.execute_script("return document.activeElement.textContent") == "Name ▴"
    heads = page.browser.find_elements("css selector", "#table thead th")
    heads[-1].find_element("tag name", "button").click()
    page.settle()
    with opened(busy) as profile:
        first = {seen.function.name: seen.seen.first_ns for seen in timeline_of(profile).functions}
    shown = page.browser.execute_script(FIRST_SEEN)
    assert {name: time for name, time in shown if name in first} == first
    assert [time for _, time in shown] == sorted(first.values())
    page.choose("by", "vCPU")
    assert [(row[0], row[3]) for row in page.rows()] == [("vCPU 0", 60 * MS), ("vCPU 1", 60 * MS)]
    page.choose("by", "process")
    assert ("python3 (417)", 50 * MS) in [(row[0], row[3]) for row in page.rows()]
    page.choose("by", "system call")
    assert [(row[0], row[3], row[4]) for row in page.rows()] == [("read", 20 * MS, 2)]


def test_every_filter_gives_what_the_profile_gives(page: Page, busy: Path) -> None:
    for field, words, selection in (
        ("vcpu", "1", Selection(vcpus=frozenset({1}))),
        ("process", "python3", Selection(processes=frozenset({"python3"}))),
        ("context", "hard-irq", Selection(contexts=frozenset({Context.HARD_IRQ}))),
    ):
        page.choose(field, words)
        assert sorted(page.rows()) == totals(busy, selection), field
        page.choose(field, "all")
    page.click("idle")
    assert sorted(page.rows()) == totals(busy, Selection(idle=False))
    page.click("idle")
    page.choose("module", "[e1000]")
    assert page.selected == (2, 20 * MS)
    assert {box["name"] for box in page.boxes() if box["level"] == 1} == {"kworker/0:1", "swapper"}
    page.click("clear")
    assert page.selected == (12, 120 * MS)


def test_a_search_is_counted_highlighted_and_kept_alone(page: Page) -> None:
    page.press("/")
    assert page.browser.switch_to.active_element.get_attribute("id") == "search"
    page.press("E1000")
    assert page["matched"].text == "16.7 % of the time matches"
    assert {box["name"] for box in page.boxes() if box["hit"]} == {"e1000_clean", "e1000_watchdog"}
    assert [row[0] for row in page.rows()] == ["e1000_clean", "e1000_watchdog"]
    page.click("only")
    assert page.selected == (2, 20 * MS)
    page.type("search", "(")  # no pattern, so it is searched for as it is
    assert page["matched"].text == "0.0 % of the time matches"
    assert page["empty"].is_displayed()


def test_a_click_zooms_and_escape_leads_back(page: Page) -> None:
    before = page.boxes()
    width = page.box("all")["width"]
    assert page.box("python3")["width"] == pytest.approx(width * 5 / 12)
    page.click_box("vfs_read")
    assert page.box("vfs_read")["width"] == page.box("do_syscall_64")["width"] == width
    assert not any(box["name"] == "swapper" for box in page.boxes())
    assert page["details"].text.startswith("vfs_read")
    marked = page.browser.find_element("css selector", "#table tr.marked")
    assert marked.text.startswith("vfs_read")
    around = page["neighbours"].text
    assert "Called by\n100.0 %\nksys_read" in around
    assert "Calls\n100.0 %\next4_file_read_iter" in around
    page.press(keys.ESCAPE)
    assert page.boxes() == before


def test_the_graph_by_keyboard(page: Page) -> None:
    page.browser.execute_script("document.getElementById('graph').focus()")
    assert page.said.startswith("all, 100.0 % of what is selected")
    page.press(keys.ARROW_DOWN)
    assert page.said.startswith("python3, process, 41.7 % of what is selected")
    assert page.said.endswith("level 1")
    page.press(keys.ARROW_RIGHT)
    assert page.said.startswith("swapper, ")
    page.press(keys.ARROW_LEFT, keys.ARROW_DOWN, keys.ENTER)
    width = page.box("all")["width"]
    assert page.said.startswith("_start, /usr/bin/python3.11")
    assert page.box("_start")["width"] == width
    page.press(keys.BACKSPACE)
    assert page.box("python3")["width"] == width > page.box("_start")["width"]
    page.press(keys.HOME, keys.ARROW_UP)
    assert page.said.startswith("all, ")


def test_trees_and_shapes(page: Page) -> None:
    down = {(box["name"], box["level"]): box["y"] for box in page.boxes()}
    page.choose("layout", "flame (root below)")
    up = {(box["name"], box["level"]): box["y"] for box in page.boxes()}
    assert up == {key: max(down.values()) - y for key, y in down.items()}
    page.choose("direction", "bottom-up (callers)")
    inverted = page.boxes()
    first = [box["name"] for box in sorted(inverted, key=lambda box: box["x"]) if box["level"] == 1]
    assert first[0] == "default_idle"
    assert set(first) == {row[0] for row in page.rows() if row[2]}
    (clean,) = (box for box in inverted if box["name"] == "e1000_clean")
    callers = [box["name"] for box in inverted if box["x"] == clean["x"] and box["level"] > 1]
    assert callers[:2] == ["sysvec_apic_timer_interrupt", "asm_sysvec_apic_timer_interrupt"]


def test_a_range_of_time_goes_for_all_views(page: Page, busy: Path) -> None:
    page.drag(page["overview-0"], 0.2, 0.52)
    told = re.fullmatch(r"guestprof report FILE --since (\S+) --until (\S+)", page["same"].text)
    assert told is not None
    first, last = map(float, told.groups())
    assert [float(page[name].get_attribute("value")) for name in ("from", "until")] == [round(first, 6), round(last, 6)]
    assert 0.010 < first < 0.014
    assert 0.030 < last < 0.034
    chosen = Selection(since_ns=round(first * 1e9), until_ns=round(last * 1e9))
    assert sorted(page.rows()) == totals(busy, chosen)
    page.click("tab-chart")
    names = {box["name"] for box in page.boxes("#chart canvas[tabindex]")}
    assert "python3" in names
    assert "[firmware]" not in names
    page.browser.execute_script("document.getElementById('overview-0').focus()")
    page.press(keys.ESCAPE)
    assert page.selected == (12, 120 * MS)
    page.press(keys.ARROW_RIGHT)
    assert page.said == "Selected 0.000 s to 0.006 s"
    page.type("from", "0.05")
    page.type("until", "0.07")
    assert page.selected == (4, 40 * MS)
    page.click("wholetime")
    assert page.selected == (12, 120 * MS)


def test_the_chart_shows_stacks_over_time(page: Page) -> None:
    page.click("tab-chart")
    boxes = page.boxes("#chart canvas[tabindex]")
    width = page.browser.execute_script("return document.querySelector('#chart canvas[tabindex]').clientWidth")
    python = [box for box in boxes if box["name"] == "python3"]
    assert [(round(box["x"] / width * 6), round(box["width"] / width * 6)) for box in python] == [(1, 3), (5, 1)]
    canvas = page.browser.find_element("css selector", "#chart canvas[tabindex]")
    canvas.send_keys(keys.ARROW_DOWN)
    page.settle()
    assert page.said.startswith("[firmware], 0.000")
    canvas.send_keys(keys.ARROW_RIGHT, keys.ARROW_DOWN, keys.ENTER)
    page.settle()
    assert page.said.startswith("_start, /usr/bin/python3.11")
    assert page.selected[0] < 12


def test_milestones_phases_and_waits_are_the_recording_s(browser: Any, tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    with opened(path) as profile:
        (tmp_path / "a.html").write_bytes(export_html(profile, version="0.0"))
        milestones = find_milestones(profile)
        course = course_of(profile, milestones)
        timeline = timeline_of(profile)
        guest_ns = [profile.clocks().at(milestone.time_ns) for milestone in milestones]
    page = Page(browser, tmp_path / "a.html")
    page.click("tab-boot")
    tables = {
        table.find_element("tag name", "caption").text: table for table in browser.find_elements("css selector", "#boot table")
    }
    phases = [row.text.split("\n") for row in tables["Phases"].find_elements("css selector", "tbody tr")]
    assert [row[0] for row in phases] == [phase.name for phase in course.phases]
    for row, phase in zip(phases, course.phases, strict=True):
        parts = {"kernel": phase.kernel_ns, "user": phase.user_ns, "firmware": phase.firmware_ns, "idle": phase.idle_ns}
        assert ", ".join(f"{name} {percent(part / phase.weight_ns)}" for name, part in parts.items() if part) in " ".join(row)
    names = [head.text for head in tables["Milestones"].find_elements("css selector", "tbody th")]
    assert names == [milestone.name for milestone in milestones]
    by_guest = [cell.text for cell in tables["Milestones"].find_elements("css selector", "tbody td:nth-child(3)")]
    assert by_guest == ["" if shown_ns is None else f"{shown_ns / 1e9:.4f} s" for shown_ns in guest_ns]
    modules = [row.text for row in tables["Modules"].find_elements("css selector", "tbody tr")]
    assert [row.split()[:3] for row in modules] == [["e1000", "0.185", "s"], ["failover", "0.200", "s"]]
    assert [row.endswith("not seen") for row in modules] == [module.seen is None for module in timeline.modules]
    totals_ns = [
        int(cell.get_attribute("value")) for cell in tables["By what ended the waits"].find_elements("css selector", "data")
    ]
    assert totals_ns == [total.total_ns for total in wait_totals(course.waits)]
    waited_ns = sum(wait.duration_ns for wait in course.waits)
    assert f"({duration(waited_ns)}) every vCPU was idle: {len(course.waits)} waits" in page["boot"].text
    longest = max(range(len(phases)), key=lambda index: course.phases[index].duration_ns)
    tables["Phases"].find_elements("css selector", "tbody tr")[longest].find_elements("css selector", "button")[-1].click()
    page.settle()
    phase = course.phases[longest]
    with opened(path, Selection(since_ns=phase.start_ns, until_ns=phase.end_ns)) as selected:
        assert page.selected == (selected.samples, selected.weight_ns)
    assert page.was_quiet()


def test_source_lines_are_told(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    with opened(inlined_recording(tmp_path / "a"), Selection(inlined=True)) as profile:
        file.write_bytes(export_html(profile, version="0.0"))
    page = Page(browser, file)
    sources = "return Array.from(document.querySelectorAll('#table .source'), cell => [cell.textContent, cell.title])"
    assert ["read_write.c:450", "fs/read_write.c:450"] in browser.execute_script(sources)
    page.click_box("vfs_read")
    assert "fs/read_write.c:450" in page["details"].text
    assert page.was_quiet()


def test_everything_else_is_told(page: Page) -> None:
    page.browser.find_element("id", "tab-graph").send_keys(keys.ARROW_LEFT)
    page.settle()
    told = page["about"].text
    assert page.browser.switch_to.active_element.get_attribute("id") == "tab-about"
    for words in (
        "12 in 6 halts",
        "user-mode 3 25.0 % no kernel stack",
        "/opt/tool3: vda1 cannot be opened",
        "found Linux 6.1.0-18-amd64",
    ):
        assert words in told


def test_light_dark_and_narrow(browser: Any, file: Path) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    picture = "return document.getElementById('graph').toDataURL()"
    page = Page(browser, file, (700, 900))
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    light = browser.execute_script(picture)
    assert browser.execute_script(colour) == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    page.settle()
    assert browser.execute_script(colour) == "rgb(22, 25, 30)"
    assert browser.execute_script(picture) != light
    page.choose("theme", "light")
    assert browser.execute_script(colour) == "rgb(255, 255, 255)"
    assert browser.execute_script(picture) == light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.choose("theme", "dark")
    assert browser.execute_script(colour) == "rgb(22, 25, 30)"
    assert page.was_quiet()


def test_hostile_names_are_shown_and_run_nothing(browser: Any, tmp_path: Path) -> None:
    with opened(hostile_recording(tmp_path / "a")) as profile:
        (tmp_path / "a.html").write_bytes(export_html(profile, version="0.0", title="</h1><script>alert(2)</script>\u05d0"))
    page = Page(browser, tmp_path / "a.html")
    assert {row[0] for row in page.rows()} == set(map(printable, HOSTILE_NAMES))
    assert page["title"].text == "</h1><script>alert(2)</script>\u05d0"
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    page.type("search", "<script>")
    page.browser.execute_script("document.getElementById('graph').focus()")
    page.press(keys.ARROW_DOWN, keys.ENTER)
    page.click("tab-chart")
    page.click("tab-about")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert page.was_quiet()


def test_a_damaged_file_says_so(browser: Any, file: Path, tmp_path: Path) -> None:
    text = file.read_text("utf-8")
    at = text.index('id="data">') + 2000
    (tmp_path / "cut.html").write_text(text[:at] + text[text.index("\n</script>", at) :], "utf-8")
    page = Page(browser, tmp_path / "cut.html")
    assert "the file is damaged" in page["failure"].text
    assert not page["page"].is_displayed()
