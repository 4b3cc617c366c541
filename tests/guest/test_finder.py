"""Finding the kernel: through each way, and only the one that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from guest.finder import KernelLocation, find_kernel
from guest.memory import run_steps
from recording.errors import UnsupportedTargetError
from tests.builders.machine import NOTE, PHYSICAL, REAL_MODE, TABLES, Machine
from unwind.arch.x86_64 import X86_64


def find(machine: Machine, *registers: Mapping[str, int]) -> KernelLocation | None:
    return run_steps(find_kernel(machine.memory, X86_64, registers or (machine.registers(),)))


def without_digits(machine: Machine) -> None:
    """Take the image's token table out of the scan's sight, and leave it readable."""
    at = machine.parts["kallsyms_token_index"]
    machine.write(at + 2, (1).to_bytes(2, "little"))


def test_the_image_is_found_by_its_own_tables() -> None:
    machine = Machine(image=0xFFFF_FFFF_9A60_0000)
    location = find(machine)
    assert location is not None
    assert (location.image, location.image_physical) == (0xFFFF_FFFF_9A60_0000, PHYSICAL)
    assert location.space.root == TABLES
    assert location.kallsyms is not None
    assert location.kallsyms.count == len(machine.symbols)
    assert location.found_by == "page tables of a vCPU, symbol tables in the image at 0xffffffff9a600000"


@pytest.mark.parametrize("low_bits", [0x1000, 0x1801, 0x8000_0000_0000_0800])
def test_kpti_and_pcid_bits_of_cr3_do_not_matter(low_bits: int) -> None:
    location = find(machine := Machine(), machine.registers(cr3=TABLES | low_bits))
    assert location is not None
    assert location.space.root == TABLES


def test_bit_12_of_cr3_may_be_part_of_the_address() -> None:
    machine = Machine()
    machine.memory.write(0x10_1000, bytes(machine.tables.memory[:0x1000]))
    location = find(machine, machine.registers(cr3=0x10_1000))
    assert location is not None
    assert location.space.root == 0x10_1000


def test_firmware_finds_nothing_and_searches_nothing() -> None:
    machine = Machine()
    machine.write_note()
    assert find(machine, REAL_MODE) is None
    assert machine.memory.batches == 0


def test_one_vcpu_with_the_kernel_is_enough() -> None:
    machine = Machine()
    location = find(machine, REAL_MODE, machine.registers())
    assert location is not None


def test_page_tables_without_an_image_find_nothing() -> None:
    machine = Machine()
    machine.memory.write(TABLES + 8 * 511, bytes(8))
    assert find(machine) is None


def test_the_note_helps_where_the_image_has_no_known_tables() -> None:
    machine = Machine()
    without_digits(machine)
    machine.write_note()
    location = find(machine)
    assert location is not None
    assert location.found_by == f"VMCOREINFO at physical {NOTE:#x}, page tables of a vCPU"
    assert location.note is not None
    assert location.note.release == "6.12.1-test"
    assert location.kallsyms is not None
    assert location.kallsyms.token_table == machine.parts["kallsyms_token_table"]


@pytest.mark.parametrize(
    "stale", [{"stext": 0xFFFF_FFFF_9000_0000}, {"stext": 0}, {"phys_base": 0x20_0000}], ids=["elsewhere", "nowhere", "other RAM"]
)
def test_a_note_of_another_boot_is_passed_over(stale: dict[str, int]) -> None:
    machine = Machine()
    without_digits(machine)
    machine.write_note(physical=0x10_0000, **stale)
    assert find(machine) is None
    machine.write_note(physical=0x10_2000)
    location = find(machine)
    assert location is not None
    assert location.note is not None
    assert location.note.physical == 0x10_2000


def test_a_32_bit_kernel_is_refused_by_name() -> None:
    machine = Machine()
    machine.write_note(stext=0xC100_0000)
    with pytest.raises(UnsupportedTargetError, match=r"32-bit kernel 6\.12\.1-test.*boot a 64-bit one"):
        find(machine, machine.registers(efer=0))


def test_32_bit_paging_without_a_kernel_is_only_nothing_yet() -> None:
    machine = Machine()
    assert find(machine, machine.registers(efer=0)) is None


def test_the_interrupt_table_says_which_of_two_images_runs() -> None:
    machine = Machine(image=0xFFFF_FFFF_B000_0000)
    machine.tables.map(0xFFFF_FFFF_8100_0000, 0x40_0000)
    handler = machine.image + 0x100
    gate = (handler & 0xFFFF | 0x10 << 16 | (handler >> 16 & 0xFFFF) << 48).to_bytes(8, "little") + (handler >> 32).to_bytes(
        8, "little"
    )
    machine.tables.map(0xFFFF_FE00_0000_0000, 0x10_0000)
    machine.memory.write(TABLES, bytes(machine.tables.memory))
    machine.memory.write(0x10_0000, gate)
    location = find(machine)
    assert location is not None
    assert location.image == 0xFFFF_FFFF_B000_0000


def test_a_mark_that_is_a_symbol_lies_in_the_image_itself() -> None:
    """s390x: all RAM is mapped below the image, once more."""
    machine = Machine(image=0xFFFF_FFFF_B000_0000)
    machine.tables.map(0xFFFF_FFFF_8000_0000, PHYSICAL, size=0x20_0000)
    machine.memory.write(TABLES, bytes(machine.tables.memory))
    marked = replace(X86_64, image_mark=lambda _registers, _read: machine.image + 0x100)
    location = run_steps(find_kernel(machine.memory, marked, (machine.registers(),)))
    assert location is not None
    assert location.image == 0xFFFF_FFFF_8000_0000
    named = replace(marked, image_mark_symbols=("handler",))
    location = run_steps(find_kernel(machine.memory, named, (machine.registers(),)))
    assert location is not None
    assert (location.image, location.mark) == (machine.image, machine.image + 0x100)
