"""A live guest → a fixture of this directory: the memory by which the structs of a kernel without type information are found.

    python -m tests.captures.make_memory ARCHITECTURE SUITE

boots the suite's stock kernel with the demo's workload, searches it while it stands still, and writes all that was read into
``memory/ARCHITECTURE-SUITE.json.xz`` (format: tests/builders/memory_captures.py). Look at what it prints before you commit it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks._live import live_guest
from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.task_search import search_structs
from guest.user.area_search import read_processes
from guest.user.mappings import MappingReader
from guest.user.page_cache import PageCache
from guest.user.struct_search import search_user_structs
from tests.builders.memory_captures import SYMBOLS, MemoryCapture, RecordingMemory, save_memory
from tests.qemu.guests import MACHINES
from unwind.arch import Registers

DIRECTORY = Path(__file__).parent / "memory"


def main() -> None:
    """Make one fixture."""
    machines = {machine.name: machine for machine in MACHINES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=machines)
    parser.add_argument("suite")
    options = parser.parse_args()
    with live_guest(machines[options.architecture], options.suite) as live:
        is_user = live.session.architecture.is_user
        found: list[Registers] = []
        while not found:
            live.run(0.05)
            found = [capture.registers for capture in live.captures() if is_user(capture.registers)]
        kernel = live.kernel
        memory = RecordingMemory(kernel.space.memory)
        space = AddressSpace(memory, kernel.space.tables, kernel.space.root)
        find_tables = kernel.architecture.paging.user_tables
        tables = kernel.space.tables if find_tables is None else find_tables(found[0])
        symbols = kernel.symbols
        structs = run_steps(search_structs(space, symbols, kernel.architecture))
        more = run_steps(search_user_structs(space, symbols, structs, kernel.architecture, tables))
        mappings, cache = MappingReader(space, symbols, more), PageCache(space, symbols, more)
        for process in read_processes(space, symbols, structs):
            for mapping in mappings.read(process.mm).mappings:
                print(f"{mapping.start:#x}-{mapping.end:#x} {mapping.path} {mapping.file}")
                if mapping.file is not None:
                    cache.read_page(mapping.file.inode, 0)
        known = {name: symbol.address for name in SYMBOLS if (symbol := symbols.find(name)) is not None}
        path = DIRECTORY / f"{options.architecture}-{options.suite}.json.xz"
        facts = options.architecture, kernel.release, space.root, space.tables, tables, known
        save_memory(path, MemoryCapture(*facts, memory.pieces()))
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
