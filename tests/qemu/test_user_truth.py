"""Call paths of known shares: one source built in every way that users build theirs, profiled by its own stacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from tests.guests.build import USER_TRUTH
from tests.qemu.conftest import TruthRecording
from tests.qemu.truth import C_PATHS, SHARES, CallPath, leaf_samples, tolerance, whole_share

pytestmark = pytest.mark.qemu

# Besides sampling: what is done around the units of work (calls, thread creation).
REST = 0.01


@pytest.fixture(scope="module")
def profile(truth_recording: TruthRecording) -> Iterator[Profile]:
    with Recording.open(truth_recording.path) as recording:
        yield Profile(recording)


@pytest.mark.parametrize("program", [program.name for program in USER_TRUTH])
def test_stacks_are_whole(profile: Profile, program: str) -> None:
    share, stacks = whole_share(profile.counts, program)
    assert stacks > 100
    assert share >= 0.98


@pytest.mark.parametrize("program", SHARES)
def test_shares_of_call_paths(profile: Profile, program: str) -> None:
    paths = leaf_samples(profile.counts, program)
    total = paths.total()
    assert total > 100
    check_shares(paths, SHARES[program], total)


def test_shares_of_all_builds_together(profile: Profile) -> None:
    paths: Counter[CallPath] = Counter()
    for program, shares in SHARES.items():
        if shares is C_PATHS:
            paths += leaf_samples(profile.counts, program)
    assert paths.total() > 1000
    check_shares(paths, C_PATHS, paths.total())


def check_shares(paths: Counter[CallPath], shares: Mapping[CallPath, int], total: int) -> None:
    for path, percent in shares.items():
        expected = percent / 100
        assert paths[path] / total == pytest.approx(expected, abs=tolerance(expected, total, REST)), path
    # Paths that do not exist.
    others = {path: samples for path, samples in paths.items() if path not in shares}
    assert sum(others.values()) <= 0.02 * total, others


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
