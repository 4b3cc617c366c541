"""Guest physical memory from a file (a ``pmemsave`` dump that starts at address 0) or from bytes at chosen addresses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from recording.errors import GuestMemoryError


class FileMemory:
    """A dump of all RAM. Close it after use."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size

    def close(self) -> None:
        os.close(self._file)

    def ram(self) -> Sequence[tuple[int, int]]:
        return [(0, self._size)]

    def read(self, address: int, size: int) -> bytes:
        data = os.pread(self._file, size, address) if 0 <= address < self._size else b""
        if len(data) != size:
            raise GuestMemoryError(f"no RAM at {address:#x}")
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        answers: list[bytes | None] = []
        for address, size in requests:
            try:
                answers.append(self.read(address, size))
            except GuestMemoryError:
                answers.append(None)
        return answers


class BytesMemory:
    """RAM made of pieces: {physical address: bytes}. Counts the batches that were asked for."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self.pieces = {address: bytearray(data) for address, data in sorted(pieces.items())}
        self.batches = 0

    def ram(self) -> Sequence[tuple[int, int]]:
        return [(address, address + len(data)) for address, data in self.pieces.items()]

    def _find(self, address: int, size: int) -> bytes | None:
        for start, data in self.pieces.items():
            if start <= address and address + size <= start + len(data):
                return bytes(data[address - start : address - start + size])
        return None

    def read(self, address: int, size: int) -> bytes:
        data = self._find(address, size)
        if data is None:
            raise GuestMemoryError(f"no RAM at {address:#x}")
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        self.batches += 1
        return [self._find(address, size) for address, size in requests]

    def write(self, address: int, data: bytes) -> None:
        for start, piece in self.pieces.items():
            if start <= address and address + len(data) <= start + len(piece):
                piece[address - start : address - start + len(data)] = data
                return
        raise ValueError(f"no RAM at {address:#x}")
