"""Filters of system calls (seccomp): code that the kernel compiles for tasks and that none of its lists has.

They are classic BPF programs, of which ``bpf_kallsyms`` knows nothing (kernel/bpf/core.c, ``bpf_prog_kallsyms_candidate``). A
task's ``seccomp.filter`` is its newest filter, ``prev`` the one before (kernel/seccomp.c); children share those of their parents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from guest.generated_code import GeneratedCode
from guest.memory import Steps
from guest.paging import AddressSpace
from guest.records import Record, Values, read_records
from guest.structs import Structs
from recording.model import FrameKind

_MAX_KNOWN = 8192
_PER_STEP = 64
_MAX_CHAIN = 64
"""Filters of one task; systemd's services have about 15."""
_MAX_CODE = 1 << 18
_NAME = "seccomp_filter"


class SystemCallFilters:
    """Remembers the filters of tasks that were seen. One that was freed is told by its memory, which says something else then."""

    def __init__(self, structs: Structs) -> None:
        """Raises BadImageError where the kernel has no filters."""
        self._filter = Record(structs, "seccomp_filter", ("prev", "prog"))
        self._program = Record(structs, "bpf_prog", ("jited_len", "bpf_func"))
        self._known: OrderedDict[int, tuple[Values, Values, GeneratedCode] | None] = OrderedDict()
        self.has_new = False

    def see(self, newest: int) -> None:
        """A task runs whose newest filter is at an address (0: it has none)."""
        if newest and newest not in self._known:
            self._keep(newest, None)
            self.has_new = True

    def _keep(self, address: int, known: tuple[Values, Values, GeneratedCode] | None) -> None:
        self._known[address] = known
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def read(self, space: AddressSpace) -> Steps[list[GeneratedCode]]:
        """The code of all filters that were seen and are still there."""
        self.has_new = False
        wanted = list(self._known)
        for _ in range(_MAX_CHAIN):
            following: list[int] = []
            for start in range(0, len(wanted), _PER_STEP):
                following += self._read_some(space, wanted[start : start + _PER_STEP])
                yield
            if not following:
                break
            wanted = following
        return [known[2] for known in self._known.values() if known is not None]

    def _read_some(self, space: AddressSpace, wanted: Sequence[int]) -> list[int]:
        """Read filters, or see whether they are still those that were read; the filters before them that are not known yet."""
        following: list[int] = []
        filters = read_records(space, [(self._filter, address) for address in wanted])
        programs = read_records(space, [(self._program, values[1] if values else 0) for values in filters])
        for address, values, program in zip(wanted, filters, programs, strict=True):
            known = self._known.get(address)
            if known is None:
                self._known[address] = _read_code(space, values, program)
            elif known[:2] != (values, program):
                # It was freed. Should there be another filter now, whoever has it will be seen.
                del self._known[address]
            if values is not None and values[0] and values[0] not in self._known:
                self._keep(values[0], None)
                following.append(values[0])
        return following


def _read_code(space: AddressSpace, values: Values | None, program: Values | None) -> tuple[Values, Values, GeneratedCode] | None:
    """None where there is no compiled code."""
    if values is None or program is None:
        return None
    size, start = program
    text = space.read_many([(start, size)])[0] if 0 < size <= _MAX_CODE else None
    if not text:
        return None
    return values, program, GeneratedCode(_NAME, start, start + size, FrameKind.BPF, text, has_frame_pointer=True)
