"""Where the array of all ``struct page`` begins, as if memory began at address 0 (CONFIG_SPARSEMEM_VMEMMAP).

x86-64, ppc64 and s390x keep it in a variable. Elsewhere it is a constant of the kernel's build and of what the processor can do;
but a task's stack says it: ``task->stack_vm_area->pages`` lists the structs of the pages (CONFIG_VMAP_STACK, kernel/fork.c) that
page tables map there.
"""

from __future__ import annotations

from guest.paging import AddressSpace
from guest.records import ADDRESS_MASK, Record, read_records
from guest.structs import Structs
from recording.errors import BadImageError
from recording.symbols import SymbolTable

_VARIABLES = ("vmemmap_base", "vmemmap")
"""x86-64's; that of ppc64 and s390x."""
_NAMED = " or ".join(_VARIABLES)
_MAX_PAGES = 4
"""Pages of a stack that must agree."""


class PageStructs:
    """Finds the array of one kernel."""

    def __init__(self, space: AddressSpace, symbols: SymbolTable, structs: Structs) -> None:
        """Raises BadImageError where the kernel's symbols or types do not lead to it."""
        self._space = space
        self._variable = next((found for name in _VARIABLES if (found := symbols.find(name)) is not None), None)
        self._words = structs.words
        self._size = structs.size_of("page") or 0
        self._first = symbols.find("init_task")
        self._found = structs.places.get(_VARIABLES[1], 0)
        if self._variable is None and not self._found:
            if self._first is None:
                raise BadImageError(f"the kernel's page cache cannot be read without {_NAMED} or init_task; report this kernel")
            try:
                self._links = Record(structs, "task_struct", ("tasks.next",))
                self._link = structs.require("task_struct", "tasks").offset
                self._stack = Record(structs, "task_struct", ("stack",)), Record(structs, "task_struct", ("stack_vm_area",))
                self._area = Record(structs, "vm_struct", ("pages", "nr_pages"))
            except BadImageError as error:
                raise BadImageError(f"the kernel's page cache cannot be read without {_NAMED}; report this kernel") from error

    def find(self) -> int:
        """The array's address, 0 while it is not known: before there are processes."""
        if self._found:
            return self._found
        if self._variable is not None:
            data = self._space.read_many([(self._variable.address, self._words.size)])[0]
            return self._words.number(data) if data else 0
        if self._first is None:
            return 0
        (links,) = read_records(self._space, [(self._links, self._first.address)])
        if links is None or not links[0]:
            return 0
        task = links[0] - self._link & ADDRESS_MASK
        stack, area = read_records(self._space, [(record, task) for record in self._stack])
        (found,) = read_records(self._space, [(self._area, area[0])]) if area and area[0] else [None]
        if stack is None or found is None or not found[1]:
            return 0
        count = min(found[1], _MAX_PAGES)
        data = self._space.read_many([(found[0], self._words.size * count)])[0]
        if data is None:
            return 0
        shift = self._space.tables.page_shift
        starts = set()
        for index, page in enumerate(self._words.pointers(data)):
            physical = self._space.translate(stack[0] + (index << shift) & ADDRESS_MASK)
            starts.add(None if physical is None else page - (physical >> shift) * self._size & ADDRESS_MASK)
        start = starts.pop()
        return 0 if starts or start is None else start
