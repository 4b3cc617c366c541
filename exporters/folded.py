r"""A profile becomes folded stacks: ``root;...;leaf COUNT``, one line a distinct stack, counts are samples.

The grammar is what its readers agree on: FlameGraph's flamegraph.pl (``/^(.*)\s+?(\d+(?:\.\d*)?)$/``), inferno, speedscope
(``/^(.*) (\d+)$/``) and the Firefox Profiler. So counts are integers, and no name may end in a blank and a number, which
flamegraph.pl takes for a second column.
"""

from __future__ import annotations

import re

from recording.model import FrameKind
from recording.names import Function
from recording.profile import Profile

_ENDS_IN_NUMBER = re.compile(r"\s(?=\d+(?:\.\d*)?$)")
_BLANK = re.compile(r"\s")
_KERNEL_SIDE = frozenset({FrameKind.KERNEL, FrameKind.MODULE, FrameKind.BPF})


def export_folded(profile: Profile, *, annotate: bool = True) -> bytes:
    """Lines in alphabetical order, which add up to the samples. Where tasks are known, a stack begins with its process' name.

    annotate: mark inlined frames with ``_[i]`` and other kernel frames with ``_[k]``, which flamegraph.pl's palettes colour by
    and do not show.
    """
    names = [folded_name(function, annotate=annotate) for function in profile.functions]
    has_tasks = profile.has_tasks
    roots: dict[int, str] = {}
    lines: dict[str, int] = {}
    for count in profile.counts:
        root = roots.get(id(count.origin))
        if root is None:
            root = roots[id(count.origin)] = f"{process_name(count.origin.process.root_name)};" if has_tasks else ""
        line = root + ";".join([names[index] for index in count.stack.indexes])
        lines[line] = lines.get(line, 0) + count.samples
    return "".join([f"{line} {lines[line]}\n" for line in sorted(lines)]).encode()


def folded_name(function: Function, *, annotate: bool) -> str:
    """A function's name as a frame: ``;`` becomes ``:`` as in perf's own scripts, and what is not visible becomes ``?``."""
    name = "".join([c if c.isprintable() else "?" for c in function.name]).replace(";", ":")
    name = _ENDS_IN_NUMBER.sub("_", name) or "?"
    if not annotate:
        return name
    return f"{name}_[i]" if function.is_inlined else f"{name}_[k]" if function.kind in _KERNEL_SIDE else name


def process_name(name: str) -> str:
    """A process' name as a frame, without blanks, as perf's scripts write it."""
    return _BLANK.sub("_", folded_name(Function(name, "", FrameKind.USER), annotate=False))
