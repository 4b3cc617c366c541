"""The HTML report taken apart again: what its data block holds, read by other code than the page's own."""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode
from typing import Any


def data_of(page: bytes) -> dict[str, Any]:
    """The page's data, columns as lists of numbers."""
    found = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=\s]*)</script>', page.decode())
    assert found is not None
    raw = zlib.decompress(b64decode(found[1]))
    size = int.from_bytes(raw[:4], "little")
    rest = raw[4 + size :]

    def read(value: object) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"at", "count", "bytes"}:
                at, count, width = value["at"], value["count"], value["bytes"]
                planes = [rest[at + place * count : at + (place + 1) * count] for place in range(width)]
                return [sum(plane[index] << 8 * place for place, plane in enumerate(planes)) for index in range(count)]
            return {key: read(item) for key, item in value.items()}
        return [read(item) for item in value] if isinstance(value, list) else value

    return {key: read(value) for key, value in json.loads(raw[4 : 4 + size]).items()}


def readable(page: bytes) -> bytes:
    """The page's data as JSON, a line for each of its parts: for golden files."""
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data_of(page).items())
    return f"{{\n{rows}\n}}\n".encode()


def samples_of(data: dict[str, Any], run: int = 0) -> list[tuple[int, int, int, int, int]]:
    """Of each sample of a run: vCPU, stack, moment, weight (nanoseconds), how many it stands for."""
    rows = []
    for track in data["runs"][run]["vcpus"]:
        now = 0
        for stack, weight, gap, count in zip(track["stack"], track["weight"], track["gap"], track["count"], strict=True):
            now += (-(gap + 1) // 2 if gap % 2 else gap // 2) + weight
            rows.append((track["vcpu"], stack, now, weight, count))
    return rows


def paths_of(data: dict[str, Any]) -> list[tuple[int, ...]]:
    """The path of functions from the root to each node."""
    paths: list[tuple[int, ...]] = []
    path: list[int] = []
    for depth, function in zip(data["nodes"]["depth"], data["nodes"]["function"], strict=True):
        del path[depth:]
        path.append(function)
        paths.append(tuple(path))
    return paths
