"""Whose a kernel stack is that was copied before it was known where the kernel keeps its running tasks.

A stack is used again when its task has ended. Which task had it then can still be told for those that were started before any had
ended: pids are given in order (kernel/pid.c, ``alloc_pid``), so these are the tasks below the first pid that is missing. Early in
boot they are pid 1, kthreadd and the kernel threads that stay. Idle tasks never end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from guest.kernel_lists import read_pointer, walk_list
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.tasks import TaskReader, TaskWords
from recording.symbols import SymbolTable

_MAX_TASKS = 4096


def read_first_tasks(
    space: AddressSpace, symbols: SymbolTable, structs: Structs, tasks: TaskReader, cpu_offsets: Sequence[int]
) -> Mapping[int, TaskWords]:
    """By the lowest address of its kernel stack, each task that no other can have had that stack before.

    Processes hang on the list that begins at ``init_task`` (include/linux/sched/signal.h, ``for_each_process``), idle tasks of
    other CPUs on none (kernel/smpboot.c, ``idle_threads``). What cannot be read is left out.
    """
    found: dict[int, TaskWords] = {}
    idle: list[TaskWords] = []
    for address in _addresses(space, symbols, structs, cpu_offsets):
        data = space.read_many([tasks.slice_of(address)])[0]
        words = None if data is None else tasks.parse(address, data)
        if words is not None and words.pid:
            found.setdefault(words.pid, words)
        elif words is not None:
            idle.append(words)
    missing = next(pid for pid in range(1, len(found) + 2) if pid not in found)
    return {words.stack: words for words in (*(found[pid] for pid in range(1, missing)), *idle)}


def _addresses(space: AddressSpace, symbols: SymbolTable, structs: Structs, cpu_offsets: Sequence[int]) -> Iterator[int]:
    first, link = symbols.find("init_task"), structs.field("task_struct", "tasks")
    if first is not None:
        yield first.address
    if first is not None and link is not None:
        yield from walk_list(space, structs.words, first.address + link.offset & structs.words.mask, link.offset, _MAX_TASKS)
    threads = symbols.find("idle_threads")
    if threads is not None:
        pointers = [read_pointer(space, structs.words, threads.address + offset & structs.words.mask) for offset in cpu_offsets]
        yield from (pointer for pointer in pointers if pointer)
