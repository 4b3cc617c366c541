"""Time per task as the profile has it, against the guest's own account: /proc/PID/stat, /proc/PID/task/TID/stat and schedstat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from recording.model import Context, Task
from recording.profile import Profile
from recording.reader import Recording
from tests.guests.build import USER_TRUTH
from tests.qemu.conftest import TRUTH_REPORT, TruthRecording
from tests.qemu.truth import TICK_S, Times, evenness, parse_report, tolerance

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

SPINNERS = ("truth-spin", "truth-one", "truth-two", "truth-nice", "truth-calls", "truth-sleeps", "truth-forks")
ODD_NAME = b"tr;th \xff("
OURS = {*(name.encode() for name in SPINNERS), *(program.name.encode() for program in USER_TRUTH), ODD_NAME, b"truth-threads"}
# What interrupts cost is the kernel's to divide, as it is in utime and stime.
REST = 0.01
# On the way out of a system call after interrupts were disabled (kernel/entry/common.c, arch/x86/entry/entry_64.S).
MASKED_EXIT = {
    *("syscall_exit_to_user_mode", "exit_to_user_mode_prepare", "fpregs_assert_state_consistent"),
    *("syscall_return_via_sysret", "entry_SYSRETQ_unsafe_stack"),
}


@pytest.fixture(scope="module")
def profile(truth_recording: TruthRecording) -> Iterator[Profile]:
    with Recording.open(truth_recording.path) as recording:
        yield Profile(recording)


@pytest.fixture(scope="module")
def report(truth_recording: TruthRecording) -> list[Times]:
    """What began after the profiler knew the kernel: all tasks of task-truth, and it is not among them."""
    rows = [row for row in parse_report(truth_recording.console, TRUTH_REPORT) if row.comm in OURS]
    assert {row.comm for row in rows} == OURS
    return rows


@pytest.fixture(scope="module")
def threads(report: list[Times]) -> dict[int, Times]:
    return {row.tid: row for row in report if row.tid}


@pytest.fixture(scope="module")
def processes(report: list[Times]) -> dict[int, Times]:
    return {row.pid: row for row in report if not row.tid}


@pytest.fixture(scope="module")
def tasks(profile: Profile) -> list[tuple[Task, int, int]]:
    """Each task with samples and nanoseconds of guest running time."""
    return [(count.origin.task, count.samples, count.weight_ns) for count in profile.counts if count.origin.task is not None]


@pytest.fixture(scope="module")
def observed(truth_recording: TruthRecording, tasks: list[tuple[Task, int, int]]) -> int:
    """How many samples of equal weight the samples with a task are worth: on a busy machine halts are late, and weights differ."""
    with Recording.open(truth_recording.path) as recording:
        share = evenness(sample.weight_ns for sample in recording.samples() if sample.task is not None)
    return int(share * sum(number for _task, number, _weight_ns in tasks))


def test_each_sample_has_a_task(profile: Profile) -> None:
    share = profile.quality().task_share
    assert share is not None
    assert share >= 0.995


def test_threads_have_the_guests_shares(
    profile: Profile, tasks: list[tuple[Task, int, int]], threads: dict[int, Times], observed: int
) -> None:
    """Of the time of all threads that were there at the end, each has the share that the guest's scheduler counted."""
    time_ns: Counter[int] = Counter()
    for task, _number, weight_ns in tasks:
        if task.pid in threads:
            time_ns[task.pid] += weight_ns
    run_ns = sum(thread.run_ns for thread in threads.values())
    for tid, thread in threads.items():
        expected, got = thread.run_ns / run_ns, time_ns[tid] / time_ns.total()
        assert got == pytest.approx(expected, abs=tolerance(expected, observed, REST)), thread
    # The same clock. How long the guest stood still is known from above only: on a busy machine it runs for a while after the halt
    # was asked for.
    halted = profile.quality().halted_share
    assert halted is not None
    assert 0.9 * time_ns.total() < run_ns < 1.1 * time_ns.total() / (1 - halted)


def test_processes_have_the_guests_shares(tasks: list[tuple[Task, int, int]], processes: dict[int, Times], observed: int) -> None:
    """The same by /proc/PID/stat's user and system time, whose grain is a hundredth of a second; ended threads are in it."""
    time_ns: Counter[int] = Counter()
    for task, _number, weight_ns in tasks:
        if task.tgid in processes:
            time_ns[task.tgid] += weight_ns
    ticks = sum(process.ticks for process in processes.values())
    for pid, process in processes.items():
        expected, got = process.ticks / ticks, time_ns[pid] / time_ns.total()
        assert got == pytest.approx(expected, abs=tolerance(expected, observed, REST) + 1 / ticks), process


def test_threads_and_processes_have_their_names(tasks: list[tuple[Task, int, int]], threads: dict[int, Times]) -> None:
    seen: dict[int, set[Task]] = {}
    for task, _samples, _weight_ns in tasks:
        seen.setdefault(task.pid, set()).add(task)
    for tid, thread in threads.items():
        if thread.run_ns < 500_000_000:
            # Perhaps in no sample.
            continue
        if thread.comm.isascii():
            # Among others: early samples have the name from before exec or prctl.
            assert (thread.comm.decode(), thread.pid) in {(task.comm, task.tgid) for task in seen[tid]}
        else:
            assert any(task.comm.startswith("tr;th ") and task.comm.endswith("(") for task in seen[tid])
    (one,) = (tid for tid, thread in threads.items() if thread.comm == b"truth-one")
    assert ("truth-one", "truth-threads") in {(task.comm, task.process) for task in seen[one]}


def test_time_in_system_calls(profile: Profile, threads: dict[int, Times]) -> None:
    """Who makes system calls all the time has the guest's own shares of user and system time; the guest's ticks are samples, too.

    But not of all code: a tick that comes due while the kernel leaves with interrupts disabled finds user code.
    """
    (calls,) = (thread for thread in threads.values() if thread.comm == b"truth-calls")
    samples: Counter[Context] = Counter()
    names: Counter[str | None] = Counter()
    masked = 0
    for count in profile.counts:
        if count.origin.task is not None and count.origin.task.pid == calls.tid:
            samples[count.origin.context] += count.samples
            names[count.origin.system_call.name if count.origin.system_call is not None else None] += count.samples
            masked += count.samples if MASKED_EXIT & {function.name for function in count.stack.functions} else 0
    expected, got = calls.user_ticks / calls.ticks, (samples[Context.USER] + masked) / samples.total()
    # A tick of the guest's own account is a hundredth of a second, and it looks 250 times a second.
    observed = min(samples.total(), int(calls.ticks * TICK_S * 250))
    assert got == pytest.approx(expected, abs=tolerance(expected, observed, 0.03))
    assert samples[Context.USER] / samples.total() < expected + tolerance(expected, observed, 0)
    assert samples[Context.SYSTEM_CALL] > samples.total() / 4
    assert names["read"] > 0
    assert names["getppid"] > 0
    assert names["read"] + names["getppid"] >= 0.98 * (names.total() - names[None])


def test_children_that_have_ended(tasks: list[tuple[Task, int, int]], threads: dict[int, Times], observed: int) -> None:
    """Short-lived children are in no line any more: their time is in their parent's account."""
    (parent,) = (thread for thread in threads.values() if thread.comm == b"truth-forks")
    pids = {thread.pid for thread in threads.values()}
    names = {"truth-child", "truth-forks"}
    ended_ns = sum(weight_ns for task, _number, weight_ns in tasks if task.tgid not in pids and task.process in names)
    lasting_ns = sum(weight_ns for task, _number, weight_ns in tasks if task.pid in threads)
    expected = parent.ended_ticks * TICK_S * 1e9 / sum(thread.run_ns for thread in threads.values())
    assert expected > 0.01
    assert ended_ns / lasting_ns == pytest.approx(expected, abs=tolerance(expected, observed, REST))
