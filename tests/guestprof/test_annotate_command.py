"""``guestprof annotate``: a function's time by source line and by instruction, of code that this machine's compiler has made."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from guestprof.cli import cli
from recording.annotation import annotate
from recording.errors import UnknownFunctionError
from recording.profile import Profile
from recording.reader import Recording, Selection
from tests.builders.debug_program import SOURCES, addr2line, build, needs_compiler
from tests.builders.recordings import MS
from tests.guest.test_host_files import SLIDE
from tests.guestprof.test_symbolize_command import record
from tests.recording.test_sources import inlined_recording


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)


def test_lines_of_a_function_and_of_one_that_is_inlined(tmp_path: Path) -> None:
    with Recording.open(inlined_recording(tmp_path / "a")) as recording:
        profile = Profile(recording, Selection(inlined=True))
        found = annotate(profile, "ksys_read")
        assert [(row.spot.path, row.spot.line, row.self_ns, row.total_ns, row.samples) for row in found.rows] == [
            ("fs/read_write.c", 620, 10 * MS, 40 * MS, 4)
        ]
        assert (found.by_line, found.self_ns, found.total_ns, found.falls_on_blocks) == (True, 10 * MS, 40 * MS, True)
        inner = annotate(profile, "get_user")
        assert [(row.spot.line, row.self_ns) for row in inner.rows] == [(12, 30 * MS)]
        by_address = annotate(profile, "vfs_read", by_line=False)
        assert [(row.spot.line, row.spot.offset, row.samples) for row in by_address.rows] == [(None, 15, 3)]
        assert not annotate(profile, "do_syscall", by_line=False).by_line
        with pytest.raises(UnknownFunctionError, match="similar"):
            annotate(profile, "vfs_rea")


@needs_compiler
def test_source_lines_stand_beside_their_figures(tmp_path: Path) -> None:
    program = build(tmp_path, "-gdwarf-5")
    addresses = record(tmp_path / "r", program)
    runner = CliRunner()
    assert runner.invoke(cli, ["symbolize", str(tmp_path / "r"), "--vmlinux", str(program), "-q"]).exit_code == 0
    wanted: dict[int, int] = {}
    for rows in addr2line(program, addresses):
        if rows[-1][1].endswith("?"):
            continue
        line = int(rows[-1][1].rpartition(":")[2])
        wanted[line] = wanted.get(line, 0) + 1
    command = ["annotate", str(tmp_path / "r"), "outer", "--source", str(SOURCES)]
    document = json.loads(runner.invoke(cli, [*command, "-f", "json"]).output)
    assert document["by"] == "line"
    assert {row["line"]: row["samples"] for row in document["rows"] if row["line"]} == wanted
    source = (SOURCES / "one.c").read_text().split("\n")
    assert all(row["text"] == source[row["line"] - 1] for row in document["rows"] if row["line"])
    text = runner.invoke(cli, command).output
    assert re.search(r"\d %.*  +\d+  \s+value = first\(value\) \+ second\(value\);", text)
    assert "outer: 100.00 % of the time" in text.replace(" in [kernel]", "")


@needs_compiler
def test_instructions_are_those_of_objdump(tmp_path: Path) -> None:
    pytest.importorskip("capstone")
    if platform.machine() != "x86_64":
        pytest.skip("objdump's names of instructions are asked for as capstone has them on x86-64")
    program = build(tmp_path, "-gdwarf-5")
    addresses = record(tmp_path / "r", program)
    command = ["annotate", str(tmp_path / "r"), "outer", "--by", "address", "--vmlinux", str(program), "-f", "json"]
    document = json.loads(CliRunner().invoke(cli, command).output)
    objdump = ["objdump", "-d", "-M", "intel", "--no-show-raw-insn", str(program)]
    listing = subprocess.run(objdump, capture_output=True, text=True, check=True).stdout
    starts = {int(at, 16): what for at, what in re.findall(r"^\s+([0-9a-f]+):\s+(\w+)", listing, re.MULTILINE)}
    rows = {int(row["address"], 16) - SLIDE: row["text"] for row in document["rows"]}
    assert set(rows) == set(addresses)
    own = [address for address in addresses if address in starts]
    assert [rows[address].split()[0] for address in own] == [starts[address] for address in own]
    assert any("<" in (row["text"] or "") for row in document["rows"]), "calls are told by the function"


def test_without_files_there_are_addresses_alone(tmp_path: Path) -> None:
    path = inlined_recording(tmp_path / "a")
    text = CliRunner().invoke(cli, ["annotate", str(path), "vfs_read", "--by", "address"]).output
    assert text.splitlines()[-1].endswith("+0xf")
    assert "translation blocks" in text


def test_an_unknown_function_is_said_to_be_unknown(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["annotate", str(inlined_recording(tmp_path / "a")), "nothing"])
    assert isinstance(result.exception, UnknownFunctionError)
