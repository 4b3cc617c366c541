"""The samples of one vCPU become moments that follow each other without holes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class VcpuLine:
    """All samples of one vCPU in time order; the value is None where one is not selected."""

    values: list[Any] = field(default_factory=list)
    times_ns: array[int] = field(default_factory=lambda: array("q"))
    weights_ns: array[int] = field(default_factory=lambda: array("q"))

    def pieces(self, start_ns: int) -> Iterator[tuple[Any, int, int]]:
        """Value, start and duration. A sample stands for the time up to its halt; what no sample stands for has no value."""
        now_ns = 0
        for value, time_ns, weight_ns in zip(self.values, self.times_ns, self.weights_ns, strict=True):
            if (gap_ns := time_ns - weight_ns - start_ns - now_ns) > 0:
                yield None, now_ns, gap_ns
                now_ns += gap_ns
            yield value, now_ns, weight_ns
            now_ns += weight_ns
