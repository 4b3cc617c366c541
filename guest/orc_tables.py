"""The kernel's own ORC unwind tables, by its linker symbols, as raw bytes (ORC_UNWIND_TABLE of vmlinux.lds.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from guest.memory import Steps
from guest.paging import AddressSpace
from recording.errors import BadImageError, GuestMemoryError
from recording.symbols import SymbolTable
from unwind.orc import OrcTable, detect_version

_MAX_SIZE = 1 << 26
_MAX_HEADER = 64


@dataclass(frozen=True, slots=True)
class OrcBytes:
    """The tables as they lie in memory; place-relative, so KASLR does not change them. header is None before 6.3.10."""

    header: bytes | None
    ip_table: bytes
    entries: bytes

    def parse(self, symbols: SymbolTable) -> OrcTable:
        """The table for look-ups. Raises BadImageError for an unknown format."""
        place = _range(symbols, "orc_unwind_ip", _MAX_SIZE)
        if place is None:
            raise BadImageError("the kernel's symbols do not say where its ORC unwind tables are")
        return OrcTable.parse(self.ip_table, place[0], self.entries, detect_version(self.header, self.entries))

    def fits(self, symbols: SymbolTable) -> bool:
        """Whether the tables have the sizes that the symbols say."""
        places = [_range(symbols, name, _MAX_SIZE) for name in ("orc_unwind_ip", "orc_unwind")]
        return [place and place[1] for place in places] == [len(self.ip_table), len(self.entries)]

    def to_sections(self) -> dict[str, bytes]:
        """Named bytes for the cache."""
        header = {} if self.header is None else {"orc_header": self.header}
        return {"orc_unwind_ip": self.ip_table, "orc_unwind": self.entries, **header}

    @classmethod
    def from_sections(cls, sections: Mapping[str, bytes]) -> OrcBytes | None:
        """What ``to_sections`` gave, None where it is not there."""
        if "orc_unwind_ip" not in sections or "orc_unwind" not in sections:
            return None
        return cls(sections.get("orc_header"), sections["orc_unwind_ip"], sections["orc_unwind"])


def _range(symbols: SymbolTable, name: str, limit: int) -> tuple[int, int] | None:
    """(address, size) of a section by its symbols ``__start_NAME`` and ``__stop_NAME``; None without them.

    Raises BadImageError for a size that no kernel has.
    """
    start, stop = symbols.find(f"__start_{name}"), symbols.find(f"__stop_{name}")
    if start is None or stop is None:
        return None
    size = stop.address - start.address
    if not 0 <= size <= limit:
        raise BadImageError(f"the kernel's section {name} at {start.address:#x} has {size} bytes, which cannot be")
    return start.address, size


def read_orc(space: AddressSpace, symbols: SymbolTable) -> Steps[OrcBytes]:
    """Read the tables. Raises BadImageError where the kernel has none or they cannot be read."""
    ip_range = _range(symbols, "orc_unwind_ip", _MAX_SIZE)
    entry_range = _range(symbols, "orc_unwind", _MAX_SIZE)
    header_range = _range(symbols, "orc_header", _MAX_HEADER)
    if ip_range is None or entry_range is None:
        raise BadImageError("the kernel was built without ORC unwind tables; its stacks are walked by frame pointers")
    try:
        header = space.read(*header_range) if header_range else None
        ip_table = yield from space.read_chunks(*ip_range)
        entries = yield from space.read_chunks(*entry_range)
    except GuestMemoryError as error:
        raise BadImageError(f"the kernel's ORC unwind tables cannot be read: {error}") from error
    return OrcBytes(header, ip_table, entries)
