"""Boot loaders and option ROMs in memory that no header of UEFI tells: by their own headers, texts and heaps.

GRUB for a BIOS: its core loads itself at 0x8000 (grub-core/boot/i386/pc/diskboot.S) and runs at 0x9000; modules lie in its heap
(grub-core/kern/mm.c, include/grub/mm_private.h). Option ROMs: PCI Firmware Specification 3.3, 5.1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from guest.firmware.code import BootCode, Read, Role, read_before

_LOW = 0xA0000
_DISKBOOT, _KERNEL, _KERNEL_END = 0x8000, 0x9000, 0x20000
_DISKBOOT_TEXT = b"Geom\0Read\0 Error\0"
_WELCOME = b"Welcome to GRUB!"
_MM_ALLOCATED = struct.pack("<I", 0x6DB08FA4)
_HEAP_REACH = 1 << 20
_RELOCATOR = re.compile(
    rb"\x48?\xb8.{4,8}?\x48?\x89\xc7\x48?\xb8.{4,8}?\x48?\x89\xc6\x48?\xb9.{4,8}?"
    rb"(?:\xfc|\x48?\x01\xce\x48?\x01\xcf\x48?\x83\xee\x01\x48?\x83\xef\x01\xfd)\xf3\xa4",
    re.DOTALL,
)
_RELOCATOR_REACH = 128
_ROMS, _ROMS_END, _ROM_STEP = 0xC0000, 0xF0000, 2048
_ROM_NAMES = ((b"iPXE", "iPXE"), (b"VGABIOS", "VGA BIOS"), (b"SeaVGABIOS", "VGA BIOS"), (b"etherboot", "Etherboot"))


def find_grub_core(address: int, read: Read) -> BootCode | None:
    """GRUB's core for a BIOS: what unpacks it, and what was unpacked."""
    if _DISKBOOT <= address < _KERNEL:
        data = read(_DISKBOOT, 512)
        at = -1 if data is None else data.find(_DISKBOOT_TEXT)
        if at >= 0:
            proof = _DISKBOOT + at, _DISKBOOT_TEXT
            return BootCode("GRUB", Role.BOOT_LOADER, _DISKBOOT, _KERNEL, _DISKBOOT, "its first sector's messages", proof)
    if _KERNEL <= address < _KERNEL_END:
        data = read(address, _KERNEL_END - address)
        at = -1 if data is None else data.find(_WELCOME)
        if at >= 0:
            proof = address + at, _WELCOME
            return BootCode("GRUB", Role.BOOT_LOADER, _KERNEL, address + at, _KERNEL, "its greeting behind the code", proof)
    return None


def find_grub_module(address: int, read: Read, pointer_size: int) -> BootCode | None:
    """A module of GRUB, or what else it runs in its heap: a block with the heap's header, which reaches over the address."""
    align = 4 * pointer_size
    low, data = read_before(address & -align, _HEAP_REACH, read)
    at = len(data)
    while (at := data.rfind(_MM_ALLOCATED, 0, at)) >= 0:
        head = at - 2 * pointer_size
        if head < 0 or (low + head) % align:
            continue
        size = int.from_bytes(data[head + pointer_size : head + 2 * pointer_size], "little") * align
        start = low + head
        if start + align <= address < start + size <= start + _HEAP_REACH:
            proof = low + at, _MM_ALLOCATED
            evidence = f"its heap's block at {start:#x}"
            return BootCode("GRUB module", Role.BOOT_LOADER, start, start + size, start + align, evidence, proof)
    return None


def find_option_rom(address: int, read: Read) -> BootCode | None:
    """An expansion ROM of a PC that its header reaches over an address of."""
    if not _ROMS <= address < _ROMS_END:
        return None
    for start in range(address & -_ROM_STEP, _ROMS - 1, -_ROM_STEP):
        head = read(start, 32)
        if head is None or head[:2] != b"\x55\xaa":
            continue
        size = head[2] * 512
        if not start <= address < start + size:
            return None
        data = read(start, min(size, _ROMS_END - start)) or b""
        (pci,) = struct.unpack_from("<H", head, 24)
        kind = "PCIR" if data[pci : pci + 4] == b"PCIR" else "$PnP" if b"$PnP" in data else ""
        name = next((name for text, name in _ROM_NAMES if text in data), "option ROM")
        evidence = f"its header at {start:#x}{f' with {kind}' if kind else ''}"
        return BootCode(name, Role.OPTION_ROM, start, start + size, start, evidence, (start, head))
    return None


def find_grub_relocator(address: int, read: Read) -> BootCode | None:
    """The code that GRUB writes to copy a kernel to its place: the address is in its copying instruction or just before it.

    grub-core/lib/i386/relocator_asm.S, which each piece to copy is a filled-in copy of.
    """
    low, data = read_before(address, _RELOCATOR_REACH, read)
    for found in _RELOCATOR.finditer(data + (read(address, _RELOCATOR_REACH) or b"")):
        start, end = low + found.start(), low + found.end()
        if start <= address < end:
            evidence = "the code with which GRUB copies"
            return BootCode("GRUB relocator", Role.BOOT_LOADER, start, end, start, evidence, (start, found[0]))
    return None


LOADERS: tuple[Callable[[int, Read], BootCode | None], ...] = (find_grub_core, find_option_rom, find_grub_relocator)
"""Those of a PC with a BIOS."""
