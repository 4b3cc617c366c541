"""Relocations of debug sections are applied as the linker would have done it (gABI chapter 4, the psABI of each machine).

Most machines put an address or an offset in place. RISC-V's linker may shorten code, so that its distances are differences of
symbols: one relocation adds, the next one subtracts (RISC-V ELF psABI, 8.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from recording.errors import BadImageError

Relocation = tuple[int, int, int, "int | None"]
"""Offset, symbol's index, type and addend (None where it stands in place)."""
_Rule = tuple[int, int, int]
"""Of a type: what the word there counts for the result, what the symbol's address does, and bits of the result."""
_SET, _ADD, _SUBTRACT = (0, 1), (1, 1), (1, -1)
_WORD, _LONG = (*_SET, 32), (*_SET, 64)
_RULES: Mapping[str, Mapping[int, _Rule]] = {
    "EM_X86_64": {10: _WORD, 1: _LONG},
    "EM_386": {1: _WORD},
    "EM_ARM": {2: _WORD},
    "EM_AARCH64": {258: _WORD, 257: _LONG},
    "EM_PPC64": {1: _WORD, 38: _LONG},
    "EM_S390": {4: _WORD, 22: _LONG},
    "EM_MIPS": {2: _WORD, 18: _LONG},
    "EM_RISCV": {
        1: _WORD,
        2: _LONG,
        33: (*_ADD, 8),
        34: (*_ADD, 16),
        35: (*_ADD, 32),
        36: (*_ADD, 64),
        37: (*_SUBTRACT, 8),
        38: (*_SUBTRACT, 16),
        39: (*_SUBTRACT, 32),
        40: (*_SUBTRACT, 64),
        52: (*_SUBTRACT, 6),
        53: (*_SET, 6),
        54: (*_SET, 8),
        55: (*_SET, 16),
        56: (*_SET, 32),
    },
}
_SPLIT = {("EM_MIPS", 8): "QIBBBB"}
"""By machine and size of a pointer, where symbol and type are no parts of one number: symbol, another one and three types, of which
the last comes first (64-bit ELF Object File Specification for MIPS, 2.9)."""
_LETTERS = {6: "B", 8: "B", 16: "H", 32: "I", 64: "Q"}


def read_relocations(
    table: bytes, machine: str, pointer_size: int, order: Literal["little", "big"], *, has_addend: bool
) -> Iterator[Relocation]:
    """Those of a SHT_REL or SHT_RELA section (``has_addend``). machine: ``e_machine`` by its name."""
    prefix, wide = "<" if order == "little" else ">", pointer_size == 8
    split = _SPLIT.get((machine, pointer_size))
    if split is not None:
        layout = struct.Struct(prefix + split + ("q" if has_addend else ""))
        for row in layout.iter_unpack(table[: len(table) // layout.size * layout.size]):
            yield row[0], row[1], row[5], row[6] if has_addend else None
        return
    layout = struct.Struct(prefix + (("QQq" if has_addend else "QQ") if wide else ("IIi" if has_addend else "II")))
    shift = 32 if wide else 8
    mask = (1 << shift) - 1
    for row in layout.iter_unpack(table[: len(table) // layout.size * layout.size]):
        yield row[0], row[1] >> shift, row[1] & mask, row[2] if has_addend else None


def apply_relocations(
    data: bytearray, relocations: Iterable[Relocation], addresses: Sequence[int], machine: str, order: Literal["little", "big"]
) -> None:
    """addresses: of symbols, by index. Raises BadImageError for a machine or type that is not known, and for damage."""
    rules = _RULES.get(machine)
    if rules is None:
        raise BadImageError(f"relocations of {machine} are not known; the file can only give symbols")
    prefix = "<" if order == "little" else ">"
    packers = {bits: struct.Struct(prefix + letter) for bits, letter in _LETTERS.items()}
    try:
        for offset, symbol, kind, addend in relocations:
            rule = rules.get(kind)
            if rule is None:
                if kind == 0:
                    continue
                raise BadImageError(f"a relocation has the type {kind}, which is not known; the file can only give symbols")
            keeps, sign, bits = rule
            packer, mask = packers[bits], (1 << bits) - 1
            there = packer.unpack_from(data, offset)[0]
            value = keeps * there + sign * (addresses[symbol] + (there if addend is None else addend))
            packer.pack_into(data, offset, (value & mask) | (there & ~mask if bits < 8 else 0))
    except (IndexError, struct.error) as error:
        raise BadImageError("its relocations are damaged; build or copy the file again") from error
