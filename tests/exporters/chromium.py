"""Headless Chromium, driven by chromedriver."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,800",
)


def start_chromium(directory: Path) -> Any:
    """A session on an empty page that logs what scripts complain about and what is fetched; None where something is missing.

    directory: for what the browser keeps. The caller quits the session.
    """
    try:
        from selenium import webdriver  # noqa: PLC0415 - optional, as the browser is
    except ImportError:
        return None
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={directory}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    running.get("about:blank")
    return running
