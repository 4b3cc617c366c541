"""What a user calls a moment of a recording (``--since start_kernel``) becomes its guest running time.

A number is seconds (``3.5``), with ``ms`` or ``s`` behind it too. A milestone is told by its name. ``console:REGEX`` is the first
line of the console in which the pattern is found, ``function:NAME``, ``module:NAME`` and ``process:NAME`` are first sightings.
"""

from __future__ import annotations

import re

from recording.errors import UnknownMarkError
from recording.milestones import find_milestones
from recording.profile import CONSOLE, Appearance, Profile

_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(s|ms)?")
_SEEN = ("function", "module", "process")


def seconds_ns(text: str) -> int | None:
    """Nanoseconds of a plain time, None where the text is none."""
    match = _SECONDS.fullmatch(text.strip())
    return None if match is None else round(float(match[1]) * (1e6 if match[2] == "ms" else 1e9))


def find_mark(profile: Profile, text: str) -> int:
    """Guest running time since the recording's start, in nanoseconds. Looks at the whole recording, whatever the profile selects.

    Raises UnknownMarkError where the recording has no such moment.
    """
    plain_ns = seconds_ns(text)
    if plain_ns is not None:
        return plain_ns
    kind, _, what = text.partition(":")
    milestones = find_milestones(profile)
    for milestone in milestones:
        if milestone.name == text:
            return milestone.time_ns
    if kind == CONSOLE and what:
        return _console_ns(profile, what)
    if kind in _SEEN and what:
        return _seen_ns(profile, kind, what)
    names = ", ".join(milestone.name for milestone in milestones) or "none: it did not see its guest boot"
    raise UnknownMarkError(
        f"{text!r} is no moment of this recording; name seconds, console:REGEX, function:NAME, module:NAME, process:NAME "
        f"or a milestone (it has {names})"
    )


def _console_ns(profile: Profile, what: str) -> int:
    try:
        pattern = re.compile(what)
    except re.error as error:
        raise UnknownMarkError(f"{what!r} is no regular expression: {error}") from error
    lines = profile.unselected().console()
    for line in lines:
        if pattern.search(line.text):
            return line.running_time_ns
    why = f"none of the console's {len(lines)} lines" if lines else "no console was recorded, so no line of it"
    raise UnknownMarkError(f"{why} matches {what!r}; guestprof boot records the console of -nographic, -serial stdio or file:PATH")


def _seen_ns(profile: Profile, kind: str, what: str) -> int:
    wanted = {what, f"[{what}]"} if kind == "module" else {what}
    for seen in profile.unselected().appearances():
        if not wanted.isdisjoint(_names(seen, kind)):
            return seen.first_ns
    raise UnknownMarkError(f"no sample of this recording shows the {kind} {what!r}; guestprof report lists what there is")


def _names(seen: Appearance, kind: str) -> set[str]:
    if kind == "process":
        return {seen.origin.process.name, seen.origin.process.root_name}
    functions = seen.walk.stack.functions
    return {function.module if kind == "module" else function.name for function in functions}
