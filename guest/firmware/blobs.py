"""Firmware files that QEMU has put into guest memory are known by their own texts, and where they are moved to by their bytes.

Their contents are read before the guest's first instruction: SeaBIOS, OpenSBI, U-Boot, SLOF. What runs is one of these where the
same code bytes stand at the program counter: in place, or at another address where the file has moved itself (SeaBIOS' start-up
code, U-Boot); then several pieces of code around must have moved by the same distance, since absolute addresses in it differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from guest.firmware.code import CODE_SIZE, BootCode, Read, Role

MAX_BLOB = 32 << 20
_TEXTS: tuple[tuple[re.Pattern[bytes], str, Role], ...] = (
    (re.compile(rb"SeaBIOS \(version "), "SeaBIOS", Role.FIRMWARE),
    (re.compile(rb"OpenSBI v[0-9%]"), "OpenSBI", Role.FIRMWARE),
    (re.compile(rb"U-Boot [0-9]{4}\.[0-9]{2}"), "U-Boot", Role.BOOT_LOADER),
    (re.compile(rb"Slimline Open Firmware|SLOF"), "SLOF", Role.FIRMWARE),
)
_OWN = {"mrom.reset": "reset vector"}
"""Code of QEMU's own: hw/riscv/boot.c."""
_LINE = re.compile(r'^addr=([0-9a-f]+) size=0x([0-9a-f]+) mem=\w+ name="(.*?)"\r?$', re.MULTILINE)
_AROUND = 512
"""Bytes before and behind the program counter that are looked at for moved code."""
_PIECE = 12
_STEP = 8
_MIN_PIECES = 8
_MAX_PLACES = 4
"""A piece of code that occurs more often tells nothing."""
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Blob:
    """A file's bytes at a guest physical address."""

    name: str
    role: Role
    address: int
    data: bytes


def parse_roms(text: str) -> list[tuple[int, int, str]]:
    """(address, size, file name) of what QEMU has put at fixed addresses, from the monitor's ``info roms``."""
    return [(int(found[1], 16), int(found[2], 16), found[3]) for found in _LINE.finditer(text)]


def name_blob(address: int, data: bytes, file: str) -> Blob | None:
    """A piece of memory as the firmware that its own text names, None where none does.

    file: QEMU's name for it, which tells what it has made itself.
    """
    if file in _OWN:
        return Blob(_OWN[file], Role.FIRMWARE, address, data)
    for pattern, name, role in _TEXTS:
        if pattern.search(data):
            return Blob(name, role, address, data)
    return None


def find_in_blobs(blobs: Sequence[Blob], address: int, read: Read) -> BootCode | None:
    """The blob that the code at an address is of."""
    code = read(address, CODE_SIZE)
    if code is None:
        return None
    for blob in blobs:
        offset = address - blob.address
        if 0 <= offset < len(blob.data) and blob.data[offset : offset + CODE_SIZE] == code:
            return _piece(blob, address, blob.address, code, "in place")
    around = read(address - _AROUND, 2 * _AROUND)
    if around is None:
        return None
    for blob in blobs:
        base = moved_by(blob.data, around, address - _AROUND)
        if base is not None:
            return _piece(blob, address, base, code, f"moved from {blob.address + address - base:#x}")
    return None


def moved_by(data: bytes, around: bytes, start: int) -> int | None:
    """Where some bytes of a program, of which a piece of memory is a moved copy, would begin; None where it is none.

    around: the piece, at the address ``start``.
    """
    votes: Counter[int] = Counter()
    seen = set()
    for at in range(0, len(around) - _PIECE, _STEP):
        piece = around[at : at + _PIECE]
        if piece in seen or len(set(piece)) < _PIECE // 2:
            continue
        seen.add(piece)
        found = data.find(piece)
        for _place in range(_MAX_PLACES):
            if found < 0:
                break
            votes[start + at - found] += 1
            found = data.find(piece, found + 1)
    best = votes.most_common(1)
    return best[0][0] if best and best[0][1] >= _MIN_PIECES else None


def _piece(blob: Blob, address: int, base: int, code: bytes, how: str) -> BootCode:
    """The page of it that was compared."""
    start = address & -_PAGE
    return BootCode(
        blob.name, blob.role, start, start + _PAGE, base, f"the same code in what QEMU has loaded, {how}", (address, code)
    )
