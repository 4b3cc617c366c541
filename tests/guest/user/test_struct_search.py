"""Structs of kernels without type information, found in the memory of real guests (tests/captures/make_memory.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from guest.memory import run_steps
from guest.paging import AddressSpace
from guest.structs import Structs
from guest.task_search import search_structs
from guest.user.area_search import read_processes
from guest.user.mappings import MappingReader
from guest.user.page_cache import PageCache
from guest.user.struct_search import search_user_structs
from recording.errors import BadImageError
from tests.builders.file_memory import BytesMemory
from tests.builders.memory_captures import MemoryCapture, load_memory
from tests.captures.make_memory import DIRECTORY
from unwind.arch.registry import find_architecture

EXPECTED: Mapping[str, Mapping[str, tuple[int, int]]] = {
    # 32-bit, with 64-bit numbers aligned to 4 bytes.
    "i386-bookworm": {
        "mm_struct mm_mt.ma_root": (4, 4),
        "mm_struct pgd": (28, 4),
        "mm_struct map_count": (48, 4),
        "mm_struct total_vm": (96, 4),
        "mm_struct start_stack": (160, 4),
        "mm_struct context.vdso": (460, 4),
        "vm_area_struct vm_flags": (20, 4),
        "vm_area_struct vm_file": (60, 4),
        "file f_path.dentry": (12, 4),
        "file f_inode": (16, 4),
        "dentry d_name.len": (24, 4),
        "dentry d_name.name": (28, 4),
        "dentry d_iname": (36, 32),
        "inode i_ino": (40, 4),
        "inode i_size": (52, 8),
        "super_block s_type": (28, 4),
        "super_block s_id": (560, 32),
        "address_space i_pages.xa_head": (12, 4),
    },
    # 6.12: members of files and areas in another order.
    "armhf-trixie": {
        "mm_struct mm_mt.ma_root": (72, 4),
        "mm_struct pgd": (88, 4),
        "mm_struct map_count": (112, 4),
        "vm_area_struct vm_flags": (16, 4),
        "vm_area_struct vm_file": (68, 4),
        "file f_path.dentry": (44, 4),
        "file f_inode": (24, 4),
        "dentry d_name.name": (32, 4),
        "dentry d_iname": (44, 32),
        "inode i_size": (56, 8),
        "inode i_mtime_sec": (72, 8),
        "super_block s_type": (32, 4),
        "super_block s_id": (592, 32),
    },
    # Big endian, addresses of the kernel as low as those of programs.
    "s390x-bookworm": {
        "mm_struct mm_mt.ma_root": (8, 8),
        "mm_struct pgd": (56, 8),
        "mm_struct map_count": (88, 4),
        "vm_area_struct vm_flags": (32, 8),
        "vm_area_struct vm_file": (112, 8),
        "file f_path.dentry": (24, 8),
        "file f_inode": (32, 8),
        "dentry d_name.len": (32, 4),
        "dentry d_iname": (56, 32),
        "inode i_ino": (64, 8),
        "inode i_size": (80, 8),
        "super_block s_type": (40, 8),
        "super_block s_id": (968, 32),
        "address_space i_pages.xa_head": (16, 8),
    },
}
"""As in the kernels' own debug information (gdb: ``ptype /o struct mm_struct`` of Debian's vmlinux with DWARF)."""
UPTODATE = {"i386-bookworm": 2, "armhf-trixie": 3, "s390x-bookworm": 2}


class Guest:
    """A capture, and what the searches make of it."""

    def __init__(self, capture: MemoryCapture, memory: BytesMemory | None = None) -> None:
        architecture = find_architecture(capture.architecture)
        assert architecture is not None
        self.space = AddressSpace(memory or capture.memory, capture.tables, capture.root)
        self.symbols = capture.symbol_table
        self.tasks = run_steps(search_structs(self.space, self.symbols, architecture))
        self._architecture = architecture
        self._user_tables = capture.user_tables

    def search(self) -> Structs:
        return run_steps(search_user_structs(self.space, self.symbols, self.tasks, self._architecture, self._user_tables))


@pytest.fixture(params=EXPECTED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def capture(name: str) -> MemoryCapture:
    return load_memory(DIRECTORY / f"{name}.json.xz")


def test_members_lie_where_the_kernel_has_them(name: str, capture: MemoryCapture) -> None:
    structs = Guest(capture).search()
    found = {}
    for member in EXPECTED[name]:
        field = structs.field(*member.split())
        found[member] = None if field is None else (field.offset, field.size)
    assert found == EXPECTED[name]
    assert structs.enumerator("pageflags", "PG_uptodate") == UPTODATE[name]
    assert structs.page_size == 4096


def test_mappings_and_pages(capture: MemoryCapture) -> None:
    guest = Guest(capture)
    structs = guest.search()
    reader, cache = MappingReader(guest.space, guest.symbols, structs), PageCache(guest.space, guest.symbols, structs)
    first = reader.read(read_processes(guest.space, guest.symbols, guest.tasks)[0].mm)
    code = next(mapping for mapping in first.mappings if mapping.is_executable and mapping.file is not None)
    assert (code.path, code.is_deleted) == ("/bin/busybox", False)
    assert code.file is not None
    assert (code.file.file_system, code.file.source) == ("rootfs", "rootfs")
    assert code.file.size > code.offset + code.end - code.start - 4096
    header = cache.read_page(code.file.inode, 0)
    assert header is not None
    assert header.startswith(b"\x7fELF")
    names = {mapping.path for mapping in first.mappings}
    assert names >= {"[stack]", "[heap]", "[vdso]"}
    stack = first.find(first.stack_top)
    assert stack is not None
    assert stack.path == "[stack]"


def test_what_cannot_be_told_is_refused(capture: MemoryCapture) -> None:
    """Without one eighth of the memory after the other the answer is the same, less, or a refusal: never another one."""
    expected = Guest(capture).search()
    answers: list[Structs | None] = []
    size = len(capture.pieces) // 8
    for start in range(0, len(capture.pieces), size // 2):
        pieces = dict(capture.pieces[:start] + capture.pieces[start + size :])
        try:
            structs = Guest(replace(capture, pieces=tuple(pieces.items()))).search()
        except BadImageError:
            answers.append(None)
            continue
        answers.append(structs)
        for struct, member in (path.split() for path in EXPECTED["i386-bookworm"]):
            assert structs.field(struct, member) in (expected.field(struct, member), None), (struct, member)
        assert structs.places.get("vmemmap") in (expected.places["vmemmap"], None)
    assert None in answers
    assert any(answers)


def test_before_there_are_programs(capture: MemoryCapture) -> None:
    """No process was told anything yet: zeros where the kernel's auxiliary vector would be."""
    guest = Guest(capture)
    processes = read_processes(guest.space, guest.symbols, guest.tasks)
    word = guest.tasks.words.size
    memory = capture.memory
    for process in processes:
        place = guest.space.translate(process.mm + process.told_at * word)
        assert place is not None
        memory.write(place, bytes(2 * word * len(process.told)))
    with pytest.raises(BadImageError, match="no process shows yet"):
        Guest(capture, memory).search()
