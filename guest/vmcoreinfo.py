"""Pages of RAM become VMCOREINFO notes: what the kernel writes down about itself for a crash dump.

The kernel keeps the text in a page of its own that begins with ``OSRELEASE=`` (kernel/vmcore_info.c), so one look at the
start of every page finds it without a symbol or a device. Other copies may lie in RAM: of the last boot, in the page cache, of
a crash kernel. Which one counts is for the caller to find out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from guest.memory import PhysicalMemory
from guest.paging import PAGE_SIZE
from recording.errors import BadImageError

_MARK = b"OSRELEASE="
_PAGES_PER_STEP = 512
"""About 1 ms from process memory, 4 ms through a stub."""
_LINE = re.compile(rb"(?:(SYMBOL|NUMBER)\(([\w.]{1,80})\)|(KERNELOFFSET))=(-?(?:0x)?[0-9a-fA-F]{1,20})")
_RELEASE = re.compile(rb"OSRELEASE=([!-~]{1,64})\n")
_BUILD_ID = re.compile(rb"^BUILD-ID=([0-9a-f]{16,64})$", re.MULTILINE)
_ADDRESS_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class VmCoreInfo:
    """One note, found at ``physical``. symbols: run-time virtual addresses. numbers: ``NUMBER(...)`` and ``KERNELOFFSET``."""

    physical: int
    release: str
    build_id: str | None
    symbols: Mapping[str, int]
    numbers: Mapping[str, int]


def parse_vmcoreinfo(page: bytes, physical: int = 0) -> VmCoreInfo:
    """Parse a note's page. Raises BadImageError where it is none."""
    text = page[:PAGE_SIZE].partition(b"\0")[0]
    release = _RELEASE.match(text)
    if release is None:
        raise BadImageError(f"the page at physical {physical:#x} is no VMCOREINFO note: no OSRELEASE line")
    build_id = _BUILD_ID.search(text)
    symbols: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for line in text.split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        kind, name, offset, value = match.groups()
        try:
            number = int(value, 16 if kind != b"NUMBER" or b"x" in value else 10)
        except ValueError:
            continue
        if abs(number) >= _ADDRESS_LIMIT:
            continue
        if kind == b"SYMBOL":
            symbols[name.decode("ascii", "replace")] = number
        else:
            numbers[(name or offset).decode("ascii", "replace")] = number
    return VmCoreInfo(physical, release.group(1).decode(), build_id.group(1).decode() if build_id else None, symbols, numbers)


def scan_vmcoreinfo(memory: PhysicalMemory, accept: Callable[[VmCoreInfo], bool]) -> Generator[None, None, VmCoreInfo | None]:
    """The first note in RAM that ``accept`` takes, or None. Reads the head of each page of RAM, no more."""
    for low, high in memory.ram():
        page = (low + PAGE_SIZE - 1) & -PAGE_SIZE
        while page < high:
            after = min(page + _PAGES_PER_STEP * PAGE_SIZE, high)
            requests = [(address, len(_MARK)) for address in range(page, after, PAGE_SIZE) if address + PAGE_SIZE <= high]
            for (address, _size), head in zip(requests, memory.read_many(requests), strict=True):
                if head == _MARK:
                    note = _read_note(memory, address)
                    if note and accept(note):
                        return note
            page = after
            yield
    return None


def _read_note(memory: PhysicalMemory, address: int) -> VmCoreInfo | None:
    page = memory.read_many([(address, PAGE_SIZE)])[0]
    try:
        return None if page is None else parse_vmcoreinfo(page, address)
    except BadImageError:
        return None
