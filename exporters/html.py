"""A profile becomes the HTML report: one file with flame graph, flame chart, tables and how far to trust them.

Style and script stand in ``page/`` and are put into the file as they are; what is of the recording is in one compressed block of
data (``exporters/html_data.py``), which no browser takes for markup or code. The page's policy lets nothing else run, and nothing
be fetched.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files

from exporters.colours import COLOURS
from exporters.html_data import pack
from exporters.html_run import run_values
from recording.collection import no_collection
from recording.profile import Profile

_SCRIPTS = (
    "data.js",
    "model.js",
    "tree.js",
    "dom.js",
    "paint.js",
    "graph.js",
    "time.js",
    "overview.js",
    "chart.js",
    "table.js",
    "about.js",
    "boot.js",
    "diff.js",
    "boots.js",
    "main.js",
)
"""In the order in which they build upon each other."""
_LINE = 120
"""Characters of data a line: some editors choke on one line of megabytes."""


def export_html(profile: Profile, *, version: str, title: str | None = None) -> bytes:
    """One HTML document."""
    with no_collection():
        runs = [run_values(profile, title=title)]
        return html_document(runs[0]["title"], pack([profile], runs, {"version": version}))


def html_document(title: str, data: bytes) -> bytes:
    """The page around a block of data."""
    style, script = _asset("style.css") + _dots(), "\n".join(map(_asset, _SCRIPTS))
    script = f'"use strict";\n{{\n{script}}}\n'
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    block = b64encode(data).decode("ascii")
    lines = "\n".join([block[at : at + _LINE] for at in range(0, len(block), _LINE)])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)} - guestprof</title>\n<style>{style}</style>\n</head>\n<body>\n{_asset('body.html')}"
        f'<script type="text/plain" id="data">\n{lines}\n</script>\n<script>{script}</script>\n</body>\n</html>\n'
    ).encode()


def _dots() -> str:
    """Squares in the colours of the kinds."""
    return "".join([f".kind-{kind} {{ background: {colour.tints[0]}; }}\n" for kind, colour in COLOURS.items()])


def _asset(name: str) -> str:
    return files("exporters").joinpath("page", name).read_text("utf-8")


def _hash(text: str) -> str:
    """How a policy names a script or style that may be used."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}'"
