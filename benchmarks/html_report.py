"""How long the HTML report of 1 million samples takes to open and to answer, in headless Chromium.

    python -m benchmarks.html_report [--samples N] [--stacks N]

The recording is that of ``benchmarks.exporters``. Each figure is the time from an action to the second picture after it, which
shows what it led to: so a few dozen milliseconds of each are the browser's own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.exporters import write_recording
from exporters.html import export_html
from recording.profile import Profile
from recording.reader import Recording
from tests.exporters.chromium import start_chromium

_SET = "const field = document.getElementById('{}'); field.value = '{}'; field.dispatchEvent(new Event('{}'));"
_ACTIONS = {
    "leave out idle": "document.getElementById('idle').click();",
    "search": _SET.format("search", "function_12", "input"),
    "only matches": "document.getElementById('only').click();",
    "one process": _SET.format("process", "3", "change"),
    "all again": "document.getElementById('clear').click();",
    "select 10 s": _SET.format("from", "60", "input") + "{" + _SET.format("until", "70", "input") + "}",
    "bottom-up": _SET.format("direction", "up", "change"),
    "all the time": "document.getElementById('wholetime').click();",
    "flame chart": "document.getElementById('tab-chart').click();",
}
_TIMED = """
    const began = performance.now();
    %s
    return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began))));
"""


def main() -> None:
    """Make the page, open it, do things with it, print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--stacks", type=int, default=50_000)
    parser.add_argument("--recording", type=Path, help="one that exists already, instead of making one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gp-bench-") as name:
        recording, page = options.recording or Path(name) / "large.guestprof", Path(name) / "large.html"
        if not recording.exists():
            write_recording(recording, options.samples, options.stacks)
        with Recording.open(recording) as opened:
            page.write_bytes(export_html(Profile(opened), version="benchmark"))
        browser = start_chromium(Path(name) / "chromium")
        if browser is None:
            raise SystemExit("needs selenium (pip install 'guestprof[test]') and the packages chromium and chromium-driver")
        try:
            browser.set_window_size(1400, 900)
            began = time.monotonic()
            browser.get(page.as_uri())
            while not browser.execute_script("return document.documentElement.dataset.ready"):
                time.sleep(0.01)
            print(f"{'open':<16} {1000 * (time.monotonic() - began):>7.0f} ms   {page.stat().st_size / 1e6:.1f} MB")
            for action, script in _ACTIONS.items():
                print(f"{action:<16} {browser.execute_script(_TIMED % script):>7.0f} ms")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
