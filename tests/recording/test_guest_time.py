"""Recordings told by the guests' clocks: what halts that take effect late took away from running time is there again."""

from __future__ import annotations

from pathlib import Path

import pytest

from recording.guest_clock import GuestClocks
from recording.guest_time import guest_times, use_guest_time
from recording.model import Event
from recording.profile import Profile
from recording.reader import Recording, Selection
from tests.builders.boots import boot_recording
from tests.builders.recordings import META, MS, Names, Stack, write_recording
from tests.recording.test_guest_clock import TICK_NS, Guest


def test_what_ran_on_in_halts_counts() -> None:
    """A busy host: each halt takes 5 ms to take effect, in which the guest runs on for 4."""
    guest = Guest(ran_on=0.8)
    for _ in range(200):
        guest.run(5 * MS, 5 * MS)
    found = guest_times(guest.halts, GuestClocks.of_readings(guest.halts, guest.readings))
    ran = guest.halts[-1].running_time_ns - guest.halts[0].running_time_ns
    told, true = found[-1] - found[0], guest.truth[-1] - guest.truth[0]
    assert ran < 0.6 * true
    assert abs(told - true) < TICK_NS
    assert found == sorted(found)


def test_before_the_clock_ran_it_is_running_time() -> None:
    guest = Guest()
    for number in range(60):
        guest.run(5 * MS, busy=number >= 30, is_read=number >= 30)
        guest.clock_ns = guest.clock_ns if number >= 30 else 0
    found = guest_times(guest.halts, GuestClocks.of_readings(guest.halts, guest.readings))
    assert found[:20] == [halt.running_time_ns for halt in guest.halts[:20]]
    assert guest_times(guest.halts, GuestClocks()) == [halt.running_time_ns for halt in guest.halts]
    assert guest_times([], GuestClocks()) == []


def test_a_recording_is_told_by_other_times(tmp_path: Path) -> None:
    """Halts at 10, 20, 30 and 40 ms, which come to 10, 25, 25 and 65; the second vCPU misses the third."""
    both = [Stack("a b"), Stack("a c", 1)]
    halts = [both, both, [Stack("a b")], [Stack("a b"), Stack("a d", 1, weight_ns=20 * MS)]]
    events = [Event(5 * MS, "mark", "before"), Event(35 * MS, "mark", "amid"), Event(50 * MS, "mark", "behind")]
    with Recording.open(write_recording(tmp_path / "a", halts, Names(), events)) as recording:
        recording.retime([10 * MS, 25 * MS, 25 * MS, 65 * MS])
        assert [halt.running_time_ns for halt in recording.halts()] == [10 * MS, 25 * MS, 25 * MS, 65 * MS]
        assert [(sample.vcpu, sample.weight_ns // MS) for sample in recording.samples()] == [
            *[(0, 10), (1, 10), (0, 15), (1, 15), (0, 0), (0, 40), (1, 40)]
        ]
        assert [event.running_time_ns // MS for event in recording.events() if event.kind == "mark"] == [5, 45, 75]
        assert Profile(recording).weight_ns == 130 * MS
        late = Profile(recording, Selection(since_ns=26 * MS))
        assert (late.samples, late.weight_ns, late.halt_times()) == (2, 80 * MS, [65 * MS])
        assert [event.text for event in late.events()] == ["amid", "behind"]
    with Recording.open(tmp_path / "a") as recording:
        assert [halt.running_time_ns for halt in recording.halts()] == [10 * MS, 20 * MS, 30 * MS, 40 * MS]


@pytest.mark.parametrize(("accelerators", "told"), [(("tcg", "tcg"), True), (("tcg", "kvm"), False)])
def test_all_boots_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerators: tuple[str, str], told: bool) -> None:
    """Under KVM a guest's clock may run on as long as it stands."""
    paths = []
    for name, accelerator in zip("ab", accelerators, strict=True):
        monkeypatch.setitem(META, "accelerator", accelerator)
        paths.append(boot_recording(tmp_path / name))
    with Recording.open(paths[0]) as first, Recording.open(paths[1]) as second:
        before = [halt.running_time_ns for halt in first.halts()]
        assert use_guest_time([first, second]) is told
        after = [halt.running_time_ns for halt in first.halts()]
        assert (after != before) is told
        # The made-up guest's clock runs as running time does, but for how exactly it is known.
        assert all(abs(new - old) <= 4 * MS for new, old in zip(after, before, strict=True))


def test_one_without_readings(tmp_path: Path) -> None:
    paths = boot_recording(tmp_path / "a"), write_recording(tmp_path / "b", [[Stack("a b")]])
    with Recording.open(paths[0]) as first, Recording.open(paths[1]) as second:
        assert not use_guest_time([first, second])
        assert [halt.running_time_ns for halt in first.halts()][:2] == [10 * MS, 20 * MS]
