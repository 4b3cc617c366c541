"""Run by gdb: addresses in a file → functions and lines there, innermost first, as gdb's own backtraces have them.

A block of a function within the block of another is an inlined call; gdb's symbol of it has the line of the call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gdb  # type: ignore[import-untyped]


def frames_at(address: int) -> list[list[Any]]:
    """[[function, file, line], ...]; the function is null where gdb knows a line only."""
    place = gdb.find_pc_line(address)
    path, line = (place.symtab.filename if place.symtab else None), place.line
    frames = []
    block = gdb.block_for_pc(address)
    while block is not None and not block.is_static and not block.is_global:
        if block.function is not None:
            frames.append([block.function.linkage_name or block.function.name, path, line])
            path, line = block.function.symtab.filename, block.function.line
        block = block.superblock
    return frames or [[None, path, line]]


wanted = json.loads(Path(os.environ["BENCH_ADDRESSES"]).read_text("ascii"))
Path(os.environ["BENCH_ANSWERS"]).write_text(json.dumps([frames_at(address) for address in wanted]), "utf-8")
