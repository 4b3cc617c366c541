from __future__ import annotations

from recording.model import Callchain, Frame, Sample, StackEnd
from sampler.backlog import Backlog
from sampler.samples import Made, Pending
from unwind.capture import Capture


def _pending(halt: int, taken_ns: int = 0, size: int = 8) -> Pending:
    return Pending(halt, 0, 1, 0, taken_ns, Capture(0, {"rip": 1}, ((0x1000, bytes(size)),)))


def _made(halt: int, *unread: int) -> Made:
    return Made(Sample(halt, 0, 0, 1, Callchain((Frame(1, 1),), StackEnd.USER_MODE)), _pending(halt), {}, frozenset(unread))


def test_fresh_captures_come_before_those_that_are_walked_again() -> None:
    backlog = Backlog()
    backlog.wait_for_kernel(_pending(1))
    assert not backlog
    backlog.kernel_known()
    backlog.add(_pending(2))
    assert [backlog.pop(), backlog.pop()] == [_pending(2), _pending(1)]
    assert not backlog


def test_captures_that_waited_for_a_kernel_that_is_gone_are_let_go() -> None:
    backlog = Backlog()
    backlog.wait_for_kernel(_pending(1))
    backlog.kernel_gone()
    backlog.kernel_known()
    assert not backlog


def test_a_sample_waits_for_one_of_its_files_also_when_the_kernel_is_gone() -> None:
    backlog = Backlog()
    backlog.wait_for_files(_made(1, 7, 9))
    backlog.kernel_gone()
    backlog.file_known(9)
    assert not backlog
    backlog.file_known(7)
    assert backlog.pop() == _made(1, 7, 9)


def test_a_walk_is_late_when_the_oldest_fresh_capture_is() -> None:
    backlog = Backlog()
    assert not backlog.is_late(10**12)
    backlog.add(_pending(1, taken_ns=0))
    backlog.add(_pending(2, taken_ns=10**12))
    assert not backlog.is_late(100_000_000)
    assert backlog.is_late(100_000_001)


def test_what_waits_is_bounded_and_freed() -> None:
    backlog = Backlog()
    large = _pending(1, size=200 << 20)
    backlog.wait_for_kernel(large)
    backlog.wait_for_kernel(_pending(2, size=100 << 20))
    backlog.kernel_known()
    assert backlog.pop() == large
    assert not backlog
    backlog.wait_for_kernel(_pending(2, size=100 << 20))
    backlog.kernel_known()
    assert backlog
