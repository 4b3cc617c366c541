"""Control groups and the words of systemd on the console become its units: how long the start of each took, and what it used.

systemd names the group of a unit by the unit (``/system.slice/ssh.service``, systemd.slice(5)). On the console it says when it
begins and ends to start one, as its own log or as status lines, unless ``quiet`` or ``systemd.show_status=0`` tell it not to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from recording.guest_clock import GuestClocks
from recording.model import Event
from recording.seen import Seen, SeenGroup, seen_first
from recording.stamps import stamp_of

_TYPES = "service|scope|slice|socket|mount|automount|swap|device|target|path|timer"
_UNIT = re.compile(rf"[^/\s]+\.(?:{_TYPES})")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")
_LOG = re.compile(r"\[ *\d+\.\d+\](?:\[[^]]*\])? systemd\[1\]: ")
_STARTS = ("Starting ", "Mounting ", "Activating swap ")
"""https://github.com/systemd/systemd: ``status_message_formats`` of each type of unit."""
_ENDS = re.compile(r"(?:\[[^]]*\] )?(?:Started|Finished|Mounted|Activated swap|Listening on|Reached target|Created slice|Set up) ")
_FAILS = re.compile(r"(?:\[[^]]*\] )?Failed to (?:start|mount|activate swap|listen on) ")
_ELLIPSIS = "…"
_MAX_NAMES = 1 << 12


@dataclass(slots=True)
class Unit:
    """A unit of systemd.

    slice: that it is in, None where it was not seen in a group. seen: its tasks, those of groups below its own too.
    starting_ns, started_ns: guest running time when systemd said that it starts it, and that it has, or could not (``failed``);
    None where it did not say it. starting_stamp_ns, started_stamp_ns: by printk's stamps, where it said it in the kernel's log.
    """

    name: str
    slice: str | None = None
    seen: Seen | None = None
    starting_ns: int | None = None
    started_ns: int | None = None
    starting_stamp_ns: int | None = None
    started_stamp_ns: int | None = None
    failed: bool = False

    @property
    def start_ns(self) -> int | None:
        """How long its start took, None where that is not known."""
        return None if self.starting_ns is None or self.started_ns is None else self.started_ns - self.starting_ns


@dataclass(frozen=True, slots=True)
class _Said:
    """systemd's words of a unit, whose name may be cut in its middle."""

    time_ns: int
    stamp_ns: int | None
    begins: bool
    failed: bool
    name: str


@dataclass(slots=True)
class _Names:
    """Whole names, and what a cut one is short for."""

    known: set[str] = field(default_factory=set)

    def whole(self, name: str) -> str | None:
        head, cut, tail = name.partition(_ELLIPSIS)
        if not cut:
            return name
        # Where the description is cut, too, what is left of it ends in no unit.
        end = tail if _UNIT.fullmatch(f"x{tail}") else ""
        fits = [known for known in self.known if known.startswith(head) and known.endswith(end)]
        return fits[0] if len(fits) == 1 else None


def units_of(groups: Iterable[SeenGroup], console: Sequence[Event]) -> list[Unit]:
    """Those whose start took longest first, then by the time that they used."""
    units: dict[str, Unit] = {}
    for group in groups:
        found = unit_of(group.path)
        if found is None:
            continue
        name, slice_ = found
        unit = units.setdefault(name, Unit(name, slice_))
        if unit.seen is None:
            unit.seen = seen_first(group.seen)
        unit.seen.add(group.seen)
    said = list(_said(console))
    names = _Names({*units, *(each.name for each in said if _ELLIPSIS not in each.name)})
    for each in said:
        whole = names.whole(each.name)
        if whole is None or len(units) >= _MAX_NAMES:
            continue
        unit = units.setdefault(whole, Unit(whole))
        if each.begins:
            if unit.starting_ns is None:
                unit.starting_ns, unit.starting_stamp_ns = each.time_ns, each.stamp_ns
        elif unit.started_ns is None:
            unit.started_ns, unit.started_stamp_ns, unit.failed = each.time_ns, each.stamp_ns, each.failed
    return sorted(units.values(), key=_order)


def start_by_guest(unit: Unit, clocks: GuestClocks) -> int | None:
    """How long a unit's start took by printk's stamps, else by the guest's clock when its lines came; None where unknown."""
    if unit.starting_stamp_ns is not None and unit.started_stamp_ns is not None:
        return unit.started_stamp_ns - unit.starting_stamp_ns
    if unit.starting_ns is None or unit.started_ns is None:
        return None
    start_ns, end_ns = clocks.at(unit.starting_ns), clocks.at(unit.started_ns)
    return None if start_ns is None or end_ns is None else end_ns - start_ns


def _order(unit: Unit) -> tuple[int, int, int, str]:
    used_ns = 0 if unit.seen is None else unit.seen.weight_ns
    first_ns = unit.seen.first_ns if unit.seen is not None else unit.started_ns or unit.starting_ns or 0
    return -(unit.start_ns or 0), -used_ns, first_ns, unit.name


def unit_of(path: str) -> tuple[str, str | None] | None:
    """The unit that a group's path belongs to, and the slice that it is in; None of groups that are nobody's.

    ``/user.slice/user-0.slice/user@0.service/app.slice/x.service``: x.service, in app.slice.
    """
    steps = [step for step in path.split("/") if _UNIT.fullmatch(step)]
    if not steps:
        return None
    slices = [step for step in steps[:-1] if step.endswith(".slice")]
    return steps[-1], slices[-1] if slices else None


def _said(console: Iterable[Event]) -> Iterator[_Said]:
    for line in console:
        text = _LOG.sub("", _ESCAPE.sub("", line.text)).strip()
        begins = next((word for word in _STARTS if text.startswith(word)), None)
        if begins is not None:
            rest, failed = text.removeprefix(begins), False
        elif (ends := _ENDS.match(text) or _FAILS.match(text)) is not None:
            rest, failed = text[ends.end() :], "Failed to" in ends[0]
        else:
            continue
        # "ssh.service - OpenBSD Secure Shell server..."; older ones, and those set so, have the description alone.
        name = rest.partition(" - ")[0].removesuffix(".").removesuffix("...").strip()
        if _UNIT.fullmatch(name) or (_ELLIPSIS in name and " " not in name.partition(_ELLIPSIS)[0]):
            yield _Said(line.running_time_ns, stamp_of(line.text), begins is not None, failed, name)
