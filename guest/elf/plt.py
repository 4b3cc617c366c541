"""The stubs through which a file calls others (.plt) become symbols: ``malloc@plt``, as disassemblers and perf name them.

A stub jumps through a slot of the GOT, a relocation names the function that belongs into the slot. Which stub uses which slot is
read out of the stub's jump (System V ABI, AMD64 5.2 and i386 5): the order of stubs is the linker's business. Arm's stubs are A32
code, some behind an entry for Thumb code: r12 is the pc plus two or three constants.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum

from guest.elf.file import ElfFile
from guest.elf.header import EM_386, EM_ARM, EM_X86_64, Section
from guest.elf.partial import Partial, read_partial
from guest.elf.symbol_rows import ElfSymbol
from guest.memory import Steps

PLT_SECTIONS = (".plt", ".plt.sec", ".plt.bnd", ".iplt")
RELOCATIONS = (".rela.plt", ".rel.plt", ".rela.iplt", ".rel.iplt")
MAX_PLT = 1 << 20
_STUB_SIZE = 16
_PER_STEP = 1 << 9
_RANK = 400
_JUMP = struct.Struct("<i")
_ARM_THUMB_ENTRY = b"\x78\x47"
"""``bx pc``, and a halfword that is never run"""


class _ArmStub(IntEnum):
    """Instructions of a stub (``elf32_arm_plt_entry_short`` and ``_long`` of GNU ld), but for their constants."""

    BASE = 0xE28F_C000
    """``add ip, pc, #..``"""
    SUM = 0xE28C_C000
    """``add ip, ip, #..``"""
    JUMP = 0xE5BC_F000
    """``ldr pc, [ip, #..]!``"""


_Slot = Callable[[int, int], int]
"""Address of the slot, from the address after the jump and the jump's 32-bit operand."""


def _jumps(file: ElfFile) -> Mapping[bytes, _Slot]:
    """Opcodes of indirect jumps that a stub may use, by the file's e_machine."""
    if file.machine == EM_X86_64:
        return {b"\xff\x25": lambda after, operand: after + operand}
    if file.machine == EM_386:
        got = file.section(".got.plt") or file.section(".got")
        base = 0 if got is None else got.address
        return {b"\xff\x25": lambda _after, operand: operand & 0xFFFF_FFFF, b"\xff\xa3": lambda _after, operand: base + operand}
    return {}


def read_plt(file: ElfFile, symbols: Partial, names: Partial) -> Steps[tuple[list[ElfSymbol], bool]]:
    """A symbol for each stub whose function is known, and whether that is all. ``symbols``, ``names``: .dynsym and .dynstr."""
    jumps = _jumps(file)
    if not jumps and file.machine != EM_ARM:
        return [], True
    slots, is_complete = yield from _read_slots(file, symbols, names)
    found: list[ElfSymbol] = []
    for name in PLT_SECTIONS if slots else ():
        section = file.section(name)
        if section is not None and section.size <= MAX_PLT:
            code = file.contents.read(section.offset, section.size)
            if code is None:
                is_complete = False
            else:
                stubs = _read_stubs(code, section, jumps, slots) if jumps else _read_arm_stubs(code, section, slots)
                found += yield from stubs
    return found, is_complete


def _read_stubs(code: bytes, section: Section, jumps: Mapping[bytes, _Slot], slots: Mapping[int, str]) -> Steps[list[ElfSymbol]]:
    found: list[ElfSymbol] = []
    for start in range(0, len(code), _STUB_SIZE):
        if not start % (_PER_STEP * _STUB_SIZE):
            yield
        stub = code[start : start + _STUB_SIZE]
        for opcode, slot in jumps.items():
            at = stub.find(opcode)
            if 0 <= at <= len(stub) - 6:
                name = slots.get(slot(section.address + start + at + 6, _JUMP.unpack_from(stub, at + 2)[0]))
                if name is not None:
                    address = section.address + start
                    found.append(ElfSymbol(address, _RANK, f"{name}@plt", address + _STUB_SIZE, "t"))
                    break
    return found


def _read_arm_stubs(code: bytes, section: Section, slots: Mapping[int, str]) -> Steps[list[ElfSymbol]]:
    found: list[ElfSymbol] = []
    start = place = 0
    for at in range(0, len(code) - 3, 4):
        if not at % (_PER_STEP * _STUB_SIZE):
            yield
        word = int.from_bytes(code[at : at + 4], "little")
        turn = word >> 7 & 0x1E
        number = ((word & 0xFF) >> turn | (word & 0xFF) << 32 - turn) & 0xFFFF_FFFF
        match word & 0xFFFF_F000:
            case _ArmStub.BASE:
                start, place = at, section.address + at + 8 + number
            case _ArmStub.SUM:
                place += number
            case _ArmStub.JUMP:
                name = slots.get(place + (word & 0xFFF) & 0xFFFF_FFFF)
                if name is not None:
                    first = start - 4 if start >= 4 and code[start - 4 : start - 2] == _ARM_THUMB_ENTRY else start
                    found.append(ElfSymbol(section.address + first, _RANK, f"{name}@plt", section.address + at + 4, "t"))
    return found


def _read_slots(file: ElfFile, symbols: Partial, names: Partial) -> Steps[tuple[dict[int, str], bool]]:
    """GOT slot -> name of the function that belongs there, and whether that is all."""
    layout = file.header.format
    slots: dict[int, str] = {}
    is_complete = True
    shift = 32 if layout.pointer_size == 8 else 8
    for section_name in RELOCATIONS:
        section = file.section(section_name)
        if section is None or section.size > MAX_PLT:
            continue
        entry = layout.rela if section_name.startswith(".rela") else layout.rel
        table = yield from read_partial(file.contents, section.offset, section.size // entry.size * entry.size)
        is_complete = is_complete and not table.missing
        for index, (slot, info, *_) in enumerate(entry.iter_unpack(table.data)):
            if not index % _PER_STEP:
                yield
            position = (info >> shift) * layout.symbol.size
            if position and symbols.knows(position, layout.symbol.size) and table.knows(index * entry.size, entry.size):
                name = names.name(layout.symbol.unpack_from(symbols.data, position)[0])
                if name:
                    slots[slot] = name
    return slots, is_complete
