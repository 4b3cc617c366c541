"""The kernel's table of initcalls, by the symbols in it, becomes the level of each function that initialises something.

The table lies in ``.initcall*.init`` (include/asm-generic/vmlinux.lds.h), one part a level, each begun by a symbol of its own
(``__initcall4_start``). Its entries have symbols that end in their function's name and their level (include/linux/init.h):
``__initcall__kmod_acpi__429_1423_acpi_init4``, before 5.11 ``__initcall_acpi_init4``. Kernels without KALLSYMS_ALL keep neither.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable

from recording.model import FrameKind, Image
from recording.symbols import SymbolTable

SYMBOL_PREFIX = "__initcall"
"""How the symbols of the table begin; no function's name does."""
LEVELS = ("early", "pure", "core", "postcore", "arch", "subsys", "fs", "rootfs", "device", "late")
"""In the order in which they run."""
_IDS = ("early", "0", "1", "2", "3", "4", "5", "rootfs", "6", "7")
_STARTS = ("__initcall_start", *(f"__initcall{name}_start" for name in _IDS[1:]))
_KMOD = re.compile(r"_kmod_.+?__\d+_\d+_")


def initcall_levels(images: Iterable[Image]) -> dict[int, dict[str, str]]:
    """By boot: the level of each initcall by its function's name, nothing where the kernel's symbols do not tell.

    A name that several levels have is left out.
    """
    return {image.boot: _levels(image.symbols) for image in images if image.kind is FrameKind.KERNEL and image.symbols is not None}


def _levels(symbols: SymbolTable) -> dict[str, str]:
    starts = [symbols.find(name) for name in _STARTS]
    end = symbols.find("__initcall_end")
    addresses = [start.address for start in starts if start is not None]
    if end is None or len(addresses) != len(_STARTS) or addresses != sorted(addresses):
        return {}
    levels: dict[str, str | None] = {}
    for symbol in symbols:
        name = symbol.name.removeprefix(SYMBOL_PREFIX)
        if not name.startswith("_") or len(name) == len(symbol.name) or not addresses[0] <= symbol.address < end.address:
            continue
        index = bisect_right(addresses, symbol.address) - 1
        function = _function(name[1:], _IDS[index])
        if function is not None:
            level = LEVELS[index]
            levels[function] = level if levels.get(function, level) == level else None
    return {function: level for function, level in levels.items() if level is not None}


def _function(entry: str, level_id: str) -> str | None:
    """``_kmod_acpi__429_1423_acpi_init4`` or ``acpi_init4`` to ``acpi_init``; those that wait for others end in ``4s``."""
    for suffix in (f"{level_id}s", level_id):
        if entry.endswith(suffix):
            return _KMOD.sub("", entry, count=1).removesuffix(suffix) if entry.startswith("_kmod_") else entry.removesuffix(suffix)
    return None
