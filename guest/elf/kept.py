"""What ``--raw`` keeps of a file of the user's, and such a file again out of that: the same to all that reads code of it."""

from __future__ import annotations

from pathlib import Path

from guest.elf.file import ElfFile
from guest.elf.images import GuestImages
from guest.user.contents import PAGE_SIZE
from recording.model import KeptFile

_ADDRESS_MASK = 0xFFFF_FFFF_FFFF_FFFF
_DEBUG = (".debug_", ".zdebug_")
_FRAMES = (".debug_frame", ".zdebug_frame")


def kept_files(images: GuestImages) -> list[KeptFile]:
    """All of the user's files, without what only source lines need."""
    return [
        KeptFile(index, image.elf.contents.size, image.request.bias & _ADDRESS_MASK, image.request.root, kept_pieces(image.elf))
        for index, image in enumerate(images.all)
    ]


def kept_pieces(elf: ElfFile) -> tuple[tuple[int, bytes], ...]:
    """(offset, bytes) of headers, segments and all sections but those of debug information; ``.debug_frame`` is among them."""
    header, size = elf.header, elf.contents.size
    spans = [(0, PAGE_SIZE), (header.section_offset, header.section_offset + header.section_count * header.section_entry_size)]
    spans += [(segment.offset, segment.offset + segment.file_size) for segment in header.segments]
    spans += [
        (section.offset, section.offset + section.size)
        for section in elf.sections or ()
        if section.has_bytes and (section.name.startswith(_FRAMES) or not section.name.startswith(_DEBUG))
    ]
    pieces = []
    for start, end in _merged(spans, size):
        data = elf.contents.read(start, end - start)
        if data:
            pieces.append((start, data))
    return tuple(pieces)


def _merged(spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted((min(start, size), min(end, size)) for start, end in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def write_kept(file: KeptFile, path: Path) -> None:
    """Make the file again, with holes where nothing was kept."""
    with path.open("wb") as stream:
        for offset, data in file.pieces:
            stream.seek(offset)
            stream.write(data)
        stream.truncate(file.size)
