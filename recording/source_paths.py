"""Where in the source a profile's functions and their time are: pure functions of a profile with source lines."""

from __future__ import annotations

from collections.abc import Mapping

from recording.model import FrameKind
from recording.names import Function
from recording.profile import Profile, Walk
from recording.views import Total


def function_paths(profile: Profile) -> dict[int, str]:
    """The source file of functions by their place in ``Profile.functions``: the one that most of their frames are in."""
    found: dict[int, dict[str, int]] = {}
    for walk in _walks(profile).values():
        for place in profile.places(walk):
            if place.path is not None:
                paths = found.setdefault(place.function, {})
                paths[place.path] = paths.get(place.path, 0) + 1
    return {function: max(sorted(paths), key=paths.__getitem__) for function, paths in found.items()}


def function_lines(profile: Profile, paths: Mapping[int, str]) -> dict[int, int]:
    """Of the lines of functions in their source files (``function_paths``) the one at which most of their time was, with what they
    called there: for formats in which a function has one place in the source.
    """
    weights: dict[int, int] = {}
    for count in profile.counts if profile.has_lines else ():
        weights[id(count.walk)] = weights.get(id(count.walk), 0) + count.weight_ns
    found: dict[int, dict[int, int]] = {}
    for key, walk in _walks(profile).items():
        for place in profile.places(walk):
            if place.line is not None and place.path == paths.get(place.function):
                lines = found.setdefault(place.function, {})
                lines[place.line] = lines.get(place.line, 0) + weights[key]
    return {function: max(sorted(lines), key=lines.__getitem__) for function, lines in found.items()}


def function_sources(profile: Profile) -> dict[Function, str]:
    """``path:line`` of functions by both of the above; the path alone where no line is known."""
    paths = function_paths(profile)
    lines = function_lines(profile, paths)
    return {profile.functions[index]: f"{path}:{lines[index]}" if index in lines else path for index, path in paths.items()}


def _walks(profile: Profile) -> dict[int, Walk]:
    """Distinct walks by their identity; none where no lines are known."""
    return {id(count.walk): count.walk for count in profile.counts} if profile.has_lines else {}


def line_totals(profile: Profile) -> list[Total]:
    """What each source line took: self time where it was the innermost. Frames without a line are one row for each module."""
    rows: dict[tuple[str, str], list[int]] = {}
    kinds: dict[tuple[str, str], FrameKind] = {}
    names: dict[int, tuple[str, str]] = {}
    for count in profile.counts:
        keys: list[tuple[str, str]] = []
        for place in profile.places(count.walk):
            key = names.get(id(place))
            if key is None:
                function = profile.functions[place.function]
                name = "[no line]" if place.line is None or place.path is None else f"{place.path}:{place.line}"
                key = names[id(place)] = (name, function.module)
                kinds[key] = function.kind
            keys.append(key)
        rows.setdefault(keys[-1], [0, 0, 0])[0] += count.weight_ns
        for key in set(keys):
            row = rows.setdefault(key, [0, 0, 0])
            row[1] += count.weight_ns
            row[2] += count.samples
    return [
        Total(name, module, kinds[name, module], own, total, samples)
        for (name, module), (own, total, samples) in sorted(rows.items())
    ]
