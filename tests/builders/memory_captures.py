"""Memory that was read of a live guest, with the page tables that lead to it: saved, and loaded as a memory of its own."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guest.memory import PhysicalMemory
from guest.user.contents import merge_ranges
from recording.symbols import SymbolTable
from tests.builders.file_memory import BytesMemory
from unwind.arch import PageTables

SYMBOLS = ("init_task", "_stext", "_etext", "_text", "_end")
"""What the searches ask for by name."""


@dataclass(frozen=True, slots=True)
class MemoryCapture:
    """tables, user_tables: shapes of the kernel's page tables and of processes'. pieces: bytes by physical address, ascending."""

    architecture: str
    release: str
    root: int
    tables: PageTables
    user_tables: PageTables
    symbols: dict[str, int]
    pieces: tuple[tuple[int, bytes], ...]

    @property
    def memory(self) -> BytesMemory:
        """What was read."""
        return BytesMemory(dict(self.pieces))

    @property
    def symbol_table(self) -> SymbolTable:
        """What was asked for by name."""
        return SymbolTable.from_symbols((address, "D", name) for name, address in self.symbols.items())


class RecordingMemory:
    """Passes on what another memory has, and keeps it."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._read: dict[tuple[int, int], bytes] = {}

    def ram(self) -> Sequence[tuple[int, int]]:
        return self._memory.ram()

    def read(self, address: int, size: int) -> bytes:
        data = self._memory.read(address, size)
        self._read[address, size] = data
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        answers = self._memory.read_many(requests)
        self._read |= {request: data for request, data in zip(requests, answers, strict=True) if data is not None}
        return answers

    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        """All that was read, ascending, not overlapping."""
        return merge_ranges([(address, data) for (address, _size), data in self._read.items()])


def save_memory(path: Path, capture: MemoryCapture) -> None:
    """Write a capture."""
    document = asdict(capture) | {"pieces": [[address, data.hex()] for address, data in capture.pieces]}
    path.write_bytes(lzma.compress(json.dumps(document).encode("ascii")))


def load_memory(path: Path) -> MemoryCapture:
    """Read a capture."""
    document: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
    pieces = tuple((address, bytes.fromhex(data)) for address, data in document["pieces"])
    shapes = {name: PageTables(**_tupled(document[name])) for name in ("tables", "user_tables")}
    return MemoryCapture(**(document | shapes | {"pieces": pieces}))


def _tupled(fields: dict[str, Any]) -> dict[str, Any]:
    def tupled(value: Any) -> Any:
        return tuple(map(tupled, value)) if isinstance(value, list) else value

    return {name: tupled(value) for name, value in fields.items()}
