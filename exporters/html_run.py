"""What the HTML report tells about a recording beside its samples: facts of the run, how far it can be trusted, what happened."""

from __future__ import annotations

from typing import Any

import orjson

from exporters.report_text import USER_END_HELP
from exporters.text import (
    counted,
    duration,
    halted_line,
    machine,
    percent,
    printable,
    rate_line,
    share,
    shortened,
    stacks_line,
    user_line,
)
from recording.model import StackEnd
from recording.profile import Profile
from recording.quality import Quality

_LONGEST = 500
_MOST_LINES = 5000
"""Of the console; a guest that writes more would fill the page with it."""
_FACTS = {
    "kernel_release": "Kernel",
    "kernel_banner": "Kernel's banner",
    "kernel_build_id": "Kernel's build ID",
    "architecture": "Architecture",
    "accelerator": "Accelerator",
    "vcpus": "vCPUs",
    "qemu_version": "QEMU",
    "host": "Host",
    "started_at": "Recorded at",
    "duration_s": "Duration, s",
    "requested_hz": "Requested rate, Hz",
    "ended": "Ended because",
    "missed": "Deadlines left out",
    "problem": "Problem",
    "command_line": "Command",
    "memory": "Guest memory read through",
    "stub": "Stub",
    "raw": "Captures kept (--raw)",
    "guestprof_version": "Recorded by guestprof",
}
"""Keys of a recording's meta that have words of their own; others stand under their key."""
_NOT_TOLD = frozenset({"registers"})
"""Tables for programs."""


def run_values(profile: Profile, *, title: str | None) -> dict[str, Any]:
    """What the page tells about a run, as JSON values; all text is printable."""
    quality = profile.quality()
    return {
        "title": machine(profile.meta) if title is None else printable(title),
        "machine": machine(profile.meta),
        "samples": quality.samples,
        "weight": profile.weight_ns,
        "selection": _selection(profile),
        "quality": _quality(quality),
        "ends": [
            {"name": end.value, "samples": count, "share": share(count, quality.samples), "meaning": _meaning(end)}
            for end, count in sorted(quality.ends.items(), key=lambda row: -row[1])
        ],
        "userEnds": [
            {
                "name": end.value,
                "samples": count,
                "meaning": "whole" if end.is_proper else USER_END_HELP.get(end, "no stack to walk"),
            }
            for end, count in sorted(quality.user_ends.items(), key=lambda row: -row[1])
        ],
        "notes": [printable(text) for text in (*profile.unknown(), *profile.unreadable_files())],
        "facts": _facts(profile.meta),
        "events": [
            {"time": event.running_time_ns, "name": printable(event.kind), "text": shortened(printable(event.text), _LONGEST)}
            for event in profile.events()
        ],
        "console": [
            {"time": line.running_time_ns, "text": shortened(printable(line.text), _LONGEST)}
            for line in profile.console()[:_MOST_LINES]
        ],
    }


def _meaning(end: StackEnd) -> str:
    """What a kernel stack is that ended so."""
    if end is StackEnd.ENTRY_WINDOW:
        return "in entry or exit code, where there is no stack"
    if not end.is_kernel:
        return "no kernel stack"
    return "whole" if end.is_proper else "cut short"


def _quality(quality: Quality) -> list[tuple[str, str]]:
    return [
        ("Samples", f"{quality.samples:,} in {counted(quality.halts, 'halt')}"),
        ("Rate", rate_line(quality)),
        ("Guest halted", halted_line(quality)),
        ("Kernel stacks", stacks_line(quality)),
        ("User stacks", user_line(quality) or "none were asked for, or none were there"),
        ("Tasks", _tasks(quality)),
    ]


def _tasks(quality: Quality) -> str:
    if quality.no_tasks is not None:
        return f"none: {quality.no_tasks}"
    return "unknown" if quality.task_share is None else f"{percent(quality.task_share, 2)} of the samples outside of firmware"


def _selection(profile: Profile) -> list[str]:
    """What the command line left out of the recording, as sentences."""
    chosen, told = profile.selection, []
    if chosen.since_ns is not None:
        told.append(f"from {duration(chosen.since_ns)} on")
    if chosen.until_ns is not None:
        told.append(f"until {duration(chosen.until_ns)}")
    if not chosen.idle:
        told.append("without the idle loop waiting")
    for word, wanted in (("vCPU", chosen.vcpus), ("process", chosen.processes), ("context", chosen.contexts)):
        if wanted is not None:
            told.append(f"only {word} {', '.join(sorted(printable(str(item)) for item in wanted))}")
    return told


def _facts(meta: dict[str, Any]) -> list[tuple[str, str]]:
    known = [(words, meta[key]) for key, words in _FACTS.items() if meta.get(key) is not None]
    others = [(printable(key), meta[key]) for key in sorted(meta) if key not in _FACTS and key not in _NOT_TOLD]
    return [(words, _told(value)) for words, value in known + others if value is not None]


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return shortened(printable(str(value)), _LONGEST)
    return shortened(printable(orjson.dumps(value, default=str).decode()), _LONGEST)
