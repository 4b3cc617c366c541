"""``guestprof symbolize`` on a recording of code that this machine's compiler has made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from guest.elf.debug_file import DebugFile
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder
from guest.symbolize import frame_lines
from guestprof.cli import cli
from recording.errors import BadImageError
from recording.model import Callchain, Frame, Halt, Sample, StackEnd
from recording.reader import Recording
from recording.store import RecordingWriter
from tests.builders.debug_program import addr2line, build, needs_compiler
from tests.guest.test_host_files import SLIDE, image_of

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)


def record(path: Path, program: Path, *, build_id: str | None = None) -> list[int]:
    """A recording with one sample at each address of ``outer``, moved as KASLR does it; gives the file's addresses."""
    with DebugFile(program) as file:
        (symbol,) = [symbol for symbol in file.symbols() if symbol.name == "outer"]
    addresses = list(range(symbol.address, symbol.address + symbol.size))
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        writer.add_image(image_of(program, build_id=build_id))
        for index, address in enumerate(addresses):
            halt = writer.add_halt(Halt(index, index, 0, 0))
            frame = Frame(address + SLIDE, address + SLIDE)
            writer.add_sample(Sample(halt, 0, 0, 1000, Callchain((frame,), StackEnd.TASK_ROOT)))
    return addresses


def test_the_report_tells_inlined_time_from_its_callers(tmp_path: Path) -> None:
    program = build(tmp_path, "-gdwarf-5")
    addresses = record(tmp_path / "r", program)
    runner = CliRunner()
    before = json.loads(runner.invoke(cli, ["report", str(tmp_path / "r"), "-f", "json"]).output)["functions"]
    assert [(row["name"], row["samples"]) for row in before] == [("outer", len(addresses))]
    for _ in range(2):  # the second time from the cache
        done = runner.invoke(cli, ["symbolize", str(tmp_path / "r"), "--vmlinux", str(program)])
        assert done.exit_code == 0, done.output
        assert f"lines of {len(addresses):,} of {len(addresses):,} addresses" in done.output
        wanted: dict[str, int] = {}
        for rows in addr2line(program, addresses):
            wanted[rows[0][0]] = wanted.get(rows[0][0], 0) + 1000
        for option in ("--inlined", None):
            rows_after = json.loads(
                runner.invoke(cli, ["report", str(tmp_path / "r"), "-f", "json", *([option] if option else [])]).output
            )["functions"]
            assert {row["name"]: row["self_ns"] for row in rows_after if row["self_ns"]} == wanted
        assert set(wanted) >= {"outer", "middle", "leaf"}
        without = json.loads(runner.invoke(cli, ["report", str(tmp_path / "r"), "-f", "json", "--no-inlined"]).output)["functions"]
        assert without == before


def test_another_build_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    program = build(tmp_path, "-gdwarf-5")
    record(tmp_path / "r", program, build_id="ab" * 20)
    content = (tmp_path / "r").read_bytes()
    result = CliRunner().invoke(cli, ["symbolize", str(tmp_path / "r"), "--vmlinux", str(program)])
    assert isinstance(result.exception, BadImageError)
    assert (tmp_path / "r").read_bytes() == content
    forced = CliRunner().invoke(cli, ["symbolize", str(tmp_path / "r"), "--vmlinux", str(program), "--any-build"])
    assert forced.exit_code == 0


def test_of_two_kernels_that_ran_one_is_enough(tmp_path: Path) -> None:
    program = build(tmp_path, "-gdwarf-5")
    image = image_of(program)
    path = tmp_path / "r"
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        for boot, build_id in enumerate((image.build_id, "ab" * 20)):
            writer.add_image(replace(image, boot=boot, build_id=build_id))
            halt = writer.add_halt(Halt(boot, boot, 0, 0))
            address = next(symbol.address for symbol in image.symbols or () if symbol.name == "outer")
            frame = Frame(address + 4, address + 4)
            writer.add_sample(Sample(halt, 0, boot, 1000, Callchain((frame,), StackEnd.TASK_ROOT)))
    done = CliRunner().invoke(cli, ["symbolize", str(path), "--vmlinux", str(program)])
    assert done.exit_code == 0, done.output
    assert "is of build" in done.output
    with Recording.open(path) as recording:
        assert {number for number, _ in recording.source_lines()} == {0}


def test_a_file_that_was_recorded_with_elf_is_at_its_own_addresses(tmp_path: Path) -> None:
    program = build(tmp_path, "-gdwarf-5")
    image = replace(image_of(program, slide=0), name="program", ranges=())
    address = next(symbol.address for symbol in image.symbols or () if symbol.name == "outer") + 4
    with RecordingWriter(tmp_path / "r", clock=lambda: 0.0) as writer:
        writer.add_image(image)
        halt = writer.add_halt(Halt(0, 0, 0, 0))
        frame = Frame(address, address, image=0)
        writer.add_sample(Sample(halt, 0, 0, 1000, Callchain((frame,), StackEnd.TASK_ROOT)))
    done = CliRunner().invoke(cli, ["symbolize", str(tmp_path / "r"), "--vmlinux", str(program)])
    assert done.exit_code == 0, done.output
    with Recording.open(tmp_path / "r") as recording:
        lines = recording.source_lines()[0, address]
    assert [line.name for line in lines] == [name for name, _ in addr2line(program, [address])[0]]


def test_files_must_be_named(tmp_path: Path) -> None:
    record(tmp_path / "r", build(tmp_path, "-gdwarf-5"))
    result = CliRunner().invoke(cli, ["symbolize", str(tmp_path / "r")])
    assert result.exit_code == 2
    assert "--vmlinux" in result.output
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = CliRunner().invoke(cli, ["symbolize", str(tmp_path / "r"), "--symbol-dir", str(empty)])
    assert isinstance(nothing.exception, BadImageError)


def test_lines_of_frames_that_no_recording_has(tmp_path: Path) -> None:
    program = build(tmp_path, "-gdwarf-5")
    with DebugFile(program) as file:
        (symbol,) = [symbol for symbol in file.symbols() if symbol.name == "outer"]
    addresses = list(range(symbol.address, symbol.address + symbol.size))
    frames = [Frame(address + SLIDE, address + SLIDE) for address in addresses]
    cache = SourceCache(None)
    lines = frame_lines([image_of(program)], frames, HostFinder(HostFiles(program), cache), cache, pytest.fail)
    for address, rows in zip(addresses, addr2line(program, addresses), strict=True):
        assert [line.name for line in lines[0, address + SLIDE]] == [name for name, _ in rows]
