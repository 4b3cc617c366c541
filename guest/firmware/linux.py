"""The decompressor of a PC's Linux: where its setup header in memory says, or the copy of it that has moved out of the way.

Documentation/arch/x86/boot.rst: the header says where a boot loader has put the image (``code32_start``) and where in it the
compressed kernel lies; the decompressor's own code surrounds that (arch/x86/boot/compressed/vmlinux.lds.S).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from guest.firmware.blobs import moved_by
from guest.firmware.code import CODE_SIZE, BootCode, Read, Role

_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_LOW, _HIGH = 0x1000, 0xA0000
_HEADER_SIZE = 0x268
_MAX_IMAGE = 64 << 20
_HEAD, _TAIL = 1 << 16, 1 << 20
_MAX_IMAGES = 4
_PAGE = 4096
_MAGIC_SIZE = 8
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\x5d\0\0", b"\xfd7zXZ", b"\x89LZO", b"\x02!L\x18", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, lzma, xz, lzo, lz4 and zstd begin (lib/decompress.c)."""
_AROUND = 512
_NAME = "Linux decompressor"


@dataclass(frozen=True, slots=True)
class _Image:
    """A compressed kernel as it was loaded. pieces: (offset in it, bytes) of the code before and behind what is compressed."""

    header: int
    start: int
    size: int
    reach: int
    magic: tuple[int, bytes]
    pieces: tuple[tuple[int, bytes], ...]


class DecompressorFinder:
    """Remembers compressed kernels that it has seen: they are overwritten by what is unpacked out of them."""

    def __init__(self) -> None:
        self._images: list[_Image] = []

    def find(self, address: int, read: Read) -> BootCode | None:
        """The decompressor, in the place where it was loaded or where it has moved to."""
        self._look(read)
        code = read(address, CODE_SIZE)
        page = address & -_PAGE
        for image in self._images if code is not None else ():
            if image.start <= address < image.start + image.size and read(*_place(image.magic)) == image.magic[1]:
                evidence = f"the setup header at {image.header:#x}"
                return BootCode(_NAME, Role.DECOMPRESSOR, page, page + _PAGE, image.start, evidence, (address, code or b""))
            if not image.start <= address < image.start + image.reach:
                continue
            around = read(address - _AROUND, 2 * _AROUND)
            for offset, data in image.pieces if around is not None else ():
                base = moved_by(data, around or b"", address - _AROUND)
                if base is not None:
                    evidence = f"moved: the same code as in the image of the setup header at {image.header:#x}"
                    proof = address, code or b""
                    return BootCode(_NAME, Role.DECOMPRESSOR, page, page + _PAGE, base - offset, evidence, proof)
        return None

    def _look(self, read: Read) -> None:
        """Remember the images that setup headers in low memory tell of, while they are there."""
        low = read(_LOW, _HIGH - _LOW)
        at = -1
        while low is not None and (at := low.find(_MAGIC, at + 1)) >= 0:
            place = _image_of(low, at - _MAGIC_AT)
            header = _LOW + at - _MAGIC_AT
            if place is None or any((image.header, image.start) == (header, place[0]) for image in self._images):
                continue
            start, size, payload, payload_size, memory = place
            magic = read(start + payload, _MAGIC_SIZE)
            if magic is None or not magic.startswith(COMPRESSED) or len(self._images) >= _MAX_IMAGES:
                continue
            pieces = []
            for first, end in ((0, min(_HEAD, payload)), (payload + payload_size, min(size, payload + payload_size + _TAIL))):
                data = read(start + first, end - first) if end > first else None
                pieces += [(first, data)] if data else []
            reach = _MAX_IMAGE + memory
            self._images.append(_Image(header, start, size, reach, (start + payload, magic), tuple(pieces)))


def _place(bytes_at: tuple[int, bytes]) -> tuple[int, int]:
    return bytes_at[0], len(bytes_at[1])


def _image_of(low: bytes, header: int) -> tuple[int, int, int, int, int] | None:
    """(address, size, offset and size of the compressed kernel in it, memory that it needs) by a setup header."""
    if header < 0 or header + _HEADER_SIZE > len(low):
        return None
    (version,) = struct.unpack_from("<H", low, header + 0x206)
    (paragraphs,) = struct.unpack_from("<I", low, header + 0x1F4)
    (start,) = struct.unpack_from("<I", low, header + 0x214)
    payload, payload_size = struct.unpack_from("<II", low, header + 0x248)
    (memory,) = struct.unpack_from("<I", low, header + 0x260)
    size = paragraphs * 16
    is_sane = version >= 0x208 and 0 < size <= _MAX_IMAGE and 0 < payload < payload + payload_size <= size and start >= 0x100000
    return (start, size, payload, payload_size, memory) if is_sane else None
