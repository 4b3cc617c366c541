"""Firmware files, GRUB, option ROMs and the decompressor in memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.firmware.blobs import find_in_blobs, name_blob, parse_roms
from guest.firmware.code import Role
from guest.firmware.finder import BootCodeFinder
from guest.firmware.linux import DecompressorFinder
from guest.firmware.loaders import find_grub_core, find_grub_module, find_grub_relocator, find_option_rom
from tests.guest.firmware.memory import Memory, code

ROM = 0xFFFC_0000
SEABIOS = code(1, 0x8000) + b"SeaBIOS (version rel-1.16)\0\0" + code(2, 0x4000)


def test_what_qemu_has_loaded() -> None:
    text = (
        'addr=00000000fffc0000 size=0x040000 mem=rom name="bios-256k.bin"\r\n'
        '/rom@etc/acpi/tables size=0x200000 name="etc/acpi/tables"\r\n'
    )
    assert parse_roms(text) == [(ROM, 0x40000, "bios-256k.bin")]
    assert name_blob(ROM, code(3, 64), "vgabios.bin") is None
    own = name_blob(0x1000, code(3, 64), "mrom.reset")
    assert own is not None
    assert own.name == "reset vector"


def test_a_firmware_file_in_place_and_moved() -> None:
    blob = name_blob(ROM, SEABIOS, "bios-256k.bin")
    assert blob is not None
    moved = bytearray(SEABIOS[0x1000:0x3000])
    # Absolute addresses in it were adapted.
    for at in range(0, len(moved), 96):
        moved[at : at + 4] = b"\xaa\xbb\xcc\xdd"
    memory = Memory({ROM: SEABIOS, 0x1EFF_0000: bytes(moved), 0x20_0000: code(9, 0x2000)})
    found = find_in_blobs([blob], ROM + 0x123, memory.read_bytes)
    assert found is not None
    assert (found.name, found.role, found.base) == ("SeaBIOS", Role.FIRMWARE, ROM)
    found = find_in_blobs([blob], 0x1EFF_0904, memory.read_bytes)
    assert found is not None
    assert (found.name, found.base) == ("SeaBIOS", 0x1EFF_0000 - 0x1000)
    assert find_in_blobs([blob], 0x20_0904, memory.read_bytes) is None
    assert find_in_blobs([blob], 0x30_0000, memory.read_bytes) is None


def test_grub_for_a_bios() -> None:
    boot = bytes(0x180) + b"Geom\0Read\0 Error\0" + bytes(0x200 - 0x180 - 17)
    low = boot + code(1, 0xE00) + code(2, 0x5000) + b"Welcome to GRUB!\n\n" + bytes(0x18000)
    memory = Memory({0x8000: low})
    for address, base in ((0x8B83, 0x8000), (0xCE32, 0x9000)):
        found = find_grub_core(address, memory.read_bytes)
        assert found is not None
        assert (found.name, found.role, found.base) == ("GRUB", Role.BOOT_LOADER, base)
    assert find_grub_core(0xF000, memory.read_bytes) is None
    assert find_grub_core(0xCE32, Memory({0x8000: bytes(0x18000)}).read_bytes) is None


@pytest.mark.parametrize("pointer_size", [4, 8])
def test_a_module_in_grubs_heap(pointer_size: int) -> None:
    align = 4 * pointer_size
    head = bytes(pointer_size) + (0x1000 // align).to_bytes(pointer_size, "little") + struct.pack("<I", 0x6DB08FA4)
    block = head.ljust(align, b"\0") + code(1, 0x1000 - align)
    memory = Memory({0x1FF8_0000: bytes(0x4000) + block + bytes(0x1000)})
    found = find_grub_module(0x1FF8_4800, memory.read_bytes, pointer_size)
    assert found is not None
    assert (found.name, found.base) == ("GRUB module", 0x1FF8_4000 + align)
    assert find_grub_module(0x1FF8_5000, memory.read_bytes, pointer_size) is None
    assert find_grub_module(0x1FF8_3FFF, memory.read_bytes, pointer_size) is None


def test_grubs_copying_code() -> None:
    backward = bytes.fromhex("b80000000189c7b80000100089c6b90080370301ce01cf83ee0183ef01fdf3a4")
    forward = bytes.fromhex("b800a0080089c7b860baf61f89c6b900600000fcf3a4")
    at = 0x437_8000
    memory = Memory({at - 256: bytes(256) + backward + forward + bytes(512)})
    for address, start in ((at + 0x1E, at), (at + len(backward) + 0x14, at + len(backward))):
        found = find_grub_relocator(address, memory.read_bytes)
        assert found is not None
        assert (found.name, found.start) == ("GRUB relocator", start)
    assert find_grub_relocator(at + len(backward) + len(forward), memory.read_bytes) is None


def test_an_option_rom() -> None:
    rom = bytearray(code(1, 0x9800))
    rom[:3] = b"\x55\xaa\x4c"
    rom[24:26] = struct.pack("<H", 0x40)
    rom[0x40:0x44] = b"PCIR"
    rom[0x100:0x107] = b"VGABIOS"
    memory = Memory({0xC0000: bytes(rom) + bytes(0x30000 - len(rom))})
    found = find_option_rom(0xC2BC2, memory.read_bytes)
    assert found is not None
    assert (found.name, found.role, found.start, found.end) == ("VGA BIOS", Role.OPTION_ROM, 0xC0000, 0xC9800)
    assert found.evidence == "its header at 0xc0000 with PCIR"
    assert find_option_rom(0xC9800, memory.read_bytes) is None
    assert find_option_rom(0xF0000, memory.read_bytes) is None


IMAGE, PAYLOAD, PAYLOAD_SIZE = 0x100_0000, 0x2C8, 0x8000
BEHIND = code(7, 0x4000)


def low_memory(start: int = IMAGE) -> bytes:
    """Low memory with the setup header of a kernel at 0x8a000."""
    header = bytearray(0x1000)
    size = PAYLOAD + PAYLOAD_SIZE + len(BEHIND)
    struct.pack_into("<I", header, 0x1F4, -(-size // 16))
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x20F)
    struct.pack_into("<I", header, 0x214, start)
    struct.pack_into("<II", header, 0x248, PAYLOAD, PAYLOAD_SIZE)
    struct.pack_into("<I", header, 0x260, 0x40_0000)
    return bytes(0x8A000 - 0x1000) + bytes(header) + bytes(0xA0000 - 0x8B000)


def test_the_decompressor_in_place_and_moved_away() -> None:
    image = code(5, PAYLOAD) + b"\x02!L\x18" + bytes(PAYLOAD_SIZE - 4) + BEHIND + bytes(64)
    moved_to = 0x137_0000
    memory = Memory({0x1000: low_memory(), IMAGE - 0x1000: bytes(0x1000) + image, moved_to: image})
    finder = DecompressorFinder()
    found = finder.find(IMAGE + 0x2A0, memory.read_bytes)
    assert found is not None
    assert (found.name, found.role, found.base) == ("Linux decompressor", Role.DECOMPRESSOR, IMAGE)
    # What it unpacks overwrites it.
    memory.pieces[IMAGE - 0x1000] = bytes(0x1000) + code(11, len(image))
    assert finder.find(IMAGE + 0x2A0, memory.read_bytes) is None
    found = finder.find(moved_to + PAYLOAD + PAYLOAD_SIZE + 0x1234, memory.read_bytes)
    assert found is not None
    assert (found.name, found.base) == ("Linux decompressor", moved_to)
    assert finder.find(0x500_0000, memory.read_bytes) is None


def test_a_setup_header_without_a_kernel_tells_nothing() -> None:
    memory = Memory({0x1000: low_memory(), IMAGE - 0x1000: code(12, 0x20000)})
    assert DecompressorFinder().find(IMAGE + 0x2A0, memory.read_bytes) is None


@given(st.binary(max_size=600), st.integers(0x1000, 0x9F000), st.integers(0, 0xFFFF_FFFF))
def test_any_bytes_are_no_reason_to_fail(data: bytes, place: int, address: int) -> None:
    low = bytearray(low_memory())
    low[place - 0x1000 : place - 0x1000 + len(data)] = data
    memory = Memory({0x1000: bytes(low[: 0xA0000 - 0x1000]), address: data})
    for each in (address, place, 0x8100, 0xC000):
        BootCodeFinder(8).find(each, memory.read_bytes)
