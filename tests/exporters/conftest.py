"""A real browser for tests of what people open in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.exporters.chromium import start_chromium


@pytest.fixture(scope="session")
def _running_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = start_chromium(tmp_path_factory.mktemp("chromium"))
    if running is None:
        pytest.skip("needs selenium (pip install 'guestprof[test]') and the packages chromium and chromium-driver")
    try:
        yield running
    finally:
        running.quit()


@pytest.fixture
def browser(_running_browser: Any) -> Any:
    """Headless Chromium with its pointer in the corner."""
    webdriver = pytest.importorskip("selenium.webdriver")
    webdriver.ActionChains(_running_browser).reset_actions()
    return _running_browser
