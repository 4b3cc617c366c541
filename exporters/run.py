"""What a recording's meta says of its run, as numbers that formats ask for; meta may hold anything."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def started_ns(meta: dict[str, Any]) -> int:
    """When the recording began, in nanoseconds since 1970; 0 where that is not known."""
    try:
        started = datetime.fromisoformat(meta["started_at"])
        return round(started.timestamp() * 1000) * 1_000_000
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def period_ns(meta: dict[str, Any]) -> int:
    """The requested time between two samples; 0 where that is not known."""
    rate_hz = meta.get("requested_hz")
    return round(1e9 / rate_hz) if isinstance(rate_hz, int | float) and rate_hz > 0 else 0
