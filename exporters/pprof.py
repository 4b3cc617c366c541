"""A profile becomes a pprof file (profile.proto, gzipped), which ``go tool pprof``, speedscope, Pyroscope and Parca open.

Format: https://github.com/google/pprof/blob/main/proto/profile.proto. A sample has two values, its count and guest running time,
and labels: ``vcpu``, ``comm`` (the thread's name), ``pid`` (of its process), ``tid``, ``context``, ``system_call``. Beyond the
format ids are sequential from 1, which Parca asks for, and labels are text, as pprof drops a number that is 0.

The encoder is ours: of protobuf's wire format only numbers and lengths are needed, which is less than the descriptions that a
library would have to be given, and a library ties its users to its own versions.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable

from exporters.run import period_ns, started_ns
from exporters.text import halted_line, machine, printable, rate_line, stacks_line, user_line
from recording.model import Image
from recording.profile import Count, Origin, Place, Profile, Walk
from recording.source_paths import function_paths

_LEVEL = 6
"""Of compression: 9 takes several times as long for a few percent."""


def export_pprof(profile: Profile) -> bytes:
    """One gzipped message; samples of one stack and one set of labels are one."""
    return gzip.compress(_Document(profile).message(), _LEVEL, mtime=0)


class _Document:
    """The tables of a profile, whose rows know each other by number."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._strings: dict[str, int] = {"": 0}
        self._mappings: dict[tuple[int, str], int] = {}
        self._images: list[tuple[Image | None, str, list[int]]] = []
        self._locations: dict[int, bytes] = {}
        self._location_rows: list[bytes] = []
        self._functions: dict[int, int] = {}
        self._paths = function_paths(profile)
        self._function_rows: list[bytes] = []
        self._walks: dict[int, bytes] = {}
        self._labels: dict[tuple[int, int], bytes] = {}

    def message(self) -> bytes:
        """The whole profile as a message."""
        profile = self._profile
        sums: dict[tuple[bytes, bytes], list[int]] = {}
        spans: dict[int, int] = {}
        for count in profile.counts:
            key = (self._walk(count.walk), self._label_rows(count))
            values = sums.get(key)
            if values is None:
                sums[key] = [count.samples, count.weight_ns]
            else:
                values[0] += count.samples
                values[1] += count.weight_ns
            spans[count.vcpu] = spans.get(count.vcpu, 0) + count.weight_ns
        samples = [
            _bytes(2, locations + _bytes(2, _varint(number) + _varint(weight_ns)) + labels)
            for (locations, labels), (number, weight_ns) in sums.items()
        ]
        body = [
            self._value_type(1, "samples", "count"),
            self._value_type(1, "wall", "nanoseconds"),
            *samples,
            *self._mapping_rows(),
            *self._location_rows,
            *self._function_rows,
            _number(9, started_ns(profile.meta)),
            _number(10, max(spans.values(), default=0)),
            self._value_type(11, "wall", "nanoseconds"),
            _number(12, period_ns(profile.meta)),
            *[_number(13, self._string(line)) for line in _comments(profile)],
            _number(14, self._string("wall")),
        ]
        # The table comes last: all that is named is known then.
        strings = [_bytes(6, text.encode("utf-8", "backslashreplace")) for text in self._strings]
        return b"".join([*body, *strings])

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _value_type(self, field: int, kind: str, unit: str) -> bytes:
        return _bytes(field, _number(1, self._string(kind)) + _number(2, self._string(unit)))

    def _walk(self, walk: Walk) -> bytes:
        """The field of a sample that names its locations, leaf first."""
        known = self._walks.get(id(walk))
        if known is None:
            frames = reversed(self._profile.frame_places(walk))
            known = self._walks[id(walk)] = _bytes(1, b"".join([self._location(places) for places in frames]))
        return known

    def _location(self, places: tuple[Place, ...]) -> bytes:
        """The encoded id of a location: a frame with what is inlined there, innermost first as the format wants it."""
        place = places[0]
        known = self._locations.get(id(place))
        if known is None:
            index, mapping = len(self._location_rows) + 1, self._mapping(place)
            known = self._locations[id(place)] = _varint(index)
            line = b"".join(
                [_bytes(4, _number(1, self._function(each.function)) + _number(2, each.line or 0)) for each in reversed(places)]
            )
            address = _number(3, place.lookup_pc)
            self._location_rows.append(_bytes(4, _number(1, index) + _number(2, mapping) + address + line))
            addresses = self._images[mapping - 1][2]
            addresses[:] = (min(addresses[0], place.lookup_pc), max(addresses[1], place.lookup_pc))
        return known

    def _mapping(self, place: Place) -> int:
        """One for each image, and for each kind of code that has none."""
        name = self._profile.functions[place.function].module
        key = (id(place.image), name)
        known = self._mappings.get(key)
        if known is None:
            self._images.append((place.image, name, [place.lookup_pc, place.lookup_pc]))
            known = self._mappings[key] = len(self._images)
        return known

    def _mapping_rows(self) -> Iterable[bytes]:
        """Code of the kernel and its modules at its run-time addresses, files at their own, from 0 to beyond what was seen."""
        for index, (image, name, (lowest, highest)) in enumerate(self._images):
            ranges = () if image is None else image.ranges
            start = min((low for low, _ in ranges), default=0 if image is not None else lowest)
            limit = max((high for _, high in ranges), default=highest + 1)
            fields = [_number(1, index + 1), _number(2, start), _number(3, limit), _number(5, self._string(printable(name)))]
            if image is not None and image.build_id is not None:
                fields.append(_number(6, self._string(image.build_id)))
            fields.append(_number(7, 1))  # has_functions: nothing is to be looked up
            yield _bytes(3, b"".join(fields))

    def _function(self, index: int) -> int:
        known = self._functions.get(index)
        if known is None:
            function = self._profile.functions[index]
            known = self._functions[index] = len(self._functions) + 1
            name = self._string(printable(function.name))
            module = self._string(printable(self._paths.get(index, function.module)))
            self._function_rows.append(_bytes(5, _number(1, known) + _number(2, name) + _number(3, name) + _number(4, module)))
        return known

    def _label_rows(self, count: Count) -> bytes:
        key = (count.vcpu, id(count.origin))
        known = self._labels.get(key)
        if known is None:
            known = self._labels[key] = b"".join(
                [
                    _bytes(3, _number(1, self._string(name)) + _number(2, self._string(printable(value))))
                    for name, value in _labels(count.vcpu, count.origin)
                    if value
                ]
            )
        return known


def _labels(vcpu: int, origin: Origin) -> list[tuple[str, str]]:
    task, call = origin.task, origin.system_call
    labels = [("vcpu", str(vcpu)), ("context", origin.context.value)]
    if task is not None:
        labels += [("comm", task.comm), ("pid", str(task.tgid)), ("tid", str(task.pid))]
    if call is not None:
        labels.append(("system_call", call.label))
    return labels


def _comments(profile: Profile) -> list[str]:
    quality = profile.quality()
    lines = [machine(profile.meta), f"rate: {rate_line(quality)}", f"halted: {halted_line(quality)}"]
    return [*lines, f"stacks: {stacks_line(quality)}", *filter(None, [user_line(quality)])]


def _varint(number: int) -> bytes:
    """A number as protobuf writes it, 7 bits a byte; a negative one in its 64-bit complement."""
    if 0 <= number < 0x80:
        return _SMALL[number]
    number &= 0xFFFF_FFFF_FFFF_FFFF
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


_SMALL = [bytes([number]) for number in range(0x80)]


def _number(field: int, number: int) -> bytes:
    """A field of a number; none where it is 0, which readers assume."""
    return _varint(field << 3) + _varint(number) if number else b""


def _bytes(field: int, data: bytes) -> bytes:
    """A field of text, of a message or of packed numbers."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data
