"""pprof files, read by pprof itself (the tool that comes with Go)."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exporters.pprof import export_pprof
from exporters.text import printable
from recording.reader import Selection
from recording.views import function_totals
from tests.builders.profiles import HOSTILE_NAMES, busy_recording, hostile_recording, opened, small_recording
from tests.builders.recordings import build_id_of

needs_pprof = pytest.mark.skipif(shutil.which("go") is None, reason="needs 'go tool pprof': install the package golang-go")


def pprof(file: Path, *options: str) -> str:
    """What pprof prints of a file."""
    command = ["go", "tool", "pprof", "-symbolize=none", *options, str(file)]
    home = {"HOME": str(file.parent), "PATH": "/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=home)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@dataclass
class Raw:
    """The tables that ``pprof -raw`` prints, as rows of words."""

    head: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    mappings: list[str] = field(default_factory=list)


def raw(file: Path) -> Raw:
    sections = re.split(r"^(Samples|Locations|Mappings):?$", pprof(file, "-raw"), flags=re.MULTILINE)
    rows = [section.strip("\n").split("\n") for section in sections]
    return Raw(rows[0], rows[2], rows[4], rows[6])


def written(directory: Path, make: Callable[[Path], Path], selection: Selection | None = None) -> Path:
    file = directory / "a.pb.gz"
    with opened(make(directory / "a"), selection) as profile:
        file.write_bytes(export_pprof(profile))
    return file


def top(file: Path, value: str) -> dict[str, tuple[int, int]]:
    """Self and total of each function."""
    text = pprof(file, "-top", "-nodecount=0", "-nodefraction=0", "-unit=ns", f"-sample_index={value}")
    lines = text.partition("cum%\n")[2].splitlines()
    rows = [re.fullmatch(r" *(\d+)(?:ns)? +\S+ +\S+ +(\d+)(?:ns)? +\S+  (.*)", line) for line in lines]
    assert all(rows), text
    return {row[3]: (int(row[1]), int(row[2])) for row in rows if row is not None}


def merged(rows: Iterable[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    return {printable(name): (self_ns, total_ns) for name, self_ns, total_ns in rows}


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf's wire format, and where the next one begins."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def decoded(data: bytes, path: tuple[int, ...] = ()) -> Iterator[str]:
    """A message as lines of field numbers and values, as ``protoc --decode_raw`` shows one."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        here, kind = (*path, key >> 3), key & 7
        value, at = varint(data, at)
        indent = "  " * len(path)
        if kind == 0:
            yield f"{indent}{key >> 3}: {value}"
            continue
        assert kind == 2
        part, at = data[at : at + value], at + value
        if here in PACKED:
            numbers, place = [], 0
            while place < len(part):
                number, place = varint(part, place)
                numbers.append(str(number))
            yield f"{indent}{key >> 3}: [{' '.join(numbers)}]"
        elif here == STRINGS:
            yield f"{indent}{key >> 3}: {part.decode()!r}"
        else:
            yield f"{indent}{key >> 3}:"
            yield from decoded(part, here)


PACKED, STRINGS = {(2, 1), (2, 2)}, (6,)


def test_golden_file(tmp_path: Path, golden: Callable[[str, bytes], None]) -> None:
    message = gzip.decompress(written(tmp_path, busy_recording).read_bytes())
    golden("busy.pprof.txt", "".join([f"{line}\n" for line in decoded(message)]).encode())


def test_the_same_recording_gives_the_same_bytes(tmp_path: Path) -> None:
    with opened(busy_recording(tmp_path / "a")) as profile:
        first = export_pprof(profile)
    with opened(busy_recording(tmp_path / "b")) as profile:
        assert export_pprof(profile) == first


@needs_pprof
@pytest.mark.parametrize("make", [small_recording, busy_recording, hostile_recording])
def test_pprof_counts_what_we_count(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    file = written(tmp_path, make)
    with opened(make(tmp_path / "b")) as profile:
        totals = function_totals(profile)
    assert top(file, "wall") == merged((total.name, total.self_ns, total.total_ns) for total in totals)
    samples = {name: total for name, (_, total) in top(file, "samples").items()}
    assert samples == {printable(total.name): total.samples for total in totals}


@needs_pprof
def test_labels(tmp_path: Path) -> None:
    file = written(tmp_path, busy_recording)
    tags = pprof(file, "-tags", "-sample_index=samples")
    found = {
        (key, value): int(number)
        for block in re.split(r"\n\s*\n", tags)
        for key in re.findall(r"^ *(\w+): Total", block, re.MULTILINE)
        for number, value in re.findall(r"^ +(\d+)\.0 \([^)]*\): (.*)$", block, re.MULTILINE)
    }
    assert found["vcpu", "0"] == found["vcpu", "1"] == 6  # a vCPU 0 as well: as a number it would be dropped
    assert found["pid", "417"] == 5
    assert found["tid", "418"] == 1
    assert found["comm", "pool thread 1"] == 1
    assert (found["context", "hard-irq"], found["context", "idle"]) == (2, 2)
    assert found["system_call", "read"] == 2


@needs_pprof
def test_mappings_have_build_ids_and_cover_their_locations(tmp_path: Path) -> None:
    tables = raw(written(tmp_path, busy_recording))
    mappings = {}
    for position, row in enumerate(tables.mappings, 1):
        match = re.fullmatch(r"(\d+): 0x(\w+)/0x(\w+)/0x0 (\S+) (\S*) *(?:\[FN\])", row)
        assert match is not None, row
        assert int(match[1]) == position
        mappings[match[1]] = (int(match[2], 16), int(match[3], 16), match[4], match[5])
    assert ("/usr/lib/libc.so.6", build_id_of("/usr/lib/libc.so.6")) in {mapping[2:] for mapping in mappings.values()}
    assert {mapping[2] for mapping in mappings.values()} >= {"[kernel]", "[e1000]", "[ext4]", "[firmware]"}
    for position, row in enumerate(tables.locations, 1):
        match = re.match(r" *(\d+): 0x(\w+) M=(\d+) ", row)
        assert match is not None, row
        assert int(match[1]) == position
        low, high = mappings[match[3]][:2]
        assert low <= int(match[2], 16) < high


@needs_pprof
def test_hostile_names(tmp_path: Path) -> None:
    names = set(top(written(tmp_path, hostile_recording), "wall"))
    assert names == {printable(name) for name in HOSTILE_NAMES}
    assert {"semi;colon", r"line\nbreak\r", "<script>alert('1')</script>&\"]]>", r"bytes\udcff", "x" * 10_000} < names


@needs_pprof
def test_the_head(tmp_path: Path) -> None:
    head = raw(written(tmp_path, small_recording)).head
    assert "PeriodType: wall nanoseconds" in head
    assert "Period: 10000000" in head
    assert "Linux 6.1.0-18-amd64 on x86_64, TCG, 2 vCPUs" in "\n".join(head)


@needs_pprof
def test_nothing_selected(tmp_path: Path) -> None:
    assert raw(written(tmp_path, small_recording, Selection(vcpus=frozenset()))).locations == [""]
