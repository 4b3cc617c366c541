"""A profile becomes a callgrind file, which KCachegrind, ``callgrind_annotate``, gprof2dot and speedscope open.

Format: https://valgrind.org/docs/manual/cl-format.html. The events are guest running time and samples. A callgrind file knows who
called whom, not whole stacks; readers take what all calls of a function cost for its total. So a sample's cost is on the first call
of each function of its stack, and further calls within a recursion cost nothing; and every stack begins with a function that stands
for its process (``all`` where no tasks are known), so that none is without a caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from exporters.text import counted, machine, printable, rate_line, stacks_line
from recording.model import FrameKind
from recording.names import Function
from recording.profile import Profile, Walk
from recording.source_paths import function_paths


@dataclass(slots=True)
class _Cost:
    """Guest running time and samples; for a call also how often it was on a stack."""

    time_ns: int = 0
    samples: int = 0
    calls: int = 0


@dataclass(slots=True)
class _Node:
    """What a function cost itself by source line (0 where none is known), and its calls by the function called and the line."""

    own: dict[int, _Cost] = field(default_factory=dict)
    calls: dict[tuple[int, int], _Cost] = field(default_factory=dict)


def export_callgrind(profile: Profile, *, version: str) -> bytes:
    """One text file; functions in the order in which they were named."""
    nodes, functions = _nodes(profile)
    quality = profile.quality()
    lines = [
        "# callgrind format",
        "version: 1",
        f"creator: guestprof {version}",
        f"cmd: {machine(profile.meta)}",
        f"desc: Trigger: {counted(profile.samples, 'sample')}",
        f"desc: Info: {rate_line(quality)}; {stacks_line(quality)}",
        "positions: line",
        "event: Time : Guest running time (ns)",
        "event: Samples : Samples",
        "events: Time Samples",
        f"summary: {profile.weight_ns} {profile.samples}",
        "",
    ]
    names = _Names(functions, function_paths(profile))
    for index, node in nodes.items():
        if not node.calls and not node.own:
            continue
        lines += names.place(index, "")
        lines += [f"{line} {cost.time_ns} {cost.samples}" for line, cost in sorted(node.own.items())] or ["0 0 0"]
        for callee, line in sorted(node.calls):
            cost = node.calls[callee, line]
            lines += names.place(callee, "c")
            lines += [f"calls={cost.calls} 0", f"{line} {cost.time_ns} {cost.samples}"]
        lines.append("")
    lines.append(f"totals: {profile.weight_ns} {profile.samples}\n")
    return "\n".join(lines).encode()


class _Names:
    """Names as the format wants them: in full where they come first, by their number from then on."""

    def __init__(self, functions: list[Function], paths: dict[int, str]) -> None:
        self._functions = functions
        self._paths = paths
        self._modules: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._written: set[tuple[str, int]] = set()

    def place(self, index: int, prefix: str) -> list[str]:
        """The lines that name a function, as a caller or (``c``) a callee. Its module stands for a file that is not known."""
        function = self._functions[index]
        module = self._modules.setdefault(function.module, len(self._modules))
        path = self._paths.get(index, function.module)
        file = self._files.setdefault(path, len(self._files))
        return [
            f"{prefix}ob={self._name('ob', module, function.module)}",
            f"{prefix}{'fi' if prefix else 'fl'}={self._name('fl', file, path)}",
            f"{prefix}fn={self._name('fn', index, function.label)}",
        ]

    def _name(self, kind: str, index: int, name: str) -> str:
        if (kind, index) in self._written:
            return f"({index + 1})"
        self._written.add((kind, index))
        return f"({index + 1}) {printable(name) or '?'}"


def _nodes(profile: Profile) -> tuple[dict[int, _Node], list[Function]]:
    """The functions by their place in the list that is returned too: the profile's, then those that stand for processes."""
    functions = list(profile.functions)
    has_tasks = profile.has_tasks
    roots: dict[str, int] = {}
    root_of: dict[int, int] = {}
    sums: dict[tuple[int, int], tuple[Walk, _Cost]] = {}
    for count in profile.counts:
        root = root_of.get(id(count.origin))
        if root is None:
            name = count.origin.process.root_name if has_tasks else "all"
            root = root_of[id(count.origin)] = roots.setdefault(name, len(functions))
            if root == len(functions):
                functions.append(Function(name, "[process]", FrameKind.UNKNOWN))
        same = id(count.walk if profile.has_lines else count.stack)
        known = sums.get((same, root))
        if known is None:
            known = sums[same, root] = (count.walk, _Cost())
        known[1].time_ns += count.weight_ns
        known[1].samples += count.samples
    nodes = {index: _Node() for index in range(len(functions))}
    for (_, root), (walk, cost) in sums.items():
        indexes = (root, *walk.stack.indexes)
        lines = (0, *[place.line or 0 for place in profile.places(walk)]) if profile.has_lines else (0,) * len(indexes)
        _add(nodes, indexes, lines, cost)
    return nodes, functions


def _add(nodes: dict[int, _Node], indexes: tuple[int, ...], lines: tuple[int, ...], cost: _Cost) -> None:
    """Put a stack's cost on its innermost function and on the first call of each other one."""
    time_ns, samples = cost.time_ns, cost.samples
    own = nodes[indexes[-1]].own.setdefault(lines[-1], _Cost())
    own.time_ns += time_ns
    own.samples += samples
    seen = {indexes[0]}
    again: set[tuple[int, int]] = set()
    caller = indexes[0]
    for callee, line in zip(indexes[1:], lines, strict=False):
        calls = nodes[caller].calls
        call = calls.get((callee, line))
        if call is None:
            call = calls[callee, line] = _Cost()
        if callee not in seen:
            seen.add(callee)
            call.time_ns += time_ns
            call.samples += samples
            call.calls += samples
        elif (caller, callee) not in again:
            again.add((caller, callee))
            call.calls += samples
        caller = callee
