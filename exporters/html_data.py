"""Profiles become the data of the HTML report: one compressed block of names, stacks and samples, which the page's script unpacks.

The block is ``zlib(length of the JSON, 4 bytes little endian; JSON; columns)``. The JSON has everything but the long rows of
numbers; it names these as ``{"at": offset after the JSON, "count": n, "bytes": b}``: a column of n integers is stored as its lowest
bytes, then its second lowest and so on, b times, so that what hardly changes compresses to nothing.

Functions stand in the order of their names, so a function's number is its rank. ``nodes`` is the tree of all stacks from the root,
each node before its callees and these by rank: a function and a depth say it all. ``stacks`` are its nodes that were sampled, with
whose time that was. Each run has for each vCPU its samples in time order: which stack, weight, and the gap before it. Several runs
share one set of names and stacks, so that the page can compare them with any filter.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import orjson

from exporters.colours import COLOURS, WHOLE
from exporters.html_tracks import Track, fitting
from exporters.text import printable
from recording.idle import is_idle_function
from recording.matching import UNNAMED, Key, function_key, task_name
from recording.milestones import find_milestones
from recording.model import Context
from recording.names import Function
from recording.profile import Appearance, Origin, Profile, Stack, Walk
from recording.reader import Selection
from recording.source_paths import function_lines, function_paths
from recording.waits import Waker, waker_of

_MOST_POINTS = 4000
"""Of a clock's outline: tens of kilobytes."""
_PROCESS = "process"
_ROOT = ("all", "", _PROCESS)
_Label = tuple[str, str, str]
"""Name, module and kind of a function or process, printable."""
_Key = TypeVar("_Key", bound=Hashable)


class Compared(Protocol):
    """What a page of two sides tells of their difference, once names and stacks have numbers."""

    def document(self, tables: Tables) -> dict[str, Any]:
        """JSON values, and arrays of integers of 0 or more for columns."""


def pack(
    profiles: Sequence[Profile], runs: Sequence[dict[str, Any]], more: dict[str, Any], compared: Compared | None = None
) -> bytes:
    """The compressed block. runs: what the page tells about each profile. more: what else stands in the JSON."""
    tables, columns = Tables(profiles, by_key=compared is not None), _Columns()
    packed = [_packed_run(profile, run, tables, columns) for profile, run in zip(profiles, runs, strict=True)]
    comparison = {} if compared is None else compared.document(tables)
    told = {name: columns.add(value) if isinstance(value, array) else value for name, value in comparison.items()}
    document = orjson.dumps({**more, **tables.document(columns), "runs": packed, "comparison": told})
    deflate = zlib.compressobj(6)
    pieces = [deflate.compress(piece) for piece in (len(document).to_bytes(4, "little"), document, *columns.parts)]
    return b"".join([*pieces, deflate.flush()])


def _packed_run(profile: Profile, run: dict[str, Any], tables: Tables, columns: _Columns) -> dict[str, Any]:
    """The run with its samples and milestones."""
    tracks, appearances = tables.tracks(profile)
    fit = fitting(tracks)
    whole = profile.selection == Selection()
    milestones = [
        {
            "time": milestone.time_ns,
            "after": milestone.after_ns,
            "name": printable(milestone.name),
            "text": printable(milestone.title),
            "phase": milestone.begins_phase,
        }
        for milestone in find_milestones(profile, appearances=appearances if whole else None)
    ]
    vcpus = [_packed_track(track, columns) for track in fit]
    # Of the guest's own clock in each boot, moments of running time and what it showed then.
    clocks = [clock.outline(_MOST_POINTS) for clock in profile.clocks().by_boot]
    return {**run, "milestones": milestones, "clocks": clocks, "merged": fit is not tracks, "vcpus": vcpus}


def label_of(function: Function | Key) -> _Label:
    """How a function is told on the page; that of a key without a symbol has its module's name."""
    own = function.label if isinstance(function, Function) else function.name
    name = f"{function.module} {UNNAMED}" if function.name == UNNAMED else own
    return printable(name), printable(function.module), function.kind.value


class _Columns:
    """Rows of numbers, one behind the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._size = 0

    def add(self, values: array[int]) -> dict[str, int]:
        """Store integers of 0 or more; gives how the JSON names them."""
        if sys.byteorder == "big":
            values = array(values.typecode, values)
            values.byteswap()
        raw, width = values.tobytes(), values.itemsize
        planes = [raw[place::width] for place in range(width)]
        while planes and not any(planes[-1]):
            planes.pop()
        named = {"at": self._size, "count": len(values), "bytes": len(planes)}
        self.parts += planes
        self._size += len(planes) * len(values)
        return named


class Tables:
    """What all runs share: functions by rank, the tree of stacks, whose time a stack was."""

    def __init__(self, profiles: Sequence[Profile], *, by_key: bool = False) -> None:
        """by_key: functions and processes go by what they have in common across kernels and builds (``recording.matching``)."""
        self._by_key = by_key
        self._begins_with_process = all(profile.has_tasks for profile in profiles)
        origins = [{count.origin: None for count in profile.counts} for profile in profiles]
        roots = {id(origin): self._root(origin) for of_profile in origins for origin in of_profile}
        self._waiting: set[_Label] = set()
        labels = {_ROOT, *filter(None, roots.values())}
        for profile in profiles:
            for function in profile.functions:
                label = self._label(function)
                labels.add(label)
                if is_idle_function(function):
                    self._waiting.add(label)
        self._functions = sorted(labels)
        self._paths: dict[_Label, str] = {}
        self._lines: dict[_Label, int] = {}
        for profile in profiles:
            paths = function_paths(profile)
            lines = function_lines(profile, paths)
            for index, path in paths.items():
                label = self._label(profile.functions[index])
                self._paths[label], self._lines[label] = path, lines.get(index, 0)
        self._rank = {label: rank for rank, label in enumerate(self._functions)}
        self._numbers: dict[str, dict[Any, int]] = {name: {} for name in ("processes", "threads", "calls")}
        self._origins: dict[tuple[int, int, int, int, bool], int] = {}
        self._wakers: dict[Waker, int] = {}
        self._stacks: dict[tuple[int, int, bool, int, int], int] = {}
        self._examples: list[tuple[Walk, Origin]] = []
        self._leaves: list[int] = []
        self._parents = array("I")
        self._number: dict[tuple[int, int, int], int] = {}
        self._depths, self._node_functions = array("I"), array("I")
        self._lay_out(profiles, roots)

    def _root(self, origin: Origin) -> _Label | None:
        if not self._begins_with_process:
            return None
        name = origin.process.root_name
        return printable(task_name(name) if self._by_key else name), "", _PROCESS

    def _label(self, function: Function) -> _Label:
        return label_of(function_key(function) if self._by_key else function)

    def rank(self, key: Key) -> int | None:
        """The number of a function, None where no stack has it."""
        return self._rank.get(label_of(key))

    @property
    def size(self) -> int:
        """How many nodes the tree has."""
        return len(self._depths)

    def path(self, stack: Stack, origin: Origin, boot: int) -> list[int]:
        """The nodes of a stack, without the one that stands for everything."""
        node = self._leaves[self._number[id(stack), id(origin), boot]]
        path = []
        while node:
            path.append(node)
            node = self._parents[node]
        return path[::-1]

    def _lay_out(self, profiles: Sequence[Profile], roots: dict[int, _Label | None]) -> None:
        """The tree, out of all paths in order: each begins as far down as it shares the one before it."""
        paths: dict[tuple[int, int, int], tuple[int, ...]] = {}
        pairs: dict[tuple[int, int, int], tuple[Walk, Origin]] = {}
        first = self._rank[_ROOT]
        for profile in profiles:
            ranks = [self._rank[self._label(function)] for function in profile.functions]
            for count in profile.counts:
                key = (id(count.stack), id(count.origin), count.walk.boot)
                if key not in pairs:
                    pairs[key] = (count.walk, count.origin)
                    root = roots[id(count.origin)]
                    head = (first,) if root is None else (first, self._rank[root])
                    paths[key] = (*head, *[ranks[index] for index in count.stack.indexes])
        leaf: dict[tuple[int, ...], int] = {}
        before: tuple[int, ...] = ()
        depths, functions = self._depths, self._node_functions
        for path in sorted({(first,), *paths.values()}):
            shared = 0
            for one, other in zip(before, path, strict=False):
                if one != other:
                    break
                shared += 1
            depths.extend(range(shared, len(path)))
            functions.extend(path[shared:])
            leaf[path] = len(depths) - 1
            before = path
        parents: list[int] = []
        for node, depth in enumerate(depths):
            del parents[depth:]
            self._parents.append(parents[-1] if parents else 0)
            parents.append(node)
        for key, (walk, origin) in pairs.items():
            stack = walk.stack
            waker = 0 if stack.idle else 1 + _numbered(self._wakers, waker_of(stack, origin))
            what = (leaf[paths[key]], self._origin(origin), stack.idle, walk.boot, waker)
            if what not in self._stacks:
                self._examples.append((walk, origin))
                self._leaves.append(what[0])
            self._number[key] = self._stacks.setdefault(what, len(self._stacks))

    def _origin(self, origin: Origin) -> int:
        """The number of whose time a sample was, and what the vCPU did."""
        process, thread = origin.process, origin.thread
        call = origin.system_call
        key = (
            _numbered(self._numbers["processes"], (printable(process.name), process.pid)),
            _numbered(self._numbers["threads"], (printable(thread.name), thread.pid)),
            list(Context).index(origin.context),
            -1 if call is None else _numbered(self._numbers["calls"], (printable(call.label), None)),
            origin.is_firmware,
        )
        return _numbered(self._origins, key)

    def _sources(self) -> dict[str, list[Any]]:
        """The source file of each function, "" where none is known, and the line at which most of its time was, or 0."""
        return {
            "path": [printable(self._paths.get(label, "")) for label in self._functions],
            "line": [self._lines.get(label, 0) for label in self._functions],
        }

    def tracks(self, profile: Profile) -> tuple[list[Track], list[Appearance]]:
        """The samples of each vCPU of one of the profiles, and when each stack of one origin was first seen, in that order."""
        tracks = {vcpu: Track(vcpu) for vcpu in profile.vcpus}
        for vcpu, numbers, times_ns, weights_ns in profile.stretches(self._number_of):
            track = tracks[vcpu]
            track.stacks.extend(numbers)
            track.times_ns.extend(times_ns)
            track.weights_ns.extend(weights_ns)
        for track in tracks.values():
            track.counts.extend([1] * len(track.stacks))
        return list(tracks.values()), self._appearances(tracks.values())

    def _number_of(self, walk: Walk, origin: Origin) -> int:
        return self._number[id(walk.stack), id(origin), walk.boot]

    def _appearances(self, tracks: Collection[Track]) -> list[Appearance]:
        """First sightings in time order; how much was seen of each is not looked at."""
        halts_ns = sorted(set().union(*[track.times_ns for track in tracks]))
        first: dict[int, tuple[int, int]] = {}
        for track in tracks:
            # Backwards, so that the earliest of equal ones stays.
            for stack, time_ns in dict(zip(reversed(track.stacks), reversed(track.times_ns), strict=True)).items():
                if stack not in first or time_ns < first[stack][0]:
                    first[stack] = (time_ns, track.vcpu)
        appearances = []
        for stack in sorted(first, key=first.__getitem__):
            time_ns, vcpu = first[stack]
            place = bisect_left(halts_ns, time_ns)
            before_ns = halts_ns[place - 1] if place else None
            appearances.append(Appearance(*self._examples[stack], vcpu, 1, 0, time_ns, time_ns, before_ns))
        return appearances

    def document(self, columns: _Columns) -> dict[str, Any]:
        """The tables, long ones as columns."""
        modules: dict[str, int] = {}
        module_of = [_numbered(modules, module) for _, module, _ in self._functions]
        kinds = list(COLOURS)
        return {
            "whole": WHOLE,
            "kinds": [{"name": name, "words": colour.words, "tints": colour.tints} for name, colour in COLOURS.items()],
            "functions": {
                "name": [name for name, _, _ in self._functions],
                "module": module_of,
                "kind": [kinds.index("idle" if label in self._waiting else label[2]) for label in self._functions],
                **(self._sources() if self._paths else {}),
            },
            "modules": list(modules),
            **{name: [{"name": row[0], "pid": row[1]} for row in rows] for name, rows in self._numbers.items()},
            "contexts": [context.value for context in Context],
            "origins": list(self._origins),
            "wakers": [_waker(waker) for waker in self._wakers],
            "nodes": {"depth": columns.add(self._depths), "function": columns.add(self._node_functions)},
            "stacks": {
                name: columns.add(array("I", [row[place] for row in self._stacks]))
                for place, name in enumerate(("node", "origin", "idle", "boot", "waker"))
            },
        }


def _waker(waker: Waker) -> dict[str, str]:
    words = [waker.context.value, waker.system_call, waker.running]
    return {"name": printable(waker.name), "doing": printable(", ".join([word for word in words if word]))}


def _numbered(numbers: dict[_Key, int], key: _Key) -> int:
    """The number of a thing, in the order in which they were first asked for."""
    return numbers.setdefault(key, len(numbers))


def _packed_track(track: Track, columns: _Columns) -> dict[str, Any]:
    """Gaps are to the end of the sample before, signed: 0, -1, 1, -2 ... are stored as 0, 1, 2, 3."""
    gaps, last_ns = array("Q"), 0
    for weight_ns, time_ns in zip(track.weights_ns, track.times_ns, strict=True):
        gap_ns = time_ns - weight_ns - last_ns
        gaps.append(gap_ns << 1 if gap_ns >= 0 else -2 * gap_ns - 1)
        last_ns = time_ns
    return {
        "vcpu": track.vcpu,
        "stack": columns.add(track.stacks),
        "weight": columns.add(track.weights_ns),
        "gap": columns.add(gaps),
        "count": columns.add(track.counts),
    }
