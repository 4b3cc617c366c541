"""Programs of UEFI by their headers, debug directories and firmware volumes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.firmware.code import Role
from guest.firmware.finder import BootCodeFinder
from guest.firmware.portable import Volumes, files_of_volume, find_portable, parse_portable
from guest.memory import run_steps
from tests.guest.firmware.memory import Memory, code, portable, volume

AT = 0x70_0000
NB10 = b"NB10" + bytes(12) + b"/build/edk2/MdeModulePkg/Core/Dxe/DxeMain/DEBUG/DxeCore.dll\0"
RSDS = b"RSDS" + bytes(20) + b"c:\\build\\PcdDxe.pdb\0"


@pytest.mark.parametrize(("record", "name"), [(NB10, "DxeCore"), (RSDS, "PcdDxe"), (b"XXXX" + bytes(40), ""), (b"", "")])
def test_the_debug_directory_names_a_program(record: bytes, name: str) -> None:
    memory = Memory({AT: portable(code(1, 0x2000), debug=record) + bytes(0x1000)})
    found = find_portable(AT + 0x1234, memory.read_bytes)
    assert found is not None
    assert (found.start, found.name) == (AT, name)


def test_a_header_may_lie_behind_a_long_stub() -> None:
    memory = Memory({AT: portable(code(1, 0x2000), at=0x200)})
    assert parse_portable(AT, memory.read_bytes) is not None


def test_an_address_behind_an_image_is_not_in_it() -> None:
    image = portable(code(1, 0x1000))
    memory = Memory({AT: image + bytes(0x2000)})
    assert find_portable(AT + len(image) - 1, memory.read_bytes) is not None
    assert find_portable(AT + len(image), memory.read_bytes) is None


def test_a_volume_names_what_was_loaded_out_of_it() -> None:
    drivers = {"DxeCore": portable(code(1, 0x1000)), "PcdDxe": portable(code(2, 0x1000)), "Twin1": portable(code(3, 0x800))}
    stored = volume([*drivers.items(), ("Twin2", drivers["Twin1"])])
    memory = Memory({0x90_0000: stored, AT: drivers["PcdDxe"], AT + 0x10_0000: drivers["Twin1"]})
    volumes = Volumes()
    run_steps(volumes.search(memory, ()))
    names = [name for _address, name in files_of_volume(0x90_0000, memory.read_bytes)]
    assert names == ["DxeCore", "PcdDxe", "Twin1", "Twin2"]
    for address, name in ((AT, "PcdDxe"), (AT + 0x10_0000, "")):
        image = parse_portable(address, memory.read_bytes)
        assert image is not None
        assert volumes.name_of(image) == name
    first = next(iter(files_of_volume(0x90_0000, memory.read_bytes)))[0]
    image = parse_portable(first, memory.read_bytes)
    assert image is not None
    assert volumes.name_of(image) == "DxeCore"


def test_kernels_and_grub_as_programs_of_uefi() -> None:
    stub = bytearray(portable(code(4, 0x1000)))
    stub[0x38:0x3C] = b"ARM\x64"
    grub = portable(code(5, 0x1000), sections=b"mods\0\0\0\0")
    memory = Memory({AT: bytes(stub), AT + 0x10_0000: grub})
    finder = BootCodeFinder(8)
    found = finder.find(AT + 0x500, memory.read_bytes)
    assert found is not None
    assert (found.name, found.role, found.base) == ("Linux EFI stub", Role.EFI_STUB, AT)
    found = finder.find(AT + 0x10_0500, memory.read_bytes)
    assert found is not None
    assert (found.name, found.role) == ("GRUB", Role.BOOT_LOADER)
    memory.pieces[AT + 0x10_0000] = bytes(len(grub))
    assert not found.holds_at(AT + 0x10_0500, memory.read_bytes)


def test_the_first_blocks_of_a_kernel_in_a_buffer_are_no_program() -> None:
    """A boot loader has read its headers; only where all of it is in memory it was started as a program."""
    image = bytearray(portable(code(6, 0x2000)))
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    image[0x248:0x24C] = (0x200).to_bytes(4, "little")
    memory = Memory({AT: bytes(image)})
    assert BootCodeFinder(8).find(AT + 0x1000, memory.read_bytes) is None
    image[0x600:0x602] = b"\x1f\x8b"
    memory.pieces[AT] = bytes(image)
    found = BootCodeFinder(8).find(AT + 0x1000, memory.read_bytes)
    assert found is not None
    assert (found.name, found.role) == ("Linux EFI stub", Role.DECOMPRESSOR)


@given(st.binary(max_size=3000), st.integers(0, 2999))
def test_any_bytes_are_no_reason_to_fail(data: bytes, offset: int) -> None:
    image = bytearray(portable(code(1, 0x400), debug=NB10))
    image[offset % len(image) : offset % len(image) + len(data)] = data
    memory = Memory({AT: bytes(image), 0x90_0000: volume([("A", bytes(image))])[: 4096 + offset]})
    BootCodeFinder(8).find(AT + 0x410, memory.read_bytes)
    run_steps(Volumes().search(memory, ()))
