"""A profile becomes a processed profile of the Firefox Profiler (https://profiler.firefox.com): a track for each vCPU or process.

Format: docs-developer/processed-profile-format.md and the TypeScript types of the profiler's repository. Version 66 is written,
which later versions upgrade when they load it. A sample counts 1, at the moment of its halt; milestones and what happened while
recording are markers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from exporters.per import Per
from exporters.run import period_ns, started_ns
from exporters.text import encodable, halted_line, machine, rate_line, stacks_line
from recording.milestones import selected_milestones
from recording.model import FrameKind
from recording.names import Function
from recording.processes import Owner
from recording.profile import Origin, Profile, Walk
from recording.source_paths import function_paths

_VERSION = 66
_GECKO_VERSION = 24
_CATEGORIES = {
    "Other": "grey",
    "Idle": "transparent",
    "User": "yellow",
    "Kernel": "orange",
    "Module": "purple",
    "BPF": "green",
    "Firmware": "brown",
}
_NUMBERS = {name: index for index, name in enumerate(_CATEGORIES)}
_IDLE = _NUMBERS["Idle"]
_CATEGORY_OF = {kind: _NUMBERS.get({"bpf": "BPF"}.get(kind.value, kind.value.capitalize()), 0) for kind in FrameKind}
_LIBRARY = 1
"""The type of a resource that is a library."""
_INSTANT = 0
"""The phase of a marker without an end."""
_MILESTONE, _EVENT = "Milestone", "Event"
"""Kinds of markers."""
_PROCESS = Function("", "[process]", FrameKind.UNKNOWN)


@dataclass(slots=True)
class _Track:
    """The samples of a thread, as indexes into the stack table and microseconds since the recording began."""

    name: str
    process: str
    pid: str
    tid: str
    stacks: list[int | None] = field(default_factory=list)
    times_us: array[int] = field(default_factory=lambda: array("q"))


class _Tables:
    """What all threads share: strings, functions, frames and stacks, each a number."""

    def __init__(self, profile: Profile) -> None:
        functions = self._known_functions = profile.functions
        self._profile = profile
        self._paths = function_paths(profile)
        self.strings: dict[str, int] = {}
        self.modules: dict[str, int] = {}
        self.funcs: dict[Function, int] = {}
        self.frames: dict[tuple[int, int, int | None, int], int] = {}
        self._nodes: dict[int, int] = {}
        self._node_offsets, self._node_frames = array("I"), array("I")
        self._stacks: dict[tuple[int, str], int] = {}
        self._func_paths: list[str | None] = []
        self._frame_of = [-1] * len(functions)

    def string(self, text: str) -> int:
        """The number of a string."""
        return self.strings.setdefault(encodable(text), len(self.strings))

    def stack(self, walk: Walk, root: str) -> int:
        """The number of a walk's stack, begun by its process if one is given; walks differ where lines are known."""
        stack = walk.stack
        key = (id(walk if self._profile.has_lines else stack), root)
        known = self._stacks.get(key)
        if known is None:
            frames = self._line_frames(walk) if self._profile.has_lines else [self._function_frame(i) for i in stack.indexes]
            if stack.idle:
                # A sample's category is that of its innermost frame.
                frames[-1] = self._frame(self._known_functions[stack.indexes[-1]], _IDLE)
            if root:
                frames.insert(0, self._frame(Function(root, _PROCESS.module, _PROCESS.kind), 0))
            known = self._node(frames)
            self._stacks[key] = known
        return known

    def _line_frames(self, walk: Walk) -> list[int]:
        frames = []
        for places in self._profile.frame_places(walk):
            for depth, place in enumerate(places):
                function = self._known_functions[place.function]
                path = self._paths.get(place.function)
                frames.append(self._frame(function, _CATEGORY_OF[function.kind], place.line, depth, path))
        return frames

    def _node(self, frames: list[int]) -> int:
        """The number of the node that frames lead to. A node's key is its caller's number and its frame, in one number."""
        nodes, known = self._nodes, -1
        for frame in frames:
            key = (known + 1) << 32 | frame
            node = nodes.get(key)
            if node is None:
                node = nodes[key] = len(nodes)
                self._node_offsets.append(0 if known < 0 else node - known)
                self._node_frames.append(frame)
            known = node
        return known

    def _function_frame(self, index: int) -> int:
        known = self._frame_of[index]
        if known < 0:
            function = self._known_functions[index]
            known = self._frame_of[index] = self._frame(function, _CATEGORY_OF[function.kind])
        return known

    def _frame(self, function: Function, category: int, line: int | None = None, depth: int = 0, path: str | None = None) -> int:
        func = self.funcs.get(function)
        if func is None:
            func = self.funcs[function] = len(self.funcs)
            self._func_paths.append(path)
            self.string(function.name)
            self.modules.setdefault(function.module, len(self.modules))
        return self.frames.setdefault((func, category, line, depth), len(self.frames))

    def document(self) -> dict[str, Any]:
        """The tables as columns."""
        self._nodes.clear()
        frames, funcs, modules = len(self.frames), len(self.funcs), len(self.modules)
        module_names = [self.string(module) for module in self.modules]
        sources = list(dict.fromkeys(path for path in self._func_paths if path is not None))
        numbers = {path: number for number, path in enumerate(sources)}
        nothing = [None] * len(sources)
        return {
            "stackTable": {
                "length": len(self._node_frames),
                "prefixOffset": _column(self._node_offsets),
                "frame": _column(self._node_frames),
            },
            "frameTable": {
                "length": frames,
                "func": [func for func, *_ in self.frames],
                "category": [category for _, category, *_ in self.frames],
                "subcategory": [0] * frames,
                "address": [-1] * frames,
                "inlineDepth": [depth for *_, depth in self.frames],
                "line": [line for _, _, line, _ in self.frames],
                **{name: [None] * frames for name in ("column", "nativeSymbol", "innerWindowID", "originalLocation")},
            },
            "funcTable": {
                "length": funcs,
                "name": [self.string(function.name) for function in self.funcs],
                "resource": [self.modules[function.module] for function in self.funcs],
                "isJS": [False] * funcs,
                "relevantForJS": [False] * funcs,
                "source": [None if path is None else numbers[path] for path in self._func_paths],
                **{name: [None] * funcs for name in ("lineNumber", "columnNumber", "originalLocation")},
            },
            "resourceTable": {
                "length": modules,
                "lib": [None] * modules,
                "name": module_names,
                "host": [None] * modules,
                "type": [_LIBRARY] * modules,
            },
            "nativeSymbols": {"length": 0, "libIndex": [], "address": [], "name": [], "functionSize": []},
            "sources": {
                "length": len(sources),
                "id": nothing,
                "filename": [self.string(path) for path in sources],
                "startLine": [1] * len(sources),
                "startColumn": [1] * len(sources),
                **dict.fromkeys(("sourceMapURL", "content"), nothing),
            },
            "sourceLocationTable": {"length": 0, "source": [], "line": [], "column": []},
        }


def _column(values: Sequence[float | None]) -> orjson.Fragment:
    """JSON made at once: the numbers of a long column take ten times as much memory."""
    return orjson.Fragment(orjson.dumps(list(values)))


def export_firefox(profile: Profile, *, version: str, title: str | None = None, per: Per = Per.VCPU) -> bytes:
    """One JSON document. Tracks by vCPU, or by process with those that took most samples first."""
    tables = _Tables(profile)
    tracks = _vcpu_tracks(profile, tables) if per is Per.VCPU else _process_tracks(profile, tables)
    if tracks:
        # What is shown begins with the first sample, and would leave out what happened before it: here is one without a stack.
        tracks[0].stacks.insert(0, None)
        tracks[0].times_us.insert(0, (profile.selection.since_ns or 0) // 1000)
    markers = _markers(profile, tables)
    nothing = _marker_columns([], [])
    threads = [
        _thread(track, nothing if index else markers, is_main=not index or per is Per.PROCESS) for index, track in enumerate(tracks)
    ]
    shared = tables.document()
    document = {
        "meta": _meta(profile, version, title),
        "libs": [],
        "pages": [],
        "profilerOverhead": [],
        "counters": [],
        "shared": {**shared, "stringArray": list(tables.strings)},
        "threads": threads,
    }
    return orjson.dumps(document)


def _vcpu_tracks(profile: Profile, tables: _Tables) -> list[_Track]:
    """All vCPUs are threads of one process, the machine."""
    guest = machine(profile.meta)
    tracks = {vcpu: _Track(f"vCPU {vcpu}", guest, "0", f"vCPU {vcpu}") for vcpu in profile.vcpus}
    has_tasks = profile.has_tasks

    def number(walk: Walk, origin: Origin) -> int:
        return tables.stack(walk, origin.process.root_name if has_tasks else "")

    for vcpu, stacks, times_ns, _ in profile.stretches(number):
        tracks[vcpu].stacks.extend(stacks)
        tracks[vcpu].times_us.extend([time_ns // 1000 for time_ns in times_ns])
    return list(tracks.values())


def _process_tracks(profile: Profile, tables: _Tables) -> list[_Track]:
    """A process that changed its name is another one, with a number of its own as the profiler wants it: ``417.1``."""
    tracks: dict[Owner, _Track] = {}
    used: dict[str, int] = {}

    def track_of(origin: Origin) -> _Track:
        owner = origin.process
        if owner not in tracks:
            pid = owner.name if owner.pid is None else str(owner.pid)
            times = used[pid] = used.get(pid, -1) + 1
            unique = f"{pid}.{times}" if times else pid
            tracks[owner] = _Track(owner.name, owner.name, unique, unique)
        return tracks[owner]

    def sample(walk: Walk, origin: Origin) -> tuple[_Track, int]:
        return track_of(origin), tables.stack(walk, "")

    for samples, _, times_ns, _ in profile.batches(sample):
        for (track, stack), time_ns in zip(samples, times_ns, strict=True):
            track.stacks.append(stack)
            track.times_us.append(time_ns // 1000)
    return sorted(tracks.values(), key=lambda track: (-len(track.stacks), track.pid))


def _thread(track: _Track, markers: dict[str, Any], *, is_main: bool) -> dict[str, Any]:
    times = track.times_us
    return {
        "name": encodable(track.name),
        "isMainThread": is_main,
        "processType": "default",
        "processName": encodable(track.process),
        "processStartupTime": 0,
        "processShutdownTime": None,
        "registerTime": 0,
        "unregisterTime": None,
        "pausedRanges": [],
        "pid": encodable(track.pid),
        "tid": encodable(track.tid),
        "showMarkersInTimeline": bool(markers["length"]),
        "samples": {
            "length": len(times),
            "stack": _column(track.stacks),
            "timeDeltas": _column([(now - before) / 1000 for before, now in pairwise((0, *times))]),
            "weight": None,
            "weightType": "samples",
        },
        "markers": markers,
    }


def _markers(profile: Profile, tables: _Tables) -> dict[str, Any]:
    """The milestones of a boot, then what happened while recording."""
    rows = [(_MILESTONE, each.time_ns, each.name, each.title) for each in selected_milestones(profile)]
    rows += [(_EVENT, each.running_time_ns, each.kind, each.text) for each in profile.events()]
    clocks = profile.clocks()
    guest_ns = [clocks.at(time_ns) for _, time_ns, _, _ in rows]
    return _marker_columns(
        [time_ns / 1e6 for _, time_ns, _, _ in rows],
        [
            {"type": kind, "text": encodable(text), **({} if shown_ns is None else {"guest": shown_ns / 1e6})}
            for (kind, _, _, text), shown_ns in zip(rows, guest_ns, strict=True)
        ],
        [tables.string(name) for _, _, name, _ in rows],
    )


def _marker_columns(times_ms: list[float], data: list[dict[str, Any]], names: list[int] | None = None) -> dict[str, Any]:
    return {
        "length": len(times_ms),
        "name": names or [],
        "startTime": times_ms,
        "endTime": [None] * len(times_ms),
        "phase": [_INSTANT] * len(times_ms),
        "category": [0] * len(times_ms),
        "data": data,
    }


def _meta(profile: Profile, version: str, title: str | None) -> dict[str, Any]:
    quality = profile.quality()
    told = {"Rate": rate_line(quality), "Halted": halted_line(quality), "Stacks": stacks_line(quality)}
    rows = [{"label": label, "format": "string", "value": value} for label, value in told.items()]
    return {
        "interval": period_ns(profile.meta) / 1e6 or 1,
        "startTime": started_ns(profile.meta) / 1e6,
        "processType": 0,
        "product": encodable(machine(profile.meta) if title is None else title),
        "stackwalk": 1,
        "version": _GECKO_VERSION,
        "preprocessedProfileVersion": _VERSION,
        "importedFrom": f"guestprof {version}",
        "symbolicated": True,
        "categories": [{"name": name, "color": color, "subcategories": ["Other"]} for name, color in _CATEGORIES.items()],
        "markerSchema": [_marker_schema(_MILESTONE), _marker_schema(_EVENT)],
        "extra": [{"label": "Trust in the figures", "entries": rows}],
        "extensions": {"length": 0, "id": [], "name": [], "baseURL": []},
        "sampleUnits": {"time": "ms", "eventDelay": "ms", "threadCPUDelta": "ns"},
        "usesOnlyOneStackType": True,
        "sourceCodeIsNotOnSearchfox": True,
    }


def _marker_schema(kind: str) -> dict[str, Any]:
    return {
        "name": kind,
        "tableLabel": "{marker.data.text}",
        "chartLabel": "{marker.data.text}",
        "display": ["marker-chart", "marker-table", "timeline-overview"],
        "fields": [
            {"key": "text", "label": "What", "format": "string"},
            {"key": "guest", "label": "By the guest's own clock", "format": "time"},
        ],
    }
