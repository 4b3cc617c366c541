"""A function's time by source line, or by address: pure functions of a profile."""

from __future__ import annotations

from dataclasses import dataclass

from recording.errors import UnknownFunctionError
from recording.model import FrameKind, Image
from recording.neighbours import unknown_function
from recording.profile import Place, Profile

_TRANSLATING = "tcg"


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a function. path, line: of the source, None where that is not known, or rows are by address.

    image, address: one that samples have (``Frame.lookup_pc``, in the image's own addresses).
    offset: of the address from the function's start, None where that is not known.
    """

    path: str | None
    line: int | None
    image: Image | None
    address: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class SpotTotal:
    """What a place took. self_ns: while it was the innermost; total_ns, samples: while it was anywhere on the stack."""

    spot: Spot
    self_ns: int
    total_ns: int
    samples: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """Where in a function its time was spent; rows by path and line, or by address.

    module, kind: of the function, "" and UNKNOWN where several modules have one of its name. weight_ns: of all selected samples.
    falls_on_blocks: QEMU translated the guest's code, so that halts fell on starts of translation blocks.
    """

    function: str
    module: str
    kind: FrameKind
    by_line: bool
    self_ns: int
    total_ns: int
    samples: int
    weight_ns: int
    rows: tuple[SpotTotal, ...]
    falls_on_blocks: bool


def annotate(profile: Profile, name: str, *, by_line: bool | None = None) -> Annotation:
    """The places of a function, where it is inlined, too. by_line: None for lines where any is known.

    Raises UnknownFunctionError.
    """
    wanted = {index for index, function in enumerate(profile.functions) if function.name == name}
    counts = [count for count in profile.counts if not wanted.isdisjoint(count.stack.indexes)]
    if not counts:
        raise UnknownFunctionError(unknown_function(profile, name))
    walks = {id(count.walk): list(profile.places(count.walk)) for count in counts}
    if by_line is None:
        by_line = any(place.line is not None for places in walks.values() for place in places if place.function in wanted)
    spots: dict[tuple[object, ...], Spot] = {}
    sums: dict[tuple[object, ...], list[int]] = {}
    own_ns = total_ns = samples = 0
    for count in counts:
        places = walks[id(count.walk)]
        keys = [_key(place, by_line=by_line) for place in places if place.function in wanted]
        for place in places:
            if place.function in wanted:
                spots.setdefault(_key(place, by_line=by_line), _spot(place, by_line=by_line))
        for key in set(keys):
            row = sums.setdefault(key, [0, 0, 0])
            row[1] += count.weight_ns
            row[2] += count.samples
        if places[-1].function in wanted:
            sums[keys[-1]][0] += count.weight_ns
            own_ns += count.weight_ns
        total_ns += count.weight_ns
        samples += count.samples
    homes = {(profile.functions[index].module, profile.functions[index].kind) for index in wanted}
    module, kind = homes.pop() if len(homes) == 1 else ("", FrameKind.UNKNOWN)
    rows = sorted(
        (SpotTotal(spots[key], *row) for key, row in sums.items()),
        key=lambda row: (row.spot.path or "", row.spot.line or 0, row.spot.image.name if row.spot.image else "", row.spot.address),
    )
    translates = str(profile.meta.get("accelerator", "")).lower() == _TRANSLATING
    return Annotation(name, module, kind, by_line, own_ns, total_ns, samples, profile.weight_ns, tuple(rows), translates)


def _key(place: Place, *, by_line: bool) -> tuple[object, ...]:
    return (place.path, place.line) if by_line else (id(place.image), place.lookup_pc)


def _spot(place: Place, *, by_line: bool) -> Spot:
    offset = None if place.offset is None else place.offset - (place.pc - place.lookup_pc)
    return Spot(place.path if by_line else None, place.line if by_line else None, place.image, place.lookup_pc, offset)
