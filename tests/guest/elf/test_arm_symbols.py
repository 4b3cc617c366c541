"""Names in 32-bit Arm files that are made here: Thumb functions, whose addresses are odd, and stubs, which are A32 code."""

from __future__ import annotations

import struct

from guest.elf.file import open_elf
from guest.elf.symbols import read_symbols
from guest.memory import run_steps
from guest.user.contents import BytesContents

NAMES = b"\0qsort\0free\0main\0"
SECTION_NAMES = b"\0.dynsym\0.dynstr\0.rel.plt\0.plt\0.text\0.shstrtab\0"
PLT, TEXT, SLOTS = 0x1000, 0x2000, 0x1_3000


def stub(place: int, slot: int) -> bytes:
    """``add ip, pc, #hi``; ``add ip, ip, #middle``; ``ldr pc, [ip, #low]!``"""
    distance = slot - place - 8
    return struct.pack("<3I", 0xE28F_C600 | distance >> 20, 0xE28C_CA00 | distance >> 12 & 0xFF, 0xE5BC_F000 | distance & 0xFFF)


def program() -> bytes:
    symbols = b"".join(
        struct.pack("<IIIBBH", *row)
        for row in ((0,) * 6, (1, 0, 0, 0x12, 0, 0), (7, 0, 0, 0x12, 0, 0), (12, TEXT + 1, 0x20, 0x12, 0, 5))
    )
    first = bytes.fromhex("04e02de5 04e09fe5 0ee08fe0 08f0bee5 00000000")  # pushes lr, goes to the loader
    plt = first + stub(PLT + 20, SLOTS) + bytes.fromhex("7847fde7") + stub(PLT + 36, SLOTS + 4)  # bx pc; b .-2
    parts = (
        (".dynsym", 11, 0, 0, symbols, 2),
        (".dynstr", 3, 0, 0, NAMES, 0),
        (".rel.plt", 9, 0, 0, struct.pack("<4I", SLOTS, 1 << 8 | 22, SLOTS + 4, 2 << 8 | 22), 1),
        (".plt", 1, 6, PLT, plt, 0),
        (".text", 1, 6, TEXT, bytes(0x20), 0),
        (".shstrtab", 3, 0, 0, SECTION_NAMES, 0),
    )
    data = bytearray(0x3000)
    offset, headers = 0x100, bytes(40)
    for name, kind, flags, address, content, link in parts:
        at = address or offset
        data[at : at + len(content)] = content
        offset += 0 if address else len(content) + 15 & ~15
        place = SECTION_NAMES.index(name.encode() + b"\0")
        headers += struct.pack("<10I", place, kind, flags, address, at, len(content), link, 0, 4, 16)
    data[0x800 : 0x800 + len(headers)] = headers
    load = struct.pack("<8I", 1, 0, 0, 0, len(data), len(data), 5, 0x1000)
    data[:52] = struct.pack("<4sBBB9xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 3, 40, 1, 0, 52, 0x800, 0x500_0400, 52, 32, 1, 40, 7, 6)
    data[52 : 52 + len(load)] = load
    return bytes(data)


def test_stubs_and_thumb_functions() -> None:
    file = open_elf(BytesContents(program()), is_final=True)
    assert file is not None
    table = run_steps(read_symbols(file)).table
    found = {symbol.address: (symbol.name, symbol.kind) for symbol in table if symbol.name}
    assert found == {PLT + 20: ("qsort@plt", "t"), PLT + 32: ("free@plt", "t"), TEXT: ("main", "T")}
    assert table.find_at(PLT + 8) is None
