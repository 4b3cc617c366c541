"""Source lines and inlined functions put into a recording: frames of their own where they are asked for, else as before."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from recording.errors import BadRecordingError
from recording.model import SourceLine, StackEnd
from recording.names import Function
from recording.profile import Profile
from recording.reader import Recording, Selection
from recording.source_paths import function_lines, function_paths, function_sources, line_totals
from recording.sources import ImageSources, save_sources, used_addresses
from recording.views import function_totals
from tests.builders.recordings import KERNEL_START, MS, Names, Stack, write_recording

READ = "do_syscall ksys_read vfs_read"


def inlined_recording(path: Path) -> Path:
    """3 samples in vfs_read with access_ok and get_user inlined at its address, 1 in ksys_read itself."""
    names = Names()
    stacks = [Stack(READ, 0, StackEnd.USER_ENTRY)] * 3 + [Stack("do_syscall ksys_read", 0, StackEnd.USER_ENTRY)]
    write_recording(path, [[stack] for stack in stacks], names)
    save_sources(path, {0: ImageSources(lines_of(names))})
    return path


def lines_of(names: Names) -> dict[int, list[SourceLine]]:
    def address(name: str) -> int:
        return KERNEL_START + 64 * names.kernel.index(name) + 15

    return {
        address("vfs_read"): [
            SourceLine("get_user", "include/uaccess.h", 12),
            SourceLine("access_ok", "include/uaccess.h", 40),
            SourceLine("vfs_read_from_dwarf", "fs/read_write.c", 450),
        ],
        address("ksys_read"): [SourceLine("ksys_read", "fs/read_write.c", 620)],
    }


def test_addresses_that_samples_have(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack(READ, 0, StackEnd.USER_ENTRY)], [Stack("U:16 probe@e1000", 0)]])
    with Recording.open(path) as recording:
        used = used_addresses(recording)
        names = {index: image.name for index, image in enumerate(recording.images())}
    assert {names[index]: len(addresses) for index, addresses in used.items()} == {"vmlinux": 3, "e1000": 1}


def test_inlined_functions_are_frames_of_their_own(tmp_path: Path) -> None:
    with Recording.open(inlined_recording(tmp_path / "a")) as recording:
        profile = Profile(recording, Selection(inlined=True))
        assert profile.has_lines
        assert profile.has_inlined
        stack = max((count.stack for count in profile.counts), key=lambda stack: len(stack.functions))
        assert [function.label for function in stack.functions] == [
            "do_syscall",
            "ksys_read",
            "vfs_read",
            "access_ok (inlined)",
            "get_user (inlined)",
        ]
        totals = {(total.name, total.is_inlined): (total.self_ns, total.total_ns) for total in function_totals(profile)}
        assert totals["get_user", True] == (30 * MS, 30 * MS)
        assert totals["access_ok", True] == (0, 30 * MS)
        assert totals["vfs_read", False] == (0, 30 * MS)
        assert totals["ksys_read", False] == (10 * MS, 40 * MS)


def test_without_them_time_is_their_callers(tmp_path: Path) -> None:
    with Recording.open(inlined_recording(tmp_path / "a")) as recording:
        profile = Profile(recording)
        assert not profile.has_inlined
        totals = {total.name: total.self_ns for total in function_totals(profile)}
        assert totals == {"do_syscall": 0, "ksys_read": 10 * MS, "vfs_read": 30 * MS}
        (place,) = {place for count in profile.counts for place in profile.places(count.walk) if place.line and place.line < 600}
        assert (place.path, place.line) == ("fs/read_write.c", 450), "the line of the call, in the caller's file"


def test_places_have_the_lines_of_each_function(tmp_path: Path) -> None:
    with Recording.open(inlined_recording(tmp_path / "a")) as recording:
        profile = Profile(recording, Selection(inlined=True))
        walk = max((count.walk for count in profile.counts), key=lambda walk: len(walk.stack.functions))
        frames = profile.frame_places(walk)
        assert [[(place.path, place.line) for place in places] for places in frames[1:]] == [
            [("fs/read_write.c", 620)],
            [("fs/read_write.c", 450), ("include/uaccess.h", 40), ("include/uaccess.h", 12)],
        ]
        assert [place.function for place in profile.places(walk)] == list(walk.stack.indexes)
        paths = {profile.functions[index].name: path for index, path in function_paths(profile).items()}
        assert paths == {
            "ksys_read": "fs/read_write.c",
            "vfs_read": "fs/read_write.c",
            "access_ok": "include/uaccess.h",
            "get_user": "include/uaccess.h",
        }
        rows = {total.name: (total.self_ns, total.total_ns, total.samples) for total in line_totals(profile)}
        assert rows == {
            "fs/read_write.c:450": (0, 30 * MS, 3),
            "fs/read_write.c:620": (10 * MS, 40 * MS, 4),
            "include/uaccess.h:12": (30 * MS, 30 * MS, 3),
            "include/uaccess.h:40": (0, 30 * MS, 3),
            "[no line]": (0, 40 * MS, 4),
        }


def test_a_function_s_line_is_the_one_that_took_most_time(tmp_path: Path) -> None:
    names = Names(shown={"again": "work"})
    stacks = [Stack("work", weight_ns=30 * MS), Stack("again"), Stack("again")]
    path = write_recording(tmp_path / "a", [[stack] for stack in stacks], names)
    lines = {KERNEL_START + 64 * names.kernel.index(name) + 15: line for name, line in (("work", 11), ("again", 22))}
    save_sources(path, {0: ImageSources({address: [SourceLine("work", "w.c", line)] for address, line in lines.items()})})
    with Recording.open(path) as recording:
        profile = Profile(recording)
        assert len(profile.functions) == 1
        assert function_lines(profile, {0: "w.c"}) == {0: 11}
        assert function_lines(profile, {0: "other.c"}) == {}
        assert function_sources(profile) == {profile.functions[0]: "w.c:11"}


def test_the_idle_loop_is_told_by_functions_that_are_not_inlined(tmp_path: Path) -> None:
    names = Names()
    path = write_recording(tmp_path / "a", [[Stack("cpu_startup_entry do_idle default_idle", 0, StackEnd.IDLE_ROOT)]], names)
    address = KERNEL_START + 64 * names.kernel.index("default_idle") + 15
    lines = [SourceLine("arch_safe_halt", "asm/irqflags.h", 9), SourceLine("default_idle", "process.c", 7)]
    save_sources(path, {0: ImageSources({address: lines})})
    with Recording.open(path) as recording:
        (count,) = Profile(recording, Selection(inlined=True)).counts
        assert count.stack.functions[-1] == Function("arch_safe_halt", "[kernel]", count.stack.functions[0].kind, True)
        assert count.stack.idle


def test_again_replaces_what_was_there(tmp_path: Path) -> None:
    path = inlined_recording(tmp_path / "a")
    save_sources(path, {0: ImageSources({KERNEL_START + 15: [SourceLine(None, None, None)]}, None, "ab" * 20)})
    with Recording.open(path) as recording:
        assert recording.source_lines() == {(0, KERNEL_START + 15): (SourceLine(None, None, None),)}
        assert recording.images()[0].build_id == "ab" * 20
        assert recording.images()[0].symbols is not None


def test_names_that_are_no_text_are_kept_as_can_be(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a", [[Stack(READ, 0, StackEnd.USER_ENTRY)]])
    save_sources(path, {0: ImageSources({KERNEL_START + 15: [SourceLine("bad\udcff", "\udc80.c", 1)]})})
    with Recording.open(path) as recording:
        assert list(recording.source_lines().values()) == [(SourceLine("bad\\udcff", "\\udc80.c", 1),)]


def test_a_file_that_is_no_recording_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"not SQLite at all")
    with pytest.raises(BadRecordingError, match="no recording"):
        save_sources(path, {})
    assert path.read_bytes() == b"not SQLite at all"


@pytest.mark.parametrize("change", ["UPDATE source_lines SET line = 'x'", "UPDATE source_lines SET name = X'00'"])
def test_damage_is_told(tmp_path: Path, change: str) -> None:
    path = inlined_recording(tmp_path / "a")
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    with Recording.open(path) as recording, pytest.raises(BadRecordingError, match="damaged"):
        recording.source_lines()
