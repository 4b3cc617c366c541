"""Programs of UEFI in memory become names: from their debug directory, or from the firmware volume that holds the same program.

Images are PE32+ (PE/COFF 4.1), or TE where code runs from flash (PI 1.8, volume 1, 15). EDK2 debug builds name themselves in a
CodeView record; release builds do not, but the volumes (PI 1.8, volume 3) name each file in a user interface section, and stay in
memory as long as the drivers are loaded out of them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from guest.firmware.code import BootCode, Read, Role, read_before
from guest.firmware.linux import COMPRESSED
from guest.memory import PhysicalMemory, Steps

_STEP = 1 << 18
_IN_PLACE = 1 << 18
"""How far below an address the header of an image is looked for at any place, ..."""
_MAX_LOADED = 8 << 20
"""... at the start of a page, ..."""
_MAX_KERNEL, _LARGE_STEP = 64 << 20, 1 << 16
"""... and in larger steps."""
_MAX_IMAGE = 16 << 20
_HEADER = 512
_FURTHEST_HEADER = 4096
_PE, _TE = b"PE\0\0", b"VZ"
_MACHINES = frozenset({0x14C, 0x8664, 0xAA64, 0x1C2, 0x5064})
_DEBUG_DIRECTORY, _CODEVIEW = 6, 2
_NAME = re.compile(rb"[ -~]{1,255}")
_LINUX_ARM64, _LINUX_RISCV, _LINUX_X86 = (0x38, b"ARM\x64"), (0x38, b"RSC\x05"), (0x202, b"HdrS")
_FV_SIGNATURE = b"_FVH"
_FV_HEADER = 0x28
_FFS_HEADER, _FFS_HEADER2 = 24, 32
_SECTION_PE32, _SECTION_TE, _SECTION_UI = 0x10, 0x12, 0x15
_CHUNK = 4 << 20
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Portable:
    """An image by its headers. mark: what another copy of the same program has, too. name: its own, "" without one."""

    start: int
    size: int
    mark: bytes
    name: str
    header: bytes

    def holds_at(self, address: int, read: Read) -> bool:
        """Whether an address is in it, and it is still there."""
        return self.start <= address < self.start + self.size and read(self.start, len(self.header)) == self.header


def find_portable(address: int, read: Read) -> Portable | None:
    """The image that an address is in: the nearest header below it that reaches so far."""
    # Run from flash or out of its volume, it may begin anywhere.
    low, data = read_before(address + 1 & -4, _IN_PLACE, read)
    at = len(data)
    while (at := max(data.rfind(b"MZ", 0, at), data.rfind(_TE, 0, at))) >= 0:
        image = None if (low + at) % 4 else parse_portable(low + at, read)
        if image is not None and image.start <= address < image.start + image.size:
            return image
    # Loaded, it begins with a page; a large one, a kernel, is aligned to more.
    end = address & -_PAGE
    while end > address - _MAX_LOADED:
        low, data = read_before(end, _STEP, read)
        if not data or low % _PAGE:
            return None
        marks = data[::_PAGE], data[1::_PAGE]
        for page in range(len(marks[0]) - 1, -1, -1):
            if marks[0][page] == 0x4D and marks[1][page] == 0x5A:
                image = parse_portable(low + page * _PAGE, read)
                if image is not None and image.start <= address < image.start + image.size:
                    return image
        end = low
    for low in range(end & -_LARGE_STEP, address - _MAX_KERNEL, -_LARGE_STEP):
        image = parse_portable(low, read)
        if image is not None and image.start <= address < image.start + image.size:
            return image
    return None


def parse_portable(start: int, read: Read) -> Portable | None:
    """The image whose header begins at an address, None where there is none."""
    header = read(start, 64)
    if header is None:
        return None
    if header[:2] == _TE:
        full = read(start, _HEADER)
        return None if full is None else _parse_te(start, full, read)
    (at,) = struct.unpack_from("<I", header, 60)
    if at > _FURTHEST_HEADER or header[:2] != b"MZ" or read(start + at, 4) != _PE:
        return None
    full = read(start, at + _HEADER)
    if full is None:
        return None
    header = full
    machine, sections, _time, _symbols, _count, optional = struct.unpack_from("<HHIIIH", header, at + 4)
    (magic,) = struct.unpack_from("<H", header, at + 24)
    if machine not in _MACHINES or magic not in (0x10B, 0x20B) or not sections:
        return None
    size_of_code, _data, _bss, entry = struct.unpack_from("<IIII", header, at + 28)
    (size,) = struct.unpack_from("<I", header, at + 24 + 56)
    directories = at + 24 + (112 if magic == 0x20B else 96)
    (count,) = struct.unpack_from("<I", header, directories - 4)
    name = ""
    if count > _DEBUG_DIRECTORY:
        place, length = struct.unpack_from("<II", header, directories + 8 * _DEBUG_DIRECTORY)
        name = _debug_name(start, place, length, read)
    if not name and any(mark in header[at + 24 + optional :] for mark in (b"mods\0\0\0\0",)):
        name = "GRUB"
    mark = struct.pack("<HII", machine, entry, size) + (read(start + entry, 64) or b"")
    if not 0 < size <= _MAX_IMAGE * 4 or size_of_code > size:
        return None
    return Portable(start, size, mark, name, header[:64])


def _parse_te(start: int, header: bytes, read: Read) -> Portable | None:
    """A TE image keeps the addresses of the headers that were stripped off it."""
    machine, sections, _subsystem, stripped, entry, _base = struct.unpack_from("<HBBHII", header, 2)
    if machine not in _MACHINES or not 0 < sections < 16 or stripped < 40:
        return None
    last = struct.unpack_from("<II", header, 40 + 40 * (sections - 1) + 8)
    size = sum(last) + 40 - stripped
    begin = start + 40 - stripped
    if not 0 < size <= _MAX_IMAGE:
        return None
    place, length = struct.unpack_from("<II", header, 32)
    name = _debug_name(begin, place, length, read)
    return Portable(start, size, struct.pack("<HII", machine, entry, size) + (read(begin + entry, 64) or b""), name, header[:40])


def _debug_name(base: int, place: int, size: int, read: Read) -> str:
    """The program's file name out of its CodeView record (NB10, RSDS, MTOC), without directories and endings; "" without one."""
    if not place or size < 28:
        return ""
    entry = read(base + place, 28)
    if entry is None or struct.unpack_from("<I", entry, 12)[0] != _CODEVIEW:
        return ""
    (raw,) = struct.unpack_from("<I", entry, 20)
    record = read(base + raw, 320)
    skip = {b"NB10": 16, b"RSDS": 24, b"MTOC": 20}.get(record[:4] if record else b"")
    if record is None or skip is None:
        return ""
    path = _NAME.match(record, skip)
    name = re.split(rb"[/\\]", path[0])[-1].decode() if path else ""
    return name.partition(".")[0]


def linux_role(image: Portable, read: Read) -> Role | None:
    """What a kernel image that firmware has started as a program of UEFI does, None where it is no kernel.

    A header alone is none: boot loaders read the first blocks of the kernel's file into buffers of theirs.
    """
    for (offset, mark), role in (
        (_LINUX_ARM64, Role.EFI_STUB),
        (_LINUX_RISCV, Role.EFI_STUB),
        (_LINUX_X86, Role.DECOMPRESSOR),
    ):
        if read(image.start + offset, len(mark)) == mark and (mark != _LINUX_X86[1] or _holds_compressed(image, read)):
            return role
    return None


def _holds_compressed(image: Portable, read: Read) -> bool:
    """Whether the compressed kernel is where the setup header says (Documentation/arch/x86/boot.rst, payload_offset)."""
    sectors, payload = read(image.start + 0x1F1, 1), read(image.start + 0x248, 4)
    if not sectors or not payload:
        return False
    place = image.start + ((sectors[0] or 4) + 1) * 512 + int.from_bytes(payload, "little")
    return (read(place, 8) or b"").startswith(COMPRESSED)


class Volumes:
    """Names of programs, by the firmware volumes in memory."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._places: dict[int, str] = {}

    def name_of(self, image: Portable) -> str:
        """What the volumes call an image that lies in one of them, or is loaded out of one; "" where none has it."""
        return self._places.get(image.start) or self._names.get(image.mark, "")

    def search(self, memory: PhysicalMemory, roms: tuple[tuple[int, int], ...]) -> Steps[None]:
        """Read all volumes in RAM and ROM."""

        def read(address: int, size: int) -> bytes | None:
            return memory.read_many([(address, size)])[0]

        for low, high in (*roms, *memory.ram()):
            for start in range(low, high, _CHUNK):
                data = read(start, min(_CHUNK, high - start)) or b""
                at = -1
                while (at := data.find(_FV_SIGNATURE, at + 1)) >= 0:
                    if at >= _FV_HEADER and (start + at) % 8 == 0:
                        for place, name in files_of_volume(start + at - _FV_HEADER, read):
                            self._add(place, name, read)
                yield

    def _add(self, place: int, name: str, read: Read) -> None:
        image = parse_portable(place, read)
        if image is not None:
            self._places[place] = name
            # What two programs have in common tells neither.
            self._names[image.mark] = name if self._names.get(image.mark, name) == name else ""


def files_of_volume(start: int, read: Read) -> Iterator[tuple[int, str]]:
    """(address of its image, name) of each named program in the volume whose header is at an address."""
    header = read(start, 72)
    if header is None:
        return
    length, _signature, _attributes, header_size = struct.unpack_from("<QIIH", header, 32)
    if not 72 <= header_size <= length <= _MAX_IMAGE * 4:
        return
    data = read(start, length)
    if data is None:
        return
    at = header_size
    (extended,) = struct.unpack_from("<H", header, 52)
    if header_size <= extended <= length - 20:
        at = extended + struct.unpack_from("<I", data, extended + 16)[0]
    at = at + 7 & -8
    while at + _FFS_HEADER <= length:
        size = int.from_bytes(data[at + 20 : at + 23], "little")
        first = _FFS_HEADER
        if data[at + 19] & 1 and at + _FFS_HEADER2 <= length:
            (size,) = struct.unpack_from("<Q", data, at + 24)
            first = _FFS_HEADER2
        if data[at : at + 23] == b"\xff" * 23 or size < first or at + size > length:
            return
        image, name = _sections(data, at + first, at + size)
        if image is not None and name:
            yield start + image, name
        at = at + size + 7 & -8


def _sections(data: bytes, at: int, end: int) -> tuple[int | None, str]:
    """Offset of a file's image, and what it is called."""
    image: int | None = None
    name = ""
    while at + 4 <= end:
        size, kind = int.from_bytes(data[at : at + 3], "little"), data[at + 3]
        if size < 4 or at + size > end:
            break
        if kind in (_SECTION_PE32, _SECTION_TE):
            image = at + 4
        elif kind == _SECTION_UI:
            name = data[at + 4 : at + size].decode("utf-16-le", "replace").partition("\0")[0]
        at = at + size + 3 & -4
    return image, name if name.isprintable() else ""


def portable_code(image: Portable, name: str, role: Role, evidence: str) -> BootCode:
    """An image under a name."""
    return BootCode(name, role, image.start, image.start + image.size, image.start, evidence, (image.start, image.header))
