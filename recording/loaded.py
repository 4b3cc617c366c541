"""What a kernel had loaded beside its image, as ``--raw`` keeps it: ``LoadedData`` to and from the named pieces of an unwinder.

Of the piece number N (``part``): ``loaded`` is a JSON object of its plain facts, ``loaded_text_0`` and so on its code by address,
``loaded_orc_ip`` and ``loaded_orc`` its unwind table, ``loaded_symbols`` its names (``SymbolTable.to_blob``).

``FrameData`` likewise: ``frames`` is a JSON object, ``frames_content`` the table, at its link-time address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from recording.model import FrameData, FrameKind, LoadedData, OrcData
from recording.symbols import SymbolTable

_MAX_LOADED = 1 << 16
_MAX_TEXTS = 64


def to_pieces(loaded: tuple[LoadedData, ...]) -> Iterator[tuple[str, int, int, bytes]]:
    """(name, part, address, content) of each piece to keep."""
    for part, data in enumerate(loaded):
        facts = {
            "name": data.name,
            "kind": data.kind.value,
            "ranges": data.ranges,
            "has_frame_pointer": data.has_frame_pointer,
            "copy_of": data.copy_of,
            "orc_version": data.orc.version if data.orc else None,
            "texts": len(data.text),
        }
        yield "loaded", part, 0, json.dumps(facts).encode("ascii")
        for number, (address, code) in enumerate(data.text):
            yield f"loaded_text_{number}", part, address, code
        if data.orc is not None:
            yield "loaded_orc_ip", part, data.orc.address, data.orc.ip_table
            yield "loaded_orc", part, 0, data.orc.entries
        if data.symbols is not None:
            yield "loaded_symbols", part, 0, data.symbols.to_blob()


def from_pieces(pieces: Mapping[tuple[str, int], tuple[int, bytes]]) -> tuple[LoadedData, ...]:
    """What ``to_pieces`` gave. Raises ValueError, KeyError, TypeError or BadRecordingError for pieces that are damaged."""
    loaded = []
    for part in range(_MAX_LOADED):
        head = pieces.get(("loaded", part))
        if head is None:
            break
        facts: dict[str, Any] = json.loads(head[1])
        version = facts["orc_version"]
        orc = None
        if version is not None:
            address, ip_table = pieces["loaded_orc_ip", part]
            orc = OrcData(int(version), address, ip_table, pieces["loaded_orc", part][1])
        symbols = pieces.get(("loaded_symbols", part))
        loaded.append(
            LoadedData(
                str(facts["name"]),
                FrameKind(facts["kind"]),
                tuple((int(start), int(end)) for start, end in facts["ranges"]),
                tuple(pieces[f"loaded_text_{number}", part] for number in range(min(int(facts["texts"]), _MAX_TEXTS))),
                orc,
                None if symbols is None else SymbolTable.from_blob(symbols[1]),
                bool(facts["has_frame_pointer"]),
                None if facts["copy_of"] is None else int(facts["copy_of"]),
            )
        )
    return tuple(loaded)


def frames_to_pieces(frames: tuple[FrameData, ...]) -> Iterator[tuple[str, int, int, bytes]]:
    """As ``to_pieces``."""
    for part, data in enumerate(frames):
        facts = {"is_debug": data.is_debug, "order": data.order, "parts": data.parts}
        yield "frames", part, 0, json.dumps(facts).encode("ascii")
        yield "frames_content", part, data.address, data.content


def frames_from_pieces(pieces: Mapping[tuple[str, int], tuple[int, bytes]]) -> tuple[FrameData, ...]:
    """As ``from_pieces``."""
    frames = []
    for part in range(_MAX_LOADED):
        head = pieces.get(("frames", part))
        if head is None:
            break
        facts: dict[str, Any] = json.loads(head[1])
        address, content = pieces["frames_content", part]
        parts = tuple((int(start), int(end), int(bias)) for start, end, bias in facts["parts"])
        frames.append(FrameData(content, address, bool(facts["is_debug"]), "big" if facts["order"] == "big" else "little", parts))
    return tuple(frames)
