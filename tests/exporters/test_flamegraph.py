"""The flame graph as a picture: well-formed, self-contained, every frame where it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring

from exporters.flamegraph import export_flamegraph
from exporters.text import printable
from recording.model import StackEnd
from recording.reader import Selection
from tests.builders.profiles import HOSTILE_NAMES, IDLE, busy_recording, hostile_recording, opened, small_recording
from tests.builders.recordings import MS, Stack, write_recording

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A frame as it stands in the picture; ``row`` counts from the bottom."""

    name: str
    row: int
    x: float
    width: float
    css: str
    label: str
    title: str


def drawn(svg: bytes) -> list[Drawn]:
    root = fromstring(svg)
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class") == "f"]
    bottom = max(float(_child(group, "rect").attrib["y"]) for group in groups)
    return [_drawn(group, bottom) for group in groups]


def _child(group: Element, tag: str) -> Element:
    found = group.find(SVG + tag)
    assert found is not None
    return found


def _drawn(group: Element, bottom: float) -> Drawn:
    rect = _child(group, "rect").attrib
    row = int((bottom - float(rect["y"])) / 17)
    assert row == int(group.attrib["data-l"])
    label, title = _child(group, "text").text or "", _child(group, "title").text or ""
    return Drawn(group.attrib["data-n"], row, float(rect["x"]), float(rect["width"]), rect["class"], label, title)


def flame_graph(path: Path, selection: Selection | None = None, title: str | None = None) -> bytes:
    with opened(path, selection) as profile:
        return export_flamegraph(profile, title=title)


def test_processes_stand_at_the_roots(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    svg = flame_graph(busy_recording(tmp_path / "a"))
    golden("busy.svg", svg)
    text = svg.decode()
    roots = re.findall(r'data-l="1" data-n="([^"]*)"><title>[^<]*</title><rect class="([a-z]+)[0-5]"', text)
    assert roots == [(name, "process") for name in ("[firmware]", "[unknown]", "kworker/0:1", "python3", "swapper")]
    assert ">process</text>" in text
    assert re.search(
        r'data-n="foo::bar&lt;3&gt;"><title>foo::bar&lt;3&gt; /usr/lib/libfoo.so.1: [^<]*</title><rect class="user', text
    )


def test_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    golden("small.svg", flame_graph(small_recording(tmp_path / "a")))


def test_frames_stand_on_their_callers(tmp_path: Path) -> None:
    path = write_recording(
        tmp_path / "a", [[Stack("main walk leaf")], [Stack("main walk")], [Stack("main e1000_clean@e1000")], [Stack("U:1")]]
    )
    frames = drawn(flame_graph(path))
    assert [(f.name, f.row, f.x, f.width) for f in frames] == [
        ("all", 0, 10.0, 1180.0),
        ("[user]", 1, 10.0, 295.0),
        ("main", 1, 305.0, 885.0),
        ("e1000_clean", 2, 305.0, 295.0),
        ("walk", 2, 600.0, 590.0),
        ("leaf", 3, 600.0, 295.0),
    ]
    assert frames[4].title == "walk [kernel]: 50.0 %, 20.00 ms, 2 samples, 25.0 % in itself"
    assert [f.css[:-1] for f in frames] == ["al", "user", "kernel", "module", "kernel", "kernel"]
    assert [f.label for f in frames] == ["all", "[user]", "main", "e1000_clean", "walk", "leaf"]


def test_colours_tell_the_kind_of_code(tmp_path: Path) -> None:
    path = write_recording(
        tmp_path / "a",
        [
            [Stack("F:", 0, StackEnd.FIRMWARE)],
            [Stack("?", 0, StackEnd.NO_UNWIND_INFO)],
            [Stack(IDLE, 0, StackEnd.IDLE_ROOT)],
            [Stack("cpu_startup_entry do_idle schedule_idle")],
        ],
    )
    svg = flame_graph(path)
    kinds = {f.name: f.css.rstrip("012345") for f in drawn(svg)}
    assert kinds == {
        "all": "all",
        "[firmware]": "firmware",
        "0xffffc90000001000": "unknown",
        "secondary_startup_64": "idle",  # nothing but the idle loop ran from there
        "cpu_startup_entry": "idle",
        "do_idle": "idle",
        "default_idle_call": "idle",
        "default_idle": "idle",
        "schedule_idle": "kernel",
    }
    (legend,) = [group for group in fromstring(svg).iter(f"{SVG}g") if group.get("id") == "legend"]
    assert [text.text for text in legend.iter(f"{SVG}text")] == ["kernel", "firmware, before the kernel", "unknown", "idle"]


def test_labels_fit_into_their_frames(tmp_path: Path) -> None:
    halts = [[Stack("long_function_name")]] + [[Stack("other")] for _ in range(19)]
    frames = {f.name: f for f in drawn(flame_graph(write_recording(tmp_path / "a", halts)))}
    assert (frames["long_function_name"].width, frames["long_function_name"].label) == (59.0, "long_f…")


def test_frames_too_narrow_to_see_are_counted_and_not_drawn(tmp_path: Path) -> None:
    halts = [[Stack("wide", weight_ns=1_000_000 * MS)], [Stack("narrow deeper", weight_ns=MS)]]
    svg = flame_graph(write_recording(tmp_path / "a", halts))
    assert [f.name for f in drawn(svg)] == ["all", "wide"]
    assert "Not drawn: 2 frames narrower than 0.1 pixel." in svg.decode()
    assert 'height="156"' in svg.decode()  # no empty rows for what is not drawn


def test_header_says_how_far_to_trust_it(tmp_path: Path) -> None:
    texts = [text.text for text in fromstring(flame_graph(small_recording(tmp_path / "a"))).iter(f"{SVG}text")]
    rate = "16 samples, 100.0 Hz requested, 95.2 Hz achieved, 0 of 8 deadlines late"
    halted = "guest halted 5.4 % of the time; a halt takes 500.00 µs (p50), 500.00 µs (p99)"
    assert texts[:3] == [
        "Linux 6.1.0-18-amd64 on x86_64, TCG, 2 vCPUs",
        f"{rate}; {halted}",
        "160.00 ms of vCPU time; 83.33 % of the kernel stacks are complete (8.33 % are in entry code, where there is no stack)",
    ]
    titled = flame_graph(tmp_path / "a", title="Boot & <run>")
    assert next(text.text for text in fromstring(titled).iter(f"{SVG}text")) == "Boot & <run>"


@pytest.mark.parametrize("make", [small_recording, hostile_recording])
def test_nothing_is_fetched(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    text = flame_graph(make(tmp_path / "a")).decode()
    addresses = set(re.findall(r"https?://[^\"' ]*", text))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}  # names of languages
    assert not re.search(r"@import|url\(|href|<image|<use", text)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    svg = flame_graph(hostile_recording(tmp_path / "a"))
    names = {f.name for f in drawn(svg)}
    expected = {printable(name) for name in HOSTILE_NAMES if len(name) < 500}
    assert names == expected | {"all", "x" * 499 + "…"}
    assert svg.decode().count("<script>") == 1
    assert all(len(f.label) <= 26 for f in drawn(svg) if f.row)


def test_one_halt_without_time_is_drawn_by_samples(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack("main", 0, weight_ns=0), Stack("other", 1, weight_ns=0)]])
    assert [(f.name, f.width) for f in drawn(flame_graph(path))] == [("all", 1180.0), ("main", 590.0), ("other", 590.0)]


def test_nothing_selected_is_a_picture_that_says_so(tmp_path: Path) -> None:
    svg = flame_graph(small_recording(tmp_path / "a"), Selection(vcpus=frozenset()))
    assert [f.name for f in drawn(svg)] == ["all"]
    assert "No samples are selected." in svg.decode()


def test_a_very_deep_stack_is_drawn(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack(" ".join(["again"] * 5000))]])
    assert max(f.row for f in drawn(flame_graph(path))) == 5000
