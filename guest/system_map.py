"""``System.map``, the names that a kernel was linked with: for guests whose kernel names only its code (no CONFIG_KALLSYMS_ALL)."""

from __future__ import annotations

import re
from pathlib import Path

from guest.elf.placement import find_moves
from guest.structs import Structs
from guest.words import Words
from recording.errors import BadImageError
from recording.symbols import SymbolTable

_LINE = re.compile(r"([0-9a-f]{8,16}) ([a-zA-Z]) (\S+)")
_CODE = frozenset("tTwW")
_FIXED = 1 << 24
"""Below this lie offsets into per-CPU areas and constants, which are not moved with the kernel."""
_LEAST = 100
_SAMPLED = 400
_MASK = (1 << 64) - 1


def is_system_map(path: Path) -> bool:
    """Whether a file begins as one does."""
    try:
        with path.open("rb") as file:
            return _LINE.match(file.read(100).decode("ascii", "replace")) is not None
    except OSError:
        return False


class SystemMap:
    """One file, read. It has no build ID: the guest's own symbols tell whether it is of the guest's kernel."""

    build_id: str | None = None
    has_structs = False

    def __init__(self, path: Path) -> None:
        """Raises BadImageError where it cannot be read or has too few names (distributions ship files that only name a package)."""
        try:
            text = path.read_text("ascii", "replace")
        except OSError as error:
            raise BadImageError(f"cannot read {path}: {error.strerror}; name the System.map of the guest's kernel") from error
        self._rows = [(int(address, 16), kind, name) for address, kind, name in _LINE.findall(text)]
        if len(self._rows) < _LEAST:
            raise BadImageError(f"{path} has {len(self._rows)} names; name the System.map of the kernel's -dbg package")

    def fits(self, _build_id: str | None) -> bool:
        """Nothing speaks against it before symbols are compared."""
        return True

    def with_data(self, symbols: SymbolTable) -> SymbolTable | None:
        """See ``guest.host_kernel.HostKernel``."""
        names: dict[str, int] = {}
        for address, kind, name in self._rows:
            if kind in _CODE:
                names[name] = -1 if name in names else address
        unique = [(name, 0, address) for name, address in names.items() if address >= 0]
        moved = find_moves(symbols, unique[:: max(1, len(unique) // _SAMPLED)])
        if moved is None:
            return None
        rows = [(symbol.address, symbol.kind, symbol.name) for symbol in symbols]
        known = {name for _, _, name in rows}
        rows += [
            ((address if address < _FIXED else address + moved[0]) & _MASK, kind.lower(), name)
            for address, kind, name in self._rows
            if kind not in _CODE and name not in known
        ]
        return SymbolTable.from_symbols(rows)

    def structs(self, _words: Words, _page_size: int) -> Structs:
        """It has none."""
        raise BadImageError("a System.map describes no structs; name a vmlinux with debug information")
