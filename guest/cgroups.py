"""A task's set of control groups becomes the path of its group in the unified hierarchy (cgroup v2): ``/proc/PID/cgroup``'s.

``css_set.dfl_cgrp`` is the group; its kernfs node and that node's parents have the names (include/linux/cgroup-defs.h, kernfs.h).
Where no cgroup2 file system was ever mounted, every task is in the root.
"""

from __future__ import annotations

from dataclasses import dataclass

from guest.paging import AddressSpace
from guest.records import Record, Values, read_records
from guest.structs import Structs
from recording.symbols import SymbolTable

_MAX_DEPTH = 64
_MAX_NAME = 256
"""NAME_MAX and a NUL."""
_MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    """A path, and what it was made of: addresses of group and node, and the values that those of the set, group and node had."""

    group: int
    node: int
    values: tuple[Values | None, ...]
    path: str


class CgroupReader:
    """Reads groups' paths, remembering them by set."""

    def __init__(self, space: AddressSpace, symbols: SymbolTable, structs: Structs) -> None:
        """Raises BadImageError where the kernel has no control groups that have paths."""
        self._space = space
        self._set = Record(structs, "css_set", ("dfl_cgrp",))
        self._group = Record(structs, "cgroup", ("kn",))
        # A node's id is never used twice (5.5 and later: it has a generation in it), its name is replaced when it is renamed.
        self._node = Record(structs, "kernfs_node", ("__parent|parent", "name", "id?"))
        first = symbols.find("init_css_set")
        # Of the first tasks and all that were never moved: it is the root's for ever (kernel/cgroup/cgroup.c).
        self._root_set = first.address if first is not None else None
        self._known: dict[int, _Known] = {}

    def path(self, cgroups: int) -> str | None:
        """The path of the group of a set (``task->cgroups``), "/" for the root; None where it cannot be read."""
        if cgroups == self._root_set:
            return "/"
        known = self._known.get(cgroups)
        if known is not None:
            wanted = ((self._set, cgroups), (self._group, known.group), (self._node, known.node))
            if tuple(read_records(self._space, wanted)) == known.values:
                return known.path
        known = self._read(cgroups)
        if known is None:
            self._known.pop(cgroups, None)
            return None
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[cgroups] = known
        return known.path

    def _read(self, cgroups: int) -> _Known | None:
        (css,) = read_records(self._space, [(self._set, cgroups)])
        (group,) = read_records(self._space, [(self._group, css[0])]) if css else (None,)
        if not css or not group:
            return None
        names: list[bytes] = []
        node = group[0]
        first: Values | None = None
        for _level in range(_MAX_DEPTH):
            (values,) = read_records(self._space, [(self._node, node)])
            if values is None:
                return None
            first = first or values
            parent, name, _number = values
            if not parent:
                path = "/" + "/".join(each.decode("utf-8", "backslashreplace") for each in reversed(names))
                return _Known(css[0], group[0], (css, group, first), path)
            text = self._read_name(name)
            if text is None:
                return None
            names.append(text)
            node = parent
        return None

    def _read_name(self, address: int) -> bytes | None:
        # A name at the end of a page may have nothing mapped behind it.
        size = min(_MAX_NAME, 0x1000 - address % 0x1000)
        first, rest = self._space.read_many([(address, size), (address + size, _MAX_NAME - size)])
        data = (first or b"") + (rest or b"")
        end = data.find(b"\0")
        return data[:end] if end > 0 and b"/" not in data[:end] else None
