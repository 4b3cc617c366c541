"""Long times without a sample become events that say why: whatever a sampler has not seen, its reader must be able to tell."""

from __future__ import annotations

import time
from collections.abc import Callable

from recording.phases import GAP

_LONG_NS = 50_000_000
_PERIODS = 3
"""At low rates a gap is longer than so many periods."""
_BUSY = 0.5
"""Share of a gap in which guestprof itself computed, from which on that is the reason."""


class GapWatch:
    """Sees each halt and tells of gaps. Where nothing else explains one, the host gave guestprof or QEMU no processor."""

    def __init__(
        self,
        tell: Callable[[str, str, int | None], None],
        period_ns: int,
        cpu_clock: Callable[[], int] = time.process_time_ns,
    ) -> None:
        """tell: takes the kind, the sentence and the time of an event. cpu_clock: processor time that guestprof has used."""
        self._tell = tell
        self._limit_ns = max(_LONG_NS, _PERIODS * period_ns)
        self._cpu_clock = cpu_clock
        self._cpu_ns = cpu_clock()
        self._halted_ns = 0
        self._reason = ""

    def note(self, reason: str) -> None:
        """Something happened that the next gap is explained by."""
        self._reason = reason

    def see(self, now_ns: int, gap_ns: int, lateness_ns: int, halted_ns: int) -> None:
        """A halt was taken: gap_ns of guest running time after the last one, so late, and it took so long."""
        cpu_ns = self._cpu_clock()
        used_ns, self._cpu_ns = cpu_ns - self._cpu_ns, cpu_ns
        slow_ns, self._halted_ns = self._halted_ns, halted_ns
        reason, self._reason = self._reason, ""
        if gap_ns < self._limit_ns:
            return
        if not reason:
            reason = self._why(used_ns, lateness_ns, max(slow_ns, halted_ns))
        self._tell(GAP, f"{gap_ns / 1e6:.0f} ms without a sample: {reason}", now_ns)

    def _why(self, used_ns: int, lateness_ns: int, halted_ns: int) -> str:
        if used_ns > _BUSY * lateness_ns and used_ns > _LONG_NS / 2:
            return f"guestprof itself was busy for {used_ns / 1e6:.0f} ms (stacks, files, symbols)"
        if halted_ns > _LONG_NS / 2:
            return f"QEMU took {halted_ns / 1e6:.0f} ms for a halt: its main thread was busy, or had no processor"
        return (
            f"the host gave guestprof no processor: it was {lateness_ns / 1e6:.0f} ms late, and computed for {used_ns / 1e6:.0f} ms"
        )
