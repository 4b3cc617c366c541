"""Runs inside gdb (``gdb -x``): each line from the benchmark becomes one line of JSON with the frames that gdb sees.

The Python is gdb's own, so nothing of guestprof is imported and the answer owes nothing to it.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Protocol

import gdb  # type: ignore[import-untyped]

_DEPTH_LIMIT = 200
_REGISTERS = tuple(os.environ["BENCH_REGISTERS"].split())
"""Whose values are told of each frame."""
_SETTINGS = (
    f"set architecture {os.environ['BENCH_ARCHITECTURE']}",
    f"set endian {os.environ['BENCH_ENDIAN']}",
    "set confirm off",
    # Both sides share a busy machine; a packet that gdb sends again would be answered twice.
    "set remotetimeout 60",
    "set pagination off",
    "set height 0",
    "set auto-load off",
    "set auto-solib-add off",
    "set debuginfod enabled off",
    # Every byte that gdb uses comes from the halted guest, not from a cache and not from the file.
    "set stack-cache off",
    "set code-cache off",
    "set trust-readonly-sections off",
    "set backtrace past-main on",
    "set backtrace past-entry on",
    "set backtrace limit unlimited",
)


class _Frame(Protocol):
    """What is used of gdb.Frame below."""

    def read_register(self, name: str) -> int: ...


def _value(frame: _Frame, name: str) -> int:
    """A register of a frame; 0 where it was saved in memory that cannot be read, or a 32-bit program has none of that name."""
    try:
        return int(frame.read_register(name)) & 0xFFFF_FFFF_FFFF_FFFF
    except (gdb.error, ValueError):
        return 0


def walk() -> dict[str, Any]:
    """The frames, leaf first: [pc, name, registers] of each real one (not the inlined ones, not those inferred from tail calls)."""
    gdb.execute("maintenance flush register-cache", to_string=True)
    gdb.execute("maintenance flush dcache", to_string=True)
    frames: list[tuple[int, str, list[int]]] = []
    try:
        frame = gdb.newest_frame()
        while True:
            if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                frames.append((frame.pc(), frame.name() or "", [_value(frame, name) for name in _REGISTERS]))
            if len(frames) >= _DEPTH_LIMIT:
                return {"frames": frames, "stop": "too many frames"}
            older = frame.older()
            if older is None:
                return {"frames": frames, "stop": gdb.frame_stop_reason_string(frame.unwind_stop_reason())}
            frame = older
    except gdb.error as error:
        return {"frames": frames, "stop": str(error)}


def main() -> None:
    """Answer until the benchmark closes its end."""
    for setting in _SETTINGS:
        gdb.execute(setting)
    gdb.execute(os.environ["BENCH_SYMBOL_FILE"], to_string=True)
    gdb.execute("target remote " + os.environ["BENCH_STUB"], to_string=True)
    with socket.socket(fileno=int(os.environ["BENCH_CONTROL"])) as control, control.makefile("rwb") as stream:
        for _line in stream:
            stream.write(json.dumps(walk()).encode() + b"\n")
            stream.flush()


main()
