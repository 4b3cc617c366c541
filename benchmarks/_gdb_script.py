"""Runs inside gdb (``source``): the frames that gdb sees, with the registers of each.

The Python is gdb's own, so nothing of guestprof is imported and the answer owes nothing to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import gdb  # type: ignore[import-untyped]

_DEPTH_LIMIT = 200


class _Frame(Protocol):
    """What is used of gdb.Frame below."""

    def read_register(self, name: str) -> int: ...


def _value(frame: _Frame, name: str) -> int:
    """A register of a frame; 0 where it was saved in memory that cannot be read, or a 32-bit program has none of that name."""
    try:
        return int(frame.read_register(name)) & 0xFFFF_FFFF_FFFF_FFFF
    except (gdb.error, ValueError):
        return 0


def walk(registers: Sequence[str]) -> dict[str, Any]:
    """The frames, leaf first: [pc, name, values of the registers] of each real one, not inlined nor inferred from a tail call."""
    gdb.execute("maintenance flush register-cache", to_string=True)
    gdb.execute("maintenance flush dcache", to_string=True)
    frames: list[tuple[int, str, list[int]]] = []
    try:
        frame = gdb.newest_frame()
        while True:
            if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                frames.append((frame.pc(), frame.name() or "", [_value(frame, name) for name in registers]))
            if len(frames) >= _DEPTH_LIMIT:
                return {"frames": frames, "stop": "too many frames"}
            older = frame.older()
            if older is None:
                return {"frames": frames, "stop": gdb.frame_stop_reason_string(frame.unwind_stop_reason())}
            frame = older
    except gdb.error as error:
        return {"frames": frames, "stop": str(error)}


def tell(registers: Sequence[str]) -> None:
    """Print them as a line of JSON."""
    print(json.dumps(walk(registers)))
