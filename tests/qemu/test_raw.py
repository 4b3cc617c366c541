"""``--raw``: a recording of a real guest is unwound again from its file alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recording.errors import BadRecordingError
from recording.model import Callchain, Frame, Space, StackEnd
from recording.reader import Recording
from sampler.replay import replay
from tests.conftest import StartGuest
from tests.qemu.command import guestprof

pytestmark = pytest.mark.qemu


def kernel_part(chain: Callchain) -> tuple[tuple[Frame, ...], StackEnd]:
    """What --raw keeps enough for: all but user frames, without their images."""
    return tuple(replace(frame, image=None) for frame in chain.frames if frame.space is not Space.USER), chain.end


def test_a_replay_gives_the_recorded_callchains(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("bookworm", 2)
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-F", "200", "-d", "3", "--raw", "-o", path, "-q")
    with Recording.open(path) as recording:
        replayed = list(replay(recording))
        assert [sample for sample, _chain in replayed] == list(recording.samples())
        assert len(replayed) > 100
        assert [kernel_part(sample.callchain) for sample, _chain in replayed] == [kernel_part(chain) for _sample, chain in replayed]
        assert sum(chain.end is StackEnd.USER_ENTRY for _sample, chain in replayed) > 30
        data = recording.unwind_data(0)
        assert data is not None
        assert data.is_settled
        assert recording.unwind_data(1) is None


def test_a_boot_is_unwound_with_the_code_of_each_time(start_guest: StartGuest, tmp_path: Path) -> None:
    """Before the kernel has settled its code changes; what was unwound with the old code is so again."""
    guest = start_guest("bookworm", until="Linux version")
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-F", "200", "-d", "12", "--raw", "-o", path, "-q")
    with Recording.open(path) as recording:
        replayed = list(replay(recording))
        assert [kernel_part(sample.callchain) for sample, _chain in replayed] == [kernel_part(chain) for _sample, chain in replayed]
        first, second = recording.unwind_data(0), recording.unwind_data(1)
        assert first is not None
        assert second is not None
        assert not first.is_settled


def test_without_raw_there_is_nothing_to_unwind(start_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_guest("bookworm")
    path = tmp_path / "a.guestprof"
    guestprof("record", "--connect", guest.target, "-d", "1", "-o", path, "-q")
    with Recording.open(path) as recording, pytest.raises(BadRecordingError, match=r"was not made with --raw"):
        next(replay(recording))
