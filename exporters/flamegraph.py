"""A profile becomes a flame graph: one SVG file that is a readable picture anywhere, and zooms and searches in a browser.

Widths are guest running time. Colours tell what kind of code it is; the vCPU waiting in its idle loop is grey. The script and the
style stand in ``flamegraph.js`` and ``flamegraph.css`` and are put into the file, which so needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from xml.sax.saxutils import escape, quoteattr
from zlib import crc32

from exporters.colours import COLOURS, TINTS, WHOLE
from exporters.text import (
    counted,
    duration,
    halted_line,
    machine,
    percent,
    printable,
    rate_line,
    share,
    shortened,
    stacks_line,
    user_line,
)
from recording.idle import is_idle_function
from recording.profile import Profile
from recording.source_paths import function_sources
from recording.views import TreeNode, call_tree

_WIDTH = 1200
_PAD = 10
_PLOT = _WIDTH - 2 * _PAD
_ROW = 17
_TOP = 94
_BOTTOM = 28
_LETTER = 6.7
"""Width of a letter of the monospaced 11-pixel font (0.602 em in DejaVu Sans Mono and Menlo)."""
_LEAST_WIDTH = 0.1
_LONGEST_NAME = 500


@dataclass(frozen=True, slots=True)
class _Box:
    """A frame with its place: pixels from the plot's left edge, and levels from the root."""

    node: TreeNode
    level: int
    start: float
    width: float


def export_flamegraph(profile: Profile, *, title: str | None = None) -> bytes:
    """One SVG file. Frames narrower than 0.1 pixel are not drawn; the picture says how many."""
    root = call_tree(profile)
    drawn, dropped = _boxes(root)
    levels = max(box.level for box in drawn) + 1
    height = _TOP + levels * _ROW + _BOTTOM
    quality = profile.quality()
    sources = function_sources(profile)
    box, data = f'viewBox="0 0 {_WIDTH} {height}"', f'data-pad="{_PAD}" data-plot="{_PLOT}" data-height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="guestprof" width="{_WIDTH}" height="{height}" {box} {data}>',
        f"<style><![CDATA[\n{_asset('flamegraph.css')}{_fills()}]]></style>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        _text(26, "title", machine(profile.meta) if title is None else printable(title)),
        _text(46, "sub", f"{counted(quality.samples, 'sample')}, {rate_line(quality)}; guest halted {halted_line(quality)}"),
        _text(
            63,
            "sub",
            "; ".join([f"{duration(profile.weight_ns)} of vCPU time", stacks_line(quality), *filter(None, [user_line(quality)])]),
        ),
        f'<text id="details" x="{_PAD}" y="83"></text>',
        _legend(drawn),
        *[_frame(box, root, _TOP + (levels - 1 - box.level) * _ROW, sources.get(box.node.function, "")) for box in drawn],
        _text(height - 10, "small", _footnote(dropped, quality.samples)),
        f"<script><![CDATA[\n{_asset('flamegraph.js')}]]></script>",
        "</svg>\n",
    ]
    return "\n".join(lines).encode()


def _asset(name: str) -> str:
    return files("exporters").joinpath(name).read_text("utf-8")


def _fills() -> str:
    """The style of each kind's tints, three a line."""
    lines = [f".all {{ fill: {WHOLE}; }}"]
    for kind, colour in COLOURS.items():
        fills = [f".{kind}{index} {{ fill: {tint}; }}" for index, tint in enumerate(colour.tints)]
        lines += [" ".join(fills[at : at + 3]) for at in range(0, TINTS, 3)]
    return "\n".join(lines) + "\n"


def _value(node: TreeNode, root: TreeNode) -> int:
    """What a width stands for: time, or samples where no time has passed (one halt only)."""
    return node.total_ns if root.total_ns else node.samples


def _boxes(root: TreeNode) -> tuple[list[_Box], int]:
    """Frames wide enough to be seen, callers before callees and callees by name; and how many are not.

    No recursion: a damaged recording may hold stacks of any depth.
    """
    scale = _PLOT / (_value(root, root) or 1)
    drawn, dropped = [], 0
    waiting = [_Box(root, 0, 0.0, float(_PLOT))]
    while waiting:
        box = waiting.pop()
        drawn.append(box)
        start = box.start
        children = []
        for child in sorted(box.node.children.values(), key=_by_name):
            width = _value(child, root) * scale
            if width >= _LEAST_WIDTH:
                children.append(_Box(child, box.level + 1, start, width))
            else:
                dropped += _size(child)
            start += width
        # The tree is taken apart on the way: a million nodes are not to be there while the picture is written.
        box.node.children = {}
        waiting.extend(reversed(children))
    return drawn, dropped


def _size(node: TreeNode) -> int:
    """How many nodes a part of the tree has."""
    count, waiting = 0, [node]
    while waiting:
        count += 1
        waiting.extend(waiting.pop().children.values())
    return count


def _by_name(node: TreeNode) -> tuple[str, str, str]:
    function = node.function
    return function.name, function.module, function.kind


def _kind(box: _Box) -> str:
    if box.node.is_process:
        return "process"
    if box.node.is_idle or is_idle_function(box.node.function):
        return "idle"
    return box.node.function.kind.value


def _frame(box: _Box, root: TreeNode, y: int, source: str) -> str:
    """source: where the function is, path and line."""
    node = box.node
    function = node.function
    name = shortened(printable(function.label), _LONGEST_NAME)
    module = f" {shortened(printable(function.module), _LONGEST_NAME)}" if function.module else ""
    source = f" {shortened(printable(source), _LONGEST_NAME)}" if source else ""
    part, own = share(_value(node, root), _value(root, root)), share(node.self_ns, root.total_ns)
    took = f"{percent(part)}, {duration(node.total_ns)}, {counted(node.samples, 'sample')}, {percent(own)} in itself"
    css = "all" if box.level == 0 else f"{_kind(box)}{crc32(name.encode()) % TINTS}"
    x = _PAD + box.start
    letters = int((box.width - 6) / _LETTER)
    label = escape(shortened(name, letters)) if letters >= 3 else ""
    return (
        f'<g class="f" data-l="{box.level}" data-n={quoteattr(name)}><title>{escape(f"{name}{module}{source}: {took}")}</title>'
        f'<rect class="{css}" x="{x:.3f}" y="{y}" width="{box.width:.3f}" height="{_ROW - 1}" rx="1"/>'
        f'<text x="{x + 3:.3f}" y="{y + 12}">{label}</text></g>'
    )


def _text(y: int, css: str, text: str) -> str:
    return f'<text class="{css}" x="{_PAD}" y="{y}">{escape(text)}</text>'


def _legend(boxes: list[_Box]) -> str:
    """Colours that occur in the picture, with what they mean."""
    seen = {_kind(box) for box in boxes if box.level}
    parts, x = ['<g id="legend">'], float(_PAD)
    for kind, colour in COLOURS.items():
        if kind in seen:
            parts.append(f'<rect class="{kind}0" x="{x:.1f}" y="74" width="11" height="11" rx="2"/>')
            parts.append(f'<text x="{x + 16:.1f}" y="83">{colour.words}</text>')
            x += 16 + (len(colour.words) + 3) * _LETTER
    return "".join([*parts, "</g>"])


def _footnote(dropped: int, samples: int) -> str:
    if not samples:
        return "No samples are selected."
    told = "Widths are guest running time. In a browser: click a frame to zoom, Ctrl-F to search, Escape to go back."
    return f"{told} Not drawn: {counted(dropped, 'frame')} narrower than {_LEAST_WIDTH} pixel." if dropped else told
