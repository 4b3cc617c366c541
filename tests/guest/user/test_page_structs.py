"""The array of ``struct page`` by what a task's stack says."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from guest.user.page_structs import PageStructs
from recording.symbols import SymbolTable
from tests.builders.kernel_structs import COMMON, HEAP, HEAP_PHYSICAL, PAGES, Heap, Layout

LAYOUTS: Mapping[str, tuple[int, Layout]] = {
    **COMMON,
    "list_head": (16, {"next": (0, 8), "prev": (8, 8)}),
    "task_struct": (256, {"stack": (24, 8), "tasks": (64, "list_head"), "stack_vm_area": (128, 8)}),
    "vm_struct": (64, {"pages": (32, 8), "nr_pages": (40, 4)}),
}
STACK = HEAP + 0x2_0000


class Kernel:
    """init_task, and behind it on the list a task with four pages of stack."""

    def __init__(self) -> None:
        self.heap = Heap(LAYOUTS)
        first, second = self.heap.take(256), self.heap.take(256)
        self.pages = self.heap.take(32)
        self.list_pages(0, 1, 2, 3)
        area = self.heap.put("vm_struct", pages=self.pages, nr_pages=4)
        self.heap.put("task_struct", first, tasks__next=second + 64)
        self.heap.put("task_struct", second, stack=STACK, stack_vm_area=area)
        self.symbols = SymbolTable.from_symbols([(first, "D", "init_task")])
        self.second = second

    def list_pages(self, *pages: int) -> None:
        number = HEAP_PHYSICAL + 0x2_0000 >> 12
        self.heap.write(self.pages, struct.pack("<4Q", *(PAGES + 64 * (number + page) for page in pages)))

    def find(self) -> int:
        return PageStructs(self.heap.space, self.symbols, self.heap.structs).find()


def test_a_stacks_pages_say_where_the_array_is() -> None:
    assert Kernel().find() == PAGES


@pytest.mark.parametrize("name", ["vmemmap_base", "vmemmap"])
def test_a_variable_says_where_the_array_is(name: str) -> None:
    kernel = Kernel()
    place = kernel.heap.take(8)
    kernel.heap.write(place, struct.pack("<Q", 0xC00C_0000_0000_0000))
    symbols = SymbolTable.from_symbols([(place, "B", name)])
    assert PageStructs(kernel.heap.space, symbols, kernel.heap.structs).find() == 0xC00C_0000_0000_0000


def test_pages_that_do_not_agree_are_not_believed() -> None:
    kernel = Kernel()
    kernel.list_pages(0, 1, 3, 2)
    assert kernel.find() == 0


@pytest.mark.parametrize("member", ["stack", "stack_vm_area"])
@pytest.mark.parametrize("value", [0, 0xDEAD_0000_0000])
def test_tasks_that_lead_nowhere(member: str, value: int) -> None:
    kernel = Kernel()
    kernel.heap.put("task_struct", kernel.second, **{member: value})
    assert kernel.find() == 0
