"""The ELF notes that the kernel shows of a module in sysfs: its build ID is one of them (kernel/module/sysfs.c)."""

from __future__ import annotations

from guest.identity import parse_build_id
from guest.kernel_lists import StructReader, read_string
from guest.paging import AddressSpace
from guest.structs import Structs
from recording.errors import BadImageError

_MAX_NOTES = 16
_MAX_SIZE = 1024


class NoteReader:
    """Reads ``struct module_notes_attrs``: a head, then for each note section a ``struct bin_attribute`` that points to it."""

    def __init__(self, structs: Structs) -> None:
        """Raises BadImageError where the kernel's types lack what is needed."""
        self._first = structs.require("module_notes_attrs", "attrs").offset
        size = structs.size_of("bin_attribute")
        if not size:
            raise BadImageError("the kernel's type information has no struct bin_attribute; report this kernel")
        self._step = size
        self._attribute = StructReader(structs, "bin_attribute", ("attr.name", "size", "private"))

    def read_build_id(self, space: AddressSpace, notes: int) -> str | None:
        """The build ID in hex, None where there is none to be read."""
        for index in range(_MAX_NOTES if notes else 0):
            values = self._attribute.read(space, notes + self._first + index * self._step)
            # How many there are stands at different places; behind the last is something else.
            if values is None or not read_string(space, values.number("attr.name")).startswith(".note"):
                return None
            size = values.number("size")
            data = space.read_many([(values.number("private"), size)])[0] if 0 < size <= _MAX_SIZE else None
            build_id = parse_build_id(data or b"", self._attribute.words)
            if build_id:
                return build_id
        return None
