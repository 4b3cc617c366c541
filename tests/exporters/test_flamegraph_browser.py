"""The flame graph in a real browser: the frames are shown, a click zooms, a search highlights. Nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters.flamegraph import export_flamegraph
from tests.builders.profiles import HOSTILE_NAMES, hostile_recording, opened, small_recording

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'guestprof[test]'")

SHOWN = """
    return Array.from(document.querySelectorAll('.f')).filter(g => getComputedStyle(g).display !== 'none').map(g => {
        const box = g.querySelector('rect').getBoundingClientRect();
        const colour = getComputedStyle(g.querySelector('rect')).fill;
        return [g.dataset.n, Math.round(box.left), Math.round(box.width), g.querySelector('text').textContent, colour];
    })
"""
MAGENTA = "rgb(194, 24, 201)"


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    """The small recording's flame graph, opened."""
    with opened(small_recording(tmp_path / "a")) as profile:
        (tmp_path / "a.svg").write_bytes(export_flamegraph(profile))
    browser.set_window_size(1200, 800)
    browser.get((tmp_path / "a.svg").as_uri())
    return browser


def frames(page: Any) -> dict[str, tuple[int, int, str, str]]:
    """Frames that are shown: left edge and width on the screen, label, colour."""
    return {name: (left, width, label, colour) for name, left, width, label, colour in page.execute_script(SHOWN)}


def frame(page: Any, name: str) -> Any:
    return page.find_element("css selector", f".f[data-n='{name}'] rect")


def plot_width(page: Any) -> int:
    return int(page.execute_script("return document.documentElement.clientWidth")) - 20


def search_for(page: Any, words: str) -> None:
    """Press Ctrl-F, which selects what was searched for before, and type."""
    page.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'f', ctrlKey: true}))")
    search = page.switch_to.active_element
    assert search.get_attribute("id") == "search"
    search.send_keys(words)


def test_frames_are_shown_over_the_whole_window(page: Any) -> None:
    seen = frames(page)
    width = plot_width(page)
    assert len(seen) == 23
    assert seen["all"][:3] == (10, width, "all")
    assert seen["default_idle"][1] == pytest.approx(width * 5 / 16, abs=1)
    assert seen["e1000_clean"][1] == pytest.approx(width / 16, abs=1)
    assert page.get_log("browser") == []


def test_a_click_zooms_and_the_way_back(page: Any) -> None:
    width = plot_width(page)
    before = frames(page)
    frame(page, "default_idle").click()
    seen = frames(page)
    assert set(seen) == {
        *("all", "secondary_startup_64", "cpu_startup_entry", "do_idle", "default_idle_call", "default_idle"),
        *("asm_sysvec_apic_timer_interrupt", "sysvec_apic_timer_interrupt", "e1000_clean"),
    }
    assert seen["default_idle"][:2] == (10, width)
    assert seen["all"][:2] == (10, width)
    assert seen["e1000_clean"][1] == pytest.approx(width / 5, abs=1)
    assert seen["sysvec_apic_timer_interrupt"][2].startswith("sysvec_apic_timer")
    page.find_element("id", "reset").click()
    assert frames(page) == before
    frame(page, "default_idle").click()
    page.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert frames(page) == before


def test_a_search_highlights_and_counts_what_it_covers_once(page: Any) -> None:
    search_for(page, "SYSVEC")
    assert {name for name, row in frames(page).items() if row[3] == MAGENTA} == {
        "asm_sysvec_apic_timer_interrupt",
        "sysvec_apic_timer_interrupt",
    }
    assert page.find_element("id", "matched").text == "matched: 6.3 %"
    search_for(page, "^(ksys_read|do_syscall|copy_to)")
    assert page.find_element("id", "matched").text == "matched: 18.8 %"
    search_for(page, "(")  # no pattern, so it is searched for as it is
    assert page.find_element("id", "matched").text == "matched: 0.0 %"
    assert page.get_log("browser") == []


def test_the_search_field_takes_a_click(page: Any) -> None:
    field = page.find_element("id", "search").rect
    actions = webdriver.ActionChains(page).move_by_offset(int(field["x"]) + 20, int(field["y"]) + 10).click()
    actions.send_keys("e1000").perform()
    assert page.find_element("id", "matched").text == "matched: 6.3 %"


def test_pointing_at_a_frame_tells_about_it(page: Any) -> None:
    webdriver.ActionChains(page).move_to_element(frame(page, "e1000_clean")).perform()
    assert page.find_element("id", "details").text == "e1000_clean [e1000]: 6.2 %, 10.00 ms, 1 sample, 6.2 % in itself"


def test_hostile_names_are_shown_and_run_nothing(browser: Any, tmp_path: Path) -> None:
    with opened(hostile_recording(tmp_path / "a")) as profile:
        (tmp_path / "a.svg").write_bytes(export_flamegraph(profile))
    browser.get((tmp_path / "a.svg").as_uri())
    names = {row[0] for row in browser.execute_script(SHOWN)}
    assert len(names) == len(HOSTILE_NAMES) + 1
    assert "<script>alert('1')</script>&\"]]>" in names
    assert browser.execute_script("return document.querySelectorAll('script').length") == 1
    assert browser.get_log("browser") == []
