"""Call paths of known shares: one source built in every way that users build theirs, profiled by its own stacks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from tests.guests.build import USER_TRUTH
from tests.qemu.conftest import TruthRecording
from tests.qemu.truth import C_PATHS, SHARES, CallPath, leaf_samples, tolerance, whole_share

pytestmark = [pytest.mark.qemu, pytest.mark.statistical]

# Besides sampling: what is done around the units of work (calls, thread creation).
REST = 0.01
# Samples of one visit to a path are alike, the more so where a vCPU's thread waits for a processor (measured: 1.6 at a load of 5).
VISIT = 2
# A thread that lives for ten units. Who stops soon after it began is seen too rarely where QEMU's main thread has to wait for a
# processor: it delivers the guest's timer interrupts and takes our halts, both late and the halt first (docs/disturbance.md).
SHORT_LIVED = ("thread_main", "thread_work", "spin")


@pytest.fixture(scope="module")
def profile(truth_recording: TruthRecording) -> Iterator[Profile]:
    with Recording.open(truth_recording.path) as recording:
        yield Profile(recording)


@pytest.mark.parametrize("program", [program.name for program in USER_TRUTH])
def test_stacks_are_whole(profile: Profile, program: str) -> None:
    share, stacks = whole_share(profile.counts, program)
    assert stacks > 100
    # Of all of them 98 %, see below; of a few hundred it may be less by chance.
    assert share >= 0.98 - 2 * math.sqrt(0.98 * 0.02 / stacks)


def test_all_stacks_together_are_whole(profile: Profile) -> None:
    shares = [whole_share(profile.counts, program.name) for program in USER_TRUTH]
    assert sum(share * stacks for share, stacks in shares) >= 0.98 * sum(stacks for _share, stacks in shares)


@pytest.mark.parametrize("program", SHARES)
def test_shares_of_call_paths(profile: Profile, program: str) -> None:
    paths = leaf_samples(profile.counts, program)
    assert paths.total() > 100
    check_shares(profile, paths, SHARES[program])


def test_shares_of_all_builds_together(profile: Profile) -> None:
    paths: Counter[CallPath] = Counter()
    for program, shares in SHARES.items():
        if shares is C_PATHS:
            paths += leaf_samples(profile.counts, program)
    assert paths.total() > 1000
    check_shares(profile, paths, C_PATHS)


def check_shares(profile: Profile, paths: Counter[CallPath], shares: Mapping[CallPath, int]) -> None:
    total = paths.total()
    # Paths that do not exist.
    others = {path: samples for path, samples in paths.items() if path not in shares}
    assert sum(others.values()) <= 0.02 * total, others
    if SHORT_LIVED in shares:
        halted = profile.quality().halted_share
        assert halted is not None
        expected, got = shares[SHORT_LIVED] / 100, paths[SHORT_LIVED] / total
        spread = tolerance(expected, total / VISIT, REST)
        assert expected * (1 - halted) - spread <= got <= expected + spread
    lasting = {path: percent for path, percent in shares.items() if path != SHORT_LIVED}
    total = sum(paths[path] for path in lasting)
    for path, percent in lasting.items():
        expected = percent / sum(lasting.values())
        assert paths[path] / total == pytest.approx(expected, abs=tolerance(expected, total / VISIT, REST)), path


@pytest.mark.parametrize("program", ["ut-pie", "ut-no-pie", "ut-static", "ut-fp"])
def test_system_calls_have_their_callers(profile: Profile, program: str) -> None:
    """main, run, reads, libc's read, and the kernel above them in the same stack."""
    behind = Counter[bool]()
    for count in profile.counts:
        call = count.origin.system_call
        if count.origin.process.name == program and call is not None and call.name == "read":
            names = [function.name for function in count.stack.functions if function.kind is FrameKind.USER]
            kernel = [function.name for function in count.stack.functions if function.kind is FrameKind.KERNEL]
            found = [name for name in names if name in ("main", "run", "reads")]
            behind[found == ["main", "run", "reads"] and "ksys_read" in kernel] += count.samples
    assert behind.total() > 5
    assert behind[True] >= 0.9 * behind.total()
