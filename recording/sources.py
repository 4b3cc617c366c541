"""What debug information says of a recording's code is put into its file: source lines, inlined functions, better symbols.

The samples are never touched. Doing it again replaces what was there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recording import files
from recording.errors import BadRecordingError
from recording.model import Frame, Image, SourceLine
from recording.names import Namer
from recording.reader import Recording
from recording.schema import SOURCE_TABLES, storable_text, to_signed
from recording.symbols import SymbolTable


@dataclass(frozen=True, slots=True)
class ImageSources:
    """What became known of an image.

    lines: by address, in the image's addresses: the functions there, innermost first, the one that the compiler has not
    inlined last.
    symbols, build_id: None to leave what is known.
    """

    lines: Mapping[int, Sequence[SourceLine]]
    symbols: SymbolTable | None = None
    build_id: str | None = None


def used_addresses(recording: Recording) -> dict[int, set[int]]:
    """By the number of an image: the addresses (``Frame.lookup_pc``) at which samples have frames in it.

    Raises BadRecordingError where the recording is damaged.
    """
    images = recording.images()
    namer = Namer(images)
    numbers = {id(image): index for index, image in enumerate(images)}
    callchains = recording.callchains()
    seen: set[tuple[int, int]] = set()
    found: dict[int, set[int]] = {}
    for boot, callchain in recording.walks():
        frames = callchains.get(callchain)
        for frame in () if frames is None else frames.frames:
            if (id(frame), boot) in seen:
                continue
            seen.add((id(frame), boot))
            number = _number(frame, namer.image(frame, boot), numbers)
            if number is not None:
                found.setdefault(number, set()).add(frame.lookup_pc)
    return found


def _number(frame: Frame, image: Image | None, numbers: Mapping[int, int]) -> int | None:
    return frame.image if frame.image is not None else None if image is None else numbers[id(image)]


def save_sources(path: Path, sources: Mapping[int, ImageSources]) -> None:
    """Put what is known of images, by their numbers, into a recording: all of it or nothing.

    Raises BadRecordingError where the file is no recording or cannot be written.
    """
    connection = files.open_to_change(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for statement in SOURCE_TABLES:
            connection.execute(statement)
        # Places in source files that no image refers to any more go with the rest.
        connection.executemany("DELETE FROM source_lines WHERE image = ?", [(number,) for number in sources])
        known = dict(connection.execute("SELECT path, id FROM source_files"))
        rows = list(_rows(sources, known))
        connection.executemany(
            "INSERT OR IGNORE INTO source_files VALUES (?, ?)", [(number, name) for name, number in known.items()]
        )
        connection.executemany("INSERT INTO source_lines VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "UPDATE images SET symbols = coalesce(?, symbols), build_id = coalesce(?, build_id) WHERE id = ?",
            [(None if each.symbols is None else each.symbols.to_blob(), each.build_id, number) for number, each in sources.items()],
        )
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        message = f"cannot write {path}: {error}; nothing in it has changed, make room and see that nobody else writes to it"
        raise BadRecordingError(message) from error
    finally:
        connection.close()


def _rows(sources: Mapping[int, ImageSources], known: dict[str, int]) -> Iterator[tuple[object, ...]]:
    """Rows of ``source_lines``; files that are met are given a number."""
    for number, each in sources.items():
        for address, lines in each.lines.items():
            for depth, line in enumerate(lines):
                file = None if line.path is None else known.setdefault(storable_text(line.path), len(known))
                name = None if line.name is None else storable_text(line.name)
                yield number, to_signed(address), depth, name, file, line.line
