"""Loading a kernel: everything that sampling needs, from memory, from the cache, early in boot and when it is gone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from guest.cache import KernelCache
from guest.finder import find_kernel
from guest.kernel import Kernel, is_still_there, load_kernel, refresh_kernel
from guest.memory import run_steps
from recording.errors import BadImageError
from tests.builders.machine import BANNER, BUILD_ID, ESTACKS, PERCPU, RELEASE, TABLES, Machine
from unwind.arch.x86_64 import X86_64
from unwind.orc import OrcVersion
from unwind.rules import RowKind


def load(machine: Machine, cache: KernelCache | None = None) -> Kernel:
    location = run_steps(find_kernel(machine.memory, X86_64, (machine.registers(),)))
    assert location is not None
    return run_steps(load_kernel(X86_64, location, cache or KernelCache(None)))


def test_a_running_kernel_is_read_whole() -> None:
    machine = Machine(image=0xFFFF_FFFF_9A60_0000)
    kernel = load(machine)
    assert (kernel.release, kernel.build_id, kernel.banner) == (RELEASE, BUILD_ID, BANNER)
    assert kernel.symbols.find_at(0xFFFF_FFFF_9A60_0125).name == "function_with_a_long_name_0002"  # type: ignore[union-attr]
    assert kernel.text.ranges == ((0xFFFF_FFFF_9A60_0000, 0xFFFF_FFFF_9A60_3000),)
    assert kernel.text.read(0xFFFF_FFFF_9A60_0000, 8) == b"\xe8\0\0\0\0\x90\x90\xc3"
    assert kernel.text.read(0xFFFF_FFFF_9A60_2FFF, 2) is None
    # _einittext is at …5000; up to the next symbol there may be code without a name.
    assert kernel.init_text == (0xFFFF_FFFF_9A60_4000, 0xFFFF_FFFF_9A60_6000)
    assert not kernel.text.contains(0xFFFF_FFFF_9A60_4000)
    assert kernel.orc is not None
    assert kernel.orc.version is OrcVersion.V3
    row = kernel.orc.find_row(0xFFFF_FFFF_9A60_0180)
    assert row is not None
    assert (row.kind, row.register, row.offset) == (RowKind.CALL, "rsp", 8)
    assert kernel.space.root == TABLES
    assert kernel.is_settled


def test_per_cpu_facts_are_read() -> None:
    kernel = load(Machine())
    assert kernel.cpu_offsets == (PERCPU, PERCPU + 0x1_0000)
    assert kernel.irq_stacks == ((PERCPU + 0x8_0000, PERCPU + 0x8_4000), (PERCPU + 0x9_0000, PERCPU + 0x9_4000))
    assert kernel.exception_stacks == (((ESTACKS + 0x1000, ESTACKS + 0x3000), (ESTACKS + 0x4000, ESTACKS + 0x6000)), ())


def test_early_in_boot_there_is_boot_code_and_no_cpu() -> None:
    machine = Machine(system_state=0)
    machine.write(machine.at("offsets"), struct.pack("<2Q", PERCPU, PERCPU))
    kernel = load(machine)
    assert kernel.text.read(machine.image + 0x4000, 2) == b"\xcc\xcc"
    assert (kernel.cpu_offsets, kernel.irq_stacks, kernel.exception_stacks, kernel.is_settled) == ((), (), (), False)
    machine.write(machine.at("offsets"), struct.pack("<2Q", PERCPU, PERCPU + 0x1_0000))
    machine.write(machine.at("state"), struct.pack("<I", 3))
    later = run_steps(refresh_kernel(kernel, (machine.registers(),)))
    assert later.is_settled
    assert later.cpu_offsets == (PERCPU, PERCPU + 0x1_0000)
    assert later.text.ranges == ((machine.image, machine.image + 0x3000),)


def test_the_vcpus_page_table_is_used_while_the_kernels_own_is_empty() -> None:
    machine = Machine()
    early = 0x10_0000
    machine.memory.write(early, bytes(machine.tables.memory[:0x1000]))
    machine.memory.write(TABLES, bytes(0x1000))
    location = run_steps(find_kernel(machine.memory, X86_64, (machine.registers(cr3=early),)))
    assert location is not None
    kernel = run_steps(load_kernel(X86_64, location, KernelCache(None)))
    assert (kernel.space.root, kernel.is_settled) == (early, False)


def test_code_is_read_anew_only_when_asked_for() -> None:
    machine = Machine()
    kernel = load(machine)
    machine.write(machine.image, b"\x90")
    assert run_steps(refresh_kernel(kernel, (machine.registers(),))).text.read(machine.image, 1) == b"\xe8"
    assert run_steps(refresh_kernel(kernel, (machine.registers(),), has_new_text=True)).text.read(machine.image, 1) == b"\x90"


def test_an_unknown_unwind_format_keeps_the_kernel() -> None:
    machine = Machine()
    machine.write(machine.at("orc_header"), b"\x01" * 20)
    kernel = load(machine)
    assert kernel.orc is None
    assert kernel.orc_problem is not None
    assert "unknown format 0101" in kernel.orc_problem


def test_symbols_of_another_kernel_are_refused() -> None:
    machine = Machine()
    machine.write(machine.at("banner"), b"Something else")
    with pytest.raises(BadImageError, match="no kernel banner"):
        load(machine)


def test_a_kernel_is_there_as_long_as_a_vcpu_maps_its_banner() -> None:
    machine = Machine()
    kernel = load(machine)
    running = machine.registers()
    assert is_still_there(kernel, running)
    assert is_still_there(kernel, machine.registers(cr3=TABLES | 0x1000))
    assert not is_still_there(kernel, machine.registers(cr0=0))
    machine.write(machine.at("banner"), BANNER.replace("#1", "#2").encode())
    assert not is_still_there(kernel, running)
    assert run_steps(refresh_kernel(kernel, (running,))) is kernel


def test_a_process_that_ends_meanwhile_takes_nothing_away() -> None:
    machine = Machine()
    process = 0x10_0000
    machine.memory.write(process, bytes(machine.tables.memory[:0x1000]))
    registers = machine.registers(cr3=process)
    location = run_steps(find_kernel(machine.memory, X86_64, (registers,)))
    assert location is not None
    machine.memory.write(process, bytes(0x1000))
    kernel = run_steps(load_kernel(X86_64, location, KernelCache(None)))
    assert kernel.space.root == TABLES
    assert is_still_there(kernel, registers)


def test_the_second_load_comes_from_the_cache_wherever_the_kernel_lies(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    first = load(Machine(image=0xFFFF_FFFF_8100_0000), cache)
    assert len(list(tmp_path.iterdir())) == 1
    moved = Machine(image=0xFFFF_FFFF_9A60_0000)
    # The offsets are not read again: a kernel whose own are spoilt still gets its symbols.
    moved.write(moved.parts["kallsyms_offsets"], bytes(4 * len(moved.symbols)))
    second = load(moved, cache)
    assert [symbol.name for symbol in second.symbols] == [symbol.name for symbol in first.symbols]
    assert second.symbols.find("_etext").address == 0xFFFF_FFFF_9A60_3000  # type: ignore[union-attr]
    assert second.symbols.find("pcpu_hot").address == 0x40  # type: ignore[union-attr]
    assert second.orc is not None
    assert second.orc.find_row(0xFFFF_FFFF_9A60_0180) == first.orc.find_row(0xFFFF_FFFF_8100_0180)  # type: ignore[union-attr]


def test_a_cached_entry_of_another_build_is_not_used(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    load(Machine(), cache)
    other = Machine()
    other.write(other.at("notes") + 20 + 16, b"\xff" * 20)
    assert load(other, cache).build_id == "ff" * 20


def test_a_damaged_entry_is_rewritten(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    load(Machine(), cache)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-5] + b"spoil")
    assert load(Machine(), cache).release == RELEASE
    assert entry.read_bytes() == whole


def test_a_kernel_without_build_id_is_not_cached(tmp_path: Path) -> None:
    machine = Machine()
    machine.write(machine.at("notes"), bytes(60))
    assert load(machine, KernelCache(tmp_path)).build_id is None
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert load(Machine(), KernelCache(tmp_path / "file" / "kernels")).release == RELEASE
