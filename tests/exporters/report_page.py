"""The HTML report in a real browser, driven as a person would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'guestprof[test]'")
wait = pytest.importorskip("selenium.webdriver.support.ui")

READY = "return document.documentElement.dataset.ready || document.getElementById('failure').textContent"
ROWS = """
    return Array.from(document.querySelectorAll('#table tbody tr'), row => [
        row.querySelector('.name').textContent,
        row.querySelector('.module')?.title ?? '',
        ...Array.from(row.querySelectorAll('data'), data => Number(data.value)),
    ]);
"""
SETTLED = "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def fetched(browser: Any) -> set[str]:
    """Every address that was asked for since the last call."""
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    return {row["params"]["request"]["url"] for row in messages if row["method"] == "Network.requestWillBeSent"}


class Page:
    """The report, driven as a person would."""

    def __init__(self, browser: Any, file: Path, size: tuple[int, int] = (1400, 900)) -> None:
        self.browser = browser
        self.file = file
        browser.get_log("performance")
        browser.get_log("browser")
        browser.set_window_size(*size)
        browser.get(file.as_uri())
        wait.WebDriverWait(browser, 30, 0.02).until(lambda _: browser.execute_script(READY))
        self.settle()

    def settle(self) -> None:
        self.browser.execute_script(SETTLED)

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def choose(self, name: str, words: str) -> None:
        """An entry of a select field."""
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self[name])
        for option in self[name].find_elements("tag name", "option"):
            if option.text == words:
                option.click()
        self.settle()

    def click(self, name: str) -> None:
        self[name].click()
        self.settle()

    def type(self, name: str, *words: str) -> None:
        self[name].clear()
        self[name].send_keys(*words)
        self.settle()

    def press(self, *pressed: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*pressed).perform()
        self.settle()

    def rows(self) -> list[list[Any]]:
        """The table: name, module, self and total time in nanoseconds, samples."""
        found: list[list[Any]] = self.browser.execute_script(ROWS)
        return found

    def boxes(self, canvas: str = "#graph") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.browser.execute_script("return document.querySelector(arguments[0]).boxes()", canvas)
        return found

    def box(self, name: str) -> dict[str, Any]:
        return next(box for box in self.boxes() if box["name"] == name)

    def click_box(self, name: str) -> None:
        """In its middle."""
        box, canvas = self.box(name), self["graph"]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", self["unzoom"])
        self.browser.execute_script("scrollBy(0, -120)")
        size = canvas.size
        right = box["x"] + box["width"] / 2 - size["width"] / 2
        down = box["y"] + box["height"] / 2 - size["height"] / 2
        webdriver.ActionChains(self.browser).move_to_element_with_offset(canvas, int(right), int(down)).click().perform()
        self.settle()

    def drag(self, canvas: Any, first: float, last: float) -> None:
        """From one share of a canvas' width to another."""
        width = canvas.size["width"]
        start, far = round((first - 0.5) * width), round((last - first) * width)
        chain = webdriver.ActionChains(self.browser).move_to_element_with_offset(canvas, start, 0).click_and_hold()
        chain.move_by_offset(far, 0).release().perform()
        self.settle()

    @property
    def said(self) -> str:
        """What a screen reader was told last."""
        return str(self["live"].get_attribute("textContent"))

    @property
    def selected(self) -> tuple[int, int]:
        """Samples and weight."""
        return int(self["selected"].get_attribute("data-samples")), int(self["selected"].get_attribute("data-weight"))

    def was_quiet(self) -> bool:
        """Whether no script complained, and nothing but the file itself was asked for, since it was opened."""
        asked = {address for address in fetched(self.browser) if not address.startswith("data:")}
        return self.browser.get_log("browser") == [] and asked == {self.file.as_uri()}
