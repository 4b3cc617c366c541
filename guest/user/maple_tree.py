"""A process' tree of mappings becomes the addresses of its ``struct vm_area_struct``, level by level, one batch of reads each.

6.1 and later have a maple tree (include/linux/maple_tree.h, lib/maple_tree.c), earlier kernels a red-black tree in the structs
themselves (include/linux/rbtree.h). Either may change while it is read: what is found is checked, and TreeChangedError says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from guest.memory import Steps
from guest.paging import AddressSpace
from guest.records import Record, Values, read_records, read_slices
from guest.structs import Structs
from recording.errors import BadImageError, GuestMemoryError

MAX_AREAS = 1 << 16
"""The kernel's own limit is 65,530 (vm.max_map_count) unless it was raised."""
_MAX_LEVELS = 64
_MAX_NODES = MAX_AREAS // 4
"""Leaves have room for 15 and are half full at least, inner nodes for 10."""
_NODE_SIZE = 256
_NODE_MASK = _NODE_SIZE - 1
_LARGEST_RESERVED = 4096
"""Entries up to it with the internal tag are no nodes, and pointers are above it (include/linux/xarray.h: xa_is_node)."""
_PER_STEP = 256
"""Areas or nodes that are read in one batch: about 1.5 ms."""
AREA_MEMBERS = ("vm_start", "vm_end", "vm_pgoff", "vm_flags|__vm_flags", "vm_mm", "vm_file", "vm_ops", "vm_private_data")


class TreeChangedError(GuestMemoryError):
    """A tree is not one at this moment: it changes while it is read, or guest memory is damaged."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A node's arrays: offset and number of the pivots and of the slots, and where the index of the last slot may lie."""

    pivot_at: int
    pivots: int
    slot_at: int
    slots: int
    end_at: int
    has_end: bool


@dataclass(frozen=True, slots=True)
class Span:
    """What a slot of a node stands for: all of [first, last]. entry: an encoded node, or the value (a pointer)."""

    first: int
    last: int
    entry: int


class MapleNodes:
    """Knows the nodes' layouts of a kernel."""

    def __init__(self, structs: Structs) -> None:
        """Raises BadImageError where the kernel has no maple trees."""
        node_range, gaps = _layout(structs, "maple_range_64", has_end=False), _layout(structs, "maple_arange_64", has_end=True)
        types = {name: structs.enumerator("maple_type", name) for name in ("maple_leaf_64", "maple_range_64", "maple_arange_64")}
        leaf, inner, gapped = (
            default if found is None else found for default, found in zip((1, 2, 3), types.values(), strict=True)
        )
        self._words = structs.words
        self._layouts = {leaf: node_range, inner: node_range, gapped: gaps}
        self._leaf = leaf

    def is_leaf(self, entry: int) -> bool:
        """Whether an encoded node's slots are values."""
        return entry >> 3 & 15 == self._leaf

    def parse(self, span: Span, parent: int, data: bytes) -> list[Span]:
        """The slots of a node (its 256 bytes) that are not empty. parent: the address of the node above it, 0 for the root.

        Raises TreeChangedError.
        """
        layout = self._layouts.get(span.entry >> 3 & 15)
        if layout is None:
            raise TreeChangedError(f"the node {span.entry:#x} of a tree of mappings is of no known type")
        above = self._words.number(data[: self._words.size]) & ~_NODE_MASK
        # The root's parent is its tree; a node that was replaced is its own (ma_dead_node).
        if above == span.entry & ~_NODE_MASK or parent not in (0, above):
            raise TreeChangedError(f"the node {span.entry:#x} of a tree of mappings is no longer in it")
        pivots = self._words.pointers(data[layout.pivot_at : layout.pivot_at + self._words.size * layout.pivots])
        slots = self._words.pointers(data[layout.slot_at : layout.slot_at + self._words.size * layout.slots])
        found = []
        first = span.first
        for index in range(min(_last_slot(layout, pivots, span.last, data), layout.slots - 1) + 1):
            # Behind the last pivot in use is 0: that slot has the rest (mas_safe_pivot).
            is_last = index >= layout.pivots or (index > 0 and pivots[index] == 0)
            last = span.last if is_last else pivots[index]
            if not first <= last <= span.last:
                raise TreeChangedError(f"the pivots of the node {span.entry:#x} of a tree of mappings are not in order")
            if slots[index]:
                found.append(Span(first, last, slots[index]))
            if last == span.last:
                break
            first = last + 1
        return found


def _layout(structs: Structs, name: str, *, has_end: bool) -> _Layout:
    pivot, slot, end = (structs.require(name, path) for path in ("pivot", "slot", "meta.end"))
    word = structs.words.size
    limit = _NODE_SIZE // word
    counts = min(pivot.size // word, limit), min(slot.size // word, limit)
    if max(pivot.offset + word * counts[0], slot.offset + word * counts[1], end.offset + 1) > _NODE_SIZE or 0 in counts:
        raise BadImageError(f"struct {name} is longer than a node; report this kernel")
    return _Layout(pivot.offset, counts[0], slot.offset, counts[1], end.offset, has_end)


def _last_slot(layout: _Layout, pivots: tuple[int, ...], last: int, data: bytes) -> int:
    """Index of the last slot in use (ma_data_end)."""
    if layout.has_end or pivots[-1] == 0:
        return data[layout.end_at]
    return layout.pivots - 1 if pivots[-1] == last else layout.pivots


class MapleTree:
    """Trees of a kernel, by their roots."""

    def __init__(self, space: AddressSpace, structs: Structs) -> None:
        """Raises BadImageError where the kernel has no maple trees."""
        self._space = space
        self._nodes = MapleNodes(structs)
        self._last = structs.words.mask

    def read(self, root: int) -> Steps[list[Span]]:
        """The values of a tree and what they stand for, ascending. Raises TreeChangedError."""
        top = Span(0, self._last, root)
        if not _is_node(root):
            return [top] if _is_pointer(root) else []
        level: list[tuple[Span, int]] = [(top, 0)]
        values: list[Span] = []
        nodes = 0
        for _level in range(_MAX_LEVELS):
            below: list[tuple[Span, int]] = []
            for first in range(0, len(level), _PER_STEP):
                part = level[first : first + _PER_STEP]
                nodes += len(part)
                answers = read_slices(self._space, [(span.entry & ~_NODE_MASK, _NODE_SIZE) for span, _parent in part])
                for (span, parent), data in zip(part, answers, strict=True):
                    if data is None:
                        raise TreeChangedError(f"the node {span.entry:#x} of a tree of mappings cannot be read")
                    found = self._nodes.parse(span, parent, data)
                    if self._nodes.is_leaf(span.entry):
                        values += [each for each in found if _is_pointer(each.entry)]
                    else:
                        below += [(each, span.entry & ~_NODE_MASK) for each in found]
                if nodes > _MAX_NODES or len(values) > MAX_AREAS:
                    raise TreeChangedError(f"a process has more than {MAX_AREAS} mappings; guestprof reads no more")
                if len(level) > _PER_STEP:
                    yield
            if not below:
                # Levels are read one by one and leaves lie on the lowest, in order.
                return values
            level = below
        raise TreeChangedError("a tree of mappings has no end")


class MapleAreas:
    """The mappings of processes by ``mm->mm_mt``."""

    root = "mm_mt.ma_root"

    def __init__(self, space: AddressSpace, structs: Structs) -> None:
        """Raises BadImageError where the kernel has no such tree."""
        structs.require("mm_struct", self.root)
        self._space = space
        self._tree = MapleTree(space, structs)
        self._area = Record(structs, "vm_area_struct", AREA_MEMBERS)

    def read(self, root: int) -> Steps[list[Values]]:
        """The areas' members, AREA_MEMBERS, ascending by address. Raises TreeChangedError."""
        spans = yield from self._tree.read(root)
        areas: list[Values] = []
        for first in range(0, len(spans), _PER_STEP):
            part = spans[first : first + _PER_STEP]
            for span, values in zip(part, read_records(self._space, [(self._area, span.entry) for span in part]), strict=True):
                if values is None or values[0] != span.first or values[1] != span.last + 1:
                    raise TreeChangedError(f"the mapping at {span.first:#x} is not as its tree says")
                areas.append(values)
            if len(spans) > _PER_STEP:
                yield
        return areas


def _is_node(entry: int) -> bool:
    return entry & 3 == 2 and entry > _LARGEST_RESERVED


def _is_pointer(entry: int) -> bool:
    return entry & 3 == 0 and entry > _LARGEST_RESERVED


class RedBlackAreas:
    """The mappings of processes by ``mm->mm_rb``."""

    root = "mm_rb.rb_node"

    def __init__(self, space: AddressSpace, structs: Structs) -> None:
        """Raises BadImageError where the kernel has no such tree."""
        structs.require("mm_struct", self.root)
        self._space = space
        self._node = structs.require("vm_area_struct", "vm_rb").offset
        self._area = Record(structs, "vm_area_struct", (*AREA_MEMBERS, "vm_rb.rb_left", "vm_rb.rb_right"))

    def read(self, root: int) -> Steps[list[Values]]:
        """The areas' members, AREA_MEMBERS, ascending by address. Raises TreeChangedError."""
        areas: list[Values] = []
        seen = {root}
        level = [root] if root else []
        for _level in range(_MAX_LEVELS):
            below: list[int] = []
            for first in range(0, len(level), _PER_STEP):
                part = level[first : first + _PER_STEP]
                for node, values in zip(
                    part, read_records(self._space, [(self._area, node - self._node) for node in part]), strict=True
                ):
                    if values is None:
                        raise TreeChangedError(f"the mapping of node {node:#x} cannot be read")
                    areas.append(values[: len(AREA_MEMBERS)])
                    children = {child for child in values[-2:] if child}
                    if not seen.isdisjoint(children):
                        raise TreeChangedError(f"the mapping of node {node:#x} leads back into its own tree")
                    seen |= children
                    below += children
                if len(areas) > MAX_AREAS:
                    raise TreeChangedError(f"a process has more than {MAX_AREAS} mappings; guestprof reads no more")
                if len(level) > _PER_STEP:
                    yield
            if not below:
                return sorted(areas)
            level = below
        raise TreeChangedError("a tree of mappings has no end")
