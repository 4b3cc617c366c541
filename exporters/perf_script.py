"""A profile becomes text as ``perf script`` prints it: every sample by itself, in time order, with addresses.

Read by the Firefox Profiler, speedscope, gprof2dot, stackcollapse-perf.pl and a host of scripts. A sample's head is
``comm pid/tid [cpu] seconds: period event:``, in guest running time, the period in nanoseconds; its frames follow, leaf first, as
``address symbol+offset (file)``, inlined functions as ``address symbol (inlined)``. perf escapes nothing, so its readers'
regular expressions decide: a name stands on one line, and blanks within a thread's or a file's name become ``_``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from exporters.text import encodable, halted_line, machine, printable, rate_line, stacks_line
from recording.model import FrameKind
from recording.profile import Origin, Place, Profile, Walk

_BLANK = re.compile(r"\s")
_LOOKS_LIKE_OFFSET = re.compile(r"\+0x[0-9a-f]+$")
_NOBODY = 0xFFFF_FFFF
"""The pid of samples whose task is not known, as perf's -1."""


def export_perf_script(profile: Profile) -> Iterator[bytes]:
    """The text in pieces: a million samples make more of it than fits into memory with pleasure."""
    quality = profile.quality()
    told = [machine(profile.meta), rate_line(quality), f"guest halted {halted_line(quality)}", stacks_line(quality)]
    # The first line is as perf's own, by which the Firefox Profiler knows the format.
    yield "".join([f"# {line}\n" for line in ("========", *told, "========")]).encode()
    frames: dict[int, str] = {}
    walks: dict[int, bytes] = {}
    threads: dict[int, bytes] = {}

    def parts(walk: Walk, origin: Origin) -> tuple[bytes, bytes]:
        stack = walks.get(id(walk))
        if stack is None:
            stack = walks[id(walk)] = _frames(profile, walk, frames)
        thread = threads.get(id(origin))
        if thread is None:
            thread = threads[id(origin)] = _thread(origin).encode()
        return thread, stack

    for batch in profile.batches(parts):
        pieces: list[bytes] = []
        for (thread, stack), vcpu, time_ns, weight_ns in zip(*batch, strict=True):
            moment = divmod(time_ns // 1000, 1_000_000)
            pieces += (b"%b [%03d] %5d.%06d: %10d guest-clock: \n" % (thread, vcpu, *moment, weight_ns), stack)
        yield b"".join(pieces)


def _thread(origin: Origin) -> str:
    """``comm  pid/tid``; two blanks, as speedscope takes a comm of one letter together with one of them."""
    task = origin.task
    name = origin.process.name if task is None else task.comm
    word = _BLANK.sub("_", printable(name)) or "?"
    return f"{word}  {_NOBODY}/{_NOBODY}" if task is None else f"{word}  {task.tgid}/{task.pid}"


def _frames(profile: Profile, walk: Walk, known: dict[int, str]) -> bytes:
    """The lines of a stack. known: lines by their places, which stacks share."""
    lines = []
    for place in reversed(profile.places(walk)):
        line = known.get(id(place))
        if line is None:
            line = known[id(place)] = _frame(profile, place)
        lines.append(line)
    return "".join([*lines, "\n"]).encode()


def _frame(profile: Profile, place: Place) -> str:
    function = profile.functions[place.function]
    name = printable(function.name) or "?"
    if function.is_inlined:
        name += " (inlined)"
    elif place.offset is not None:
        name += f"+{place.offset:#x}"
    elif _LOOKS_LIKE_OFFSET.search(name):
        # Readers take off the offset, which here is part of the name.
        name += "+0x0"
    file = "[kernel.kallsyms]" if function.kind is FrameKind.KERNEL else _BLANK.sub("_", printable(function.module))
    return encodable(f"\t{place.pc:16x} {name}\n" if function.is_inlined else f"\t{place.pc:16x} {name} ({file})\n")
