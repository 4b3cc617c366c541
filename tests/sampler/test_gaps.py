"""Long times without a sample, and why."""

from __future__ import annotations

import pytest

from sampler.gaps import GapWatch

MS = 1_000_000


class Watched:
    """A watch whose clock of processor time is set by hand."""

    def __init__(self, period_ms: int = 5) -> None:
        self.cpu_ns = 0
        self.told: list[tuple[str, str, int | None]] = []
        self.watch = GapWatch(self._tell, period_ms * MS, lambda: self.cpu_ns)

    def _tell(self, kind: str, text: str, time_ns: int | None = None) -> None:
        self.told.append((kind, text, time_ns))

    def gap(self, gap_ms: int, late_ms: int = 0, halted_ms: int = 1, cpu_ms: int = 0) -> list[str]:
        self.cpu_ns += cpu_ms * MS
        self.watch.see(1000 * MS, gap_ms * MS, late_ms * MS, halted_ms * MS)
        return [text for _kind, text, _time in self.told]


@pytest.mark.parametrize(
    ("late_ms", "halted_ms", "cpu_ms", "why"),
    [
        (75, 1, 70, "guestprof itself was busy for 70 ms (stacks, files, symbols)"),
        (75, 1, 3, "the host gave guestprof no processor: it was 75 ms late, and computed for 3 ms"),
        (2, 60, 3, "QEMU took 60 ms for a halt: its main thread was busy, or had no processor"),
    ],
)
def test_why_there_was_no_sample(late_ms: int, halted_ms: int, cpu_ms: int, why: str) -> None:
    watched = Watched()
    assert watched.gap(80, late_ms, halted_ms, cpu_ms) == [f"80 ms without a sample: {why}"]
    assert watched.told[0][0] == "gap"
    assert watched.told[0][2] == 1000 * MS


def test_what_is_known_to_have_happened_explains_the_next_gap_only() -> None:
    watched = Watched()
    watched.watch.note("the guest was reset")
    assert watched.gap(80, 75) == ["80 ms without a sample: the guest was reset"]
    assert "the host gave" in watched.gap(80, 75)[1]


def test_what_is_no_gap() -> None:
    assert Watched().gap(50, 45) != []
    assert Watched().gap(49, 45) == []
    assert Watched(period_ms=50).gap(149, 100) == []
