"""When something was in samples, first and last, and how much of them had it."""

from __future__ import annotations

from dataclasses import dataclass

from recording.profile import Appearance


@dataclass(slots=True)
class Seen:
    """When something was in a sample. Times are guest running time.

    after_ns: the last halt before the first sighting; None where it was seen in the first halt that is selected.
    samples, weight_ns: with it anywhere on the stack, on all vCPUs.
    """

    first_ns: int
    after_ns: int | None
    last_ns: int
    samples: int = 0
    weight_ns: int = 0

    def add(self, seen: Appearance | Seen) -> None:
        """One more sighting of it; the first comes first."""
        self.last_ns = max(self.last_ns, seen.last_ns)
        self.samples += seen.samples
        self.weight_ns += seen.weight_ns


@dataclass(frozen=True, slots=True)
class SeenGroup:
    """A control group, such as the unit of a service."""

    path: str
    seen: Seen


def seen_first(each: Appearance | Seen) -> Seen:
    """A sighting whose samples are not counted yet."""
    return Seen(each.first_ns, each.after_ns if isinstance(each, Seen) else each.before_ns, each.last_ns)
