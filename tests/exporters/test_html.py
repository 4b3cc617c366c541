"""The HTML report as a file: it holds what the profile holds, fetches and runs nothing but its own, and is the same each time."""

from __future__ import annotations

import re
import shutil
import subprocess
from array import array
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from exporters.html import export_html
from exporters.html_tracks import Track, fitting
from exporters.text import printable
from recording.milestones import find_milestones
from recording.model import Context
from recording.profile import Profile
from recording.reader import Selection
from tests.builders.boots import boot_recording
from tests.builders.profiles import (
    HOSTILE_NAMES,
    UNREADABLE,
    busy_recording,
    hostile_recording,
    opened,
    small_recording,
)
from tests.builders.recordings import MS, Stack, write_recording
from tests.exporters.html_page import data_of, paths_of, readable, samples_of

_MOST_BYTES_EMPTY = 150_000


class Outline(HTMLParser):
    """The elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.texts:
            self.texts[self._open][-1] += data


def page_of(path: Path, selection: Selection | None = None, title: str | None = None) -> bytes:
    with opened(path, selection) as profile:
        return export_html(profile, version="0.0", title=title)


def outline(page: bytes) -> Outline:
    parser = Outline()
    parser.feed(page.decode())
    return parser


def counted_stacks(profile: Profile) -> Counter[tuple[int, tuple[str, ...], str]]:
    """Weight of each vCPU, stack (root first, after its process) and context."""
    found: Counter[tuple[int, tuple[str, ...], str]] = Counter()
    for count in profile.counts:
        root = [count.origin.process.root_name] if profile.has_tasks else []
        names = (*root, *[function.name for function in count.stack.functions])
        found[count.vcpu, tuple(map(printable, names)), count.origin.context.value] += count.weight_ns
    return found


@pytest.mark.parametrize("make", [small_recording, busy_recording, hostile_recording])
def test_the_data_is_the_profile(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a")
    data = data_of(page_of(path))
    paths, names = paths_of(data), data["functions"]["name"]
    found: Counter[tuple[int, tuple[str, ...], str]] = Counter()
    for vcpu, stack, _, weight, samples in samples_of(data):
        assert samples == 1
        node = paths[data["stacks"]["node"][stack]]
        context = data["contexts"][data["origins"][data["stacks"]["origin"][stack]][2]]
        found[vcpu, tuple(names[function] for function in node[1:]), context] += weight
    with opened(path) as profile:
        assert found == counted_stacks(profile)
        assert [time for _, _, time, _, _ in samples_of(data)] == [
            time for _, time in sorted((sighting.vcpu, sighting.time_ns) for sighting in profile.sightings())
        ]


def test_the_tree_is_in_order_and_has_no_node_twice(tmp_path: Path) -> None:
    paths = paths_of(data_of(page_of(busy_recording(tmp_path / "a"))))
    assert paths == sorted(set(paths))
    assert paths[0] == (paths[1][0],)


def test_golden_data(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    golden("busy.html.json", readable(page_of(busy_recording(tmp_path / "a"))))


def test_idle_stacks_and_kinds_are_told(tmp_path: Path) -> None:
    data = data_of(page_of(busy_recording(tmp_path / "a")))
    paths, names = paths_of(data), data["functions"]["name"]
    kinds = {name: data["kinds"][kind]["name"] for name, kind in zip(names, data["functions"]["kind"], strict=True)}
    assert kinds["python3"] == "process"
    assert (kinds["vfs_read"], kinds["e1000_clean"], kinds["default_idle"]) == ("kernel", "module", "idle")
    leaves = {names[paths[node][-1]] for node, idle in zip(data["stacks"]["node"], data["stacks"]["idle"], strict=True) if idle}
    assert leaves == {"default_idle"}


def test_everything_about_the_run_is_there(tmp_path: Path) -> None:
    (run,) = data_of(page_of(busy_recording(tmp_path / "a")))["runs"]
    assert run["title"] == "Linux 6.1.0-18-amd64 on x86_64, TCG, 2 vCPUs"
    assert dict(run["quality"])["Samples"] == "12 in 6 halts"
    assert dict(run["facts"])["Architecture"] == "x86_64"
    assert run["notes"] == [event.text for event in UNREADABLE]
    assert run["events"][0] == {"time": 0, "name": "kernel-found", "text": "found Linux 6.1.0-18-amd64"}
    assert {row["name"]: row["samples"] for row in run["ends"]}["user-mode"] == 3
    assert run["selection"] == []


def test_the_console_is_told_apart_from_other_events(tmp_path: Path) -> None:
    (run,) = data_of(page_of(boot_recording(tmp_path / "a")))["runs"]
    assert [line["text"] for line in run["console"]] == [
        "[    0.052000] ACPI: Core revision 20220331",
        "Welcome to Debian",
        "         Starting ssh.service - OpenBSD Secure Shell server...",
        "[  OK  ] Started ssh.service - OpenBSD Secure Shell server.",
        "login: ",
    ]
    assert "console" not in {event["name"] for event in run["events"]}


def test_a_selection_is_told(tmp_path: Path) -> None:
    chosen = Selection(since_ns=10 * MS, idle=False, contexts=frozenset({Context.USER}))
    (run,) = data_of(page_of(busy_recording(tmp_path / "a"), chosen))["runs"]
    assert run["selection"] == ["from 10.00 ms on", "without the idle loop waiting", "only context user"]
    assert run["samples"] == 3


def test_a_recording_without_selected_samples_is_a_page(tmp_path: Path) -> None:
    page = page_of(busy_recording(tmp_path / "a"), Selection(vcpus=frozenset({9})))
    data = data_of(page)
    assert data["runs"][0]["vcpus"] == []
    assert len(page) < _MOST_BYTES_EMPTY


def test_equal_bytes(tmp_path: Path) -> None:
    path = busy_recording(tmp_path / "a")
    assert page_of(path) == page_of(path)


def test_nothing_runs_but_the_page_s_own_script(tmp_path: Path) -> None:
    page = outline(page_of(hostile_recording(tmp_path / "a"), title='</title><script>alert(1)</script>"'))
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    style, script = page.texts["style"][0], page.texts["script"][1]
    hashes = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in (script, style)]
    assert policy == (f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; base-uri 'none'; form-action 'none'")
    assert [attributes.get("type") for tag, attributes in page.elements if tag == "script"] == ["text/plain", None]
    assert page.texts["title"] == ['</title><script>alert(1)</script>" - guestprof']
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name in {"src", "style"}}, tag
        assert unescape(attributes.get("href") or "#").startswith("#")


def test_text_of_the_guest_stands_nowhere_but_in_the_data(tmp_path: Path) -> None:
    page = page_of(hostile_recording(tmp_path / "a"))
    names = set(data_of(page)["functions"]["name"])
    assert set(map(printable, HOSTILE_NAMES)) <= names
    assert b"alert(" not in page
    assert b"xxxxx" not in page


def test_the_scripts_never_make_markup_or_code_of_text() -> None:
    folder = files("exporters").joinpath("page")
    scripts = {item.name: item.read_text("utf-8") for item in folder.iterdir() if item.name.endswith(".js")}
    assert len(scripts) >= 8
    for name, text in scripts.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|https?:", text), name
        assert "</script" not in text, name


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node: install the package nodejs")
def test_the_script_parses(tmp_path: Path) -> None:
    script = outline(page_of(small_recording(tmp_path / "a"))).texts["script"][1]
    (tmp_path / "page.js").write_text(script, "utf-8")
    done = subprocess.run(["node", "--check", str(tmp_path / "page.js")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def a_track(vcpu: int, rows: list[tuple[int, int, int]]) -> Track:
    track = Track(vcpu)
    for stack, weight, time in rows:
        track.add(stack, weight, time, 1)
    return track


def test_few_samples_are_kept_one_by_one() -> None:
    tracks = [a_track(0, [(1, 10, 10), (1, 10, 20)])]
    assert fitting(tracks, 2) is tracks


def test_many_samples_are_merged_within_short_stretches_and_lose_no_time() -> None:
    rows = [(index % 3, 10, 10 * (index + 1)) for index in range(3000)]
    merged = fitting([a_track(0, rows), a_track(1, rows)], 400)
    assert sum(len(track.stacks) for track in merged) <= 400
    for track in merged:
        assert sum(track.counts) == 3000
        assert list(track.times_ns) == sorted(track.times_ns)
        weights: Counter[int] = Counter()
        for stack, weight in zip(track.stacks, track.weights_ns, strict=True):
            weights[stack] += weight
        assert weights == {0: 10_000, 1: 10_000, 2: 10_000}
        assert track.times_ns[-1] == 30_000


def test_more_different_stacks_than_fit_are_all_kept() -> None:
    rows = [(index, 10, 10 * (index + 1)) for index in range(50)]
    (merged,) = fitting([a_track(0, rows)], 20)
    assert sorted(merged.stacks) == list(range(50))
    assert merged.weights_ns == array("Q", [10] * 50)


def test_samples_that_overlap_or_leave_gaps_keep_their_moments(tmp_path: Path) -> None:
    halts = [[Stack("a", weight_ns=5 * MS)], [Stack("b", weight_ns=25 * MS)], [Stack("c", weight_ns=0)]]
    data = data_of(page_of(write_recording(tmp_path / "a", halts)))
    assert [(time, weight) for _, _, time, weight, _ in samples_of(data)] == [
        (10 * MS, 5 * MS),
        (20 * MS, 25 * MS),
        (30 * MS, 0),
    ]


def test_milestones_are_those_of_the_whole_recording(tmp_path: Path) -> None:
    path = boot_recording(tmp_path / "a")
    for selection in (None, Selection(since_ns=100 * MS)):
        with opened(path, selection) as profile:
            (run,) = data_of(export_html(profile, version="0.0"))["runs"]
            found = [(mark["time"], mark["after"], mark["name"], mark["phase"]) for mark in run["milestones"]]
            assert found == [(each.time_ns, each.after_ns, each.name, each.begins_phase) for each in find_milestones(profile)]
            (clock,) = profile.clocks().clocks[:1]
            assert [tuple(point) for point in run["clocks"][0]] == clock.outline(4000)


@pytest.mark.parametrize("selection", [None, Selection(idle=False, vcpus=frozenset({0}))])
def test_stretches_are_the_sightings(tmp_path: Path, selection: Selection | None) -> None:
    with opened(busy_recording(tmp_path / "a"), selection) as profile:
        known: list[tuple[object, object]] = []

        def number(walk: object, origin: object) -> int:
            known.append((walk, origin))
            return len(known) - 1

        rows = [
            (vcpu, time_ns, weight_ns, *known[index])
            for vcpu, numbers, times_ns, weights_ns in profile.stretches(number)
            for index, time_ns, weight_ns in zip(numbers, times_ns, weights_ns, strict=True)
        ]
        assert rows == sorted(
            ((seen.vcpu, seen.time_ns, seen.weight_ns, seen.walk, seen.origin) for seen in profile.sightings()),
            key=lambda row: row[:2],
        )
