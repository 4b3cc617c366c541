"""Time per task as the profile has it, against the guest's own account: /proc/PID/task/TID/stat and schedstat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from recording.model import Context
from recording.profile import Profile
from recording.reader import Recording
from tests.qemu.conftest import TRUTH_REPORT, TruthRecording
from tests.qemu.truth import ThreadTimes, parse_report, tolerance

pytestmark = pytest.mark.qemu

SPINNERS = ("truth-spin", "truth-one", "truth-two", "truth-nice", "truth-calls")
# What interrupts cost is the kernel's to divide, as it is in utime and stime.
REST = 0.01


@pytest.fixture(scope="module")
def profile(truth_recording: TruthRecording) -> Iterator[Profile]:
    with Recording.open(truth_recording.path) as recording:
        yield Profile(recording)


@pytest.fixture(scope="module")
def truth(truth_recording: TruthRecording) -> dict[int, ThreadTimes]:
    threads = parse_report(truth_recording.console, TRUTH_REPORT)
    assert {comm.encode() for comm in SPINNERS} <= {thread.comm for thread in threads.values()}
    return threads


def test_each_sample_has_a_task(profile: Profile) -> None:
    share = profile.quality().task_share
    assert share is not None
    assert share >= 0.995


def test_threads_have_the_guests_shares(profile: Profile, truth: dict[int, ThreadTimes]) -> None:
    """Of the time of all threads that were there at the end, each has the share that the guest's scheduler counted."""
    time_ns: Counter[int] = Counter()
    samples: Counter[int] = Counter()
    for count in profile.counts:
        if count.origin.task is not None and count.origin.task.pid in truth:
            time_ns[count.origin.task.pid] += count.weight_ns
            samples[count.origin.task.pid] += count.samples
    run_ns = {tid: thread.run_ns for tid, thread in truth.items()}
    assert samples.total() > 3000
    for tid, thread in truth.items():
        expected, got = run_ns[tid] / sum(run_ns.values()), time_ns[tid] / time_ns.total()
        assert got == pytest.approx(expected, abs=tolerance(expected, samples.total(), REST)), thread
    # The same clock, within what halts take of it.
    assert time_ns.total() == pytest.approx(sum(run_ns.values()), rel=0.15)


def test_clock_ticks_agree(profile: Profile, truth: dict[int, ThreadTimes]) -> None:
    """The same by /proc/PID/stat's user and system time, whose grain is a hundredth of a second."""
    ticks = {tid: thread.user_ticks + thread.system_ticks for tid, thread in truth.items()}
    time_ns: Counter[int] = Counter()
    for count in profile.counts:
        if count.origin.task is not None and count.origin.task.pid in truth:
            time_ns[count.origin.task.pid] += count.weight_ns
    for tid, thread in truth.items():
        expected, got = ticks[tid] / sum(ticks.values()), time_ns[tid] / time_ns.total()
        allowed = tolerance(expected, profile.samples, REST) + 1 / sum(ticks.values())
        assert got == pytest.approx(expected, abs=allowed), thread


def test_threads_and_processes_have_their_names(profile: Profile, truth: dict[int, ThreadTimes]) -> None:
    tasks = [count.origin.task for count in profile.counts if count.origin.task is not None]
    for tid, thread in truth.items():
        # Of a kworker /proc shows what it works on, too (kernel/workqueue.c, wq_worker_comm).
        if thread.comm.isascii() and not thread.comm.startswith(b"kworker"):
            # Early samples have the name from before exec or prctl.
            assert (thread.comm.decode(), thread.pid) in {(task.comm, task.tgid) for task in tasks if task.pid == tid}
    by_name = {thread.comm: thread for thread in truth.values()}
    assert ("truth-one", "truth-threads") in {(task.comm, task.process) for task in tasks if task.pid == by_name[b"truth-one"].tid}
    odd = {task.comm for task in tasks if task.pid == by_name[b"tr;th \xff("].tid}
    assert any(name.startswith("tr;th ") and name.endswith("(") for name in odd)


def test_time_in_system_calls(profile: Profile, truth: dict[int, ThreadTimes]) -> None:
    """Who makes system calls all the time has the guest's own share of user time; ticks sample that, too."""
    (calls,) = (thread for thread in truth.values() if thread.comm == b"truth-calls")
    samples: Counter[Context] = Counter()
    for count in profile.counts:
        if count.origin.task is not None and count.origin.task.pid == calls.tid:
            samples[count.origin.context] += count.samples
    ticks = calls.user_ticks + calls.system_ticks
    expected, got = calls.system_ticks / ticks, 1 - samples[Context.USER] / samples.total()
    assert samples[Context.SYSTEM_CALL] > samples.total() / 4
    # The guest's tick comes 250 times a second, in both accounts the error is a sample's.
    assert got == pytest.approx(expected, abs=tolerance(expected, min(samples.total(), 2 * ticks), 0.03))


def test_children_that_have_ended(profile: Profile, truth: dict[int, ThreadTimes]) -> None:
    """Short-lived children are nobody's lines any more: their time is in their parent's account."""
    (parent,) = (thread for thread in truth.values() if thread.comm == b"truth-forks")
    ended_ns = sum(
        count.weight_ns
        for count in profile.counts
        if count.origin.task is not None
        and count.origin.task.tgid not in truth
        and count.origin.task.process in ("truth-child", "truth-forks")
    )
    lasting_ns = sum(
        count.weight_ns for count in profile.counts if count.origin.task is not None and count.origin.task.pid in truth
    )
    all_ns = sum(thread.run_ns for thread in truth.values())
    expected, got = parent.ended_ticks * 10_000_000 / all_ns, ended_ns / lasting_ns
    assert expected > 0.01
    assert got == pytest.approx(expected, abs=tolerance(expected, profile.samples, REST))
