"""A profile becomes a speedscope file: one sampled profile a vCPU or a process, in time order, weighed by guest running time.

Format: https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources and the schema in the npm package. Beyond the
schema, ``endValue - startValue`` equals the sum of the weights, and all vCPUs start at the same moment, so that they line up.

A frame of speedscope's is what it counts by, so there is one for each function; its line is that at which most of its time was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

import orjson

from exporters.per import Per
from exporters.text import encodable, machine
from recording.processes import Owner
from recording.profile import Origin, Profile, Stack
from recording.source_paths import function_lines, function_paths

WARN_ABOVE_BYTES = 200_000_000
"""Browsers crawl from about there on."""
_PROCESS_FILE = "[process]"


@dataclass(slots=True)
class _Line:
    """A profile that is being made: stacks as the document has them, neighbours of one stack merged; a gap is an empty stack."""

    stacks: list[tuple[int, ...]] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    busy_ns: int = 0

    def add(self, indexes: tuple[int, ...], weight_ns: int, *, busy: bool) -> None:
        """Go on with a stack for some time."""
        if self.stacks and self.stacks[-1] == indexes:
            self.weights[-1] += weight_ns
        else:
            self.stacks.append(indexes)
            self.weights.append(weight_ns)
        if busy:
            self.busy_ns += weight_ns

    def document(self, name: str) -> dict[str, Any]:
        """As speedscope wants it."""
        return {
            "type": "sampled",
            "name": name,
            "unit": "nanoseconds",
            "startValue": 0,
            "endValue": sum(self.weights),
            "samples": self.stacks,
            "weights": self.weights,
        }


class _Roots:
    """Stacks with their process as the first frame, where tasks are known. The frames of processes stand after all functions."""

    def __init__(self, profile: Profile) -> None:
        self._functions = len(profile.functions)
        self._has_tasks = profile.has_tasks
        self.names: list[str] = []
        self._indexes: dict[str, int] = {}
        self._of_origin: dict[int, int] = {}
        self._known: dict[tuple[Stack, int], tuple[int, ...]] = {}

    def rooted(self, stack: Stack, origin: Origin) -> tuple[int, ...]:
        """A stack's indexes, its process first; equal ones are one object."""
        if not self._has_tasks:
            return stack.indexes
        root = self._of_origin.get(id(origin))
        if root is None:
            name = origin.process.root_name
            root = self._indexes.setdefault(name, self._functions + len(self.names))
            if root == self._functions + len(self.names):
                self.names.append(name)
            self._of_origin[id(origin)] = root
        known = self._known.get((stack, root))
        if known is None:
            known = self._known[stack, root] = (root, *stack.indexes)
        return known


def export_speedscope(
    profile: Profile,
    *,
    version: str,
    title: str | None = None,
    warn: Callable[[str], None] | None = None,
    per: Per = Per.VCPU,
) -> bytes:
    """One JSON document. ``warn`` is told where it is too large to look at with pleasure."""
    roots = _Roots(profile)
    lines = _vcpu_lines(profile, roots) if per is Per.VCPU else _process_lines(profile)
    busiest = max(range(len(lines)), key=lambda index: (lines[index][1].busy_ns, -index), default=0)
    paths = function_paths(profile)
    numbers = function_lines(profile, paths)
    frames: list[dict[str, Any]] = [
        {
            "name": encodable(f.label),
            "file": encodable(paths.get(index, f.module)),
            **({"line": numbers[index]} if index in numbers else {}),
        }
        for index, f in enumerate(profile.functions)
    ]
    frames += [{"name": encodable(name), "file": _PROCESS_FILE} for name in roots.names]
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": f"guestprof@{version}",
        "name": encodable(machine(profile.meta) if title is None else title),
        "activeProfileIndex": busiest,
        "shared": {"frames": frames},
        "profiles": [line.document(encodable(name)) for name, line in lines],
    }
    text = orjson.dumps(document)
    if warn is not None and len(text) > WARN_ABOVE_BYTES:
        warn(f"the file has {len(text) / 1e6:.0f} MB, which speedscope shows slowly; select less with --since and --until")
    return text


def _vcpu_lines(profile: Profile, roots: _Roots) -> list[tuple[str, _Line]]:
    for count in sorted(profile.counts, key=attrgetter("vcpu", "first")):
        roots.rooted(count.stack, count.origin)  # which numbers processes in the order in which they are shown
    lines = []
    for vcpu, pieces in profile.courses(lambda walk, origin: (roots.rooted(walk.stack, origin), not walk.stack.idle)):
        line = _Line()
        for value, _, duration_ns in pieces:
            indexes, busy = value or ((), False)
            line.add(indexes, duration_ns, busy=busy)
        lines.append((f"vCPU {vcpu}", line))
    return lines


def _process_lines(profile: Profile) -> list[tuple[str, _Line]]:
    """The processes that took most time first. Where several vCPUs ran one at once, their stacks follow each other."""
    rows: dict[Owner, list[tuple[int, int, Stack, int]]] = {}
    for vcpu, pieces in profile.courses(lambda walk, origin: (rows.setdefault(origin.process, []), walk.stack)):
        for value, start_ns, duration_ns in pieces:
            if value is not None:
                of_process, stack = value
                of_process.append((start_ns, vcpu, stack, duration_ns))
    lines = []
    for owner, moments_of in rows.items():
        line = _Line()
        for _, _, stack, duration_ns in sorted(moments_of, key=itemgetter(0, 1)):
            line.add(stack.indexes, duration_ns, busy=not stack.idle)
        lines.append((owner.name if owner.pid is None else f"{owner.name} ({owner.pid})", line))
    return sorted(lines, key=lambda named: (-sum(named[1].weights), named[0]))
