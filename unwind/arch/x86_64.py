"""x86-64: System V ABI, Linux 4.14 and later (arch/x86/include/asm)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from unwind.arch import Architecture, PagingFormat, Registers

_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_CR0_PG = 1 << 31
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10
_PTI_SWITCH_MASK = 0x1FFF
"""PCID and the bit that selects KPTI's user table (arch/x86/entry/calling.h): clear them for the kernel's table."""
_ENTRY_ADDRESS = 0x000F_FFFF_FFFF_F000


def _is_user(registers: Registers) -> bool:
    return registers["cs"] & 3 == 3


def _is_32bit_kernel(registers: Registers) -> bool:
    return bool(registers["cr0"] & _CR0_PG) and not registers["efer"] & _EFER_LMA


def _gate_offset(gate: bytes) -> int:
    low, _selector, _attributes, middle, high = struct.unpack_from("<HHHHI", gate)
    return int(low | middle << 16 | high << 32)


def _image_physical(address: int, numbers: Mapping[str, int]) -> int | None:
    base = numbers.get("phys_base")
    return None if base is None else address - _START_KERNEL_MAP + base


X86_64 = Architecture(
    name="x86_64",
    qemu_targets=("x86_64",),
    gdb_architectures=("i386:x86-64",),
    byteorder="little",
    pointer_size=8,
    pc="rip",
    sp="rsp",
    fp="rbp",
    fixed_registers=(
        *((name, 8) for name in "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()),
        *((name, 4) for name in "eflags cs ss ds es fs gs".split()),
        *((name, 8) for name in "fs_base gs_base k_gs_base cr0 cr2 cr3 cr4 cr8 efer".split()),
    ),
    is_user=_is_user,
    is_kernel_address=lambda address: address >= 0xFFFF_8000_0000_0000,
    is_32bit_kernel=_is_32bit_kernel,
    paging=PagingFormat(
        root=lambda registers: registers["cr3"] & _ENTRY_ADDRESS & ~_PTI_SWITCH_MASK,
        levels=lambda registers: 5 if registers["cr4"] & _CR4_LA57 else 4,
        present=1,
        large=1 << 7,
        address_mask=_ENTRY_ADDRESS,
        enabled=lambda registers: bool(registers["cr0"] & _CR0_PG and registers["efer"] & _EFER_LMA),
    ),
    page_table_symbol="init_top_pgt",
    kernel_image=(_START_KERNEL_MAP, 0xFFFF_FFFF_C000_0000),
    image_alignment=0x20_0000,
    interrupt_table=0xFFFF_FE00_0000_0000,
    interrupt_handler=_gate_offset,
    image_physical=_image_physical,
    stack_size=0x4000,
)
