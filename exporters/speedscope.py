"""A profile becomes a speedscope file: one sampled profile a vCPU, in time order, weighed by guest running time.

Format: https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources and the schema in the npm package. Beyond the
schema, ``endValue - startValue`` equals the sum of the weights, and all vCPUs start at the same moment, so that they line up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import orjson

from exporters.text import encodable, machine
from recording.profile import Moment, Profile

WARN_ABOVE_BYTES = 200_000_000
"""Browsers crawl from about there on."""


def export_speedscope(
    profile: Profile, *, version: str, title: str | None = None, warn: Callable[[str], None] | None = None
) -> bytes:
    """One JSON document. ``warn`` is told where it is too large to look at with pleasure."""
    profiles: list[dict[str, Any]] = []
    busiest, busiest_ns = 0, -1
    for vcpu, moments in profile.timelines():
        samples, weights, busy_ns = _sampled(moments)
        if busy_ns > busiest_ns:
            busiest, busiest_ns = len(profiles), busy_ns
        profiles.append(
            {
                "type": "sampled",
                "name": f"vCPU {vcpu}",
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": f"guestprof@{version}",
        "name": encodable(machine(profile.meta) if title is None else title),
        "activeProfileIndex": busiest,
        "shared": {"frames": [{"name": encodable(f.name), "file": encodable(f.module)} for f in profile.functions]},
        "profiles": profiles,
    }
    text = orjson.dumps(document)
    if warn is not None and len(text) > WARN_ABOVE_BYTES:
        warn(f"the file has {len(text) / 1e6:.0f} MB, which speedscope shows slowly; select less with --since and --until")
    return text


def _sampled(moments: Iterator[Moment]) -> tuple[list[tuple[int, ...]], list[int], int]:
    """Stacks with their weights, neighbours of one stack merged; a gap is an empty stack. And the time that was not idle."""
    samples, weights, busy_ns = [], [], 0
    for stack, same in groupby(moments, key=lambda moment: moment.stack):
        weight_ns = sum(moment.duration_ns for moment in same)
        samples.append(() if stack is None else stack.indexes)
        weights.append(weight_ns)
        if stack is not None and not stack.idle:
            busy_ns += weight_ns
    return samples, weights, busy_ns
