"""What gdb prints, as records."""

from __future__ import annotations

from sampler.gdb.mi import MiReader, Record


def record(line: str) -> Record:
    """The record of one line."""
    reader = MiReader()
    reader.feed(line.encode() + b"\n")
    found = reader.next_record()
    assert found is not None
    return found
