"""A profile becomes a Chrome trace: for each vCPU which process ran when, where it was idle, and what happened meanwhile.

Format: "Trace Event Format" of Chrome's catapult project; opened by Perfetto (https://ui.perfetto.dev), chrome://tracing,
speedscope and the Firefox Profiler. Times are microseconds of guest running time since the recording began. A slice lasts while
each sample of its vCPU finds the same thread (or the idle loop waiting); milestones and what was recorded as an event are instants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from exporters.text import encodable, halted_line, machine, rate_line, stacks_line
from recording.milestones import selected_milestones
from recording.profile import Origin, Profile, Walk

_GUEST = 1
"""The process that all tracks belong to."""
_CHUNK = 1 << 12


@dataclass(slots=True)
class _Slice:
    """What runs on a vCPU, until something else does."""

    what: bytes
    start_ns: int
    end_ns: int


def export_chrome_trace(profile: Profile, *, version: str) -> Iterator[bytes]:
    """One JSON document in pieces, as there may be as many slices as samples."""
    quality = profile.quality()
    told = {
        "rate": rate_line(quality),
        "halted": halted_line(quality),
        "stacks": stacks_line(quality),
        "writer": f"guestprof {version}",
    }
    yield b'{"displayTimeUnit":"ms","otherData":' + orjson.dumps(told) + b',"traceEvents":[\n'
    pieces = [orjson.dumps(row) for row in _heads(profile)]
    for piece in _slices(profile):
        pieces.append(piece)
        if len(pieces) >= _CHUNK:
            # The last one stays, so that the comma after it has something to follow.
            yield b",\n".join(pieces[:-1]) + b",\n"
            del pieces[:-1]
    yield b",\n".join(pieces) + b"\n]}\n"


def _heads(profile: Profile) -> Iterator[dict[str, Any]]:
    """Names of the tracks, and milestones and events as instants."""
    yield {"ph": "M", "pid": _GUEST, "tid": 0, "name": "process_name", "args": {"name": encodable(machine(profile.meta))}}
    for vcpu in profile.vcpus:
        yield {"ph": "M", "pid": _GUEST, "tid": vcpu, "name": "thread_name", "args": {"name": f"vCPU {vcpu}"}}
        yield {"ph": "M", "pid": _GUEST, "tid": vcpu, "name": "thread_sort_index", "args": {"sort_index": vcpu}}
    clocks = profile.clocks()
    for milestone in selected_milestones(profile):
        yield _instant("milestone", milestone.time_ns, milestone.name, milestone.title, clocks.at(milestone.time_ns))
    for event in profile.events():
        yield _instant("event", event.running_time_ns, event.kind, event.text, clocks.at(event.running_time_ns))


def _instant(category: str, time_ns: int, name: str, text: str, guest_ns: int | None) -> dict[str, Any]:
    """A moment of the whole guest, with what its own clock showed."""
    return {
        "ph": "i",
        "s": "g",
        "pid": _GUEST,
        "tid": 0,
        "cat": category,
        "ts": time_ns / 1000,
        "name": encodable(name),
        "args": {"text": encodable(text), **({} if guest_ns is None else {"guest_clock_s": guest_ns / 1e9})},
    }


def _slices(profile: Profile) -> Iterator[bytes]:
    """Complete events, each when its slice is known to be over. A vCPU that was not sampled for some time has a gap there."""
    running: dict[int, _Slice] = {}
    interned: dict[bytes, bytes] = {}

    def described(walk: Walk, origin: Origin) -> bytes:
        what = _described(origin, idle=walk.stack.idle)
        return interned.setdefault(what, what)

    for batch in profile.batches(described):
        for what, vcpu, time_ns, weight_ns in zip(*batch, strict=True):
            last = running.get(vcpu)
            start_ns = time_ns - weight_ns
            if last is not None and last.what is what and start_ns <= last.end_ns:
                last.end_ns = time_ns
                continue
            if last is not None:
                yield _complete(vcpu, last)
            running[vcpu] = _Slice(what, start_ns if last is None else max(start_ns, last.end_ns), time_ns)
    for vcpu in sorted(running):
        yield _complete(vcpu, running[vcpu])


def _complete(vcpu: int, piece: _Slice) -> bytes:
    times = f'"ts":{piece.start_ns / 1000:.3f},"dur":{(piece.end_ns - piece.start_ns) / 1000:.3f},'
    return f'{{"ph":"X","pid":{_GUEST},"tid":{vcpu},{times}'.encode() + piece.what


def _described(origin: Origin, *, idle: bool) -> bytes:
    """The rest of a slice's JSON: its name, its category, and whose it is."""
    if idle:
        return orjson.dumps({"cat": "idle", "name": "idle"})[1:]
    task = origin.task
    owner = origin.thread
    row: dict[str, Any] = {"cat": "task", "name": encodable(owner.name) or "?"}
    if task is not None:
        row["args"] = {"pid": task.tgid, "tid": task.pid, "process": encodable(task.process)}
    return orjson.dumps(row)[1:]
