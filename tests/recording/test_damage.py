"""Files that are no recordings, or damaged ones, are refused with one sentence."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from recording.errors import BadRecordingError
from recording.model import Halt
from recording.profile import Profile
from recording.reader import Recording
from recording.store import RecordingWriter
from recording.views import call_tree, function_totals
from tests.builders.profiles import small_recording


def read_all(path: Path) -> int:
    """Read everything that a recording holds; gives the number of samples."""
    with Recording.open(path) as recording:
        profile = Profile(recording)
        function_totals(profile)
        call_tree(profile)
        profile.quality()
        for _, moments in profile.timelines():
            list(moments)
        recording.events()
        list(recording.captures())
        recording.unwind_data(0)
        return len(list(recording.samples()))


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(BadRecordingError, match="^" + re.escape(f"{path} {sentence}")):
        read_all(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    refused(path, "is empty; record again")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x7fELF" + bytes(100))
    refused(path, "is no recording of guestprof; name a file that 'guestprof record' wrote")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(BadRecordingError, match=r"cannot read .*: Is a directory"):
        Recording.open(tmp_path)


def test_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cookies (name TEXT)")
    refused(path, "is an SQLite file but no recording of guestprof; name one that 'guestprof record' wrote")


@pytest.mark.parametrize(
    ("version", "sentence"),
    [(3, "is of format 3, this guestprof reads up to 2; install a newer one"), (0, "is damaged (format 0); record again")],
)
def test_formats_that_we_cannot_read(tmp_path: Path, version: int, sentence: str) -> None:
    path = small_recording(tmp_path / "a")
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {version}")
    refused(path, sentence)


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = small_recording(tmp_path / "a")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path, "is damaged (database disk image is malformed); record again")


def test_a_killed_recording_whose_log_is_lost_opens_with_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writer = RecordingWriter(path, clock=lambda: 0.0)
    writer.add_halt(Halt(0, 0, 1, 0))
    writer.commit()
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    writer.close()
    # The tables are written before there is a log; nothing was moved from the log into the file yet.
    with Recording.open(copy) as recording:
        assert list(recording.halts()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE callchains",
        "DELETE FROM callchains WHERE id = 1",
        "DELETE FROM frames WHERE id = 1",
        "UPDATE callchains SET end = 'nonsense'",
        "UPDATE callchains SET frames = '[0,'",
        "UPDATE callchains SET frames = '[[0]]'",
        "UPDATE callchains SET frames = '{}' || char(0)",
        "UPDATE callchains SET frames = replace(printf('%.*c', 100000, 'x'), 'x', '[')",
        "UPDATE callchains SET frames = 7",
        "UPDATE frames SET pc = 'text'",
        "UPDATE frames SET space = 'elsewhere'",
        "UPDATE samples SET weight_ns = 'heavy'",
        "UPDATE samples SET weight_ns = 9223372036854775807",
        "UPDATE samples SET vcpu = x'00ff' WHERE halt = 0 AND vcpu = 0",
        "UPDATE halts SET running_time_ns = 1.5",
        "UPDATE images SET kind = 'jpeg'",
        "UPDATE images SET symbols = x'00'",
        "UPDATE images SET symbols = 'text'",
        "UPDATE images SET boot = 'first'",
        "UPDATE images SET name = x'ff'",
        "UPDATE image_ranges SET start = 'low'",
        "UPDATE meta SET value = '{'",
        "UPDATE meta SET value = CAST(x'ff' AS TEXT)",
        "UPDATE events SET running_time_ns = 'noon'",
        "DELETE FROM images WHERE id = 0",
        "UPDATE frames SET image = 'libc'",
        "UPDATE callchains SET user_end = 'nonsense'",
        "UPDATE contexts SET name = 'nonsense'",
        "DELETE FROM contexts",
        "UPDATE samples SET context = 99",
        "UPDATE samples SET task = 99",
        "UPDATE samples SET task = 'init'",
        "UPDATE samples SET system_call = 99",
        "INSERT INTO tasks VALUES (0, 1, 1, x'ff', 'init', 0, NULL)",
        "INSERT INTO tasks VALUES (0, 'one', 1, 'init', 'init', 0, NULL)",
        "INSERT INTO tasks VALUES (0, 1, 1, 'init', 'init', 0, x'00')",
        "INSERT INTO system_calls VALUES (0, 64, 'zero', 'read')",
        "INSERT INTO system_calls VALUES (0, 64, 0, x'00')",
        "INSERT INTO captures VALUES (0, 0, NULL, x'00', x'00')",
        "INSERT INTO unwinders VALUES (0, 0, 1, 'low', 0, NULL)",
        "INSERT INTO unwinders VALUES (0, 0, 1, 0, 0, 1)",
        (
            "INSERT INTO unwinders VALUES (0, 0, 1, 0, 0, NULL);"
            "INSERT INTO blobs VALUES (0, x'00'); INSERT INTO unwinder_pieces VALUES (0, 'text', 0, 0, 0, 0)"
        ),
    ],
)
def test_content_that_makes_no_sense(tmp_path: Path, statement: str) -> None:
    path = small_recording(tmp_path / "a")
    with sqlite3.connect(path) as database:
        database.executescript(statement)
    with pytest.raises(BadRecordingError, match=re.escape(str(path)) + "(: a symbol table)? is damaged.*; record again$"):
        read_all(path)


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    original = small_recording(tmp_path / "a").read_bytes()
    rng = random.Random(20)
    damaged = tmp_path / "damaged"
    outcomes = set()
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.randint(1, 30)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        damaged.write_bytes(data)
        try:
            read_all(damaged)
            outcomes.add("read")
        except BadRecordingError as error:
            outcomes.add("refused" if str(damaged) in str(error) else str(error))
    assert outcomes == {"read", "refused"}
