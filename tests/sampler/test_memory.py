"""The monitor's words about guest memory → ranges, and reads across them."""

from __future__ import annotations

from pathlib import Path

import pytest

from recording.errors import GuestMemoryError
from sampler.memory import MemoryRange, ProcessMemory, parse_host_address, parse_memory_tree

TREE = """FlatView #0
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000c2fff (prio 0, ram): smm

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000c2fff (prio 0, ram): pc.ram KVM
  00000000000c3000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c3000 KVM
  00000000000e8000-00000000000effff (prio 0, ram): pc.ram @00000000000e8000
  00000000000f0000-0000000001ffffff (prio 0, ram): pc.ram @00000000000f0000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio -5, romd): pflash
  0000000100000000-000000013fffffff (prio 0, nv-ram): dimm

FlatView #2
 AS "I/O", root: io
  0000000000000000-0000000000000007 (prio 0, ram): not this
"""


def test_ranges_of_the_address_space_memory() -> None:
    assert parse_memory_tree(TREE) == [
        MemoryRange(0, 0xC3000, True),
        MemoryRange(0xC3000, 0xE8000, False),
        MemoryRange(0xE8000, 0xF0000, True),
        MemoryRange(0xF0000, 0x200_0000, True),
        MemoryRange(0xFFFC_0000, 0x1_0000_0000, False),
        MemoryRange(0x1_0000_0000, 0x1_4000_0000, True),
    ]


@pytest.mark.parametrize("text", ["", "unknown command", TREE.split("FlatView #1", maxsplit=1)[0]])
def test_a_tree_without_ram_is_an_error(text: str) -> None:
    with pytest.raises(GuestMemoryError, match="shows no RAM"):
        parse_memory_tree(text)


def test_a_tree_without_bound_is_an_error() -> None:
    line = "  0000000000000000-00000000000c2fff (prio 0, ram): pc.ram\n"
    with pytest.raises(GuestMemoryError, match="more than 4096 pieces"):
        parse_memory_tree('FlatView #0\n AS "memory", root: system\n' + line * 4097)


def test_host_addresses() -> None:
    assert parse_host_address("Host virtual address for 0x0 (pc.ram) is 0x7f0ab5e00000\n") == 0x7F0A_B5E0_0000
    with pytest.raises(GuestMemoryError, match="does not tell where"):
        parse_host_address("No memory is mapped at address 0xfe000000")


@pytest.fixture
def memory(tmp_path: Path) -> ProcessMemory:
    """Two RAM ranges side by side, one ROM further up; in the "process" they lie the other way round."""
    file = tmp_path / "mem"
    file.write_bytes(b"." * 16 + b"ROM!" + b"b" * 8 + b"a" * 8)
    ranges = [MemoryRange(0, 8, True), MemoryRange(8, 16, True), MemoryRange(32, 36, False)]
    return ProcessMemory(0, ranges, [28, 20, 16], file)


def test_reads_go_across_ranges(memory: ProcessMemory) -> None:
    assert memory.ram() == [(0, 16)]
    assert memory.read(6, 4) == b"aabb"
    assert memory.read(32, 4) == b"ROM!"
    assert memory.read(40, 0) == b""


@pytest.mark.parametrize(("address", "size"), [(14, 4), (16, 1), (36, 1), (-1, 1), (0, -1), (0, 1 << 31), (1 << 64, 1)])
def test_what_is_no_memory_is_an_error(memory: ProcessMemory, address: int, size: int) -> None:
    with pytest.raises(GuestMemoryError, match="guest physical"):
        memory.read(address, size)
    assert memory.read_many([(0, 1), (address, size), (8, 1)]) == [b"a", None, b"b"]


def test_what_is_mapped_where_is_asked_anew(memory: ProcessMemory) -> None:
    """A BIOS has put RAM in the place of its ROM."""
    line = " {:016x}-{:016x} (prio 0, {}): pc.ram"
    lines = {kind: 'FlatView #0\n AS "memory", root: system\n ' + line.format(0, 15, kind) for kind in ("rom", "ram")}

    def monitor(command: str) -> str:
        return lines["ram"] if command == "info mtree -f" else "Host virtual address for 0x0 (pc.ram) is 0x14"

    assert memory.rom() == ((32, 36),)
    assert memory.refresh(monitor)
    assert (memory.ram(), memory.rom(), memory.read(0, 2)) == ([(0, 16)], (), b"bb")
    assert not memory.refresh(monitor)
    lines["ram"] = ""
    with pytest.raises(GuestMemoryError):
        memory.refresh(monitor)
    assert memory.read(0, 2) == b"bb"


def test_memory_that_qemu_no_longer_has_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mem"
    file.write_bytes(b"1234")
    memory = ProcessMemory(0, [MemoryRange(0, 8, True)], [0], file)
    assert memory.read(0, 4) == b"1234"
    with pytest.raises(GuestMemoryError, match="QEMU has ended"):
        memory.read(0, 8)
    memory.close()
    with pytest.raises(GuestMemoryError, match="cannot be read from QEMU's process"):
        memory.read(0, 4)
