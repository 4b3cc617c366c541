"""When each kernel function was first seen on a stack, in order of time: which phase a boot had reached when.

    python examples/first_seen.py boot.guestprof | head -50

A sampling profiler sees what takes time: a function that is done within a period may never show up.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recording.model import FrameKind
from recording.profile import Profile
from recording.reader import Recording
from recording.timeline import timeline_of


def first_sightings(path: Path) -> dict[str, int]:
    """Function -> guest running time of its first sighting in nanoseconds, earliest first."""
    with Recording.open(path) as recording:
        seen = timeline_of(Profile(recording)).functions
    return {each.function.name: each.seen.first_ns for each in seen if each.function.kind is FrameKind.KERNEL}


def main() -> None:
    """Print the functions of the recording named on the command line."""
    for name, time_ns in first_sightings(Path(sys.argv[1])).items():
        print(f"{time_ns / 1e9:9.3f} s  {name}")


if __name__ == "__main__":
    main()
